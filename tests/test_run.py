"""`run.py` and the scripts, driven in a copy of the project whose `.venv` is made of small shell scripts."""

import ast
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from fishs2_daemon.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

FAKE_DAEMON = """\
#!{python}
import json, os, sys, time
settings = {{name: value for name, value in os.environ.items() if name.startswith(("FISHS2_", "PIP_", "HF_", "TMP"))}}
print(json.dumps({{"argv": sys.argv[1:], "env": settings, "cwd": os.getcwd(), "pid": os.getpid()}}), flush=True)
time.sleep(float(os.environ.get("FAKE_SLEEP_S", "0")))
sys.exit(int(os.environ.get("FAKE_STATUS", "0")))
"""

FAKE_PYTHON = """\
#!/bin/sh
echo "$*" >> {root}/calls
case "$*" in
*"pip install"*) . {root}/pip.sh ;;
*ruff*) exit "${{RUFF_STATUS:-0}}" ;;
*mypy*) exit "${{MYPY_STATUS:-0}}" ;;
*pytest*) exit "${{PYTEST_STATUS:-0}}" ;;
esac
"""


class Project:
    """A folder with run.py, the scripts, and a `.venv` whose Python notes down how it is called."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("run.py", "scripts", ".ci"):
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, root / name)
        (root / "pyproject.toml").write_text("[project]\n")
        self.python = self.script(".venv/bin/python", FAKE_PYTHON.format(root=root))
        self.daemon = self.script(".venv/bin/fishs2-daemon", FAKE_DAEMON.format(python=sys.executable))
        self.pip_does("exit 0")
        self.run = _load(root / "run.py")

    def script(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def pip_does(self, text: str) -> None:
        (self.root / "pip.sh").write_text(text)

    def stamp(self, *extras: str) -> None:
        (self.root / ".venv/run-stamp").write_text("\n".join([self.run._fingerprint(), *extras]))

    @property
    def calls(self) -> list[str]:
        calls = self.root / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    @property
    def installations(self) -> list[str]:
        return [call for call in self.calls if "pip install" in call]

    def start(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, self.root / "run.py", *arguments],
            cwd=cwd or self.root,
            env=_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str, cwd: Path | None = None, **environment: str) -> "Result":
        process = self.start(*arguments, cwd=cwd, **environment)
        out, err = process.communicate(timeout=60)
        return Result(process.returncode, out, err)


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def daemon(self) -> dict[str, Any]:
        assert self.status == 0, self.err
        seen: dict[str, Any] = json.loads(self.out)
        return seen


def _environment() -> dict[str, str]:
    ours = ("FISHS2_", "PIP_CACHE_DIR", "HF_HOME", "TMPDIR", "TEMP", "TMP")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def ready(project: Project) -> Project:
    project.stamp("preview", "s2", "test")
    return project


@pytest.fixture
def processes() -> Iterator[Callable[[subprocess.Popen[str]], subprocess.Popen[str]]]:
    """Ends what a test started and did not end itself."""
    started: list[subprocess.Popen[str]] = []

    def watch(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        started.append(process)
        return process

    yield watch
    for process in started:
        process.kill()
        process.communicate()


# Before anything else


def test_only_the_standard_library_is_needed() -> None:
    tree = ast.parse((ROOT / "run.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_an_older_python_reads_it_and_is_told_what_is_needed() -> None:
    ast.parse((ROOT / "run.py").read_text(), feature_version=(3, 6))
    pretend = "import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", pretend, ROOT / "run.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("run.py needs Python 3.11 or newer; ")
    assert done.stderr.count("\n") == 1


def test_its_lists_are_those_of_the_settings(ready: Project) -> None:
    assert get_args(Settings.model_fields["backend"].annotation) == ready.run.BACKENDS
    assert get_args(Settings.model_fields["model_quant"].annotation) == ready.run.QUANTS


# Arguments


def test_serves_by_default(ready: Project) -> None:
    process = ready.start()
    out, err = process.communicate(timeout=60)
    seen = json.loads(out)
    assert seen["argv"] == ["serve"]
    assert seen["pid"] == process.pid
    assert err == ""
    assert ready.installations == []


def test_options_of_the_manager_become_settings(ready: Project) -> None:
    result = ready.call(
        *("--pixi-path", "/opt/pixi", "--host", "127.0.0.1", "--port", "8022", "--backend", "Metal"),
        *("--model-quant", "q6_k", "--n-gpu-layers", "-1", "--skip-gpu-check", "--force-downloads"),
    )
    seen = result.daemon
    assert seen["argv"] == ["serve"]
    assert {name: value for name, value in seen["env"].items() if name.startswith("FISHS2_")} == {
        "FISHS2_HOST": "127.0.0.1",
        "FISHS2_PORT": "8022",
        "FISHS2_BACKEND": "metal",
        "FISHS2_MODEL_QUANT": "q6_k",
        "FISHS2_N_GPU_LAYERS": "-1",
        "FISHS2_SKIP_GPU_CHECK": "true",
        "FISHS2_FORCE_DOWNLOADS": "true",
    }
    lines = result.err.splitlines()
    named = ["--pixi-path", "--backend", "--n-gpu-layers", "--skip-gpu-check"]
    assert len(lines) == len(named)
    for option in named:
        assert sum(line.startswith(f"run.py: {option}: ") for line in lines) == 1


@pytest.mark.parametrize("arguments", [["--model-q4", "--model-quant", "f16"], ["--model-quant=f16", "--model-q4"]])
def test_model_q4_beats_model_quant(ready: Project, arguments: list[str]) -> None:
    environment, rest, _ = ready.run.translate(arguments)
    assert environment == {"FISHS2_MODEL_QUANT": "q4_k_m"}
    assert rest == []


def test_skipping_downloads_beats_forcing_them(ready: Project) -> None:
    both, _, _ = ready.run.translate(["--force-downloads", "--skip-downloads"])
    assert both == {"FISHS2_SKIP_DOWNLOADS": "true", "FISHS2_FORCE_DOWNLOADS": "false"}
    seen = ready.call("--skip-downloads", FISHS2_FORCE_DOWNLOADS="true").daemon
    assert seen["env"]["FISHS2_FORCE_DOWNLOADS"] == "false"


def test_options_beat_the_environment(ready: Project) -> None:
    seen = ready.call("--port=1", FISHS2_PORT="2", FISHS2_HOST="::1").daemon
    assert (seen["env"]["FISHS2_PORT"], seen["env"]["FISHS2_HOST"]) == ("1", "::1")


def test_options_of_serve_pass_unchanged_and_in_order(ready: Project) -> None:
    arguments = ["--uri", "tcp://0.0.0.0:10200", "--port", "8021", "--uri=unix:///run/x", "--no-zeroconf"]
    seen = ready.call(*arguments, "--", "--host", "x", "--", "-y").daemon
    passed = ["--uri", "tcp://0.0.0.0:10200", "--uri=unix:///run/x", "--no-zeroconf"]
    assert seen["argv"] == ["serve", *passed, "--host", "x", "--", "-y"]
    assert seen["env"]["FISHS2_PORT"] == "8021"
    assert "FISHS2_HOST" not in seen["env"]


def test_options_are_not_guessed_from_their_beginning(ready: Project) -> None:
    environment, rest, _ = ready.run.translate(["--po", "1", "--model", "x.gguf"])
    assert environment == {}
    assert rest == ["--po", "1", "--model", "x.gguf"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "70000"], "--port: '70000' is not allowed; allowed: a whole number from 0 to 65535"),
        (["--port", "http"], "--port: 'http' is not allowed; allowed: a whole number from 0 to 65535"),
        (["--n-gpu-layers", "-2"], "--n-gpu-layers: '-2' is not allowed; allowed: a whole number from -1 to 1000"),
        (["--backend", "tpu"], "--backend: 'tpu' is not allowed; allowed: auto, cuda, vulkan, metal, cpu"),
        (["--model-quant=q9\n"], "--model-quant: 'q9\\n' is not allowed; allowed: f16, q8_0, q6_k, q5_k_m, q4_k_m, "),
        (["--host"], "--host: expected one argument"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_78(project: Project, arguments: list[str], line: str) -> None:
    result = project.call(*arguments)
    assert result.status == 78
    assert result.err.startswith(f"run.py: {line}")
    assert result.err.count("\n") == 1
    assert project.calls == []


def test_an_unknown_command_is_refused_before_anything_is_installed(project: Project) -> None:
    result = project.call("tset")
    assert result.status == 2
    assert (
        result.err
        == "run.py: 'tset' is no command; there are: serve, say, voices, models, doctor, bench, setup, test\n"
    )
    assert project.calls == []


def test_help_teaches_without_installing(project: Project) -> None:
    result = project.call("--help")
    assert result.status == 0
    for word in ("run.py test", "run.py say", "--backend", "--pixi-path", "FISHS2_", "serve --help"):
        assert word in result.out
    assert project.calls == []


# The daemon in its place


@pytest.mark.parametrize("command", ["say", "voices", "doctor"])
def test_commands_pass_unchanged_and_the_file_that_say_writes_is_the_caller_s(
    ready: Project, tmp_path_factory: pytest.TempPathFactory, command: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    seen = ready.call(command, "--port", "x", "-o", "hello.wav", cwd=elsewhere).daemon
    assert seen["argv"] == [command, "--port", "x", "-o", "hello.wav"]
    assert (seen["cwd"] == str(elsewhere)) is (command == "say")


@pytest.mark.parametrize("arguments", [[], ["serve"], ["--no-http"], ["doctor"], ["voices"]])
def test_the_daemon_runs_in_the_project_where_env_file_and_models_are(
    ready: Project, tmp_path_factory: pytest.TempPathFactory, arguments: list[str]
) -> None:
    seen = ready.call(*arguments, cwd=tmp_path_factory.mktemp("elsewhere")).daemon
    assert seen["cwd"] == str(ready.root)


def test_the_exit_status_is_the_daemons(ready: Project) -> None:
    assert ready.call("doctor", FAKE_STATUS="78").status == 78


def test_a_signal_reaches_the_daemon_itself(ready: Project, processes: Callable[..., Any]) -> None:
    process = processes(ready.start(FAKE_SLEEP_S="60"))
    assert json.loads(process.stdout.readline())["pid"] == process.pid
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM


def test_caches_stay_in_the_project_unless_the_environment_says_otherwise(ready: Project) -> None:
    environment = ready.call().daemon["env"]
    assert environment["PIP_CACHE_DIR"] == str(ready.root / ".pip-cache")
    assert environment["HF_HOME"] == str(ready.root / ".hf")
    assert "TMPDIR" not in environment
    assert ready.call(HF_HOME="/data/hf").daemon["env"]["HF_HOME"] == "/data/hf"


def test_temporary_files_move_only_when_asked(ready: Project) -> None:
    environment = ready.call(FISHS2_TEMP_DIR="a/b", TMPDIR="/somewhere").daemon["env"]
    assert environment["TMPDIR"] == environment["TMP"] == str(ready.root / "a/b")
    assert (ready.root / "a/b").is_dir()
    wrong = ready.call(FISHS2_TEMP_DIR="run.py")
    assert wrong.status == 78
    assert wrong.err.startswith("run.py: FISHS2_TEMP_DIR: 'run.py' is not allowed; allowed: a folder")


# Installing


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
    with_compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    extras = ".[preview,s2,test]" if with_compiler else ".[preview,test]"
    assert project.call("setup").status == 0
    assert project.installations[-1].endswith(extras)
    project.call("doctor")
    assert len(project.installations) == 1
    (project.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    project.call("doctor")
    assert project.installations[-1].endswith(extras)


def test_without_a_compiler_the_tests_of_the_s2_engine_are_left_out_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _load(ROOT / "run.py")
    installed: list[frozenset[str]] = []
    monkeypatch.setattr(run, "install", installed.append)
    monkeypatch.setenv("PATH", "")
    run.install_for_tests()
    assert installed == [frozenset({"preview", "test"})]
    assert "no C++ compiler" in capsys.readouterr().err


@pytest.mark.parametrize("stamp", [b"", b"\xff\xfe", b"0000\npreview\n"])
def test_a_stamp_that_says_nothing_is_no_stamp(project: Project, stamp: bytes) -> None:
    (project.root / ".venv/run-stamp").write_bytes(stamp)
    project.call("doctor")
    assert len(project.installations) == 1


def test_installs_again_when_the_folder_was_moved(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready.run._installed(ready.run.SERVE)
    monkeypatch.setattr(ready.run, "VENV", ready.root / "before-it-moved/.venv")
    assert not ready.run._installed(ready.run.SERVE)


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
    lock = project.run.LOCK
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
    with pytest.raises(project.run.Stop, match="sudo apt install python3-venv") as stopped:
        project.run.install(project.run.SERVE)
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
    with pytest.raises(project.run.Stop, match="No space left on device"):
        project.run.install(project.run.SERVE)


def test_a_venv_that_does_not_run_is_emptied_first(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = project.root / ".venv/bin/python"
    broken.unlink()
    broken.symlink_to("/nowhere/python3")
    python = f"#!/bin/sh\necho $* > {project.root}/made\n"
    monkeypatch.setattr(sys, "executable", str(project.script("fake-python", python)))
    project.run._make_venv()
    assert (project.root / "made").read_text() == f"-m venv --clear {project.root}/.venv\n"


def test_a_venv_that_lacks_only_pip_is_completed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.script(".venv/bin/python", '#!/bin/sh\ncase "$*" in *pip*) exit 1 ;; esac\n')
    python = f"#!/bin/sh\necho $* > {project.root}/made\n"
    monkeypatch.setattr(sys, "executable", str(project.script("fake-python", python)))
    project.run._make_venv()
    assert (project.root / "made").read_text() == f"-m venv {project.root}/.venv\n"


# `run.py test` and the scripts


def test_all_three_steps_run_and_the_first_failure_is_the_status(ready: Project) -> None:
    result = ready.call("test", "-k", "a b", MYPY_STATUS="2", PYTEST_STATUS="5")
    assert result.status == 2
    assert ready.calls == [
        "-m ruff check",
        "-m ruff format --check",
        "-m mypy",
        "-m pytest --numprocesses=auto --dist=loadfile -k a b",
    ]
    assert [line.split(",")[0] for line in result.out.splitlines()] == [
        "lint   passed",
        "types  failed (2)",
        "tests  failed (5)",
    ]


def test_all_passed_is_status_0(ready: Project) -> None:
    result = ready.call("test")
    assert result.status == 0
    assert [line.split()[1] for line in result.out.splitlines()] == ["passed,"] * 3


@pytest.mark.parametrize(
    ("script", "calls"),
    [
        ("scripts/check", ["ruff check", "ruff format --check", "mypy "]),
        ("scripts/lint", ["ruff check --fix", "ruff format"]),
        ("scripts/test", ["python3 -m pytest --numprocesses=auto --dist=loadfile -x a b"]),
        ("scripts/setup", []),
        (".ci/run", []),
    ],
)
def test_scripts_work_from_any_directory(
    ready: Project, tmp_path_factory: pytest.TempPathFactory, script: str, calls: list[str]
) -> None:
    names = ("ruff", "mypy") if script != "scripts/test" else ("python3",)
    for name in names:
        ready.script(f".venv/bin/{name}", f'#!/bin/sh\necho "{name} $*" >> {ready.root}/script-calls\n')
    arguments = ["-x", "a b"] if script == "scripts/test" else []
    done = subprocess.run(
        [ready.root / script, *arguments],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=_environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CDPATH": "/"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    recorded = ready.root / "script-calls"
    assert (recorded.read_text().splitlines() if recorded.exists() else []) == calls
    if script == ".ci/run":
        assert "-m pytest --numprocesses=auto --dist=loadfile" in ready.calls
        assert "tests  passed" in done.stdout


def test_ci_ends_with_the_status_of_the_tests(ready: Project) -> None:
    done = subprocess.run(
        ["bash", ready.root / ".ci/run"],
        env=_environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTEST_STATUS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, False),
        ({"FISHS2_ENGINE": "s2"}, True),
        ({"FISHS2_ENGINE": "espeak"}, False),
        ({"FISHS2_MODEL_QUANT": "q6_k"}, True),
        ({".env": "export FISHS2_ENGINE = 's2'\n"}, True),
        ({".env": "# FISHS2_ENGINE=s2\nFISHS2_MODEL_QUANT=\n"}, False),
        ({"models": "s2-pro-q6_k.gguf"}, True),
    ],
    ids=str,
)
def test_the_s2_engine_is_installed_for_those_who_want_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str], wanted: bool
) -> None:
    run = _load(ROOT / "run.py")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "_has_compiler", lambda: True)
    (tmp_path / "models").mkdir()
    for name, value in given.items():
        if name == ".env":
            (tmp_path / ".env").write_text(value)
        elif name == "models":
            (tmp_path / "models" / value).touch()
        else:
            monkeypatch.setenv(name, value)
    assert ("s2" in run._s2_extra("serve")) is wanted
    assert "s2" in run._s2_extra("models")
