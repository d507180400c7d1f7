"""`.venv` beside run.py: made, filled by pip, and remembered by a stamp. Standard library only."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
EXE = ".exe" if os.name == "nt" else ""
PYTHON = BIN / f"python{EXE}"
DAEMON = BIN / f"fishs2-daemon{EXE}"
STAMP = VENV / "run-stamp"
LOCK = ROOT / ".tmp" / "install.lock"
LOG = ROOT / ".tmp" / "install.log"

#: ggml is built from source; without its kernels for many columns a processor takes twice as long for a prompt.
PROCESSOR_FLAGS = "-DGGML_LLAMAFILE=ON"

#: pip is silent until its end, and may take most of an hour: somebody is told that it lives.
_TELL_EVERY_S = 30.0

#: A pip that is interrupted puts back what it was replacing, in a fraction of this.
_PUT_BACK_S = 2.0

#: A compiler's whole command is one line.
_LONGEST_LINE = 300

_STEP = re.compile(r"\[(\d+)/(\d+)\]")

#: With these pip ends what compilers said, where it has shown all of that.
_ABOVE = ("error: subprocess-exited-with-error", "See above for output")


class Stop(Exception):
    """Ends the program with `status`; its text is for the person at the terminal."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class Part(Protocol):
    """What must be in `.venv` beside the package and its extras, and is put there before them."""

    @property
    def present(self) -> bool: ...

    def install(self) -> None: ...


def install(extras: frozenset[str], part: Part | None = None) -> None:
    """Makes `.venv` and installs the package with `extras`, unless that was done for the same pyproject.toml.

    Raises `Stop`. The stamp is taken away first and written last: an interrupted installation is done again.
    """
    if _installed(extras, part):
        return
    with _lock():
        if _installed(extras, part):  # by another start, while this one waited
            return
        extras |= _stamp()[1]
        STAMP.unlink(missing_ok=True)
        _make_venv()
        if part and not part.present:
            part.install()
        _install_package(extras)
        STAMP.write_text("\n".join([_fingerprint(), *sorted(extras)]) + "\n")


def pip(verb: str, *arguments: str | Path, doing: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs pip without letting it read the terminal or write to it, and tells now and then that it is still `doing`.

    Raises `Stop` with the last words that matter; all of them are in `LOG`. Whatever ends this also ends pip and the
    compilers that it started.
    """
    started_s = time.monotonic()
    command = [PYTHON, "-m", "pip", verb, "--disable-pip-version-check", *arguments]
    LOG.parent.mkdir(exist_ok=True)
    process: subprocess.Popen[bytes] | None = None
    with LOG.open("wb") as log:
        try:
            with _signals_held_back():
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that all of it can be ended at once
                )
            while not _ended(process):
                took = _duration(time.monotonic() - started_s)
                tell(f"still {doing}: {took}{_step()}")
        finally:
            if process is not None:
                _end(process)
    if process.returncode != 0:
        raise Stop(f"{doing} failed; the last words of pip:\n{_last_words()}\nAll of them are in {LOG}.")


def tell(text: str) -> None:
    """Progress goes to stderr: stdout is the daemon's own, with `--uri stdio://` even its wire."""
    print(f"run.py: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Those that come meanwhile come at its end: nothing has started yet, or it is known what."""
    came: list[int] = []
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_TELL_EVERY_S)
    return process.returncode is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    if os.name == "nt":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PUT_BACK_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _step() -> str:
    """How far the compilers are, where pip's words tell."""
    with LOG.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 2**18))
        steps = _STEP.findall(log.read().decode(errors="replace"))
    return ", {} of {} files".format(*steps[-1]) if steps else ""


def _last_words() -> str:
    text = LOG.read_text(errors="replace")
    if all(word in text for word in _ABOVE):
        text = text[: text.index(_ABOVE[0])]
    return _tail(text)


def _tail(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line[:_LONGEST_LINE]}" for line in lines[-15:])


def _fingerprint() -> str:
    """Changes with pyproject.toml, with the folder (scripts name it) and with the Python behind `.venv`."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), os.fsencode(VENV), os.fsencode(os.path.realpath(PYTHON))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _stamp() -> tuple[str, set[str]]:
    try:
        fingerprint, *extras = STAMP.read_text().split()
    except (OSError, ValueError):
        return "", set()
    return fingerprint, set(extras)


def _installed(extras: frozenset[str], part: Part | None = None) -> bool:
    fingerprint, stamped = _stamp()
    there = PYTHON.exists() and DAEMON.exists() and fingerprint == _fingerprint() and extras <= stamped
    return there and (part is None or part.present)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One installation at a time in this folder. The system lets go of the lock when its holder dies."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("another start is installing; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_venv() -> None:
    if _venv_can_import("sys, pip"):
        return
    tell("making .venv")
    existed = VENV.exists()
    # One that runs and lacks only pip (uv makes such ones) is completed, not emptied.
    clear = ["--clear"] if existed and not _venv_can_import("sys") else []
    made = _quiet(sys.executable, "-m", "venv", *clear, VENV)
    if made.returncode == 0:
        return
    if not existed:
        shutil.rmtree(VENV, ignore_errors=True)
    if _quiet(sys.executable, "-c", "import ensurepip").returncode != 0:
        raise Stop(
            f"{sys.executable} cannot make a virtual environment: its module ensurepip is missing.\n"
            "On Debian and Ubuntu: sudo apt install python3-venv\n"
            "Then start again: python3 run.py"
        )
    raise Stop(f"making .venv failed; the last words of it:\n{_tail(made.stdout)}")


def _venv_can_import(modules: str) -> bool:
    code = f"import {modules}; sys.exit(sys.version_info < (3, 11))"
    return PYTHON.exists() and _quiet(PYTHON, "-c", code).returncode == 0


def _install_package(extras: frozenset[str]) -> None:
    tell("installing the daemon and its libraries into .venv; the first time takes a minute or two")
    started_s = time.monotonic()
    flags = {"CMAKE_ARGS": os.environ.get("CMAKE_ARGS") or PROCESSOR_FLAGS}
    try:
        pip("install", "--editable", f".[{','.join(sorted(extras))}]", doing="installing", environment=flags)
    except Stop as stop:
        raise Stop(
            f"{stop}\n"
            "Look at the network connection and the free disk space, then start again: python3 run.py\n"
            "If it stays like this, delete .venv first."
        ) from None
    tell(f"installed in {_duration(time.monotonic() - started_s)}")


def _quiet(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs `command` without letting it read the terminal or write to it; stdout holds both of its streams."""
    return subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
