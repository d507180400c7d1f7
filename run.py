#!/usr/bin/env python3
"""Installs the daemon into `.venv` beside this file and becomes it. Standard library only; `python3 run.py --help`.

It also speaks the language of the wrapper that this daemon replaces: its options become FISHS2_* settings.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - reached by the older Python that somebody's `python3` still is
    sys.exit(
        f"run.py needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
        "Start it with a newer one, for example: python3.12 run.py"
    )

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

SERVE = frozenset({"preview"})
TEST = frozenset({"preview", "test"})

#: A process for each core; a file's tests share what they make.
PARALLEL = ("--numprocesses=auto", "--dist=loadfile")

COMMANDS = ("serve", "say", "voices", "models", "doctor", "bench")
BACKENDS = ("auto", "cuda", "vulkan", "metal", "cpu")
QUANTS = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k", "q2_k")

EX_CONFIG = 78

USAGE = """\
python3 run.py [options] [options of `serve`]     install what is missing, then serve
       python3 run.py say "Good morning" -o hello.wav    speak into a file
       python3 run.py doctor | voices | serve ...        any command of the daemon, unchanged
       python3 run.py test [pytest options]              lint, types and tests
       python3 run.py setup                              only install, with what the tests need"""

EPILOG = """\
Other options, and everything after `--`, go to `serve` unchanged; `python3 run.py serve --help` lists them:
  python3 run.py --uri tcp://0.0.0.0:10200 --no-zeroconf

Every setting can also be a FISHS2_* variable, in the environment or in `.env` in this folder, where the daemon runs
and where relative paths of its settings begin. Options beat the environment, the environment beats `.env`.
Caches stay in this folder (.pip-cache, .hf) unless PIP_CACHE_DIR or HF_HOME say otherwise. FISHS2_TEMP_DIR in the
environment moves temporary files."""

#: Options that have an effect whichever engine speaks.
ALWAYS = frozenset({"host", "port", "model_quant", "model_q4", "skip_downloads", "force_downloads"})
NO_S2 = "no effect on the preview voice, which speaks unless FISHS2_ENGINE=s2"


class Stop(Exception):
    """Ends the program with `status`; its text is for the person at the terminal."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def main(arguments: Sequence[str]) -> int:
    _keep_files_here()
    command = arguments[0] if arguments else ""
    if command == "setup":
        install_for_tests()
        return 0
    if command == "test":
        return test(arguments[1:])
    if command in COMMANDS:
        return become_daemon(arguments)
    if command and not command.startswith("-"):
        raise Stop(f"{command!r} is no command; there are: {', '.join((*COMMANDS, 'setup', 'test'))}", 2)
    environment, rest, remarks = translate(arguments)
    for remark in remarks:
        tell(remark)
    os.environ.update(environment)
    return become_daemon(["serve", *rest])


def translate(arguments: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """The wrapper's options as (FISHS2_* variables, arguments left for `serve`, remarks on what does nothing yet).

    Raises `Stop` with status 78 for a value that is not allowed.
    """
    own, after = list(arguments), []
    if "--" in own:
        cut = own.index("--")
        own, after = own[:cut], own[cut + 1 :]
    options, rest = _parser().parse_known_args(own)

    given = {name: value for name, value in vars(options).items() if value not in (None, False)}
    remarks = ["--pixi-path: ignored, nothing here needs pixi"] if given.pop("pixi_path", None) else []
    remarks += [f"--{name.replace('_', '-')}: {NO_S2}" for name in given if name not in ALWAYS]
    if given.pop("model_q4", False):
        given["model_quant"] = "q4_k_m"
    if "skip_downloads" in given:
        given["force_downloads"] = "false"
    environment = {f"FISHS2_{name.upper()}": "true" if value is True else value for name, value in given.items()}
    return environment, rest + after, remarks


def become_daemon(arguments: Sequence[str]) -> int:
    """Replaces this process by the daemon, so that signals and the exit status are its own."""
    install(SERVE | _s2_extra(arguments[0]))
    if arguments[0] != "say":
        # Where `.env` is. Not for `say`: its file belongs to the folder of whoever typed it.
        os.chdir(ROOT)
    command = [str(DAEMON), *arguments]
    if os.name != "nt":
        os.execv(command[0], command)
    return subprocess.call(command)


def test(arguments: Sequence[str]) -> int:
    """Runs lint, types and tests, all three whatever happens. Returns the first status that is not 0."""
    install_for_tests()
    steps = {
        "lint": [["ruff", "check"], ["ruff", "format", "--check"]],
        "types": [["mypy"]],
        "tests": [["pytest", *PARALLEL, *arguments]],
    }
    first_failure = 0
    summary = []
    for name, commands in steps.items():
        started_s = time.monotonic()
        statuses = [subprocess.call([PYTHON, "-m", *command], cwd=ROOT) for command in commands]
        status = next((status for status in statuses if status), 0)
        if status < 0:
            status = 128 - status  # ended by a signal: what a shell would report
        first_failure = first_failure or status
        verdict = f"failed ({status})" if status else "passed"
        summary.append(f"{name:<6} {verdict}, {time.monotonic() - started_s:.1f} s")
    print("\n".join(summary), flush=True)
    return first_failure


def install(extras: frozenset[str]) -> None:
    """Makes `.venv` and installs the package with `extras`, unless that was done for the same pyproject.toml.

    Raises `Stop`. The stamp is taken away first and written last: an interrupted installation is done again.
    """
    if _installed(extras):
        return
    with _lock():
        if _installed(extras):  # by another start, while this one waited
            return
        extras |= _stamp()[1]
        STAMP.unlink(missing_ok=True)
        _make_venv()
        _install_package(extras)
        STAMP.write_text("\n".join([_fingerprint(), *sorted(extras)]) + "\n")


def install_for_tests() -> None:
    """The S2 engine's libraries are built from source, so they are left out where nothing here can build them."""
    if _has_compiler():
        install(TEST | {"s2"})
    else:
        install(TEST)
        tell("no C++ compiler: the tests of the S2 engine are left out (sudo apt install g++)")


def _s2_extra(command: str) -> frozenset[str]:
    """The S2 engine's libraries, for those who have its model, ask for it, or fetch it."""
    told = (ROOT / ".env").read_text(encoding="utf-8", errors="replace") if (ROOT / ".env").is_file() else ""
    told += "".join(f"\n{name.upper()}={value}" for name, value in os.environ.items())
    asked = re.search(r"(?im)^ *(export +)?FISHS2_(ENGINE *= *[\"']?s2\b|MODEL_(QUANT|PATH|URL) *= *\S)", told)
    if command != "models" and not asked and not any((ROOT / "models").glob("*.gguf")):
        return frozenset()
    if not _has_compiler():
        tell("no C++ compiler, which the S2 engine's libraries are built with: sudo apt install g++")
        return frozenset()
    return frozenset({"s2"})


def _has_compiler() -> bool:
    return any(map(shutil.which, ("c++", "g++", "clang++")))


def tell(text: str) -> None:
    """Progress goes to stderr: stdout is the daemon's own, with `--uri stdio://` even its wire."""
    print(f"run.py: {text}", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Stop(message.removeprefix("argument "), EX_CONFIG)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run.py",
        usage=USAGE,
        description="A speech daemon for Home Assistant (Wyoming, port 10200) and OpenAI-style clients "
        "(HTTP, port 8020).\nIt installs into .venv beside this file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--host", metavar="H", help="HTTP address to listen on (FISHS2_HOST)")
    parser.add_argument("--port", metavar="N", type=_whole(0, 65535), help="HTTP port (FISHS2_PORT)")
    s2 = parser.add_argument_group(
        "options of the S2 engine", "With --model-quant the daemon fetches a model file that is missing."
    )
    s2.add_argument("--backend", metavar="B", type=_one_of(BACKENDS), help=", ".join(BACKENDS))
    s2.add_argument("--model-quant", metavar="Q", type=_one_of(QUANTS), help=f"fetch and take {', '.join(QUANTS)}")
    s2.add_argument("--model-q4", action="store_true", help="same as --model-quant q4_k_m, and beats it")
    s2.add_argument("--n-gpu-layers", metavar="N", type=_whole(-1, 1000), help="layers on the GPU, -1: all")
    s2.add_argument("--skip-gpu-check", action="store_true", help="start without looking for a GPU")
    s2.add_argument("--skip-downloads", action="store_true", help="use the files that are there; beats the next one")
    s2.add_argument("--force-downloads", action="store_true", help="fetch the model files again at every start")
    s2.add_argument("--pixi-path", metavar="P", help="ignored: nothing here needs pixi")
    return parser


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        value = text.strip().lower()
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: {', '.join(allowed)}")
        return value

    return check


def _whole(low: int, high: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        with contextlib.suppress(ValueError):
            if low <= int(text) <= high:
                return str(int(text))
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: a whole number from {low} to {high}")

    return check


def _keep_files_here() -> None:
    os.environ.setdefault("PIP_CACHE_DIR", str(ROOT / ".pip-cache"))
    os.environ.setdefault("HF_HOME", str(ROOT / ".hf"))
    given = os.environ.get("FISHS2_TEMP_DIR")
    if given:
        folder = ROOT / given
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Stop(
                f"FISHS2_TEMP_DIR: {given!r} is not allowed; allowed: a folder that can be written ({error.strerror})",
                EX_CONFIG,
            ) from None
        os.environ.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)))


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


def _installed(extras: frozenset[str]) -> bool:
    fingerprint, stamped = _stamp()
    return PYTHON.exists() and DAEMON.exists() and fingerprint == _fingerprint() and extras <= stamped


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
    package = f".[{','.join(sorted(extras))}]"
    # ggml is built from source; without its kernels for many columns a processor takes twice as long for a prompt.
    os.environ.setdefault("CMAKE_ARGS", "-DGGML_LLAMAFILE=ON")
    done = _quiet(PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--editable", package)
    if done.returncode != 0:
        raise Stop(
            f"the installation failed; the last words of pip:\n{_tail(done.stdout)}\n"
            "Look at the network connection and the free disk space, then start again: python3 run.py\n"
            "If it stays like this, delete .venv first."
        )
    tell(f"installed in {time.monotonic() - started_s:.0f} s")


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


def _tail(output: str) -> str:
    return "\n".join(f"  {line}" for line in output.strip().splitlines()[-15:])


if __name__ == "__main__":
    # As an exception, so that a pip in progress ends with this process; exec gives the daemon the default back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main(sys.argv[1:]))
    except Stop as stop:
        tell(str(stop))
        sys.exit(stop.status)
    except KeyboardInterrupt:
        tell("stopped")
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        tell(str(error))
        sys.exit(1)
