"""Codes to samples, frame by frame: nothing looks ahead, so a frame's samples are there with its codes (7.3, 7.5)."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.codec.convnext import ConvNext
from fishs2_daemon.engines.s2.codec.convolution import Convolution, ResidualUnit, Snake, TransposedConvolution
from fishs2_daemon.engines.s2.codec.passes import Pass, frames_at_once
from fishs2_daemon.engines.s2.codec.quantizer import Codebooks
from fishs2_daemon.engines.s2.codec.state import StateLayout
from fishs2_daemon.engines.s2.codec.streams import Streams
from fishs2_daemon.engines.s2.codec.window_attention import Rope, WindowTransformer
from fishs2_daemon.engines.s2.ggml import Backend, Tensor
from fishs2_daemon.engines.s2.layout import DILATIONS
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.sizes import FRAME_COUNTS, RUNS_TO_CAPTURE
from fishs2_daemon.errors import EngineError

Codes = npt.NDArray[np.integer[Any]]
Samples = npt.NDArray[np.float32]

_STREAMS = 4


class Decoder:
    """Any number of streams at once, each in pieces of any length: together they equal the whole, up to rounding.

    Make one for a model: its constants stay on the device until the model is closed. The model must stay open, and may
    have skipped what is `converted`. Not safe for several threads at once; with a `backend` of its own, on the model's
    device, it works beside whoever uses the model's. There is memory for `streams` at first.

    `together` computes several frames and streams at once, which a GPU needs. A processor gains next to nothing by it
    (8 % with eight frames), and each frame by itself is the same to the last bit, however the stream is cut.
    """

    def __init__(
        self,
        model: Model,
        *,
        rope: Rope = "bf16",
        backend: Backend | None = None,
        streams: int = _STREAMS,
        together: bool | None = None,
    ) -> None:
        config = model.config.codec
        state = StateLayout()
        self._codebooks = Codebooks(model)
        self._post_module = WindowTransformer(
            model, "c.quantizer.post_module", config.quantizer_transformer, state, columns_per_frame=1, rope=rope
        )
        self._upsample = [
            (
                TransposedConvolution(model, f"c.quantizer.upsample.{index}.0.conv", state, rate),
                ConvNext(model, f"c.quantizer.upsample.{index}.1", state),
            )
            for index, rate in enumerate(config.upsample)
        ]
        self._first = Convolution(model, "c.decoder.model.0.conv", state)
        self._blocks = [
            _Block(model, f"c.decoder.model.{index + 1}.block", state, rate)
            for index, rate in enumerate(config.decoder_rates)
        ]
        last = len(config.decoder_rates) + 1
        self._last = (
            Snake(model, f"c.decoder.model.{last}"),
            Convolution(model, f"c.decoder.model.{last + 1}.conv", state),
        )
        self._shape = len(config.codebook_sizes), config.frame_samples
        self._together = (backend or model.backend).device != "cpu" if together is None else together
        self._streams = Streams(
            backend or model.backend,
            "the codec's decoder",
            state,
            config.frame_samples,
            [self._post_module],
            self._emit,
            slots=streams,
        )

    def open_stream(self) -> "DecoderStream":
        """A stream at its start. When more are open than ever before, the states move to more memory."""
        return DecoderStream(self, self._streams)

    def decode(self, streams: "Sequence[DecoderStream]", codes: Sequence[Codes]) -> list[Samples]:
        """The next frames of several streams, as many of each: `[codebooks, n]` -> `[n * samples of a frame]`.

        Codes beyond a codebook's end, or below zero, count as its last or first one. Raises `EngineError` for codes of
        another shape, and for streams that are closed.
        """
        n_codebooks, _ = self._shape
        n = codes[0].shape[-1] if codes else 0
        for given in codes:
            if given.shape != (n_codebooks, n) or not np.issubdtype(given.dtype, np.integer):
                kind = f"{given.dtype}{list(given.shape)}"
                raise EngineError(f"the codec decodes whole numbers of shape [{n_codebooks}, {n}], not {kind}")
        if len(streams) != len(codes):
            raise EngineError(f"the codec was given {len(streams)} streams, and codes for {len(codes)}")
        if self._together:
            return list(self._decode(streams, codes))
        return [self._decode([stream], [given])[0] for stream, given in zip(streams, codes, strict=True)]

    def _decode(self, streams: "Sequence[DecoderStream]", codes: Sequence[Codes]) -> Samples:
        """`[streams, n * samples of a frame]`"""
        n, frame_samples = codes[0].shape[1] if codes else 0, self._shape[1]
        pieces = [np.empty((len(streams), 0), np.float32)]
        at = 0
        while at < n:
            frames = frames_at_once(n - at, len(streams)) if self._together else 1
            rows = [self._codebooks.rows(given[:, at : at + frames]) for given in codes]
            inputs = {"rows": np.concatenate(rows, axis=1).ravel()}  # codebook by codebook, stream by stream
            samples = self._streams.advance([each.stream for each in streams], frames, inputs)["samples"]
            pieces.append(samples.reshape(len(streams), frames * frame_samples))
            at += frames
        return np.concatenate(pieces, axis=1)

    def warm(self, streams: int) -> None:
        """Build the graphs for one, two, four, ... up to so many streams."""
        if not self._together:
            self._streams.build(1, 1)
            return
        counts = [1 << n for n in reversed(range(streams.bit_length()))]
        # Twice: those that were built before the memory was large enough for all are stale.
        for count in 2 * counts:
            for frames in dict.fromkeys(frames_at_once(n, count) for n in FRAME_COUNTS):
                self._streams.build(frames, count)
        if self._streams.device != "cpu":
            self._run(counts)

    def _run(self, counts: Sequence[int]) -> None:
        """Kernels take their workspaces when they first run, or are captured."""
        for count in counts:
            streams = [self.open_stream() for _ in range(count)]
            for frames in RUNS_TO_CAPTURE * list(dict.fromkeys(frames_at_once(n, count) for n in FRAME_COUNTS)):
                self.decode(streams, [np.zeros((self._shape[0], frames), np.int32)] * count)
            for stream in streams:
                stream.close()

    def trace(self, codes: Codes) -> dict[str, npt.NDArray[np.float32]]:
        """What the decoder makes of the first frames of a stream, `[channels, columns]`, by the names that reference
        vectors have: `z_sum`, `post_module`, `upsample_0`, ..., `decoder_0`, ...; and `samples` `[1, columns]`."""
        inputs = {"rows": self._codebooks.rows(codes).ravel()}
        return {name: values[0, 0].T for name, values in self._streams.trace(codes.shape[1], inputs).items()}

    @property
    def n_bytes(self) -> int:
        """Memory on the device that comes on top of the model's."""
        return self._streams.n_bytes

    def close(self) -> None:
        """Give states and graphs back; streams are not to be used any more. May be called twice."""
        self._streams.close()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _emit(self, p: Pass) -> None:
        x = p.seen["z_sum"] = self._codebooks(p)
        x = p.seen["post_module"] = self._post_module(p, x)
        for index, (convolution, convnext) in enumerate(self._upsample):
            x = p.seen[f"upsample_{index}"] = convnext(p, convolution(p, x))
        x = p.seen["decoder_0"] = self._first(p, x)
        for index, block in enumerate(self._blocks, start=1):
            x = p.seen[f"decoder_{index}"] = block(p, x)
        snake, last = self._last
        p.g.output("samples", p.g.tanh(last(p, snake(p, x))))


class DecoderStream:
    """One voice on its way to sound. Use `Decoder.open_stream`; close it to make room for others."""

    def __init__(self, decoder: Decoder, streams: Streams) -> None:
        self._decoder = decoder
        self._streams = streams
        self.stream = streams.open()

    def decode(self, codes: Codes) -> Samples:
        """The next frames: `[codebooks, n]` -> `[n * samples of a frame]`, from -1 to 1. See `Decoder.decode`."""
        return self._decoder.decode([self], [codes])[0]

    def close(self) -> None:
        """May be called twice."""
        self._streams.release(self.stream)

    def __enter__(self) -> "DecoderStream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Block:
    """`rate` times as many columns of half the channels, then residual units."""

    def __init__(self, model: Model, name: str, state: StateLayout, rate: int) -> None:
        self._snake = Snake(model, f"{name}.0")
        self._convolution = TransposedConvolution(model, f"{name}.1.conv", state, rate)
        self._units = [
            ResidualUnit(model, f"{name}.{unit}", state, dilation) for unit, dilation in enumerate(DILATIONS, start=2)
        ]

    def __call__(self, p: Pass, x: Tensor) -> Tensor:
        x = self._convolution(p, self._snake(p, x))
        for unit in self._units:
            x = unit(p, x)
        return x
