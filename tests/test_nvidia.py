"""GPUs as NVIDIA's library tells of them, as `nvidia-smi` does, and as none of both does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fishs2_daemon import nvidia
from fishs2_daemon.nvidia import Gpu, gpus, used_bytes
from tests.recorded_gpus import H200, MIB, RTX_2060, RTX_3060, RTX_3060_TI, RTX_4090, Card, Machine

OTHER_UUID = "GPU-0c1d2e3f-0000-1111-2222-333344445555"
TWO = """
case "$1" in
  --query-gpu*)
    echo "0, NVIDIA GeForce RTX 3060, GPU-5b0b7a2c-6f3e-4a1d-9d0f-1c2b3a4d5e6f, 550.144.03, 12288, 11883"
    echo "1, NVIDIA Unheard Of, GPU-0c1d2e3f-0000-1111-2222-333344445555, 550.144.03, 6144, 0" ;;
  --query-compute-apps*) printf '71, 100\\n71, 23\\n72, [N/A]\\n73, 5\\n73, [Insufficient Permissions]\\n' ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "gpus", monkeypatch)


# The library


@pytest.mark.parametrize(
    ("card", "gb_per_s"),
    [(RTX_2060, 336), (RTX_3060_TI, 448), (RTX_3060, 360), (RTX_4090, 1008), (H200, 4917)],
    ids=lambda value: value.name if isinstance(value, Card) else "",
)
def test_a_card_is_told_by_its_library(machine: Machine, card: Card, gb_per_s: int) -> None:
    machine.nvml(card)
    (gpu,) = gpus()
    assert gpu == Gpu(0, card.name, card.driver, card.total * MIB, card.free * MIB, gpu.bandwidth)
    assert gpu.bandwidth is not None
    assert round(gpu.bandwidth / 1e9) == gb_per_s


@pytest.mark.parametrize(("clock", "bus"), [(None, 192), (7501, None), (0, 192), (None, None)])
def test_what_the_driver_does_not_tell_is_known_of_a_known_card(
    machine: Machine, clock: int | None, bus: int | None
) -> None:
    known = replace(RTX_3060, clock=clock, bus=bus)
    machine.nvml(known, replace(known, name="NVIDIA GeForce RTX 3060 Laptop GPU"), replace(known, name="NVIDIA H200"))
    assert [gpu.bandwidth for gpu in gpus()] == [360 * 10**9, None, 4800 * 10**9]


def test_one_without_memory_of_its_own(machine: Machine) -> None:
    machine.nvml(Card("NVIDIA GB10", 0, 0, None, None))
    assert gpus() == [Gpu(0, "NVIDIA GB10", "550.144.03", None, None, 273 * 10**9)]


def test_one_that_is_lost_leaves_the_others(machine: Machine) -> None:
    machine.nvml(replace(RTX_3060, lost="GPU is lost"), replace(RTX_4090, uuid=OTHER_UUID))
    machine.smi(TWO)
    assert [gpu.name for gpu in gpus()] == ["NVIDIA GeForce RTX 4090"]


def test_no_native_code_is_loaded_here(machine: Machine) -> None:
    machine.nvml(RTX_3060)
    program = "import sys; from fishs2_daemon.nvidia import gpus; print(len(gpus()), 'pynvml' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    assert told.split() == ["1", "False"]


# Then nvidia-smi


@pytest.mark.parametrize(
    "prepare",
    [
        lambda machine: machine.nvml(error="Driver Not Loaded"),
        lambda machine: machine.nvml(error="NVML Shared Library Not Found"),
        lambda machine: machine.nvml(replace(RTX_3060, lost="GPU is lost")),
        lambda machine: machine.nvml(),
    ],
)
def test_nvidia_smi_is_asked_where_the_library_knows_none(machine: Machine, prepare: Callable[[Machine], None]) -> None:
    prepare(machine)
    machine.smi(TWO)
    assert gpus() == [
        Gpu(0, "NVIDIA GeForce RTX 3060", "550.144.03", 12288 * MIB, 11883 * MIB, 360 * 10**9),
        Gpu(1, "NVIDIA Unheard Of", "550.144.03", 6144 * MIB, 0, None),
    ]


@pytest.mark.parametrize(
    "module", ["raise ImportError('broken')", "print('hello')", "import os; os._exit(3)", "import time; time.sleep(60)"]
)
def test_a_module_that_is_not_the_library(
    machine: Machine, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "_ANSWER_S", 2.0)
    (tmp_path / "gpus" / "pynvml.py").write_text(module)
    machine.smi(TWO)
    assert len(gpus()) == 2


def test_a_library_that_is_not_installed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.nvml(RTX_4090)
    machine.smi(TWO)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(gpus()) == 2


@pytest.mark.parametrize(
    ("row", "total", "free"),
    [
        ("0, NVIDIA GB10, GPU-1, 580.1, [N/A], [N/A]", None, None),
        ("0, NVIDIA GB10, GPU-1, 580.1, [Not Supported], [Not Supported]", None, None),
        ("0, NVIDIA GB10, [N/A], [N/A], 6144, [N/A]", None, None),
        ("0, NVIDIA GB10, GPU-1, 580.1, 131072, 100000", 131072 * MIB, 100000 * MIB),
    ],
)
def test_cells_without_a_number(machine: Machine, row: str, total: int | None, free: int | None) -> None:
    machine.smi(f'echo "{row}"')
    (gpu,) = gpus()
    assert (gpu.total_bytes, gpu.free_bytes, gpu.bandwidth) == (total, free, 273 * 10**9)


@pytest.mark.parametrize(
    "script",
    [
        "echo NVIDIA-SMI has failed because it couldn\\'t communicate with the NVIDIA driver.; exit 9",
        "echo No devices were found; exit 6",
        "echo No devices were found",
        "echo Unable to determine the device handle for GPU 0000:01:00.0: Unknown Error",
        "echo '0, cut short'",
        "echo ', , , , , '",
        "printf '\\377\\376,,,,,\\n'",
        "exec sleep 60",
        "kill -9 $$",
        "",
    ],
)
def test_nvidia_smi_without_an_answer_is_no_gpu(machine: Machine, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_ANSWER_S", 1.0)
    machine.smi(script)
    began = time.monotonic()
    assert gpus() == []
    assert used_bytes(os.getpid()) is None
    assert time.monotonic() - began < 8


def test_a_lost_gpu_s_line_leaves_the_others(machine: Machine) -> None:
    machine.smi("echo 'GPU 0000:01:00.0: GPU requires reset'\n" + TWO)
    assert len(gpus()) == 2


# Which of them may be used


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("", []),
        ("-1", []),
        ("0", ["A"]),
        ("1", ["B"]),
        ("1,0", ["B", "A"]),
        (" 1 , 0 ", ["B", "A"]),
        ("1,7,0", ["B"]),
        ("GPU-0c1d", ["B"]),
        (f"GPU-0c1d,{RTX_3060.uuid}", ["B", "A"]),
        ("MIG-1", []),
    ],
)
def test_cuda_may_be_told_to_see_fewer(
    machine: Machine, chosen: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.nvml(replace(RTX_3060, name="A"), replace(RTX_3060, name="B", uuid=OTHER_UUID))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert [(gpu.number, gpu.name) for gpu in gpus()] == list(enumerate(names))


# What a process has


def test_what_a_process_has_of_all_gpus(machine: Machine) -> None:
    machine.smi(TWO)
    assert [used_bytes(pid) for pid in (71, 72, 73, 7)] == [123 * MIB, None, None, None]
    machine.nvml(replace(RTX_3060, processes=((71, 1000), (72, None))), replace(RTX_3060, processes=((71, 24), (8, 5))))
    assert [used_bytes(pid) for pid in (71, 72, 8, 7)] == [1024, None, 5, None]
