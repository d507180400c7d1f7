"""What `doctor` says of a machine and of the model's files: this machine, recorded GPUs, and made-up ones."""

import os
import re
import subprocess
import sysconfig
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fishs2_daemon import configuration, doctor
from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES
from fishs2_daemon.engines.s2.proof import Proof
from fishs2_daemon.hardware import Hardware
from fishs2_daemon.nvidia import Gpu
from tests.recorded_gpus import H200, MIB, RTX_3060_TI, Machine

SCRIPT = str(Path(sysconfig.get_path("scripts"), "fishs2-daemon"))
QUIET = {"FISHS2_URI": "tcp://127.0.0.1:0", "FISHS2_HOST": "127.0.0.1", "FISHS2_PORT": "0", "FISHS2_ZEROCONF": "false"}

SMALL = Gpu(0, "NVIDIA GeForce GTX 1650", "550.1", 4 << 30, 3900 * MIB, 128 * 10**9)
HOME = Hardware(
    gpus=(Gpu(0, "NVIDIA GeForce RTX 3060 Ti", "550.1", 8 << 30, 7802 * MIB, 448 * 10**9),),
    ram_bytes=32 << 30,
    ram_free_bytes=28 << 30,
    disk_free_bytes=100_000_000_000,
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "gpus", monkeypatch)


def told(**environment: str) -> list[str]:
    """The findings of the installed script, each with what is below it."""
    result = subprocess.run(
        [SCRIPT, "doctor"], env={**os.environ, **QUIET, **environment}, capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" not in result.stderr
    found: list[str] = []
    for line in result.stdout.decode().splitlines():
        if line.startswith(" "):
            found[-1] += f"\n{line.strip()}"
        else:
            found.append(line)
    assert result.returncode == any(finding.startswith("PROBLEM") for finding in found)
    return found


def one(found: list[str], words: str) -> str:
    (finding,) = [finding for finding in found if words in finding]
    return finding


async def examined(
    hardware: Hardware, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[bool, dict[str, list[str]]]:
    """The findings by severity, each with its advice; and whether all is well."""
    lines: list[str] = []
    monkeypatch.setattr(doctor, "look", lambda settings: hardware)
    loaded = configuration.load(uri="tcp://127.0.0.1:0", host="127.0.0.1", port=0, zeroconf=False, **settings)
    is_well = await doctor.examine(loaded, lines.append)
    found: dict[str, list[str]] = {"ok": [], "note": [], "PROBLEM": []}
    severity = ""
    for line in lines:
        if line.startswith("        -> "):
            found[severity][-1] += line.strip()
        elif not line.startswith(" "):
            severity, text = line.split(maxsplit=1)
            found[severity].append(text)
    return is_well, found


# As its user sees it


def test_the_plan_of_this_machine_is_true_for_it(machine: Machine) -> None:
    found = told()
    assert one(found, "no NVIDIA GPU answers here").startswith("note")
    memory = one(found, "MB of memory, ")
    seen = re.search(r"^ok +(\d+) cores; (\d+) MB of memory, (\d+) MB of it free; .* free at models$", memory)
    assert seen
    cores, total, free = map(int, seen.groups())
    assert cores == len(os.sched_getaffinity(0))
    assert free <= total <= psutil.virtual_memory().total >> 20
    plan = one(found, "S2 Pro on the processor, slots of 4096 positions")
    assert "a processor is for trying, not for real time" in plan
    for row in (line.split() for line in plan.splitlines() if line.split()[0] in PUBLISHED_BYTES):
        _, _, _, weights, graphs, codec, voices, reserve, slots, _, each, needed, given = row[:13]
        parts = sum(map(int, (weights, graphs, codec, voices, reserve)))
        assert abs(parts + int(slots) * int(each) - int(needed)) < 8  # each was rounded
        assert int(given) == free
        assert (int(needed) <= free) == ("does not fit" not in " ".join(row))
        assert "does not fit" in row or "RTF well above 1" in " ".join(row)


def test_the_plan_of_a_recorded_gpu(machine: Machine) -> None:
    machine.nvml(RTX_3060_TI)
    found = told(FISHS2_BACKEND="cuda")
    gpu = one(found, "GPU 0: ")
    assert gpu == "ok      GPU 0: NVIDIA GeForce RTX 3060 Ti, 8192 MB, 7802 MB of it free, 448 GB/s, driver 550.144.03"
    plan = one(found, "S2 Pro on GPU 0 (NVIDIA GeForce RTX 3060 Ti)").splitlines()
    assert plan[0].startswith("ok      the file for this machine is q6_k: the best in real time that fits GPU 0")
    assert plan[1] == "-> fishs2-daemon models get q6_k; FISHS2_MODEL_QUANT=q6_k (or auto) takes it"
    assert any(line.startswith("q6_k") and line.endswith("RTF 0.65-0.95, recommended") for line in plan)
    assert one(found, "q8_0, which is set,").startswith("ok      q8_0, which is set, fits GPU 0")


def test_a_gpu_that_ggml_cannot_use(machine: Machine, tmp_path: Path) -> None:
    library = tmp_path / "gpus" / "ggml" / "lib" / "libggml-cpu.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (library.parents[1] / "__init__.py").touch()
    machine.nvml(RTX_3060_TI)
    found = told(FISHS2_ENGINE="auto")
    assert one(found, "S2 Pro on the processor")


@pytest.mark.parametrize(
    ("proof", "finding"),
    [
        (
            {"backend": "cuda", "reason": "CUDA cannot be used: it is a build without CUDA"},
            "PROBLEM ggml does not compute on cuda: CUDA cannot be used: it is a build without CUDA "
            "-> python3 run.py --backend cuda",
        ),
        (
            {"backend": "cuda", "reason": "it crashed (SIGABRT)"},
            "PROBLEM ggml does not compute on cuda: it crashed (SIGABRT) -> see docs/gpu.md",
        ),
        (
            {"device": "cpu", "device_name": "A processor", "features": ("LLAMAFILE",), "no_cuda": "not built in"},
            "note ggml 0.15.3 computes on cpu (A processor; LLAMAFILE), and not on the GPU: not built in "
            "-> python3 run.py --backend cuda",
        ),
    ],
)
def test_what_ggml_proved_to_do(proof: dict[str, Any], finding: str) -> None:
    known = {field.name for field in fields(Proof)}
    proven = {"backend": "auto", "reason": "", "ggml_version": "0.15.3"} | proof
    assert proven.keys() <= known
    told = doctor._backend(Proof(**proven), HOME)
    assert " ".join(filter(None, (told.severity, told.text, told.advice and f"-> {told.advice}"))) == finding


def test_a_gpu_that_was_asked_for_and_is_not_there(machine: Machine) -> None:
    found = told(FISHS2_BACKEND="cuda", FISHS2_ENGINE="s2")
    problem = one(found, "no NVIDIA GPU answers here")
    assert problem.startswith("PROBLEM FISHS2_BACKEND (--backend): 'cuda' is not possible")
    assert "FISHS2_SKIP_GPU_CHECK=true" in problem


# What is said when


async def test_what_is_there_and_set_needs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    there = replace(HOME, missing_bytes={**PUBLISHED_BYTES, "q6_k": 0})
    _, found = await examined(there, monkeypatch, model_quant="q6_k")
    (plan,) = [text for text in found["ok"] if text.startswith("the file for this machine is q6_k")]
    assert "->" not in plan
    _, found = await examined(HOME, monkeypatch, model_quant="q6_k")
    (plan,) = [text for text in found["ok"] if text.startswith("the file for this machine is q6_k")]
    assert plan.endswith("-> fishs2-daemon models get q6_k")


async def test_what_is_set_and_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = await examined(HOME, monkeypatch, model_quant="f16")
    (note,) = [text for text in found["note"] if text.startswith("f16, which is set,")]
    assert (
        "does not fit: 1 slot would take 10643 MB on GPU 0 (NVIDIA GeForce RTX 3060 Ti), and 7802 MB are free" in note
    )
    assert note.endswith("-> FISHS2_MODEL_QUANT=q6_k; what a daemon that is running holds counts as taken")
    is_well, found = await examined(HOME, monkeypatch, model_quant="f16", engine="s2")
    assert not is_well
    assert any(text.startswith("f16, which is set, does not fit") for text in found["PROBLEM"])


async def test_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    is_well, found = await examined(replace(HOME, gpus=(SMALL,)), monkeypatch)
    assert is_well  # the preview voice speaks
    (plan,) = [text for text in found["note"] if "nothing fits" in text]
    assert plan.startswith("q2_k: nothing fits, and this is the smallest: 1 slot would take 4480 MB")
    assert "models get" not in plan
    (set_one,) = [text for text in found["note"] if text.startswith("q8_0, which is set,")]
    assert "-> a smaller FISHS2_CONTEXT" in set_one


@pytest.mark.parametrize(("engine", "is_planned"), [("auto", True), ("espeak", False)])
async def test_a_plan_is_for_the_engine_that_takes_the_files(
    engine: str, is_planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = await examined(HOME, monkeypatch, engine=engine)
    assert any("the file for this machine" in text for text in found["ok"]) == is_planned


@pytest.mark.parametrize(
    ("file", "size", "is_judged"),
    [
        ("s2-pro-q8_0.gguf", PUBLISHED_BYTES["q8_0"], True),
        ("s2-pro-q6_k.gguf", 4_525_205_024, True),  # published as 4.5 GB
        ("s2-pro-q8_0.gguf", 1000, False),
        ("mine.gguf", PUBLISHED_BYTES["q8_0"], False),
    ],
)
async def test_another_model_is_not_judged(
    file: str, size: int, is_judged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sums of the published files; what it takes is seen when it is loaded."""
    Path(file).touch()  # noqa: ASYNC240
    os.truncate(file, size)
    _, found = await examined(HOME, monkeypatch, model_path=file, engine="auto")
    assert any("which is set" in text for texts in found.values() for text in texts) == is_judged


async def test_two_gpus_are_both_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Gpu(1, H200.name, "550.1", None, None, None)
    _, found = await examined(replace(HOME, gpus=(*HOME.gpus, other)), monkeypatch)
    assert "GPU 1: NVIDIA H200, shares the machine's memory, 28672 MB of it free, driver 550.1" in found["ok"]


async def test_who_speaks_is_told_with_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    is_well, found = await examined(HOME, monkeypatch, engine="remote", remote_urls=["http://127.0.0.1:9/v1"])
    assert not is_well
    assert "http://127.0.0.1:9/v1 speak; their models have licences of their own" in found["ok"]
    assert not any("preview voice" in text for texts in found.values() for text in texts)
    _, found = await examined(HOME, monkeypatch, engine="s2cpp")
    assert any("built with Fish Audio, for non-commercial use" in text for text in found["ok"])
