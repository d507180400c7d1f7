"""Codes to samples (specification, sections 7.3 and 7.5)."""

from dataclasses import dataclass, field

import numpy as np

from fishs2_daemon.engines.s2.layout import DILATIONS, codebook_name
from tests.engines.s2.reference.convolutions import Carried, conv, convnext, residual_unit, snake, transposed_conv
from tests.engines.s2.reference.transformer import Cache, Rope, Transformer, linear
from tests.engines.s2.reference.weights import Array, Codes, Model


@dataclass(slots=True)
class DecoderState:
    """What one stream carries from call to call."""

    post_module: Cache = field(default_factory=Cache)
    columns: Carried = field(default_factory=dict)

    def copy(self) -> "DecoderState":
        return DecoderState(self.post_module.copy(), dict(self.columns))


class Decoder:
    def __init__(self, model: Model, rope: Rope = "exact") -> None:
        self._model, self._config = model, model.config.codec
        transformer = self._config.quantizer_transformer
        self._post_module = Transformer(model, "c.quantizer.post_module.", transformer, rope, window=transformer.window)

    def __call__(self, codes: Codes, state: DecoderState | None = None, trace: dict[str, Array] | None = None) -> Array:
        """`[K, T]` to `[T * frame_samples]`, from -1 to 1: the whole, or the next piece of the stream that `state`
        belongs to. `trace` collects activations `[channels, columns]` under the names of golden_codec.npz: `z_sum`,
        `post_module`, `upsample_0`, ..., `decoder_0`, ... for the decoder's first convolution and its blocks."""
        state, seen = state or DecoderState(), {} if trace is None else trace
        config, model, carried = self._config, self._model, state.columns
        x = seen["z_sum"] = self.quantized(codes)
        x = seen["post_module"] = self._post_module.norm(self._post_module(x.T, state.post_module)).T
        for index, rate in enumerate(config.upsample):
            name = f"c.quantizer.upsample.{index}"
            x = transposed_conv(model, f"{name}.0.conv", x, rate, carried)
            x = seen[f"upsample_{index}"] = convnext(model, f"{name}.1", x, carried)
        x = seen["decoder_0"] = conv(model, "c.decoder.model.0.conv", x, carried)
        for index, rate in enumerate(config.decoder_rates):
            block = f"c.decoder.model.{index + 1}.block"
            x = transposed_conv(model, f"{block}.1.conv", snake(model, f"{block}.0", x), rate, carried)
            for unit, dilation in enumerate(DILATIONS):
                x = residual_unit(model, f"{block}.{unit + 2}", x, dilation, carried)
            seen[f"decoder_{index + 1}"] = x
        last = len(config.decoder_rates) + 1
        x = snake(model, f"c.decoder.model.{last}", x)
        return np.tanh(conv(model, f"c.decoder.model.{last + 1}.conv", x, carried))[0]

    def quantized(self, codes: Codes) -> Array:
        """The sum of all codebooks' rows, projected; codes beyond a codebook's end take its last row. `[latent, T]`"""
        projected = [
            codebook_rows(self._model, index, np.clip(codes[index], 0, size - 1))
            for index, size in enumerate(self._config.codebook_sizes)
        ]
        return np.sum(projected, axis=0)


def codebook_rows(model: Model, index: int, codes: Codes) -> Array:
    """Rows of one codebook, projected to the latent width. `[latent, T]`"""
    name = codebook_name(index)
    rows = model[f"{name}.codebook.weight"][codes]  # [T, codebook_width]
    return linear(rows, model[f"{name}.out_proj.weight"][:, :, 0], model[f"{name}.out_proj.bias"]).T
