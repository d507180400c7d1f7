"""Choosing tokens and codes within the graph (specification, 4.1 and 4.2).

Candidates are ranked by their probability without temperature. One is kept if its cumulative probability, its own
included, is at most top_p and its rank below top_k; the first always is. Of these the largest of

    log(probability) / temperature + Gumbel noise

is a draw from the tempered probabilities. Both filters reach the graph as one limit to the cumulative probability for
each rank: top_p, or more than any below which all are kept, or less than any.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.ggml import GraphBuilder, Tensor
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.sizes import LONGEST_SORT, SORT_CHUNK, padded

#: Candidates that are looked at; a larger top_k has no effect.
RANKS = 32

#: Repetition-aware sampling: tokens looked back on, and what a repeated one is drawn again with.
RAS_WINDOW = 10
RAS_TOP_P = 0.9

_LEAST_TEMPERATURE = 1e-5
_ALWAYS, _NEVER = 4.0, -4.0

_LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class Sampling:
    """`top_k` 1 takes the likeliest each time. `max_frames` of None leaves only the context as a limit; the end is
    not drawn before `min_frames`."""

    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 30
    seed: int = 0
    max_frames: int | None = None
    min_frames: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What a sequence's settings are to the graph."""

    limits: npt.NDArray[np.float32]  # [2, ranks]: of a draw, and of one in place of a repeated token
    coldness: float

    @classmethod
    def of(cls, sampling: Sampling, ranks: int) -> "Rules":
        both = [limits(top_p, sampling.top_k, ranks) for top_p in (sampling.top_p, RAS_TOP_P)]
        return cls(np.stack(both), coldness(sampling.temperature))


def limits(top_p: float, top_k: int, ranks: int) -> npt.NDArray[np.float32]:
    """To the cumulative probability, for each rank: kept is what lies below. `[ranks]`"""
    # Sums of all probabilities exceed 1 by rounding.
    most = _ALWAYS if top_p >= 1 else np.nextafter(np.float32(top_p), np.float32(2))
    result = np.full(ranks, most, np.float32)
    result[max(1, top_k) :] = _NEVER
    result[0] = _ALWAYS
    return result


def coldness(temperature: float) -> float:
    return 1 / max(temperature, _LEAST_TEMPERATURE)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The likeliest candidates of each of a batch, the first one first."""

    probabilities: Tensor  # f32 [ranks, batch]
    cumulative: Tensor  # f32 [ranks, batch]
    ids: Tensor  # i32 [1, ranks, batch]


class Sampler:
    """Of `n` logits, of batches up to `slots`.

    More than a GPU sorts at once are sorted in chunks, and the best of the chunks once more: which is exact. Not
    `chunked`, as suits a processor, those that are not among the best are not sorted at all.
    """

    def __init__(self, model: Model, n: int, *, slots: int, chunked: bool) -> None:
        self._chunked = chunked
        self.ranks = min(RANKS, n)
        self._rows = padded(n)
        self._chunk = SORT_CHUNK if chunked else self._rows
        self._chunks = self._rows // self._chunk if self._rows > LONGEST_SORT else 0
        constants: dict[str, npt.NDArray[np.generic]] = {}
        if self._chunks:
            constants["ids"] = np.tile(np.arange(self._rows, dtype=np.int32), slots).reshape(-1, self._chunk, 1)
        if self._rows > n:
            constants["mask"] = np.tile(np.where(np.arange(self._rows) < n, 0, -np.inf).astype(np.float16), (slots, 1))
        self._constants = model.upload(constants) if constants else {}

    def rank(self, g: GraphBuilder, logits: Tensor) -> Ranked:
        """`logits` [padded(n), batch]"""
        batch, k = logits.shape[1], self.ranks
        # A damaged model's logits may be no numbers. Sorting those reads beyond the row; and no index comes of them.
        finite = g.clamp(logits, -_LARGEST, _LARGEST)
        values = g.soft_max(finite, self._constants.get("mask"))
        ids: Tensor | None = None
        if self._chunks:
            chunk, chunks = self._chunk, self._chunks * batch
            pick = g.top_k if self._chunked else g.largest
            best = pick(g.reshape(values, chunk, chunks), k)  # [ranks, chunks]
            every = g.narrow(self._constants["ids"], 2, 0, chunks)  # [1, chunk, chunks]
            ids = g.reshape(g.get_rows(every, best), 1, k * self._chunks, batch)
            values = g.reshape(g.get_rows(g.reshape(values, 1, chunk, chunks), best), k * self._chunks, batch)
        best = g.top_k(values, k)  # [ranks, batch]
        candidates = g.reshape(values, 1, values.shape[0], batch)
        probabilities = g.reshape(g.get_rows(candidates, best), k, batch)
        ids = g.reshape(g.cont(best), 1, k, batch) if ids is None else g.get_rows(ids, best)
        return Ranked(probabilities, g.cumsum(probabilities), ids)

    def draw(
        self, g: GraphBuilder, ranked: Ranked, limit: Tensor, noise: Tensor, coldness: Tensor | None = None
    ) -> Tensor:
        """One of each, i32 [batch]. `limit` and `noise` are f32 [ranks or more, batch], `coldness` is f32 [1, batch]:
        one by the temperature, which is 1 without it."""
        k, batch = self.ranks, ranked.cumulative.shape[1]
        kept = g.step(g.sub(g.narrow(limit, 0, 0, k), ranked.cumulative))
        scores = g.log(g.mul(ranked.probabilities, kept))
        if coldness is not None:
            scores = g.mul(scores, coldness)
        best = g.argmax(g.add(scores, g.narrow(noise, 0, 0, k)))  # [batch]
        return g.reshape(g.get_rows(ranked.ids, g.reshape(best, 1, batch)), batch)


def replace_repeated(g: GraphBuilder, drawn: Tensor, again: Tensor, window: Tensor) -> Tensor:
    """`again` where `drawn` is among the last tokens, `window` [RAS_WINDOW, batch], else `drawn`: all f32 [1, batch].

    They are whole numbers, so that this arithmetic is exact.
    """
    distance = g.sqr(g.sub(window, drawn))
    hits = g.sum_rows(g.step(g.scale(distance, -1.0, 0.25)))  # [1, batch]
    return g.add(drawn, g.mul(g.step(hits), g.sub(again, drawn)))
