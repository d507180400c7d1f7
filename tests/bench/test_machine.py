"""Facts of this machine, and of one that has nothing."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fishs2_daemon import __version__, configuration
from fishs2_daemon.bench import machine
from fishs2_daemon.speech import EngineInfo
from tests.recorded_gpus import RTX_3060, Card, Machine


@pytest.fixture(autouse=True)
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "gpus", monkeypatch)


def test_a_gpu_is_told_with_its_driver_and_what_a_process_has_of_it(gpus: Machine) -> None:
    gpus.nvml(replace(RTX_3060, processes=((os.getpid(), 123 << 20),)), Card("NVIDIA GB10", 0, 0, None, None))
    assert machine.hardware()["gpus"] == [
        {"name": "NVIDIA GeForce RTX 3060", "driver": "550.144.03", "memory_mb": 12288},
        {"name": "NVIDIA GB10", "driver": "550.144.03", "memory_mb": None},
    ]
    assert machine.vram_mb(os.getpid()) == 123
    assert machine.vram_mb(2) is None


def test_without_the_programs_it_says_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    hardware = machine.hardware()
    assert hardware["gpus"] == []
    assert hardware["cpu"]
    assert hardware["cores"] >= 1
    assert machine.vram_mb(os.getpid()) is None
    assert machine.software()["commit"] is None
    assert machine.software()["version"] == __version__


def test_memory_is_the_most_that_a_process_had() -> None:
    before = machine.peak_ram_mb(os.getpid())
    assert before is not None
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    del block
    after = machine.peak_ram_mb(os.getpid())
    assert after is not None
    assert after >= before
    assert machine.peak_ram_mb(0) is None


def test_an_engine_without_a_model_has_none() -> None:
    told = machine.engine(configuration.load(engine="espeak"), EngineInfo("espeak", 22050, 1, "en", ()))
    assert (told["name"], told["slots"], told["model"], told["backend"], told["settings"]) == (
        "espeak",
        1,
        None,
        None,
        {},
    )
