"""What the model will take on its device, decided before anything is loaded: nothing is to fail in mid-speech."""

from dataclasses import dataclass
from pathlib import Path

from fishs2_daemon.engines.s2.config import ModelConfig
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.slow import PREFILL_TOKENS
from fishs2_daemon.errors import EngineError

#: Slots where none are asked for and memory allows: what a home has listeners for; a processor is slow with one.
_MOST_GPU_SLOTS = 8
_MOST_CPU_SLOTS = 2

#: Kernels' workspaces, the driver's own, graphs' inputs.
_RESERVE = 192 << 20

_MB = 1 << 20
_F16, _F32 = 2, 4


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes on the device: once, and for each slot."""

    weights: int
    graphs: int
    voices: int
    slot: int

    @property
    def once(self) -> int:
        return self.weights + self.graphs + self.voices + _RESERVE

    def __str__(self) -> str:
        parts = f"weights {self.weights // _MB}, graphs {(self.graphs + _RESERVE) // _MB}, voices {self.voices // _MB}"
        return f"{parts}, each slot {self.slot // _MB} MB"


def needs(config: ModelConfig, weights: int, *, context: int, voices: int, fused: bool) -> Needs:
    """`weights` and `voices` in bytes; `fused` is whether attention keeps its scores to itself."""
    slow, tokens = config.slow, PREFILL_TOKENS[-1]
    activations = tokens * (3 * slow.ffn + 4 * slow.width + 2 * slow.q_width + 2 * slow.kv_width) * _F32
    scores = 0 if fused else 2 * tokens * slow.heads * context * _F32
    positions = 2 * slow.layers * slow.kv_width * context * _F16
    codec = config.codec.quantizer_transformer
    stream = 2 * codec.layers * codec.kv_width * codec.window * _F32
    return Needs(weights, activations + scores, voices, positions + 4 * stream)


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
