"""The slow transformer: one column of 1 + K integers per position (specification, section 2)."""

from dataclasses import dataclass

import numpy as np

from tests.engines.s2.reference.transformer import Cache, Rope, Transformer, linear
from tests.engines.s2.reference.weights import Array, Codes, Model


@dataclass(frozen=True, slots=True)
class SlowOutput:
    """For every position of a call: unmasked logits of the whole vocabulary, the hidden state after the final norm, and
    what of it the fast transformer is given, which most models want normed too."""

    logits: Array  # [T, vocab]
    hidden: Array  # [T, D]
    fast_input: Array  # [T, D]


class SlowAR:
    def __init__(self, model: Model, rope: Rope = "exact") -> None:
        self._model, self._config = model, model.config.slow
        self._layers = Transformer(model, "", self._config, rope)
        self._head = model["embeddings.weight" if self._config.tied_head else "output.weight"]

    def __call__(self, columns: Codes, cache: Cache | None = None) -> SlowOutput:
        """A prefill with an empty cache or none, a step with one column and the cache of those before it, or anything
        between. `[1 + K, T]`"""
        x = self._layers(self.embed(columns), Cache() if cache is None else cache)
        hidden = self._layers.norm(x)
        return SlowOutput(linear(hidden, self._head), hidden, hidden if self._model.config.fast.normed_input else x)

    def embed(self, columns: Codes) -> Array:
        """`[1 + K, T]` to `[T, D]` (2.2). Where row 0 is a semantic token, codes are added, and the sum is scaled."""
        config = self._config
        tokens, codes = columns[0], columns[1:]
        x = self._model["embeddings.weight"][tokens]  # [T, D]
        semantic = (tokens >= config.semantic_begin) & (tokens <= config.semantic_end)
        starts = np.arange(config.codebooks)[:, None] * config.codebook_size
        x[semantic] += self._model["codebook_embeddings.weight"][(codes + starts)[:, semantic]].sum(axis=0)
        if config.scale_embeddings:
            x[semantic] /= (config.codebooks + 1) ** 0.5
        return x

    def column(self, token: int, codes: Codes) -> Codes:
        """The next input, from a frame's token and its K codes. `[1 + K, 1]`"""
        return np.array([token, *codes])[:, None]

    def code0(self, token: int) -> int:
        """A token that is not semantic gives the nearest code (section 3)."""
        return min(max(token - self._config.semantic_begin, 0), self._config.codebook_size - 1)
