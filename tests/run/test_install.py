"""`.venv` as run.py makes and fills it: once, again when it must, and never half."""

import fcntl
import json
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run.project import Project


def test_installs_once(project: Project) -> None:
    first = project.call("doctor")
    assert first.daemon["argv"] == ["doctor"]
    assert len(first.err.splitlines()) == 2
    assert "installed in" in first.err
    second = project.call("doctor")
    assert second.err == ""
    assert len(project.installations) == 1
    assert project.installations[0].endswith("--editable .[preview]")


def test_installs_again_when_pyproject_changes(ready: Project) -> None:
    (ready.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    ready.call("doctor")
    ready.call("doctor")
    assert len(ready.installations) == 1


def test_more_extras_are_added_and_never_taken_away(project: Project) -> None:
    project.stamp("preview")
    project.tool("g++")
    assert project.call("setup").status == 0
    assert project.installations[-1].endswith(".[preview,s2,test]")
    project.call("doctor")
    assert len(project.installations) == 1
    (project.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    project.call("doctor")
    assert project.installations[-1].endswith(".[preview,s2,test]")


def test_without_a_compiler_the_tests_of_the_s2_engine_are_left_out_in_words(project: Project) -> None:
    result = project.call("setup")
    assert result.status == 0
    assert project.installations[-1].endswith(".[preview,test]")
    assert "no C++ compiler" in result.err


@pytest.mark.parametrize("stamp", [b"", b"\xff\xfe", b"0000\npreview\n"])
def test_a_stamp_that_says_nothing_is_no_stamp(project: Project, stamp: bytes) -> None:
    (project.root / ".venv/run-stamp").write_bytes(stamp)
    project.call("doctor")
    assert len(project.installations) == 1


def test_installs_again_when_the_folder_was_moved(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready.installing._installed(ready.run.SERVE)
    monkeypatch.setattr(ready.installing, "VENV", ready.root / "before-it-moved/.venv")
    assert not ready.installing._installed(ready.run.SERVE)


def test_a_failed_installation_shows_the_end_of_pips_words_and_is_done_again(ready: Project) -> None:
    (ready.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    ready.pip_does("i=0; while [ $i -lt 40 ]; do echo line $i >&2; i=$((i+1)); done; exit 3")
    result = ready.call()
    assert result.status == 1
    assert result.out == ""
    assert "line 39" in result.err
    assert "line 20" not in result.err
    assert "start again: python3 run.py" in result.err
    (ready.root / "pyproject.toml").write_text("[project]\n")
    ready.pip_does("exit 0")
    ready.call("doctor")
    assert len(ready.installations) == 2, "the old stamp must not vouch for a half-done installation"


def test_pip_neither_reads_the_terminal_nor_writes_to_stdout(project: Project) -> None:
    project.pip_does('read line && exit 9; echo "chatter"; exit 0')
    result = project.call("doctor")
    assert result.daemon["argv"] == ["doctor"]
    assert "chatter" not in result.err


def test_a_second_start_waits_and_does_not_install_again(project: Project, processes: Callable[..., Any]) -> None:
    lock = project.installing.LOCK
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = processes(project.start("doctor"))
        assert process.stderr.readline() == "run.py: another start is installing; waiting for it\n"
        project.stamp("preview")
    out, _ = process.communicate(timeout=60)
    assert json.loads(out)["argv"] == ["doctor"]
    assert project.installations == []


def test_starts_at_the_same_time_install_once(project: Project) -> None:
    project.pip_does("sleep 0.3")
    started = [project.start("doctor") for _ in range(4)]
    results = [(process.communicate(timeout=60), process.returncode) for process in started]
    assert [status for _, status in results] == [0] * 4
    assert len(project.installations) == 1


def test_an_end_while_installing_ends_pip_too(project: Project, processes: Callable[..., Any]) -> None:
    project.pip_does("echo $$ > pid.part; mv pid.part pid; exec sleep 60")
    process = processes(project.start())
    assert "installing" in process.stderr.readline()
    pid = project.root / "pid"
    while not pid.exists():
        assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (project.root / ".venv/run-stamp").exists()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_the_end_of_an_installation_is_the_end_of_its_compilers(
    project: Project, processes: Callable[..., Any], sent: signal.Signals, status: int
) -> None:
    # A compiler that does not care for Ctrl-C, and what waits for it.
    project.pip_does("(trap '' INT; echo $$ > part; sleep 60) & echo $! > part; mv part pid; wait; sleep 60")
    process = processes(project.start())
    pid = project.root / "pid"
    while not pid.exists():
        assert process.poll() is None
    process.send_signal(sent)
    began_s = time.monotonic()
    assert process.wait(timeout=30) == status
    assert time.monotonic() - began_s < 10
    until_s = time.monotonic() + 10
    while _runs(int(pid.read_text())):
        assert time.monotonic() < until_s
    assert not (project.root / ".venv/run-stamp").exists()


def _runs(pid: int) -> bool:
    """Whoever inherits an orphan may be slow to see that it has ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_long_installation_tells_that_it_lives(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.pip_does("echo '[3/40] Building'; sleep 1; exit 0")
    monkeypatch.setattr(project.installing, "_TELL_EVERY_S", 0.2)
    project.installing.pip("install", "x", doing="building x")
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5
    assert lines[-1] == "run.py: still building x: 1 s, 3 of 40 files"


def test_of_a_failed_build_the_compilers_have_the_last_word(project: Project) -> None:
    project.pip_does(
        "echo 'CMake Error: no cuBLAS'; echo 'error: subprocess-exited-with-error'; echo 'See above for output.'; false"
    )
    with pytest.raises(project.installing.Stop) as stopped:
        project.installing.pip("install", "x", doing="building x")
    log = project.root / ".tmp/install.log"
    assert str(stopped.value) == (
        f"building x failed; the last words of pip:\n  CMake Error: no cuBLAS\nAll of them are in {log}."
    )
    assert "subprocess-exited" in log.read_text()


def test_a_folder_that_cannot_be_written_is_one_line(project: Project) -> None:
    (project.root / ".tmp").write_text("in the way")
    result = project.call()
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert str(project.root / ".tmp") in result.err


# Making .venv


def _without_venv(project: Project, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    shutil.rmtree(project.root / ".venv")
    monkeypatch.setattr(sys, "executable", str(project.script("fake-python", textwrap.dedent(python))))


def test_missing_ensurepip_says_what_to_install_and_leaves_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = """\
        #!/bin/sh
        [ "$2" = venv ] && mkdir -p .venv/bin
        echo "The virtual environment was not created successfully because ensurepip is not available."
        exit 1
    """
    _without_venv(project, monkeypatch, python)
    with pytest.raises(project.installing.Stop, match="sudo apt install python3-venv") as stopped:
        project.installing.install(project.run.SERVE)
    assert stopped.value.status == 1
    assert not (project.root / ".venv").exists()


def test_another_failure_shows_its_words(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    python = """\
        #!/bin/sh
        case "$*" in *ensurepip) exit 0 ;; esac
        echo "No space left on device" >&2
        exit 1
    """
    _without_venv(project, monkeypatch, python)
    with pytest.raises(project.installing.Stop, match="No space left on device"):
        project.installing.install(project.run.SERVE)


def test_a_venv_that_does_not_run_is_emptied_first(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = project.root / ".venv/bin/python"
    broken.unlink()
    broken.symlink_to("/nowhere/python3")
    python = f"#!/bin/sh\necho $* > {project.root}/made\n"
    monkeypatch.setattr(sys, "executable", str(project.script("fake-python", python)))
    project.installing._make_venv()
    assert (project.root / "made").read_text() == f"-m venv --clear {project.root}/.venv\n"


def test_a_venv_that_lacks_only_pip_is_completed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.script(".venv/bin/python", '#!/bin/sh\ncase "$*" in *pip*) exit 1 ;; esac\n')
    python = f"#!/bin/sh\necho $* > {project.root}/made\n"
    monkeypatch.setattr(sys, "executable", str(project.script("fake-python", python)))
    project.installing._make_venv()
    assert (project.root / "made").read_text() == f"-m venv {project.root}/.venv\n"
