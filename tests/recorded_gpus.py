"""What NVIDIA's library and `nvidia-smi` answer on real cards, played by a module and a script of those names."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

MIB = 1 << 20


@dataclass(frozen=True)
class Card:
    """Memory in MiB, the highest memory clock in MHz, the bus in bits; `lost` is the name of the error instead."""

    name: str
    total: int
    free: int
    clock: int | None
    bus: int | None
    driver: str = "550.144.03"
    uuid: str = "GPU-5b0b7a2c-6f3e-4a1d-9d0f-1c2b3a4d5e6f"
    lost: str = ""
    processes: tuple[tuple[int, int | None], ...] = ()


RTX_2060 = Card("NVIDIA GeForce RTX 2060", 6144, 5765, 7001, 192, driver="535.183.01")
RTX_3060_TI = Card("NVIDIA GeForce RTX 3060 Ti", 8192, 7802, 7001, 256)
RTX_3060 = Card("NVIDIA GeForce RTX 3060", 12288, 11883, 7501, 192)
RTX_4090 = Card("NVIDIA GeForce RTX 4090", 24564, 23721, 10501, 384, driver="570.86.15")
H200 = Card("NVIDIA H200", 143771, 143155, 3201, 6144, driver="570.124.06")

_MODULE = """
import json, pathlib
from types import SimpleNamespace

NVML_CLOCK_MEM = 2
_told = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())


class NVMLError(Exception):
    pass


def nvmlInit():
    if "error" in _told:
        raise NVMLError(_told["error"])

def nvmlSystemGetDriverVersion():
    return _told["cards"][0]["driver"] if _told["cards"] else "550.144.03"

def nvmlDeviceGetCount():
    return len(_told["cards"])

def nvmlDeviceGetHandleByIndex(index):
    card = _told["cards"][index]
    if card["lost"]:
        raise NVMLError(card["lost"])
    return card

def nvmlDeviceGetName(card):
    return card["name"]

def nvmlDeviceGetUUID(card):
    return card["uuid"]

def nvmlDeviceGetMemoryInfo(card):
    if card["total"] == 0:
        raise NVMLError("Not Supported")
    return SimpleNamespace(
        total=card["total"] << 20, free=card["free"] << 20, used=card["total"] - card["free"] << 20
    )

def nvmlDeviceGetMaxClockInfo(card, clock):
    assert clock == NVML_CLOCK_MEM
    if card["clock"] is None:
        raise NVMLError("Not Supported")
    return card["clock"]

def nvmlDeviceGetMemoryBusWidth(card):
    if card["bus"] is None:
        raise NVMLError("Not Supported")
    return card["bus"]

def nvmlDeviceGetComputeRunningProcesses(card):
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card["processes"]]
"""


class Machine:
    """Its two ways to tell of its GPUs, where this process and its children look for them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "pynvml.py").write_text(_MODULE)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "pynvml", raising=False)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self.nvml(error="NVML Shared Library Not Found")
        self.smi("exit 127")

    def nvml(self, *cards: Card, error: str = "") -> None:
        told = {"error": error} if error else {"cards": [asdict(card) for card in cards]}
        (self._folder / "pynvml.json").write_text(json.dumps(told))

    def smi(self, script: str) -> None:
        """Lines of a shell script."""
        program = self._folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
