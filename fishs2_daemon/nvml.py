"""What NVIDIA's management library (NVML) tells of the GPUs, as JSON.

It is native code, and waits for a driver that may hang: `fishs2_daemon.nvidia` runs this as a process of its own.
"""

import importlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar, cast

_T = TypeVar("_T")


class Memory(Protocol):
    """Bytes."""

    total: int
    free: int


class Process(Protocol):
    pid: int
    usedGpuMemory: int | None  # noqa: N815


class Nvml(Protocol):
    """What is used of `pynvml`, the module of nvidia-ml-py."""

    NVML_CLOCK_MEM: int
    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlSystemGetDriverVersion(self) -> str: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...  # noqa: N802
    def nvmlDeviceGetName(self, device: object) -> str: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, device: object) -> str: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, device: object) -> Memory: ...  # noqa: N802
    def nvmlDeviceGetMaxClockInfo(self, device: object, clock: int) -> int: ...  # noqa: N802
    def nvmlDeviceGetMemoryBusWidth(self, device: object) -> int: ...  # noqa: N802
    def nvmlDeviceGetComputeRunningProcesses(self, device: object) -> Sequence[Process]: ...  # noqa: N802


def told_by(nvml: Nvml) -> dict[str, Any]:
    """The GPUs that answer. Memory in bytes, bandwidth in bytes a second; None is what a GPU does not tell.

    Raises `NVMLError` where there is no driver.
    """
    nvml.nvmlInit()
    driver = nvml.nvmlSystemGetDriverVersion()
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        with suppress(nvml.NVMLError):  # one that is lost
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append({"index": index, "driver": driver, **_told_of(nvml, device)})
    return {"gpus": gpus}


def _told_of(nvml: Nvml, device: object) -> dict[str, Any]:
    def asked(question: Callable[[], _T]) -> _T | None:
        # Nobody can know which questions a driver, a container or a virtual GPU answers.
        with suppress(nvml.NVMLError):
            return question()
        return None

    clock_mhz = asked(lambda: nvml.nvmlDeviceGetMaxClockInfo(device, nvml.NVML_CLOCK_MEM))
    bus_bits = asked(lambda: nvml.nvmlDeviceGetMemoryBusWidth(device))
    memory = asked(lambda: nvml.nvmlDeviceGetMemoryInfo(device))
    processes = asked(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(device)) or []
    return {
        "name": nvml.nvmlDeviceGetName(device),
        "uuid": asked(lambda: nvml.nvmlDeviceGetUUID(device)),
        "total": memory.total if memory else None,
        "free": memory.free if memory else None,
        # Two transfers a clock.
        "bandwidth": clock_mhz * 1_000_000 * 2 * bus_bits // 8 if clock_mhz and bus_bits else None,
        "processes": [[process.pid, process.usedGpuMemory] for process in processes],
    }


if __name__ == "__main__":
    print(json.dumps(told_by(cast(Nvml, importlib.import_module("pynvml")))))
