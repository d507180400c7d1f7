"""What was measured, and on what: figures without it mean nothing."""

import os
import platform
import shutil
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from fishs2_daemon import __version__
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.settings import S2_SETTINGS, Settings
from fishs2_daemon.speech import EngineInfo

_ROOT = Path(__file__).resolve().parents[2]

#: git and nvidia-smi answer within a fraction of this, or hang.
_ANSWER_S = 10.0


def software() -> dict[str, Any]:
    """`commit` ends with "-dirty" where the checkout was changed, and is None where there is none."""
    commit = None
    if (_ROOT / ".git").exists():
        options = ("--always", "--dirty", "--abbrev=40", "--exclude", "*")
        commit = _said("git", "--no-optional-locks", "-C", str(_ROOT), "describe", *options)
    return {"version": __version__, "commit": commit, "python": platform.python_version()}


def hardware() -> dict[str, Any]:
    """`gpus` is empty where nvidia-smi is not there."""
    gpus = _said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits") or ""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "gpus": [
            dict(zip(("name", "driver", "memory_mb"), map(str.strip, line.split(",")), strict=False))
            for line in gpus.splitlines()
        ],
    }


def engine(settings: Settings, info: EngineInfo) -> dict[str, Any]:
    """What the engine says of itself, its file, and the settings that change its figures."""
    is_s2 = info.name == "s2"
    return {
        "name": info.name,
        "slots": info.slots,
        "sample_rate": info.sample_rate,
        "model": model_file(settings.model_path) if is_s2 else None,
        "backend": settings.backend if is_s2 else None,
        "context": settings.context if is_s2 else None,
        "settings": {name: _plain(getattr(settings, name)) for name in sorted(S2_SETTINGS)} if is_s2 else {},
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
    """What a process has on all GPUs together; None where nvidia-smi is not there, or does not know it."""
    table = _said("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits") or ""
    rows = [line.split(",") for line in table.splitlines()]
    used = [row[1].strip() for row in rows if len(row) == 2 and row[0].strip() == str(pid)]
    return float(sum(map(int, used))) if used and all(value.isdecimal() for value in used) else None


def _said(program: str, *arguments: str) -> str | None:
    """Of a program that may be missing, or broken."""
    if path := shutil.which(program):
        with suppress(OSError, subprocess.SubprocessError):
            result = subprocess.run([path, *arguments], capture_output=True, timeout=_ANSWER_S, check=True)
            return result.stdout.decode(errors="replace").strip() or None
    return None


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
