"""Whether there is the GPU that was asked for."""

import os

from fishs2_daemon.artifacts.fetch import is_wanted
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.errors import ConfigError
from fishs2_daemon.hardware import Hardware
from fishs2_daemon.settings import Settings

_ON_GPU = frozenset({"s2", "s2cpp"})


def needs_gpu(settings: Settings) -> bool:
    """Whether nothing is to start without an NVIDIA GPU: one was asked for by name, for an engine that uses it."""
    if settings.backend != "cuda" or settings.skip_gpu_check:
        return False
    return choose_engine(settings).name in _ON_GPU or is_wanted(settings)


def require_gpu(settings: Settings, hardware: Hardware) -> None:
    """Raises `ConfigError` where `needs_gpu` and there is none, or not the one that is set."""
    if not needs_gpu(settings):
        return
    bypass = "FISHS2_SKIP_GPU_CHECK=true (--skip-gpu-check) starts all the same"
    if not hardware.gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and visible.startswith("MIG-"):
            return  # a slice of a GPU, which CUDA knows, and of which nothing is asked here
        hidden = f" CUDA_VISIBLE_DEVICES={visible} may hide it." if visible is not None else ""
        raise ConfigError(
            "FISHS2_BACKEND (--backend): 'cuda' is not possible: no NVIDIA GPU answers here. Install NVIDIA's driver "
            f"(`nvidia-smi` shows whether it works), or set FISHS2_BACKEND to auto or cpu; {bypass}.{hidden}"
        )
    there = [gpu.number for gpu in hardware.gpus]
    if missing := [number for number in settings.gpu_device if number not in there]:
        raise ConfigError(
            f"FISHS2_GPU_DEVICE: {', '.join(map(str, missing))} is not allowed; allowed: {', '.join(map(str, there))} "
            f"({', '.join(gpu.name for gpu in hardware.gpus)}); {bypass}"
        )
