"""`fishs2-daemon models` as its user meets it: the installed script, a folder that is empty at first."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import sysconfig
import time
import wave
from pathlib import Path
from typing import Any

import pytest

from fishs2_daemon.artifacts.standing import State, look
from tests.artifacts.conftest import MODEL
from tests.artifacts.hub import Hub
from tests.artifacts.zips import zipped

SCRIPT = str(Path(sysconfig.get_path("scripts"), "fishs2-daemon"))
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FILE = Path("models") / MODEL


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (tmp_path / "here").mkdir()
    home.mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(home))
    for name in ("HF_HOME", "XDG_CACHE_HOME", "JOURNAL_STREAM", "CACHE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return home


def run(*arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments], stdin=subprocess.DEVNULL, env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


def on_terminal(*arguments: str, types: bytes = b"") -> tuple[int, str]:
    """Exit status and what a terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(SCRIPT, [SCRIPT, *arguments])
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed
        while data := os.read(terminal, 65536):
            shown += data
            if types and b"Type yes" in shown:
                os.write(terminal, types)
                types = b""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_one_command_from_an_empty_folder_to_checked_files(hub: Hub, home: Path) -> None:
    result = run("models", "get", "--accept-license")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["models/tokenizer.json: whole, 9.0 kB", f"{FILE}: whole, 700.0 kB"]
    assert 'says "Built with Fish Audio"' in result.stderr
    tenths = re.findall(rf"fetching {MODEL}: (\d+)% of 700.0 kB", result.stderr)
    assert 2 <= len(tenths) <= 11
    assert tenths[-1] == "100"
    assert FILE.read_bytes() == hub.files[MODEL]
    assert list(home.iterdir()) == []
    assert list(Path().iterdir()) == [Path("models")]

    again = run("models", "get")
    assert (again.returncode, again.stderr) == (0, "")
    verified = run("models", "verify")
    assert verified.returncode == 0
    assert verified.stdout.splitlines() == [f"{FILE}: whole", "models/tokenizer.json: whole"]

    listed = run("models", "list").stdout.splitlines()
    assert listed[1].split() == ["*", "q8_0", "700.0", "kB", "whole", str(FILE)]
    assert listed[0].split() == ["f16", "9.90", "GB", "not", "there", "models/s2-pro-f16.gguf"]
    assert listed[7].split() == ["*", "tokenizer", "9.0", "kB", "whole", "models/tokenizer.json"]
    assert listed[9].endswith(" are free at models.")

    removed = run("models", "remove", "q8_0")
    assert (removed.returncode, removed.stderr) == (0, "")
    assert re.search(r"removed, 700\.\d kB freed", removed.stdout)
    assert {path.name for path in Path("models").iterdir() if not path.name.startswith(".")} == {
        "tokenizer.json", "tokenizer.json.record.json", "license-accepted.json",
    }  # fmt: skip
    assert run("models", "remove", "q8_0").stdout == f"{FILE}: not there\n"


def test_the_licence_comes_first(hub: Hub) -> None:
    result = run("models", "get")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("fishs2-daemon: the model's licence is not accepted")
    assert "`fishs2-daemon models get --accept-license`" in result.stderr
    assert "FISHS2_ACCEPT_LICENSE=true" in result.stderr
    assert hub.seen == []

    status, shown = on_terminal("models", "get", types=b"no\n")
    assert (status, hub.seen) == (1, [])
    assert "non-commercial use is free" in shown

    status, shown = on_terminal("models", "get", types=b"yes\n")
    assert status == 0
    assert f"{FILE}: whole" in shown
    status, shown = on_terminal("models", "get")
    assert (status, "Type yes" in shown) == (0, False)


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(hub: Hub) -> None:
    hub.piece_bytes, hub.piece_pause_s = 10_000, 0.05
    command = [SCRIPT, "models", "get", "--accept-license"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while look(FILE).size < 100_000:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, told = process.communicate(timeout=10)
        took_s = time.monotonic() - began
    assert process.returncode == 130
    assert took_s < 1.0
    assert told.splitlines()[-1].startswith("stopped: ")
    assert told.splitlines()[-1].endswith(f" of {MODEL} are kept, the same command goes on from there")
    hub.piece_pause_s = 0.0
    assert run("models", "get").returncode == 0
    assert FILE.read_bytes() == hub.files[MODEL]
    assert int(hub.gets(MODEL)[-1].headers["range"][6:-1]) >= 100_000


def test_a_corrupt_file_is_named_and_fetched_again_with_force(hub: Hub) -> None:
    FILE.parent.mkdir()
    FILE.write_bytes(b"short")
    listed = run("models", "list").stdout.splitlines()[1].split()
    assert listed == ["*", "q8_0", "0.0", "kB", "not", "checked", str(FILE)]
    unknown = run("models", "verify")
    assert (unknown.returncode, "nobody said what it should be" in unknown.stdout) == (0, True)

    refused = run("models", "get", FISHS2_ACCEPT_LICENSE="true")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        f"fishs2-daemon: {FILE} is not the file it should be: it has 5 bytes, the hub's has 700001; "
        f"`fishs2-daemon models get --force` sets it aside as {MODEL}.corrupt and fetches it again"
    )
    assert run("models", "get", "--force").returncode == 0
    assert FILE.with_name(f"{MODEL}.corrupt").read_bytes() == b"short"

    FILE.write_bytes(hub.files[MODEL][::-1])
    result = run("models", "verify")
    assert (result.returncode, f"{FILE}: CORRUPT" in result.stdout) == (1, True)
    assert f"{FILE}: not what it should be" in result.stderr
    assert look(FILE).state is State.CHANGED


def test_another_quantisation_and_a_wrong_one(hub: Hub) -> None:
    hub.files["s2-pro-q2_k.gguf"] = b"small" * 1000
    assert run("models", "get", "Q2_K", "--accept-license").returncode == 0
    assert Path("models/s2-pro-q2_k.gguf").read_bytes() == hub.files["s2-pro-q2_k.gguf"]
    assert not FILE.exists()
    for command, also in (("get", ", auto"), ("remove", "")):
        wrong = run("models", command, "q9")
        assert wrong.returncode == 1
        assert wrong.stderr == (
            f"fishs2-daemon: 'q9' is not allowed; allowed: f16, q8_0, q6_k, q5_k_m, q4_k_m, q3_k, q2_k{also}\n"
        )


def test_the_runtime_is_listed_fetched_and_kept(hub: Hub) -> None:
    folder = Path("runtime/fishs2sharp")
    assert "runtime" not in run("models", "list").stdout
    listed = run("models", "list", FISHS2_ENGINE="s2cpp").stdout.splitlines()
    assert listed[8].split() == ["*", "runtime", "0.0", "kB", "not", "there", str(folder)]
    absent = run("models", "runtime")
    assert (absent.returncode, absent.stdout) == (1, "")
    assert absent.stderr.startswith(
        f"fishs2-daemon: {folder}: not there; name a zip file of libs2.so*, libggml*.so* with"
    )

    files = {"libs2.so": b"s2", "libggml.so": bytes(5000)}
    hub.files["runtime.zip"] = zipped(files, stored=True)
    address = hub.url("runtime.zip")
    got = run("models", "runtime", FISHS2_RUNTIME_ZIP_URL=address)
    assert got.returncode == 0, got.stderr
    assert got.stdout == f"{folder}: whole, from {address}, 5.0 kB\n"
    assert "fetching fishs2sharp.zip: 100% of 5." in got.stderr
    assert "unpacking fishs2sharp.zip: 100% of 5.0 kB" in got.stderr
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert set(os.listdir("runtime")) == {"fishs2sharp", ".fishs2sharp.lock"}
    listed = run("models", "list").stdout.splitlines()
    assert listed[8].split() == ["runtime", "5.0", "kB", "whole,", "from", address, str(folder)]
    assert run("models", "runtime").stdout == got.stdout

    (folder / "libs2.so").write_text("mine")
    refused = run("models", "runtime", FISHS2_RUNTIME_ZIP_URL=address)
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"fishs2-daemon: {folder} is not a whole runtime (from {address}, lacks libs2.so); "
    )
    forced = run("models", "runtime", "--force", FISHS2_RUNTIME_ZIP_URL=address)
    assert forced.returncode == 0
    assert "what was there is set aside as fishs2sharp.old" in forced.stderr
    assert Path("runtime/fishs2sharp.old/libs2.so").read_text() == "mine"


def test_a_library_that_was_named_needs_no_runtime(hub: Hub) -> None:
    named = {"FISHS2_S2_DLL_PATH": "libs2.so", "FISHS2_RUNTIME_ZIP_URL": hub.url("runtime.zip")}
    absent = run("models", "runtime", **named)
    assert absent.returncode == 1
    assert absent.stderr == "fishs2-daemon: libs2.so: not there, and FISHS2_S2_DLL_PATH names it\n"
    Path("libs2.so").touch()
    there = run("models", "runtime", **named)
    assert (there.returncode, there.stdout.startswith("libs2.so: there, ")) == (0, True)
    assert hub.seen == []


@pytest.mark.timeout(180)
def test_a_tiny_model_is_fetched_and_speaks(hub: Hub) -> None:
    """From an empty folder: `models get`, then `say`."""
    pytest.importorskip("ggml", reason="the S2 engine's libraries are not installed")
    hub.files = {MODEL: (GOLDEN / "tiny-f16.gguf").read_bytes()}
    hub.files["tokenizer.json"] = (GOLDEN / "tokenizer.json").read_bytes()
    got = run("models", "get", "--accept-license")
    assert got.returncode == 0, got.stderr
    said = run("say", "Hello.", "--engine", "s2", "-o", "hello.wav", FISHS2_MAX_NEW_TOKENS="8")
    assert said.returncode == 0, said.stderr
    with wave.open("hello.wav", "rb") as sound:
        assert sound.getframerate() == 44100
        assert sound.getnframes() > 0


def test_the_library_that_downloads_may_be_missing(hub: Hub) -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None; sys.argv[1:] = ['models', 'get', '--accept-license']; "
        "from fishs2_daemon.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "fishs2-daemon: huggingface_hub is missing: pip install 'fishs2-daemon[s2]'"
    )
