"""What the model will take on its device, decided before anything is loaded: nothing is to fail in mid-speech."""

from fishs2_daemon import ram
from fishs2_daemon.engines.s2 import needs as sums
from fishs2_daemon.engines.s2.config import ModelConfig
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.needs import MOST_CPU_SLOTS, MOST_GPU_SLOTS, Needs
from fishs2_daemon.engines.s2.placement import Skip
from fishs2_daemon.errors import EngineError

_MB = 1 << 20


def weights_of(file: GgufFile, config: ModelConfig, skip: Skip = lambda name: False, *, on_gpu: bool) -> int:
    """Bytes on the device of what a file holds, save what `Model.load` is told to skip."""
    return sums.weights_of({name: info.type for name, info in file.tensors.items()}, config, skip, on_gpu=on_gpu)


def slots_for(asked: int, needs: Needs, backend: Backend) -> int:
    """The slots there shall be: those `asked` for, or, where that is 0, as many as are of use and have room.

    Raises `EngineError` with the sums where there is not room enough.
    """
    free = _free_bytes(backend)
    most = MOST_CPU_SLOTS if backend.device == "cpu" else MOST_GPU_SLOTS
    slots = asked or max(1, needs.slots_in(free, most))
    if (needed := needs.of(slots)) > free:
        raise EngineError(
            f"{slots} slots need {needed // _MB} MB on {backend.device} ({needs}), and {free // _MB} MB are free: "
            f"fewer FISHS2_SLOTS, a smaller FISHS2_CONTEXT or FISHS2_VOICE_CACHE_MB, or a smaller quantisation"
            + ("" if backend.device == "cpu" else "; or with fewer FISHS2_N_GPU_LAYERS the processor does the others")
        )
    return slots


def _free_bytes(backend: Backend) -> int:
    """Of a processor, what the machine can give without swapping; ggml says that all of it is free."""
    if backend.device == "cpu" and (available := ram.available_bytes()) is not None:
        return available
    return backend.memory().free_bytes
