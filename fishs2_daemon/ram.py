"""The machine's own memory."""

import os
from contextlib import suppress
from pathlib import Path

_MEMINFO, _CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def total_bytes() -> int:
    """0 where the system does not say."""
    return _limit(_meminfo("MemTotal")) or _pages()


def available_bytes() -> int | None:
    """What it can give without swapping, and a container (cgroup v2) may take; None where the system does not say."""
    available = _meminfo("MemAvailable")
    if available is None:
        return None
    with suppress(OSError, ValueError):
        limit = int((_CONTAINER / "memory.max").read_text())
        # Pages of files are given back, those of programs are not.
        taken = _field(_CONTAINER / "memory.stat", "anon") or 0
        return max(0, min(available, limit - taken))
    return available


def _meminfo(name: str) -> int | None:
    kilobytes = _field(_MEMINFO, f"{name}:")
    return None if kilobytes is None else kilobytes * 1024


def _field(file: Path, name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return None


def _limit(found: int | None) -> int | None:
    if found is None:
        return None
    with suppress(OSError, ValueError):
        return min(found, int((_CONTAINER / "memory.max").read_text()))
    return found


def _pages() -> int:
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
