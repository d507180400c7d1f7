"""What cannot be measured is told in one line, and what is broken off leaves nothing behind."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fishs2_daemon import configuration
from fishs2_daemon.bench import run as running
from fishs2_daemon.bench import synthetic
from fishs2_daemon.errors import InvalidRequest, StorageError, UnknownVoice
from tests.bench.harness import COMMAND, NEEDS_GGML
from tests.bench.test_plan import plan


def refused(kind: type[Exception], words: str, **typed: Any) -> None:
    checked = plan(**({"streams": "1", "repeat": "1", "seconds": "0.1"} | typed))
    with pytest.raises(kind, match=words):
        running.bench(configuration.load(engine="espeak"), checked)


def test_a_voice_that_is_not_there_is_told_with_those_that_are() -> None:
    refused(UnknownVoice, "there is no voice 'nobody'; voices: ", voice="nobody")


def test_an_engine_that_does_not_clone_takes_no_made_up_voice() -> None:
    refused(InvalidRequest, "--reference-seconds: espeak does not clone voices; allowed: 0", reference_seconds="2")


def test_levels_beyond_all_slots_leave_nothing_to_measure() -> None:
    refused(InvalidRequest, "--streams: the engine speaks [0-9]+ at a time; allowed: a number up to that", streams="64")


@NEEDS_GGML
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"synthetic": "huge"}, "--synthetic: 'huge' is not allowed; allowed: tiny, bench, s2-pro"),
        ({"synthetic": "tiny", "quant": "q9"}, "--quant: 'q9' is not allowed; allowed: f32, f16, "),
        ({"synthetic": "tiny", "quant": "q4_k_m"}, "--synthetic tiny --quant q4_k_m: "),
    ],
)
def test_a_model_that_cannot_be_made_is_told(typed: dict[str, Any], words: str, tmp_path: Path) -> None:
    refused(InvalidRequest, words, folder=str(tmp_path), **typed)


@NEEDS_GGML
def test_a_disk_without_room_is_told_before_anything_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(synthetic, "_SPARE_BYTES", 1 << 60)
    refused(StorageError, "MB are free; name another folder with --folder", folder=str(tmp_path), synthetic="tiny",
            quant="f16")  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*.gguf*")] == []


@NEEDS_GGML
def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(StorageError, "cannot be written", folder=str(tmp_path / "file"), synthetic="tiny", quant="f16")


@pytest.mark.parametrize(("ending", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_its_worker_and_nothing_is_written(ending: signal.Signals, status: int) -> None:
    arguments = ("--engine", "espeak", "--streams", "1", "--repeat", "10000", "--seconds", "600", "--json", "b.json")
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        workers: list[psutil.Process] = []
        ends = time.monotonic() + 30
        while not any(has_loaded(worker) for worker in workers):
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.05)
            workers = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, ending)  # as a terminal and a service manager do
        stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout) == (status, b"")
    assert re.fullmatch(rb"stopped after \d+ rounds; nothing was written\n", stderr)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert os.listdir() == []


def has_loaded(worker: psutil.Process) -> bool:
    """A signal in the first moments of a process is told by Python itself."""
    return any("espeak" in each.path for each in worker.memory_maps())
