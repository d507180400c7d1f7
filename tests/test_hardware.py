"""A look at this machine, and at made-up ones."""

import shutil
import sys
from pathlib import Path

import psutil
import pytest

from fishs2_daemon import configuration, ram
from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES
from fishs2_daemon.hardware import Hardware, look
from tests.recorded_gpus import RTX_3060, Card, Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "gpus", monkeypatch)


def test_this_machine_is_as_others_see_it(machine: Machine, tmp_path: Path) -> None:
    seen, memory = look(configuration.load()), psutil.virtual_memory()
    assert seen.gpus == ()
    assert 0 < seen.ram_bytes <= memory.total
    assert 0 < seen.ram_free_bytes <= seen.ram_bytes
    assert seen.disk_free_bytes is not None
    assert abs(seen.disk_free_bytes - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert seen.missing_bytes == PUBLISHED_BYTES
    assert seen.models_dir == Path("models")


def test_its_gpus_are_told(machine: Machine) -> None:
    machine.nvml(RTX_3060, Card("NVIDIA GB10", 0, 0, None, None))
    seen = look(configuration.load())
    own, shared = seen.gpus
    assert own.name == "NVIDIA GeForce RTX 3060"
    assert (seen.free_bytes(own), seen.free_bytes(shared)) == (own.free_bytes, seen.ram_free_bytes)


def test_files_that_are_there_and_begun(machine: Machine) -> None:
    folder = Path("models")
    folder.mkdir()
    (folder / "s2-pro-q6_k.gguf").write_bytes(b"whole")
    (folder / "s2-pro-q2_k.gguf.part").write_bytes(bytes(1000))
    (folder / "s2-pro-f16.gguf").mkdir()
    missing = look(configuration.load()).missing_bytes
    assert missing == {**PUBLISHED_BYTES, "q6_k": 0, "q2_k": PUBLISHED_BYTES["q2_k"] - 1000}


def test_a_named_file_is_the_one_of_its_quantisation(machine: Machine) -> None:
    Path("mine.gguf").write_bytes(b"whole")
    missing = look(configuration.load(model_path="mine.gguf", model_quant="q3_k")).missing_bytes
    assert missing == {**PUBLISHED_BYTES, "q3_k": 0}


def test_a_disk_that_cannot_be_looked_at(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> object:
        raise PermissionError

    monkeypatch.setattr("shutil.disk_usage", refuse)
    assert look(configuration.load()).disk_free_bytes is None


@pytest.mark.parametrize(
    ("libraries", "found"),
    [
        (None, None),
        ([], frozenset()),
        (["libggml.so", "libggml-base.so", "libggml-cpu.so"], frozenset({"base", "cpu"})),
        (["libggml-cpu.so", "libggml-cuda.so"], frozenset({"cpu", "cuda"})),
    ],
)
def test_what_ggml_can_compute_on(
    machine: Machine,
    tmp_path: Path,
    libraries: list[str] | None,
    found: frozenset[str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = tmp_path / "gpus" / "ggml"
    (package / "lib").mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "ggml", raising=False)  # of another test
    if libraries is not None:
        (package / "__init__.py").write_text("raise RuntimeError('it loads every library')")
        for name in libraries:
            (package / "lib" / name).touch()
    else:
        monkeypatch.setitem(sys.modules, "ggml", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert look(configuration.load()).ggml == found


def test_a_machine_of_nothing() -> None:
    nothing = Hardware()
    assert (nothing.gpus, nothing.ram_free_bytes, nothing.disk_free_bytes) == ((), 0, None)


# Memory

MEMINFO = "MemTotal:       24684084 kB\nMemFree:         1234 kB\nMemAvailable:   23666984 kB\nBuffers: 1 kB\n"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the system tells of its memory."""
    monkeypatch.setattr(ram, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(ram, "_CONTAINER", tmp_path)
    return tmp_path


def test_memory_is_what_can_be_had_without_swapping(told: Path) -> None:
    (told / "meminfo").write_text(MEMINFO)
    assert (ram.total_bytes(), ram.available_bytes()) == (24684084 * 1024, 23666984 * 1024)


@pytest.mark.parametrize(
    ("limit", "stat", "total", "available"),
    [
        ("max", "anon 5000\nfile 9", 24684084 * 1024, 23666984 * 1024),
        ("4000000", "anon 1000000\nfile 2999999", 4000000, 3000000),
        ("4000000", "", 4000000, 4000000),
        ("4000000", "anon 5000000", 4000000, 0),
        (str(1 << 50), "anon 5000", 24684084 * 1024, 23666984 * 1024),
    ],
)
def test_a_container_may_take_less(told: Path, limit: str, stat: str, total: int, available: int) -> None:
    (told / "meminfo").write_text(MEMINFO)
    (told / "memory.max").write_text(f"{limit}\n")
    (told / "memory.stat").write_text(stat)
    assert (ram.total_bytes(), ram.available_bytes()) == (total, available)


@pytest.mark.parametrize("text", [None, "", "MemAvailable: many kB\n", "MemAvailable:\n", "MemAvailableX: 5 kB\n"])
def test_a_system_that_tells_nothing(told: Path, text: str | None) -> None:
    if text is not None:
        (told / "meminfo").write_text(text)
    assert ram.available_bytes() is None
    assert abs(ram.total_bytes() - psutil.virtual_memory().total) < 1 << 20
