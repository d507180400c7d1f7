"""Samples to codes (specification, section 7.2)."""

import numpy as np

from fishs2_daemon.engines.s2.layout import DILATIONS, codebook_name
from tests.engines.s2.reference.codec_decode import codebook_rows
from tests.engines.s2.reference.convolutions import conv, convnext, residual_unit, snake
from tests.engines.s2.reference.transformer import Cache, Rope, Transformer, linear
from tests.engines.s2.reference.weights import Array, Codes, Model


class Encoder:
    def __init__(self, model: Model, rope: Rope = "exact") -> None:
        self._model, self._config, self._rope = model, model.config.codec, rope

    def __call__(self, samples: Array, trace: dict[str, Array] | None = None) -> tuple[Codes, Array]:
        """Mono samples at the codec's rate, from -1 to 1, to codes and margins, both `[K, frames]`: a last frame that
        is not full counts. A margin is by how much the best row's cosine exceeds the second best's; it tells nothing
        where an earlier codebook of the frame chose otherwise. `trace` collects `latent` and `pre_module`."""
        seen = {} if trace is None else trace
        frame = self._config.frame_samples
        padded = np.zeros((1, -(-len(samples) // frame) * frame))
        padded[0, : len(samples)] = samples
        x = seen["latent"] = self._latent(self._model.array(padded))
        for index, rate in enumerate(self._config.downsample):
            name = f"c.quantizer.downsample.{index}"
            x = convnext(self._model, f"{name}.1", conv(self._model, f"{name}.0.conv", x, stride=rate))
        transformer = self._config.quantizer_transformer
        pre_module = Transformer(
            self._model, "c.quantizer.pre_module.", transformer, self._rope, window=transformer.window
        )
        x = seen["pre_module"] = pre_module.norm(pre_module(x.T, Cache())).T
        return self._quantize(x)

    def _latent(self, x: Array) -> Array:
        """`[1, T]` to `[latent, T / prod(encoder_rates)]`"""
        model, config = self._model, self._config
        x = conv(model, "c.encoder.block.0.conv", x)
        blocks = zip(config.encoder_rates, config.encoder_transformers, strict=True)
        for index, (rate, transformer) in enumerate(blocks, start=1):
            block = f"c.encoder.block.{index}.block"
            for unit, dilation in enumerate(DILATIONS):
                x = residual_unit(model, f"{block}.{unit}", x, dilation)
            x = conv(model, f"{block}.4.conv", snake(model, f"{block}.3", x), stride=rate)
            if transformer:
                layers = Transformer(model, f"{block}.5.", transformer, self._rope, window=transformer.window)
                x = layers.norm(layers(x.T, Cache())).T
        last = len(config.encoder_rates) + 1
        return conv(model, f"c.encoder.block.{last + 1}.conv", snake(model, f"c.encoder.block.{last}", x))

    def _quantize(self, z: Array) -> tuple[Codes, Array]:
        """Each codebook takes what those before it left over. `[latent, T]`"""
        codes, margins = [], []
        for index in range(len(self._config.codebook_sizes)):
            name = f"{codebook_name(index)}.in_proj"
            projected = linear(z.T, self._model[f"{name}.weight"][:, :, 0], self._model[f"{name}.bias"])
            cosines = _unit(projected) @ _unit(self._model[f"{codebook_name(index)}.codebook.weight"]).T  # [T, size]
            codes.append(cosines.argmax(axis=1))
            best = np.sort(cosines, axis=1)
            margins.append(best[:, -1] - best[:, -2])
            z = z - codebook_rows(self._model, index, codes[-1])
        return np.stack(codes), np.stack(margins)


def _unit(x: Array) -> Array:
    """Rows of length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
