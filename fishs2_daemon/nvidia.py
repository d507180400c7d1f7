"""NVIDIA's GPUs: what its management library tells, else what `nvidia-smi` prints, else none."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fishs2_daemon.programs import answer_of

#: Both answer within a second or two, or hang with the driver.
_ANSWER_S = 10.0

#: Gigabytes a second, as their makers state, of cards whose driver does not tell clock and bus.
_BANDWIDTHS_GB = {
    "GTX 1060 6GB": 192, "GTX 1070": 256, "GTX 1080": 320, "GTX 1080 Ti": 484, "GTX 1650": 128, "RTX 2060": 336,
    "RTX 2070": 448, "RTX 2080": 448, "RTX 2080 Ti": 616, "RTX 3050": 224, "RTX 3060": 360, "RTX 3060 Ti": 448,
    "RTX 3070": 448, "RTX 3080": 760, "RTX 3090": 936, "RTX 4060": 272, "RTX 4060 Ti": 288, "RTX 4070": 504,
    "RTX 4080": 717, "RTX 4090": 1008, "RTX 5060 Ti": 448, "RTX 5070": 672, "RTX 5080": 960, "RTX 5090": 1792,
    "Tesla P40": 347, "Tesla T4": 320, "L4": 300, "A10": 600, "L40S": 864, "H100 80GB HBM3": 3350, "H200": 4800,
    "GB10": 273,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gpu:
    """`number` is its FISHS2_GPU_DEVICE. `total_bytes` and `free_bytes` are None where it has none but the machine's;
    `bandwidth` is that of its memory in bytes a second, None where nobody knows."""

    number: int
    name: str
    driver: str
    total_bytes: int | None
    free_bytes: int | None
    bandwidth: int | None


def gpus() -> list[Gpu]:
    """Those that this process may use (CUDA_VISIBLE_DEVICES)."""
    return [
        Gpu(number, row["name"], row["driver"], row["total"], row["free"], row["bandwidth"] or _bandwidth(row["name"]))
        for number, row in enumerate(_visible(_by_nvml() or _by_smi(), os.environ.get("CUDA_VISIBLE_DEVICES")))
    ]


def used_bytes(pid: int) -> int | None:
    """What a process has on all GPUs together; None where nobody knows."""
    told = _by_nvml()
    if told:
        used = [each for gpu in told for process, each in gpu["processes"] if process == pid]
    else:
        rows = _smi("--query-compute-apps=pid,used_memory")
        used = [_megabytes(row[1]) for row in rows if len(row) == 2 and row[0] == str(pid)]
    known = [each for each in used if each is not None]
    return sum(known) if known and len(known) == len(used) else None


def _by_nvml() -> list[dict[str, Any]]:
    if importlib.util.find_spec("pynvml") is None:
        return []
    told = answer_of(sys.executable, "-m", "fishs2_daemon.nvml", timeout_s=_ANSWER_S)
    try:
        found: list[dict[str, Any]] = json.loads(told or "{}").get("gpus", [])
    except ValueError:  # another package's module of that name
        return []
    return found


def _by_smi() -> list[dict[str, Any]]:
    found = []
    for row in _smi("--query-gpu=index,name,uuid,driver_version,memory.total,memory.free"):
        # Of a GPU that is lost it prints an error instead.
        if len(row) == 6 and row[0].isdecimal():
            total, free = _megabytes(row[4]), _megabytes(row[5])
            memory = {"total": total, "free": free} if total and free is not None else {"total": None, "free": None}
            found.append(
                {"index": int(row[0]), "name": row[1], "uuid": row[2], "driver": row[3], "bandwidth": None, **memory}
            )
    return found


def _smi(query: str) -> list[list[str]]:
    table = answer_of("nvidia-smi", query, "--format=csv,noheader,nounits", timeout_s=_ANSWER_S) or ""
    return [[cell.strip() for cell in line.split(",")] for line in table.splitlines()]


def _megabytes(cell: str) -> int | None:
    """In bytes; None for `[N/A]` and its like."""
    return int(cell) << 20 if cell.isdecimal() else None


def _visible(rows: Iterable[dict[str, Any]], chosen: str | None) -> list[dict[str, Any]]:
    """In CUDA's order: `chosen` names numbers or beginnings of UUIDs, up to the first that is none."""
    rows = list(rows)
    if chosen is None:
        return rows
    found = []
    for name in map(str.strip, chosen.split(",")):
        row = next((row for row in rows if _is_called(row, name)), None)
        if row is None:
            break
        found.append(row)
    return found


def _is_called(row: dict[str, Any], name: str) -> bool:
    if name.isdecimal():
        return bool(row["index"] == int(name))
    return name.startswith("GPU-") and (row["uuid"] or "").startswith(name)


def _bandwidth(name: str) -> int | None:
    gigabytes = _BANDWIDTHS_GB.get(name.removeprefix("NVIDIA ").removeprefix("GeForce "))
    return None if gigabytes is None else gigabytes * 10**9
