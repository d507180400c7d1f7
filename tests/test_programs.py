"""Programs that answer, fail, hang, or are not there."""

import time
from pathlib import Path

import psutil
import pytest

from fishs2_daemon.programs import answer_of


@pytest.fixture(autouse=True)
def _only_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def program(name: str, script: str, mode: int = 0o755) -> None:
    Path(name).write_text(f"#!/bin/sh\n{script}\n")
    Path(name).chmod(mode)


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("echo ' two words '", "two words"),
        ('echo "$1-$2"', "a-b c"),
        ("cat", None),
        ("echo half; exit 3", None),
        ("echo wrong >&2", None),
        ("kill -9 $$", None),
        ("printf '\\377'", "\ufffd"),
    ],
)
def test_the_answer_is_what_a_program_prints_and_ends_well_with(script: str, answer: str | None) -> None:
    program("asked", script)
    assert answer_of("asked", "a", "b c", timeout_s=5) == answer


def test_a_program_that_is_not_there_or_none() -> None:
    assert answer_of("asked", timeout_s=5) is None
    Path("asked").write_bytes(b"\x7fELF and no more")
    Path("asked").chmod(0o755)
    assert answer_of("asked", timeout_s=5) is None
    program("asked", "echo x", mode=0o644)
    assert answer_of("asked", timeout_s=5) is None


def test_one_that_hangs_is_ended() -> None:
    program("asked", "exec sleep 60")
    began = time.monotonic()
    assert answer_of("asked", timeout_s=0.2) is None
    assert time.monotonic() - began < 3
    assert "sleep" not in [child.name() for child in psutil.Process().children()]
