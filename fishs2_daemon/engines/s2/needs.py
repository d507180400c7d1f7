"""What a model takes and reads, from its sizes alone: the same sums decide in the engine and tell beforehand.

Nothing here loads native code: the daemon plans with it before there is a worker, or a model file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

from fishs2_daemon.engines.s2.config import CodecConfig, ModelConfig, SlowConfig
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.layout import expected_tensors
from fishs2_daemon.engines.s2.placement import converted, gatherable, of_encoder
from fishs2_daemon.engines.s2.sizes import FRAME_COUNTS, PREFILL_TOKENS, cells_of, padded

#: Slots where none are asked for and memory allows: what a home has listeners for; a processor is slow with one.
MOST_GPU_SLOTS = 8
MOST_CPU_SLOTS = 2

#: Kernels' workspaces, which CUDA takes by itself and ends the process without, the driver's own, and the graphs of
#: frames, which are small.
RESERVE = 512 << 20

#: What a pass of the codec holds at once, in copies of its largest activation: a convolution's window is seven of
#: them. Measured: 13.
_CODEC_COPIES = 14

#: Positions whose keys and values a frame reads in the middle of an answer: a voice of 15 s and half a minute.
_POSITIONS_READ = 1000

#: Ends the names of tables that single rows are read from.
_CODEBOOK = ".codebook.weight"

_MB = 1 << 20
_F16, _F32 = 2, 4


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes on the device: once, and for each slot its keys and values, and what its sound carries on."""

    weights: int
    graphs: int
    codec: int
    voices: int
    positions: int
    stream: int

    @property
    def once(self) -> int:
        return self.weights + self.graphs + self.codec + self.voices + RESERVE

    @property
    def slot(self) -> int:
        return self.positions + self.stream

    def of(self, slots: int) -> int:
        return self.once + slots * self.slot

    def slots_in(self, free_bytes: int, most: int) -> int:
        """How many have room, up to `most`; 0 where not one has."""
        return max(0, min(most, (free_bytes - self.once) // self.slot))

    def __str__(self) -> str:
        graphs = self.graphs + self.codec + RESERVE
        parts = f"weights {self.weights // _MB}, graphs {graphs // _MB}, voices {self.voices // _MB}"
        return f"{parts}, each slot {self.slot // _MB} MB"


def weights_of(
    types: Mapping[str, GgmlType],
    config: ModelConfig,
    skip: Callable[[str], bool] = lambda name: False,
    *,
    on_gpu: bool,
) -> int:
    """Bytes on the device of a file's tensors of these types, save what `Model.load` is told to skip. Its text
    embedding stays there but for the rows of a head, and so does an output of its own; the codec's convolutions become
    F32, its codebooks as wide as its latents, tables that a GPU cannot gather from F16; the encoder comes and goes."""
    slow = config.slow
    head = "embeddings.weight" if slow.tied_head else "output.weight"
    total = 0
    for name, shape in expected_tensors(config):
        kind, is_table = types[name], name in ("codebook_embeddings.weight", "fast_embeddings.weight")
        if name == head and not skip("slow_head"):
            total += kind.nbytes((slow.width, padded(slow.codebook_size + 1)))
        if name == "embeddings.weight":
            is_own = not slow.tied_head or skip("slow_head") or not gatherable(kind, on_gpu=on_gpu)
            if is_own and not skip("semantic_embeddings"):
                total += _table(kind, (slow.width, slow.codebook_size + 1), on_gpu=on_gpu)
        elif name != head and not of_encoder(name) and not skip(name):
            if is_table:
                total += _table(kind, shape, on_gpu=on_gpu)
            elif name.endswith(_CODEBOOK):
                total += shape[-1] * config.codec.latent * _F32
            else:
                is_f32 = converted(name) or sum(n > 1 for n in shape) <= 1
                total += prod(shape) * _F32 if is_f32 else kind.nbytes(shape)
    return total


def frame_bytes(types: Mapping[str, GgmlType], config: ModelConfig) -> int:
    """What the device reads for one frame of one text: the slow layers once, the fast ones and their head for every
    code but the first, whose sweeps begin with two of them; keys and values; and what turns codes into sound."""
    slow, fast = config.slow, config.fast
    head = types["embeddings.weight" if slow.tied_head else "output.weight"]
    total = head.nbytes((slow.width, padded(slow.codebook_size + 1)))
    total += 2 * slow.layers * slow.kv_width * _POSITIONS_READ * _F16
    fast_head = "fast_embeddings.weight" if fast.tied_head else "fast_output.weight"
    for name, shape in expected_tensors(config):
        n_bytes = types[name].nbytes(shape)
        if name == fast_head or name.startswith(("fast_layers.", "fast_project_in.")):
            total += (slow.codebooks - 1) * n_bytes
        elif name.startswith("layers."):
            total += n_bytes
        elif name.startswith("c.") and not of_encoder(name) and not name.endswith(_CODEBOOK):
            total += prod(shape) * _F32 if converted(name) else n_bytes
    return total


def needs(config: ModelConfig, weights: int, *, context: int, voices: int, fused: bool, lower: int = 0) -> Needs:
    """`weights` and `voices` in bytes; `fused` is whether attention keeps its scores to itself; so many of the slow
    transformer's layers, the first ones, are elsewhere."""
    codec, layers = config.codec.quantizer_transformer, config.slow.layers - lower
    told = _of_layers(config.slow, layers, weights, context=context, voices=voices, fused=fused)
    stream = 2 * codec.layers * codec.kv_width * codec.window * _F32
    return replace(told, codec=_codec_pass(config.codec), stream=stream)


def lower_needs(config: ModelConfig, weights: int, *, context: int, voices: int, lower: int) -> Needs:
    """Of those first layers, on a processor."""
    return _of_layers(config.slow, lower, weights, context=context, voices=voices, fused=False)


def _table(kind: GgmlType, shape: tuple[int, ...], *, on_gpu: bool) -> int:
    return (kind if gatherable(kind, on_gpu=on_gpu) else GgmlType.F16).nbytes(shape)


def _of_layers(slow: SlowConfig, layers: int, weights: int, *, context: int, voices: int, fused: bool) -> Needs:
    if not layers:
        return Needs(weights, graphs=0, codec=0, voices=0, positions=0, stream=0)
    tokens = PREFILL_TOKENS[-1]
    cells = cells_of(context)
    activations = tokens * (3 * slow.ffn + 4 * slow.width + 2 * slow.q_width + 2 * slow.kv_width) * _F32
    scores = 0 if fused else tokens * slow.heads * cells * _F32
    # The inputs of a prompt's largest graph: for every token a mask, an embedding, a row and a position.
    inputs = tokens * (cells * _F16 + slow.width * _F32 + 12)
    return Needs(
        weights=weights,
        graphs=activations + scores + inputs,
        codec=0,
        voices=voices * layers // slow.layers,
        positions=2 * layers * slow.kv_width * cells * _F16,
        stream=0,
    )


def _codec_pass(codec: CodecConfig) -> int:
    columns, largest = FRAME_COUNTS[0] * prod(codec.upsample), 0
    for rate, channels in zip(codec.decoder_rates, codec.decoder_channels[1:], strict=True):
        columns *= rate
        largest = max(largest, columns * channels)
    return _CODEC_COPIES * largest * _F32
