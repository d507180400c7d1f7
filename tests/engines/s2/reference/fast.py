"""The fast transformer: the K - 1 other codes of one frame (specification, section 3).

| position | 0           | 1     | 2     | ... | K - 1       |
| input    | slow hidden | c0    | c1    | ... | c[K - 2]    |
| logits   | ignored     | of c1 | of c2 | ... | of c[K - 1] |
"""

from collections.abc import Callable

import numpy as np

from tests.engines.s2.reference.transformer import Cache, Rope, Transformer, linear
from tests.engines.s2.reference.weights import Array, Codes, Model


class FastAR:
    def __init__(self, model: Model, rope: Rope = "exact") -> None:
        self._model, self._codebooks = model, model.config.slow.codebooks
        self._layers = Transformer(model, "fast_", model.config.fast, rope)
        self._head = model["fast_embeddings.weight" if model.config.fast.tied_head else "fast_output.weight"]

    def frame(self, fast_input: Array, code0: int, choose: Callable[[int, Array], int]) -> tuple[Codes, Array]:
        """The frame's codes `[K]` and the logits of each position `[K, codebook_size]`. `choose` is given a codebook
        from 1 on and its logits."""
        cache, codes = Cache(), [code0]
        logits = [self._position(self._project(fast_input), cache)]
        for codebook in range(1, self._codebooks):
            logits.append(self._position(self._model["fast_embeddings.weight"][codes[-1]], cache))
            codes.append(choose(codebook, logits[-1]))
        return np.array(codes), np.stack(logits)

    def logits(self, fast_input: Array, codes: Codes) -> Array:
        """Of each position, given the frame's codes: all in one pass. `[K, codebook_size]`"""
        embedded = self._model["fast_embeddings.weight"][codes[: self._codebooks - 1]]
        x = self._layers(np.concatenate([self._project(fast_input)[None], embedded]), Cache())
        return linear(self._layers.norm(x), self._head)

    def _project(self, fast_input: Array) -> Array:
        if not self._model.config.fast.project_in:
            return fast_input
        return linear(fast_input, self._model["fast_project_in.weight"], self._model.get("fast_project_in.bias"))

    def _position(self, x: Array, cache: Cache) -> Array:
        return linear(self._layers.norm(self._layers(x[None], cache)), self._head)[0]
