"""`run.py` and the scripts, driven in a copy of the project whose `.venv` is made of small shell scripts."""

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from fishs2_daemon.settings import Settings
from tests.run.project import FILES, ROOT, Project, own_environment

# Before anything else


@pytest.mark.parametrize("file", FILES)
def test_only_the_standard_library_is_needed(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    beside = {name.removesuffix(".py") for name in FILES}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | beside


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
    ready.tool("g++")
    result = ready.call(
        *("--pixi-path", "/opt/pixi", "--host", "127.0.0.1", "--port", "8022", "--backend", "CPU"),
        *("--model-quant", "q6_k", "--n-gpu-layers", "-1", "--skip-gpu-check", "--force-downloads"),
    )
    seen = result.daemon
    assert seen["argv"] == ["serve"]
    assert {name: value for name, value in seen["env"].items() if name.startswith("FISHS2_")} == {
        "FISHS2_HOST": "127.0.0.1",
        "FISHS2_PORT": "8022",
        "FISHS2_BACKEND": "cpu",
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


def test_serve_takes_the_same_options_when_it_is_named(ready: Project) -> None:
    seen = ready.call("serve", "--port", "8021", "--model-quant", "auto", "--no-zeroconf").daemon
    assert seen["argv"] == ["serve", "--no-zeroconf"]
    assert (seen["env"]["FISHS2_PORT"], seen["env"]["FISHS2_MODEL_QUANT"]) == ("8021", "auto")
    assert ready.call("serve", "--help").daemon["argv"] == ["serve", "--help"]


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
        (["--model-quant=q9\n"], "--model-quant: 'q9\\n' is not allowed; allowed: auto, f16, q8_0, q6_k, q5_k_m, "),
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
    for word in (
        "run.py test",
        "run.py say",
        "--backend cuda",
        "--ggml-wheel",
        "--accept-license",
        "nvcc",
        "docs/gpu.md",
        "--pixi-path",
        "FISHS2_",
        "serve --help",
    ):
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
        env=own_environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CDPATH": "/"},
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
        env=own_environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTEST_STATUS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
