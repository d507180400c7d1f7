"""Choosing tokens and codes (specification, section 4). The noise is the caller's, so that an engine can be given the
same: standard Gumbel noise by rank, of which the first value is for the likeliest candidate."""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.config import SlowConfig
from tests.engines.s2.reference.transformer import softmax
from tests.engines.s2.reference.weights import Array

#: Repetition-aware sampling: how many tokens are looked back on, and what a repeated one is drawn again with.
RAS_WINDOW = 10
RAS_TEMPERATURE, RAS_TOP_P = 1.0, 0.9


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 30


def ranked(logits: Array, sampling: Sampling) -> tuple[npt.NDArray[np.intp], Array]:
    """Candidates from the likeliest on, and their logits by temperature, minus infinity for those that are dropped:
    those whose cumulative probability, their own included and without temperature, exceeds top_p, and those whose rank
    is top_k or more; never the first. Equal logits keep their order."""
    logits = np.asarray(logits, np.float64)
    order = np.argsort(-logits, kind="stable")
    descending = logits[order]
    dropped = (np.cumsum(softmax(descending)) > sampling.top_p) | (np.arange(len(order)) >= sampling.top_k)
    dropped[0] = False
    return order, np.where(dropped, -np.inf, descending / max(sampling.temperature, 1e-5))


def probabilities(logits: Array, sampling: Sampling) -> Array:
    """What each candidate is drawn with, in the order of `logits`."""
    order, scaled = ranked(logits, sampling)
    result = np.zeros(len(order))
    result[order] = softmax(scaled)
    return result


def draw(logits: Array, sampling: Sampling, noise: Array) -> int:
    """`noise` reaches at least as far as the last rank that is kept."""
    order, scaled = ranked(logits, sampling)
    ranks = min(len(noise), len(order))
    if np.isfinite(scaled[ranks:]).any():
        raise ValueError(f"noise for {ranks} ranks, and more are kept")
    return int(order[np.argmax(scaled[:ranks] + noise[:ranks])])


def draw_margin(logits: Array, sampling: Sampling, noise: Array) -> float:
    """By how much the winner of `draw` wins: below an engine's rounding, another winner is no error."""
    _, scaled = ranked(logits, sampling)
    ranks = min(len(noise), len(scaled))
    scores = np.sort(scaled[:ranks] + noise[:ranks])
    return float(scores[-1] - scores[-2]) if ranks > 1 else np.inf


class Greedy:
    """The first of the likeliest. What every engine does with a top_k of 1."""

    def token(self, logits: Array) -> int:
        return int(np.argmax(logits))

    def code(self, codebook: int, logits: Array) -> int:
        return int(np.argmax(logits))


class Drawn:
    """One sequence, drawn with repetition-aware sampling in the official form: a semantic token that is among the last
    10 is replaced by a draw from the same logits with other settings. The very first token is never among them; end
    tokens are. Fast codes are drawn with the sequence's settings, and never again.

    `noise` is `[frames, K + 1, ranks]`: for each frame that of its token, that of the token's second draw, and that of
    codes 1 and on. `redrawn` lists the frames that had a second draw.
    """

    def __init__(self, config: SlowConfig, sampling: Sampling, noise: Array) -> None:
        self._config, self._sampling, self._noise = config, sampling, noise
        self._again = replace(sampling, temperature=RAS_TEMPERATURE, top_p=RAS_TOP_P)
        self._window: deque[int] = deque([0] * RAS_WINDOW, maxlen=RAS_WINDOW)
        self._frame = -1
        self.redrawn: list[int] = []

    def token(self, logits: Array) -> int:
        self._frame += 1
        token = draw(logits, self._sampling, self._noise[self._frame, 0])
        if self._config.semantic_begin <= token <= self._config.semantic_end and token in self._window:
            self.redrawn.append(self._frame)
            token = draw(logits, self._again, self._noise[self._frame, 1])
        if self._frame > 0:
            self._window.append(token)
        return token

    def code(self, codebook: int, logits: Array) -> int:
        return draw(logits, self._sampling, self._noise[self._frame, 1 + codebook])
