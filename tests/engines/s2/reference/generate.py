"""Frames after a prompt: both transformers and the choices between them (specification, sections 2.3, 3 and 4.4)."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fishs2_daemon.engines.s2.config import SlowConfig
from tests.engines.s2.reference.fast import FastAR
from tests.engines.s2.reference.sampling import Greedy
from tests.engines.s2.reference.slow import SlowAR
from tests.engines.s2.reference.transformer import Cache, Rope
from tests.engines.s2.reference.weights import Array, Codes, Model


class Chooser(Protocol):
    def token(self, logits: Array) -> int:
        """Of a frame, from masked logits `[vocab]`: called once for each, in order."""

    def code(self, codebook: int, logits: Array) -> int:
        """Of the same frame, for codebook 1 and on, in order."""


@dataclass(frozen=True, slots=True)
class Generation:
    """`n` frames. `slow_logits` and `slow_hidden` have one entry more: the state after the last frame, from which the
    next would be chosen. `ended` if the model chose the end token, which is no frame."""

    frames: Codes  # [1 + K, n], the token first
    slow_logits: Array  # [n + 1, vocab], not masked
    slow_hidden: Array  # [n + 1, D], after the final norm
    fast_logits: Array  # [n, K, codebook_size]
    ended: bool


def generate(
    model: Model, prompt: Codes, most: int, im_end: int, choose: Chooser | None = None, rope: Rope = "exact"
) -> Generation:
    """At most `most` frames after the prompt `[1 + K, T]`, greedy unless `choose` is given. The end token is tested
    before its frame is made."""
    choose = choose or Greedy()
    slow, fast, cache = SlowAR(model, rope), FastAR(model, rope), Cache()
    columns: list[Codes] = []
    fast_logits: list[Array] = []
    ended = False
    out = slow(prompt, cache)
    logits, hidden = [out.logits[-1]], [out.hidden[-1]]
    while len(columns) < most:
        token = choose.token(masked(out.logits[-1], model.config.slow, im_end))
        if token == im_end:
            ended = True
            break
        codes, positions = fast.frame(out.fast_input[-1], slow.code0(token), choose.code)
        columns.append(slow.column(token, codes))
        fast_logits.append(positions)
        out = slow(columns[-1], cache)
        logits.append(out.logits[-1])
        hidden.append(out.hidden[-1])
    nothing = np.zeros((1 + model.config.slow.codebooks, 0), np.int64)
    return Generation(
        np.concatenate([nothing, *columns], axis=1),
        np.stack(logits),
        np.stack(hidden),
        np.array(fast_logits).reshape(len(columns), model.config.slow.codebooks, model.config.slow.codebook_size),
        ended,
    )


def masked(logits: Array, config: SlowConfig, im_end: int) -> Array:
    """Nothing but semantic tokens and the end token can be chosen."""
    result = np.full_like(logits, -np.inf)
    allowed = np.r_[config.semantic_begin : config.semantic_end + 1, im_end]
    result[allowed] = logits[allowed]
    return result
