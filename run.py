#!/usr/bin/env python3
"""Installs the daemon into `.venv` beside this file and becomes it. Standard library only; `python3 run.py --help`.

It also speaks the language of the wrapper that this daemon replaces: its options become FISHS2_* settings.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - reached by the older Python that somebody's `python3` still is
    sys.exit(
        f"run.py needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
        "Start it with a newer one, for example: python3.12 run.py"
    )

import run_ggml
from run_install import DAEMON, PYTHON, ROOT, Part, Stop, install, tell

SERVE = frozenset({"preview"})
TEST = frozenset({"preview", "test"})

#: A process for each core; a file's tests share what they make.
PARALLEL = ("--numprocesses=auto", "--dist=loadfile")

COMMANDS = ("serve", "say", "voices", "models", "doctor", "bench")

#: Of these, those that compute, and so need the build of ggml that is asked for.
COMPUTING = frozenset({"serve", "say", "doctor", "bench"})

BACKENDS = ("auto", "cuda", "vulkan", "metal", "cpu")
QUANTS = ("auto", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k", "q2_k")

#: Engines that S2 Pro's libraries are nothing to, and the extras that they need instead.
OTHER_ENGINES = {"espeak": frozenset[str](), "s2cpp": frozenset({"s2cpp"}), "remote": frozenset({"remote"})}

#: As the daemon reads a setting that is true.
TRUE = ("1", "true", "yes", "on", "t", "y")

#: Arguments that only somebody gives who wants S2 Pro.
S2_ARGUMENTS = frozenset({"--model", "--synthetic", "--ratios"})

EX_CONFIG = 78

#: A setting in `.env`: its name, and its value in single quotes, in double ones, or in none, with a comment behind it.
_LINE = re.compile(r"""(?im)^[ \t]*(?:export[ \t]+)?FISHS2_(\w+)[ \t]*=[ \t]*(?:'([^'\n]*)'|"([^"\n]*)"|(.*))""")

USAGE = """\
python3 run.py [options] [options of `serve`]     install what is missing, then serve
       python3 run.py say "Good morning" -o hello.wav    speak into a file
       python3 run.py doctor | voices | models ...       any command of the daemon, unchanged
       python3 run.py test [pytest options]              lint, types and tests
       python3 run.py setup                              only install, with what the tests need"""

EPILOG = """\
Other options, and everything after `--`, go to `serve` unchanged; `python3 run.py serve --help` lists them:
  python3 run.py --uri tcp://0.0.0.0:10200 --no-zeroconf

Every setting can also be a FISHS2_* variable, in the environment or in `.env` in this folder, where the daemon runs
and where relative paths of its settings begin. Options beat the environment, the environment beats `.env`.

A GPU of NVIDIA's is used where its driver and CUDA's compiler `nvcc` are found; the first start then builds ggml with
CUDA, which takes a while. --backend cuda stops where that cannot be, and says what to do; docs/gpu.md says more:
  python3 run.py --backend cuda --model-quant auto --accept-license
  python3 run.py --backend cuda --ggml-wheel ggml_python-0.0.45-py3-none-linux_x86_64.whl

Caches stay in this folder (.pip-cache, .hf) unless PIP_CACHE_DIR or HF_HOME say otherwise. FISHS2_TEMP_DIR in the
environment moves temporary files."""

#: Options that have an effect whichever engine speaks.
ALWAYS = frozenset({"host", "port", "model_quant", "model_q4", "ggml_wheel", "skip_downloads", "force_downloads"})
NO_S2 = "for S2 Pro; no effect on the preview voice, which speaks where S2 Pro is not there"


def main(arguments: Sequence[str]) -> int:
    _keep_files_here()
    command = arguments[0] if arguments else ""
    if command == "setup":
        install_for_tests()
        return 0
    if command == "test":
        return test(arguments[1:])
    if command == "serve" and not {"-h", "--help"} & set(arguments):
        command, arguments = "", arguments[1:]
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
    if "ggml_wheel" in given:
        given["ggml_wheel"] = os.path.abspath(given["ggml_wheel"])
    if "skip_downloads" in given:
        given["force_downloads"] = "false"
    environment = {f"FISHS2_{name.upper()}": "true" if value is True else value for name, value in given.items()}
    return environment, rest + after, remarks


def become_daemon(arguments: Sequence[str]) -> int:
    """Replaces this process by the daemon, so that signals and the exit status are its own."""
    extras, part = _engine_parts(arguments)
    install(SERVE | extras, part)
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


def install_for_tests() -> None:
    """The S2 engine's libraries are built from source, so they are left out where nothing here can build them."""
    if run_ggml.has_compiler():
        install(TEST | {"s2"})
    else:
        install(TEST)
        tell("no C++ compiler: the tests of the S2 engine are left out (sudo apt install g++)")


def _engine_parts(arguments: Sequence[str]) -> tuple[frozenset[str], Part | None]:
    """The extras of the engine that will speak, and the ggml that it computes with.

    Raises `Stop` with status 78 where a backend is asked for by name and cannot be had.
    """
    told = _told()
    words = [word for argument in arguments for word in argument.split("=", 1)]
    engine = dict(pairwise(words)).get("--engine", told.get("ENGINE", "")).lower()
    command, backend, wheel = arguments[0], told.get("BACKEND", "auto").lower(), told.get("GGML_WHEEL", "")
    fetches = command == "models" and engine != "s2cpp"  # which brings along what that takes
    if engine in OTHER_ENGINES and not fetches and not S2_ARGUMENTS & set(words):
        return OTHER_ENGINES[engine], None
    wants = command == "models" or engine == "s2" or backend in run_ggml.KINDS or bool(S2_ARGUMENTS & set(words))
    wants = wants or any(told.get(name) for name in ("GGML_WHEEL", "MODEL_QUANT", "MODEL_PATH", "MODEL_URL"))
    models = ROOT / os.path.expanduser(told.get("MODELS_DIR") or "models")
    if not wants and not any(models.glob("*.gguf")):
        return frozenset(), None
    part = None
    if command in COMPUTING:
        try:
            skip = told.get("SKIP_GPU_CHECK", "").lower() in TRUE
            part = run_ggml.choose(backend, wheel, without_card=skip)
        except Stop as stop:
            if command != "doctor":  # which is asked what is wrong, and says it
                raise
            tell(str(stop))
    elif wheel:
        part = run_ggml.choose("cpu", wheel)
    if not (run_ggml.has_compiler() or run_ggml.installed_kinds() or isinstance(part, run_ggml.NamedWheel)):
        tell("no C++ compiler, which the S2 engine's libraries are built with: sudo apt install g++")
        return frozenset(), None
    return frozenset({"s2"}), part


def _told() -> dict[str, str]:
    """FISHS2_* settings without that prefix: of `.env`, and of the environment, which beats it."""
    file = ROOT / ".env"
    text = file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else ""
    told = {}
    for name, single, double, bare in _LINE.findall(text):
        told[name.upper()] = single or double or re.split(r"(?:^|\s)#", bare)[0].strip()
    for name, value in os.environ.items():
        if name.upper().startswith("FISHS2_"):
            told[name.upper().removeprefix("FISHS2_")] = value.strip()
    return told


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
        "options of the S2 engine",
        "With --model-quant the daemon fetches a model file that is missing, once you agreed to its licence\n"
        "(non-commercial use): --accept-license.",
    )
    s2.add_argument("--backend", metavar="B", type=_one_of(BACKENDS), help=", ".join(BACKENDS))
    s2.add_argument("--ggml-wheel", metavar="FILE", help="a build of ggml-python to compute with (FISHS2_GGML_WHEEL)")
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


if __name__ == "__main__":
    # As exceptions, so that a pip in progress ends with this process; exec gives the daemon the defaults back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
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
