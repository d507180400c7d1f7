"""The command line as its user meets it: the installed script, as a process of its own."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import sysconfig
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fishs2_daemon import __version__, cli, configuration

SCRIPT = str(Path(sysconfig.get_path("scripts"), "fishs2-daemon"))
COMMANDS = sorted(
    [command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands]
    + [group.name or "" for group in cli.app.registered_groups]
)

#: Minutes of speech: what runs is still running when a test interrupts it.
LONG = "This is a sentence that goes on for a while, and then it ends. " * 1500

#: The engine in a process of its own, because its library's state goes from one phrase to the next.
ENGINE = """
import asyncio, sys
from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.engines.espeak import EspeakEngine
from fishs2_daemon.text.phrase import Phrase
async def phrases():
    yield Phrase(sys.argv[2])
async def main():
    engine = EspeakEngine()
    info = await engine.load(lambda what, fraction: None)
    async for block in engine.speak(Utterance(sys.argv[1] or info.default_voice, phrases())):
        sys.stdout.buffer.write(block.samples)
    await engine.close()
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)


def run(*arguments: str, stdin: bytes = b"", **environment: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [SCRIPT, *arguments], input=stdin, env={**os.environ, **environment}, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip


def succeeded(result: subprocess.CompletedProcess[bytes]) -> str:
    """What it printed; a success says nothing on stderr."""
    assert (result.returncode, result.stderr) == (0, b""), result.stderr.decode()
    return result.stdout.decode()


def refused(result: subprocess.CompletedProcess[bytes], status: int = 1) -> str:
    """The one line that says why."""
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1, "\n".join(lines)
    assert (result.returncode, result.stdout) == (status, b"")
    assert lines[0].startswith("fishs2-daemon: ")
    return lines[0].removeprefix("fishs2-daemon: ")


def samples_of(file: Path | bytes) -> tuple[bytes, int]:
    with wave.open(io.BytesIO(file) if isinstance(file, bytes) else str(file), "rb") as wav:
        assert (wav.getnchannels(), wav.getsampwidth()) == (1, 2)
        return wav.readframes(wav.getnframes()), wav.getframerate()


def engines_samples(text: str, voice: str = "") -> bytes:
    engine = subprocess.run([sys.executable, "-c", ENGINE, voice, text], capture_output=True, timeout=60, check=True)
    return engine.stdout


def files_here() -> list[str]:
    return sorted(os.listdir())


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    text = succeeded(run(command, "--help"))
    assert text.startswith(f"Usage: fishs2-daemon {command}")
    assert text.isascii()


def test_the_overview_names_every_command_and_where_settings_come_from() -> None:
    text = succeeded(run("--help"))
    assert {"serve", "say", "voices", "doctor"} <= set(COMMANDS) <= set(text.split())
    assert "FISHS2_*" in text


def test_serve_has_the_flags_that_wrong_settings_are_told_by() -> None:
    assert set(configuration.FLAGS.values()) <= set(succeeded(run("serve", "--help")).split())


def test_the_version_is_the_packages() -> None:
    assert succeeded(run("--version")) == f"fishs2-daemon {__version__}\n"


def test_the_package_runs_as_a_module_too() -> None:
    result = subprocess.run([sys.executable, "-m", "fishs2_daemon", "--version"], capture_output=True, check=True)
    assert result.stdout.decode() == f"fishs2-daemon {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("sing",), ("say",), ("serve", "--loud"), ("say", "a", "b")])
def test_a_command_line_that_makes_no_sense_shows_the_usage_and_does_nothing(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert b"Usage: fishs2-daemon" in result.stdout + result.stderr
    assert b"Traceback" not in result.stderr


# Speaking into a file


def test_say_writes_a_whole_wav_file_with_the_engines_own_samples() -> None:
    assert succeeded(run("say", "Good morning", "-o", "hello.wav")) == ""
    samples, rate = samples_of(Path("hello.wav"))
    assert samples == engines_samples("Good morning")
    assert len(samples) > rate  # half a second at least
    assert Path("hello.wav").stat().st_size == 44 + len(samples)
    assert files_here() == ["hello.wav"]


def test_say_speaks_with_the_voice_that_is_asked_for() -> None:
    succeeded(run("say", "Guten Morgen", "--voice", "de", "--output", "hallo.wav"))
    assert samples_of(Path("hallo.wav"))[0] == engines_samples("Guten Morgen", "de")


def test_say_reads_its_text_from_standard_input() -> None:
    succeeded(run("say", "-", "-o", "hello.wav", stdin="Good morning, Jürgen\n".encode()))
    assert samples_of(Path("hello.wav"))[0] == engines_samples("Good morning, Jürgen")


def test_bytes_that_are_no_text_are_read_over() -> None:
    succeeded(run("say", "-", "-o", "hello.wav", stdin=b"\xff Good morning", PYTHONIOENCODING="utf-8:strict"))
    assert samples_of(Path("hello.wav"))[0] == engines_samples("\ufffd Good morning")


@pytest.mark.parametrize("text", ["", "👋🏽"])
def test_a_text_with_nothing_to_say_is_a_tenth_of_a_second_of_silence(text: str) -> None:
    succeeded(run("say", text, "-o", "silence.wav"))
    samples, rate = samples_of(Path("silence.wav"))
    assert samples == bytes(2 * (rate // 10))


def test_an_existing_file_is_replaced() -> None:
    Path("hello.wav").write_bytes(b"x" * 1_000_000)
    succeeded(run("say", "Good morning", "-o", "hello.wav"))
    assert samples_of(Path("hello.wav"))[0]
    assert files_here() == ["hello.wav"]


def test_an_output_that_cannot_be_is_refused_before_anything_is_spoken() -> None:
    Path("folder").mkdir()
    Path("file").write_text("precious")
    for output in ("missing/hello.wav", "folder", "file/hello.wav"):
        line = refused(run("say", "Good morning", "-o", output, FISHS2_WORKER_START_TIMEOUT_S="0.001"))
        assert line == f"-o {output}: allowed: the path of a file in a folder that exists"
    assert files_here() == ["file", "folder"]
    assert Path("file").read_text() == "precious"


def test_what_is_refused_leaves_no_file_and_the_old_one_as_it_was() -> None:
    line = refused(run("say", "Hello", "-o", "new.wav", "--voice", "nobody"))
    assert line.startswith("there is no voice 'nobody'; voices: ")
    assert files_here() == []
    Path("old.wav").write_text("old")
    assert refused(run("say", "Hello", "-o", "old.wav", FISHS2_MAX_TEXT_CHARS="4")).startswith("the text has 5 ")
    assert Path("old.wav").read_text() == "old"
    assert files_here() == ["old.wav"]


def test_a_name_that_promises_another_format_is_refused() -> None:
    assert refused(run("say", "Hello", "-o", "hello.mp3")).startswith("-o hello.mp3: allowed: a name that ends in .wav")
    assert files_here() == []


def test_a_pipe_in_the_place_of_the_file_is_refused_and_kept() -> None:
    os.mkfifo("pipe")
    line = refused(run("say", "Hello", "-o", "pipe"))
    assert line == "-o pipe: allowed: the path of a file in a folder that exists"
    assert Path("pipe").is_fifo()


# Speaking to standard output


def test_standard_output_gets_a_stream_that_is_a_wav_of_unknown_length() -> None:
    result = run("say", "Good morning", "-o", "-")
    assert (result.returncode, result.stderr) == (0, b"")
    header, samples = result.stdout[:44], result.stdout[44:]
    assert samples == engines_samples("Good morning")
    assert header[:4] + header[8:12] + header[36:40] == b"RIFFWAVEdata"
    assert struct.unpack_from("<I", header, 4) == struct.unpack_from("<I", header, 40) == (0xFFFFFFFF,)
    assert struct.unpack_from("<HHI", header, 20) == (1, 1, 22050)


def test_what_cannot_be_spoken_is_refused_in_one_line() -> None:
    line = refused(run("say", "Hello", "-o", "-", FISHS2_MAX_TEXT_CHARS="4"))
    assert line == "the text has 5 characters; allowed: 4"


def test_a_listener_who_has_heard_enough_ends_it_without_an_error() -> None:
    process = subprocess.Popen(
        [SCRIPT, "say", "-", "-o", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with process:
        process.stdin.write(LONG.encode())
        process.stdin.close()
        assert process.stdout.read(1000).startswith(b"RIFF")
        assert process.poll() is None, "it has not waited for the whole speech"
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


# Playing

PLAYER = """#!{python}
import os, shutil, sys
shutil.copy(sys.argv[-1], os.environ["HEARD"])
sys.exit({status})
"""


def install_player(name: str, status: int = 0) -> dict[str, Any]:
    """A PATH with one player on it, which keeps what it played in the file `heard.wav`."""
    folder = Path("bin").absolute()
    folder.mkdir(exist_ok=True)
    player = folder / name
    player.write_text(PLAYER.format(python=sys.executable, status=status))
    player.chmod(0o755)
    return {"PATH": str(folder), "HEARD": str(Path("heard.wav").absolute())}


@pytest.mark.parametrize("player", ["pw-play", "aplay"])
def test_without_an_output_it_is_played(player: str, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    assert succeeded(run("say", "Good morning", **install_player(player), TMPDIR=str(temporary))) == ""
    assert samples_of(Path("heard.wav"))[0] == engines_samples("Good morning")
    assert list(temporary.iterdir()) == []


def test_a_player_that_fails_is_named_with_its_status() -> None:
    line = refused(run("say", "Good morning", **install_player("paplay", status=7)))
    assert line == "paplay could not play it (status 7); write a file: -o hello.wav"


def test_a_machine_that_cannot_play_says_so_before_anything_is_spoken() -> None:
    Path("empty").mkdir()
    line = refused(
        run("say", "Good morning", PATH=str(Path("empty").absolute()), FISHS2_WORKER_START_TIMEOUT_S="0.001")
    )
    assert line.startswith("nothing here can play sound (pw-play, paplay, aplay, ")
    assert line.endswith("; write a file: -o hello.wav")


# Interrupting


@pytest.mark.parametrize(("ending", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("output", ["old.wav", "-"])
def test_a_signal_ends_a_long_speech_at_once_and_leaves_nothing_behind(
    output: str, ending: signal.Signals, status: int
) -> None:
    Path("old.wav").write_text("old")
    with Path("stdout").open("wb") as stdout:
        process = subprocess.Popen(
            [SCRIPT, "say", "-", "-o", output], stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    assert process.stdin
    assert process.stderr
    with process:
        process.stdin.write(LONG.encode())
        process.stdin.close()
        part = Path(f".old.wav.{process.pid}.part") if output != "-" else Path("stdout")
        until(lambda: part.exists() and part.stat().st_size > 100_000, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) == 1
        os.killpg(process.pid, ending)  # as a terminal and a service manager do
        assert process.wait(10) == status
        assert process.stderr.read() == b""
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert Path("old.wav").read_text() == "old"
    assert files_here() == ["old.wav", "stdout"]


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < ends
        time.sleep(0.01)


# Voices


def test_voices_lists_every_voice_with_its_languages_and_description() -> None:
    lines = succeeded(run("voices")).splitlines()
    assert len(lines) > 100
    assert "en-us                en-US, en        English (America)" in lines
    assert all(len(line.split()) >= 3 for line in lines)


@pytest.mark.parametrize("language", ["pt-BR", "pt_br", "PT-br"])
def test_voices_of_one_language_are_told_however_it_is_written(language: str) -> None:
    assert [line.split()[0] for line in succeeded(run("voices", "list", language)).splitlines()] == ["pt-br"]


def test_voices_of_a_language_include_its_regions() -> None:
    assert [line.split()[0] for line in succeeded(run("voices", "list", "pt")).splitlines()] == ["pt", "pt-br"]


def test_a_language_that_no_voice_speaks_has_no_lines() -> None:
    assert succeeded(run("voices", "list", "tlh-Latn")) == ""


def tone(name: str) -> None:
    """A second of a tone."""
    with wave.open(name, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\x00\x20" * 40 + (b"\x00\x20\x00\xe0" * 4000))


def test_a_voice_is_added_listed_renamed_and_removed() -> None:
    tone("Clip 1.wav")
    added = succeeded(run("voices", "add", "Anna", "Clip 1.wav", "--text", "Good morning.", "--language", "de"))
    assert added.startswith("anna: stored in ")
    assert Path("voices/anna/meta.json").is_file()
    assert succeeded(run("voices")).splitlines()[0].split()[:2] == ["anna", "de"]
    assert "there is a voice 'anna' already" in refused(run("voices", "add", "anna", "Clip 1.wav", "--text", "x"), 1)
    succeeded(run("voices", "add", "anna", "Clip 1.wav", "--text", "Good evening.", "--replace"))
    assert succeeded(run("voices", "rename", "anna", "Ben")) == "ben: was anna\n"
    told = run("say", "Hallo", "--voice", "ben", "-o", "hallo.wav")
    assert told.returncode == 0
    assert b"it speaks for 'ben' in a voice of its own" in told.stderr
    assert succeeded(run("voices", "remove", "ben")) == "ben: removed\n"
    assert "there is no stored voice 'ben'" in refused(run("voices", "remove", "ben"), 1)


def test_what_is_no_recording_is_not_stored() -> None:
    Path("clip.wav").write_bytes(b"no sound")
    assert "clip.wav" in refused(run("voices", "add", "anna", "clip.wav", "--text", "x"), 1)
    assert not list(Path().glob("voices/[!.]*"))


# Doctor

QUIET: dict[str, Any] = {"FISHS2_URI": "tcp://127.0.0.1:0", "FISHS2_HOST": "127.0.0.1", "FISHS2_PORT": "0"}


def findings_of(result: subprocess.CompletedProcess[bytes]) -> dict[str, list[str]]:
    """The lines by severity; the advice below a line is with it."""
    findings: dict[str, list[str]] = {"ok": [], "note": [], "PROBLEM": []}
    severity = ""
    for line in result.stdout.decode().splitlines():
        if line.startswith(" "):
            findings[severity][-1] += f" {line.strip()}"
        else:
            severity, text = line.split(maxsplit=1)
            findings[severity].append(text)
    return findings


def test_doctor_finds_a_machine_that_can_speak_in_order() -> None:
    result = run("doctor", **QUIET)
    findings = findings_of(result)
    assert (result.returncode, result.stderr, findings["PROBLEM"]) == (0, b"", [])
    text = "\n".join(findings["ok"])
    assert text.startswith(f"fishs2-daemon {__version__}, Python {sys.version_info.major}.{sys.version_info.minor}")
    for words in ("espeak speaks: ", "voices, first audio after ", "Wyoming: 127.0.0.1:0", "HTTP: ", "127.0.0.0/8"):
        assert words in text


def test_doctor_says_what_is_wrong_and_what_to_do_about_it() -> None:
    result = run(
        "doctor", FISHS2_URI="tcp://203.0.113.77:10200,http://x", FISHS2_HTTP="false", FISHS2_ZEROCONF="false",
        FISHS2_PROT="8020", **missing_library(),
    )  # fmt: skip
    findings = findings_of(result)
    assert result.returncode == 1
    engine, address, uri = findings["PROBLEM"]
    assert "espeak-ng is not installed" in engine
    assert "-> " in engine
    assert "cannot listen on 203.0.113.77:10200: Cannot assign requested address -> " in address
    assert "'http://x' is not allowed; allowed: tcp://host:port" in uri
    notes = "\n".join(findings["note"])
    assert "FISHS2_PROT means nothing here" in notes
    assert "not announced" in notes


def missing_library() -> dict[str, Any]:
    """A wheel whose library is not there."""
    folder = Path("wheel").absolute()
    folder.mkdir()
    missing = json.dumps(str(folder / "missing"))
    Path(folder, "espeakng_loader.py").write_text(
        f"def get_library_path(): return {missing}\ndef get_data_path(): return {missing}\n"
    )
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("arguments", [("say", "Good morning", "-o", "-"), ("voices",)])
def test_without_an_engine_the_last_line_says_what_to_install(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, **missing_library())
    assert (result.returncode, result.stdout) == (1, b"")
    last = result.stderr.decode().splitlines()[-1]
    assert last.startswith("fishs2-daemon: the speech engine does not start: espeak-ng is not installed")
    assert "install" in last.rpartition(")")[2]


# Wrong settings


@pytest.mark.parametrize("arguments", [("serve",), ("say", "Hi", "-o", "hi.wav"), ("voices",), ("doctor",), ("bench",)])
def test_a_wrong_setting_is_one_line_and_status_78_for_every_command(arguments: tuple[str, ...]) -> None:
    line = refused(run(*arguments, FISHS2_STALL_TIMEOUT_S="soon"), 78)
    assert line == "FISHS2_STALL_TIMEOUT_S: 'soon' is not allowed; allowed: a number more than 0, at most 86400"
    assert files_here() == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("serve", "--uri", "x"), "FISHS2_URI (--uri): 'x' is not allowed; allowed: tcp://host:port, unix:///path, "),
        (("serve", "--http-port", "x"), "FISHS2_PORT (--http-port): 'x' is not allowed; allowed: a whole number "),
        (("serve", "--engine", "s3"), "FISHS2_ENGINE (--engine): 's3' is not allowed; allowed: auto, espeak"),
        (("say", "Hi", "--engine", "s3"), "FISHS2_ENGINE (--engine): 's3' is not allowed; allowed: auto, espeak"),
        (("voices", "--log-level", "LOUD"), "FISHS2_LOG_LEVEL (--log-level): 'LOUD' is not allowed; allowed: DEBUG, "),
    ],
)
def test_a_wrong_flag_is_told_like_the_setting_it_sets(arguments: tuple[str, ...], line: str) -> None:
    assert refused(run(*arguments), 78).startswith(line)


def test_a_wrong_line_in_the_env_file_is_told_like_the_environment() -> None:
    Path(".env").write_text("FISHS2_PORT=http\n")
    assert refused(run("voices"), 78).startswith("FISHS2_PORT (--http-port): 'http' is not allowed")


def test_a_log_folder_that_cannot_be_is_a_wrong_setting() -> None:
    Path("file").touch()
    assert refused(run("voices", FISHS2_LOGS_DIR="file/logs"), 78).startswith("FISHS2_LOGS_DIR: 'file/logs/app.log' ")
