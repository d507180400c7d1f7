"""What the model will take on its device, decided before anything is loaded: nothing is to fail in mid-speech."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from fishs2_daemon.engines.s2.codec import converted, of_encoder
from fishs2_daemon.engines.s2.codec.passes import FRAME_COUNTS
from fishs2_daemon.engines.s2.config import CodecConfig, ModelConfig, SlowConfig
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.kv import CELLS
from fishs2_daemon.engines.s2.layout import expected_tensors
from fishs2_daemon.engines.s2.model import padded
from fishs2_daemon.engines.s2.slow import PREFILL_TOKENS
from fishs2_daemon.errors import EngineError

#: Slots where none are asked for and memory allows: what a home has listeners for; a processor is slow with one.
_MOST_GPU_SLOTS = 8
_MOST_CPU_SLOTS = 2

#: Kernels' workspaces, which CUDA takes by itself and ends the process without, the driver's own, and the graphs of
#: frames, which are small.
_RESERVE = 512 << 20

#: What a pass of the codec holds at once, in copies of its largest activation: a convolution's window is seven of
#: them. Measured: 13.
_CODEC_COPIES = 14

_MB = 1 << 20
_F16, _F32 = 2, 4


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes on the device: once, and for each slot its keys and values, and what its sound carries on."""

    weights: int
    graphs: int
    voices: int
    positions: int
    stream: int

    @property
    def once(self) -> int:
        return self.weights + self.graphs + self.voices + _RESERVE

    @property
    def slot(self) -> int:
        return self.positions + self.stream

    def __str__(self) -> str:
        parts = f"weights {self.weights // _MB}, graphs {(self.graphs + _RESERVE) // _MB}, voices {self.voices // _MB}"
        return f"{parts}, each slot {self.slot // _MB} MB"


def weights_of(file: GgufFile, config: ModelConfig, skip: Callable[[str], bool] = lambda name: False) -> int:
    """Bytes on the device of what a file holds, save what `Model.load` is told to skip. Its text embedding stays there
    but for the rows of a head, and so does an output of its own; the codec's convolutions become F32, and its encoder
    comes and goes."""
    rows = {"embeddings.weight": "slow_head" if config.slow.tied_head else "semantic_embeddings"}
    rows["output.weight"] = "slow_head"
    total = 0
    for name, shape in expected_tensors(config):
        n_bytes = file.tensors[name].nbytes
        if of_encoder(name) or skip(rows.get(name, name)):
            continue
        if name in rows:
            total += n_bytes * padded(config.slow.codebook_size + 1) // shape[-1]
        else:
            total += prod(shape) * _F32 if converted(name) else n_bytes
    return total


def needs(config: ModelConfig, weights: int, *, context: int, voices: int, fused: bool, lower: int = 0) -> Needs:
    """`weights` and `voices` in bytes; `fused` is whether attention keeps its scores to itself; so many of the slow
    transformer's layers, the first ones, are elsewhere."""
    codec, layers = config.codec.quantizer_transformer, config.slow.layers - lower
    told = _of_layers(config.slow, layers, weights, context=context, voices=voices, fused=fused)
    stream = 2 * codec.layers * codec.kv_width * codec.window * _F32
    return replace(told, graphs=told.graphs + _codec_pass(config.codec), stream=stream)


def lower_needs(config: ModelConfig, weights: int, *, context: int, voices: int, lower: int) -> Needs:
    """Of those first layers, on a processor."""
    return _of_layers(config.slow, lower, weights, context=context, voices=voices, fused=False)


def _of_layers(slow: SlowConfig, layers: int, weights: int, *, context: int, voices: int, fused: bool) -> Needs:
    if not layers:
        return Needs(weights, graphs=0, voices=0, positions=0, stream=0)
    tokens = PREFILL_TOKENS[-1]
    cells = -(-(context + 1) // CELLS) * CELLS
    activations = tokens * (3 * slow.ffn + 4 * slow.width + 2 * slow.q_width + 2 * slow.kv_width) * _F32
    scores = 0 if fused else tokens * slow.heads * cells * _F32
    # The inputs of a prompt's largest graph: for every token a mask, an embedding, a row and a position.
    inputs = tokens * (cells * _F16 + slow.width * _F32 + 12)
    return Needs(
        weights=weights,
        graphs=activations + scores + inputs,
        voices=voices * layers // slow.layers,
        positions=2 * layers * slow.kv_width * cells * _F16,
        stream=0,
    )


def slots_for(asked: int, needs: Needs, backend: Backend) -> int:
    """The slots there shall be: those `asked` for, or, where that is 0, as many as are of use and have room.

    Raises `EngineError` with the sums where there is not room enough.
    """
    free = _free_bytes(backend)
    if asked:
        slots = asked
    else:
        most = _MOST_CPU_SLOTS if backend.device == "cpu" else _MOST_GPU_SLOTS
        slots = max(1, min(most, (free - needs.once) // needs.slot))
    if (needed := needs.once + slots * needs.slot) > free:
        raise EngineError(
            f"{slots} slots need {needed // _MB} MB on {backend.device} ({needs}), and {free // _MB} MB are free: "
            f"fewer FISHS2_SLOTS, a smaller FISHS2_CONTEXT or FISHS2_VOICE_CACHE_MB, or a smaller quantisation"
            + ("" if backend.device == "cpu" else "; or with fewer FISHS2_N_GPU_LAYERS the processor does the others")
        )
    return slots


def _free_bytes(backend: Backend) -> int:
    """Of a processor, what the machine can give without swapping; ggml says that all of it is free."""
    if backend.device == "cpu":
        try:
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            pass
    return backend.memory().free_bytes


def _codec_pass(codec: CodecConfig) -> int:
    columns, largest = FRAME_COUNTS[0] * prod(codec.upsample), 0
    for rate, channels in zip(codec.decoder_rates, codec.decoder_channels[1:], strict=True):
        columns *= rate
        largest = max(largest, columns * channels)
    return _CODEC_COPIES * largest * _F32
