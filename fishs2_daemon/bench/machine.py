"""What was measured, and on what: figures without it mean nothing."""

import os
import platform
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from fishs2_daemon import __version__, nvidia
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.programs import answer_of
from fishs2_daemon.settings import ENGINE_SETTINGS, Settings
from fishs2_daemon.speech import EngineInfo

_ROOT = Path(__file__).resolve().parents[2]

#: git answers within a fraction of this, or hangs.
_ANSWER_S = 10.0


def software() -> dict[str, Any]:
    """`commit` ends with "-dirty" where the checkout was changed, and is None where there is none."""
    commit = None
    if (_ROOT / ".git").exists():
        options = ("--always", "--dirty", "--abbrev=40", "--exclude", "*")
        arguments = ("--no-optional-locks", "-C", str(_ROOT), "describe", *options)
        commit = answer_of("git", *arguments, timeout_s=_ANSWER_S)
    return {"version": __version__, "commit": commit, "python": platform.python_version()}


def hardware() -> dict[str, Any]:
    """`gpus` are NVIDIA's; `memory_mb` is None for one without memory of its own."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "gpus": [
            {
                "name": gpu.name,
                "driver": gpu.driver,
                "memory_mb": None if gpu.total_bytes is None else gpu.total_bytes >> 20,
            }
            for gpu in nvidia.gpus()
        ],
    }


def engine(settings: Settings, info: EngineInfo) -> dict[str, Any]:
    """What the engine says of itself, its file, and the settings that change its figures."""
    is_s2 = info.name == "s2"
    return {
        "name": info.name,
        "slots": info.slots,
        "sample_rate": info.sample_rate,
        "frame_kernels": info.frame_kernels or None,
        "model": model_file(settings.model_path) if is_s2 else None,
        "backend": settings.backend if is_s2 else None,
        "context": settings.context if is_s2 else None,
        "settings": {name: _plain(getattr(settings, name)) for name in sorted(ENGINE_SETTINGS["s2"])} if is_s2 else {},
        "preview_because": choose_engine(settings).missing or None,
    }


def model_file(path: Path) -> dict[str, Any]:
    """`quant` is the type of most of the bytes."""
    from fishs2_daemon.engines.s2.gguf import GgufFile

    sizes: Counter[str] = Counter()
    with GgufFile.open(path) as file:
        for tensor in file.tensors.values():
            sizes[tensor.type.name] += tensor.nbytes
    return {"name": path.name, "size_bytes": path.stat().st_size, "quant": sizes.most_common(1)[0][0].lower()}


def peak_ram_mb(pid: int) -> float | None:
    """The most that a process has had in memory so far; None where the system does not say."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


def vram_mb(pid: int) -> float | None:
    """What a process has on all GPUs together; None where nobody knows."""
    used = nvidia.used_bytes(pid)
    return None if used is None else used / (1 << 20)


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
