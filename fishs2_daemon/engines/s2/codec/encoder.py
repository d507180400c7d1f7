"""Samples to codes: what a reference clip goes through once (7.2)."""

from math import prod
from types import TracebackType

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.codec.convnext import ConvNext
from fishs2_daemon.engines.s2.codec.convolution import Convolution, ResidualUnit, Snake
from fishs2_daemon.engines.s2.codec.passes import Pass, frames_at_once
from fishs2_daemon.engines.s2.codec.quantizer import CodeSearch
from fishs2_daemon.engines.s2.codec.state import StateLayout
from fishs2_daemon.engines.s2.codec.streams import Streams
from fishs2_daemon.engines.s2.codec.window_attention import Rope, WindowTransformer
from fishs2_daemon.engines.s2.ggml import Backend, DType, Tensor
from fishs2_daemon.engines.s2.layout import DILATIONS
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.errors import EngineError

Samples = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

#: Far louder than any clip. Float files may hold anything, and what overflows would make indices of no row on a GPU.
_LOUDEST = 100.0


class Encoder:
    """Built by the first `encode`: most runs never need it. A long clip passes through in pieces, so memory does not
    grow with it. For the model, the same holds as in `Decoder`. Not safe for several threads at once."""

    def __init__(self, model: Model, *, rope: Rope = "bf16", backend: Backend | None = None) -> None:
        self._model, self._rope, self._backend = model, rope, backend or model.backend
        self._network: _Network | None = None

    def encode(self, samples: Samples) -> Codes:
        """Mono, at the codec's rate, from -1 to 1 -> `[codebooks, frames]`. Zeros complete the last frame.

        Raises `EngineError` for samples of another shape or type, and for values that no sound has.
        """
        frame = self._model.config.codec.frame_samples
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise EngineError(f"the codec encodes mono float32, not {samples.dtype}{list(samples.shape)}")
        if not np.abs(samples).max(initial=0) <= _LOUDEST:  # nor is NaN
            raise EngineError(
                f"the codec encodes samples from -1 to 1; there are some beyond {_LOUDEST:g}, or no numbers"
            )
        n = -(-len(samples) // frame)
        padded = np.zeros((n, frame), np.float32)
        padded.ravel()[: len(samples)] = samples
        streams = self._built().streams
        stream = streams.open()
        pieces = [np.empty((len(self._model.config.codec.codebook_sizes), 0), np.int32)]
        try:
            while stream.frames < n:
                frames = frames_at_once(n - stream.frames, 1)
                piece = padded[stream.frames : stream.frames + frames].reshape(-1, 1)
                codes = streams.advance([stream], frames, {"samples": piece})
                pieces.append(np.stack([codes[f"codes_{index}"].ravel() for index in range(len(pieces[0]))]))
        finally:
            streams.release(stream)
        return np.concatenate(pieces, axis=1)

    def trace(self, samples: Samples) -> dict[str, npt.NDArray[np.generic]]:
        """Of whole frames: `latent` and `pre_module` as `[channels, columns]`, and `codes_0`, ... as `[1, frames]`."""
        frames = len(samples) // self._model.config.codec.frame_samples
        outputs = self._built().streams.trace(frames, {"samples": samples.reshape(-1, 1)})
        return {name: values[0, 0].T if "codes" not in name else values[0, 0] for name, values in outputs.items()}

    def close(self) -> None:
        """Give states and graphs back. May be called twice."""
        if self._network:
            self._network.streams.close()

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _built(self) -> "_Network":
        if self._network is None:
            self._network = _Network(self._model, self._rope, self._backend)
        return self._network


class _Network:
    def __init__(self, model: Model, rope: Rope, backend: Backend) -> None:
        config, state = model.config.codec, StateLayout()
        self._first = Convolution(model, "c.encoder.block.0.conv", state)
        self._blocks = [_Block(model, index, state, rope) for index in range(len(config.encoder_rates))]
        last = len(config.encoder_rates) + 1
        self._last = (
            Snake(model, f"c.encoder.block.{last}"),
            Convolution(model, f"c.encoder.block.{last + 1}.conv", state),
        )
        self._downsample = [
            (
                Convolution(model, f"c.quantizer.downsample.{index}.0.conv", state, stride=rate),
                ConvNext(model, f"c.quantizer.downsample.{index}.1", state),
            )
            for index, rate in enumerate(config.downsample)
        ]
        self._pre_module = WindowTransformer(
            model, "c.quantizer.pre_module", config.quantizer_transformer, state, columns_per_frame=1, rope=rope
        )
        self._search = CodeSearch(model)
        self._frame_samples = config.frame_samples
        transformers = [block.transformer for block in self._blocks if block.transformer]
        self.streams = Streams(
            backend,
            "the codec's encoder",
            state,
            config.frame_samples,
            [*transformers, self._pre_module],
            self._emit,
            slots=1,
        )

    def _emit(self, p: Pass) -> None:
        x = p.g.input("samples", DType.F32, 1, p.frames * self._frame_samples)
        x = self._first(p, x)
        for block in self._blocks:
            x = block(p, x)
        snake, last = self._last
        x = p.seen["latent"] = last(p, snake(p, x))
        for convolution, convnext in self._downsample:
            x = convnext(p, convolution(p, x))
        x = p.seen["pre_module"] = self._pre_module(p, x)
        for index, codes in enumerate(self._search(p, x)):
            p.g.output(f"codes_{index}", codes)


class _Block:
    """Residual units, then twice the channels at a lower rate; then a transformer, in some."""

    def __init__(self, model: Model, index: int, state: StateLayout, rope: Rope) -> None:
        config, name = model.config.codec, f"c.encoder.block.{index + 1}.block"
        rate, transformer = config.encoder_rates[index], config.encoder_transformers[index]
        self._units = [
            ResidualUnit(model, f"{name}.{unit}", state, dilation) for unit, dilation in enumerate(DILATIONS)
        ]
        self._snake = Snake(model, f"{name}.3")
        self._convolution = Convolution(model, f"{name}.4.conv", state, stride=rate)
        columns = config.frame_samples // prod(config.encoder_rates[: index + 1])
        self.transformer = transformer and WindowTransformer(
            model, f"{name}.5", transformer, state, columns_per_frame=columns, rope=rope
        )

    def __call__(self, p: Pass, x: Tensor) -> Tensor:
        for unit in self._units:
            x = unit(p, x)
        x = self._convolution(p, self._snake(p, x))
        return self.transformer(p, x) if self.transformer else x
