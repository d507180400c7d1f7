"""The README's word: its examples are run against a real daemon, its tables are compared with the code."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from annotated_types import Ge, Le
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info

from adapters.openai import protocol, schemas, speech
from adapters.openai.errors import as_http_error
from adapters.openai.http1 import DoorHttp
from fishs2_daemon import cli, configuration, errors
from fishs2_daemon.audio.decode import DecodeLimits, decode
from fishs2_daemon.settings import ENV_PREFIX, RELOADABLE, SWITCHABLE, Settings
from fishs2_daemon.wyoming_server import connection, framing

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

BIN = Path(sys.executable).parent
DAEMON = BIN / "fishs2-daemon"

#: What starts the daemon in the README starts it here.
SERVE = "python3 run.py"

#: Lines of examples that are not run, because they change the machine, and what they may be.
_CHANGES_THE_MACHINE = re.compile(r"\s*(sudo|git clone|systemctl)\b")
NOT_RUN = [
    "sudo git clone . /opt/fishs2-daemon",
    "sudo python3 -m venv /opt/fishs2-daemon/.venv",
    "sudo /opt/fishs2-daemon/.venv/bin/pip install '/opt/fishs2-daemon[preview]'",
    "sudo cp /opt/fishs2-daemon/systemd/fishs2-daemon.service /etc/systemd/system/",
    "sudo systemctl daemon-reload",
    "sudo systemctl enable --now fishs2-daemon",
]

_START_S = 60.0
_EXAMPLE_S = 60.0
_SHORTEST_S = 0.3


@dataclass(frozen=True)
class Block:
    """One fenced block. `name` is its section and its number among the section's blocks."""

    name: str
    language: str
    code: str

    @property
    def script(self) -> str:
        """What is left to run."""
        lines = [line for line in self.code.splitlines() if not _CHANGES_THE_MACHINE.match(line)]
        return re.sub(rf"\b{SERVE} (?=\w)", "fishs2-daemon ", "\n".join(lines)).strip()


def _blocks(text: str) -> list[Block]:
    blocks: list[Block] = []
    heading, indent, language = "", "", None
    code: list[str] = []
    for line in text.splitlines():
        fence = re.fullmatch(r"( *)```(\w*)", line)
        if fence and language is None:
            indent, language, code = fence[1], fence[2], []
        elif fence:
            number = 1 + sum(block.name.rpartition(" ")[0] == heading for block in blocks)
            blocks.append(Block(f"{heading} {number}", str(language), "\n".join(code)))
            language = None
        elif language is not None:
            code.append(line.removeprefix(indent))
        elif title := re.fullmatch(r"#+ (.+)", line):
            heading = title[1]
    assert language is None, "a block without an end"
    return blocks


BLOCKS = _blocks(README)
EXAMPLES = [block for block in BLOCKS if block.language in ("sh", "python") and block.script not in ("", SERVE)]

#: Speech that each example leaves behind, and what it prints, by its name.
OUTCOMES = {
    "Hear it 1": ["hello.wav"],
    "Hear it 3": ["hello.wav"],
    "Hear it 4": ["en-gb", "en-us"],
    "With curl 1": ["kettle.wav"],
    "With curl 2": ["played.pcm"],
    "With curl 3": ['"id": "s2-pro"', '"status": "ok"', "fishs2_ttfa_seconds_sum"],
    "With OpenAI's client 1": ["hello.wav", "door.pcm"],
    "With Fish Audio's client 1": ["hello.mp3"],
    "While it runs 1": ['"status": "reloaded"'],
    "When something does not work 1": ["espeak speaks"],
}


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[dict[str, str]]:
    """`python3 run.py`, as installed, on free ports of this machine alone: those of its doors HTTP and Wyoming."""
    assert SERVE in [block.code for block in BLOCKS]
    folder = tmp_path / "daemon"
    folder.mkdir()
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([DAEMON, "serve"], cwd=folder, env=_environment(), stderr=file)
    try:
        _until_ready(process, log)
        listening = re.findall(r"listening on tcp://127\.0\.0\.1:(\d+) \((\w+)\)", log.read_text())
        yield {door: port for port, door in listening}
        process.terminate()
        assert process.wait(_START_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.name)
def test_example_does_what_it_says(block: Block, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "curl " in block.script and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    code = block.script
    if "127.0.0.1:8020" in code or "10200" in code:
        ports = request.getfixturevalue("ports")
        code = code.replace("127.0.0.1:8020", f"127.0.0.1:{ports['HTTP']}").replace("10200", ports["Wyoming"])
    folder = tmp_path / "work"
    printed = _run(block.language, code, folder)
    for outcome in OUTCOMES[block.name]:
        if outcome.endswith(".wav"):
            _check_speech(_wav_samples(folder / outcome), 22050)
        elif outcome.endswith(".mp3"):
            decoded = decode(folder / outcome, sample_rate=None, limits=DecodeLimits())
            _check_speech((decoded.samples * 32767).astype("<i2").tobytes(), decoded.sample_rate)
        elif outcome.endswith(".pcm"):
            _check_speech((folder / outcome).read_bytes(), 24000)
        else:
            assert outcome in printed


def test_every_example_has_an_outcome() -> None:
    assert [block.name for block in EXAMPLES] == list(OUTCOMES)
    assert {block.language for block in BLOCKS} == {"sh", "python", "ini"}


def test_only_what_changes_the_machine_is_not_run() -> None:
    lines = [line for block in BLOCKS if block.language == "sh" for line in block.code.splitlines()]
    assert [line for line in lines if _CHANGES_THE_MACHINE.match(line)] == NOT_RUN
    more = (ROOT / "systemd" / "README.md").read_text(encoding="utf-8")
    assert [line for line in NOT_RUN[1:] if line not in more] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "ini"], ids=lambda block: block.name)
def test_settings_example_is_accepted(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(block.code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    assert configuration.unknown_names(configuration.given_names()) == []
    assert configuration.without_effect(configuration.load(), configuration.given_names()) == []


def test_commands_are_those_of_the_command_line() -> None:
    told = re.search(r"^The commands are .*?\. ", _section("Hear it"), re.S | re.M)
    assert told
    commands = {command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    commands |= {group.name for group in cli.app.registered_groups}
    assert set(re.findall(r"`(\w+)`", told[0])) == commands


def test_test_command_is_what_ci_runs() -> None:
    command = re.search(r"^exec (python3 run\.py \w+)", (ROOT / ".ci" / "run").read_text(), re.M)
    assert command
    assert f"`{command[1]}`" in _section("Development")


def test_files_named_exist() -> None:
    links, scripts = re.findall(r"\]\(([^)#]+)\)", README), set(re.findall(r"`(scripts/\w+)`", README))
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert [script for script in scripts if not os.access(ROOT / script, os.X_OK)] == []
    assert links
    assert scripts


def test_settings_table_is_that_of_the_code() -> None:
    """To mend it, replace the README's table by what `expected` holds."""
    expected = ["| Setting | Flag | Default | Meaning |", "|---|---|---|---|"]
    for group, names in _setting_groups().items():
        expected += [f"| **{group}** | | | |", *map(_setting_row, names)]
    assert _table_lines("Settings") == expected


def test_every_setting_named_exists() -> None:
    assert configuration.unknown_names(set(re.findall(r"FISHS2_\w+", README)) - {"FISHS2_NAME"}) == []


def test_flags_are_those_of_serve() -> None:
    environment = _environment() | {"COLUMNS": "200"}
    told = subprocess.run([DAEMON, "serve", "--help"], env=environment, capture_output=True, text=True, check=True)
    flags = set(re.findall(r"^ +(--[\w-]+)", told.stdout, re.M)) - {"--help"}
    assert flags == {*configuration.FLAGS.values(), "--model-q4"}
    assert {flag for flag in flags if f"`{flag}`" not in _section("Settings")} == set()


def test_fields_of_speech_are_those_of_the_code() -> None:
    clones = {name for name, field in schemas.SpeechBody.model_fields.items() if field.annotation is Any}
    table = {_code(row[0]) for row in _table("Fields of `/v1/audio/speech`")}
    assert table == set(schemas.SpeechBody.model_fields) - clones
    assert {name for name in clones if f"`{name}`" not in _section("Fields of `/v1/audio/speech`")} == set()


def test_formats_and_speeds_are_those_of_the_code() -> None:
    meanings = {_code(field): meaning for field, _, meaning in _table("Fields of `/v1/audio/speech`")}
    formats = get_args(schemas.SpeechBody.model_fields["response_format"].annotation)
    assert set(re.findall(r"`(\w+)`", meanings["response_format"])) == set(formats)
    speeds = {type(rule): rule for rule in schemas.SpeechBody.model_fields["speed"].metadata}
    assert f"{speeds[Ge].ge:g} to {speeds[Le].le:g}" in meanings["speed"]


def test_fixed_bounds_are_those_of_the_code() -> None:
    assert dict(_table("Limits")) == {
        "Wyoming event: first line, data, payload": ", ".join(
            map(_size, (framing.MAX_HEADER_BYTES, framing.MAX_DATA_BYTES, framing.MAX_PAYLOAD_BYTES))
        ),
        "requests sent ahead on one Wyoming connection": str(connection.MAX_AHEAD),
        "header of an HTTP request": _size(DoorHttp.HEADER_MAX_SIZE),
        "HTTP connection without a request": f"{protocol.IDLE_TIMEOUT_S:g} s",
        "HTTP answer sent whole; a longer one goes out as a stream": _size(speech.MAX_WHOLE_BYTES),
    }


#: What comes over HTTP alone.
_OF_UPLOADS = (
    errors.MissingFiles, errors.InvalidReferenceAudio, errors.UploadTooLarge, errors.VoiceExists, errors.TooManyVoices,
    errors.StorageError,
)  # fmt: skip


def test_wyoming_codes_are_those_of_the_code() -> None:
    refusals = _calls(ROOT / "fishs2_daemon" / "wyoming_server" / "server.py", "_refuse")
    spoken = {error for error in _request_errors() if not issubclass(error, _OF_UPLOADS)}
    codes = {error.code for error in spoken} | {code for call in refusals for code in _strings(call)[-1:]}
    assert {_code(row[0]) for row in _table("Wyoming error codes")} == codes


def test_http_statuses_are_those_of_the_code() -> None:
    answers = {(error.status, error.code) for error in (as_http_error(kind("")) for kind in _request_errors())}
    for file in (ROOT / "adapters" / "openai").glob("*.py"):
        for call in _calls(file, "HttpError"):
            match call.args:
                case [ast.Constant(value=int(status)), ast.Constant(value=str(code)), *_]:
                    answers.add((status, code))
        answers |= {(422, code) for call in _calls(file, "_fail") for code in _strings(call)[:1]}
    documented = {(int(row[0]), code) for row in _table("HTTP errors") for code in re.findall(r"`(\w+)`", row[1])}
    assert documented == answers


async def test_home_assistant_shows_what_the_readme_says(ports: dict[str, str]) -> None:
    async with AsyncTcpClient("127.0.0.1", int(ports["Wyoming"])) as client:
        await client.write_event(Describe().event())
        event = await client.read_event()
    assert event is not None
    program = Info.from_event(event).tts[0]
    assert program.supports_synthesize_streaming
    assert f"`tts.{program.name}`" in _section("Home Assistant")
    named = re.findall(r'"(.+?)"', _section("Home Assistant"))
    assert named
    assert set(named) <= {voice.description for voice in program.voices}


def _environment(folder: Path | None = None) -> dict[str, str]:
    """No door of this environment can be in anybody's way. `folder` holds stand-ins for programs."""
    path = os.pathsep.join([*([str(folder)] if folder else []), str(BIN), os.environ.get("PATH", os.defpath)])
    doors = {"URI": "tcp://127.0.0.1:0", "HOST": "127.0.0.1", "PORT": "0", "ZEROCONF": "false"}
    # Whatever proxy this machine has, 127.0.0.1 is not behind it.
    programs = {"PATH": path, "NO_PROXY": "*", "no_proxy": "*"}
    return os.environ | programs | {f"{ENV_PREFIX}{name}": value for name, value in doors.items()}


def _run(language: str, code: str, folder: Path) -> str:
    """Runs an example in a new folder. Returns what it printed."""
    programs = folder.with_name("programs")
    folder.mkdir()
    programs.mkdir()
    # A test has no loudspeaker. The arguments are those that aplay needs for 24 kHz, and the sound is kept.
    player = programs / "aplay"
    player.write_text('#!/bin/sh\n[ "$*" = "-q -t raw -f S16_LE -r 24000 -c 1" ] && cat > played.pcm\n')
    player.chmod(0o755)
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=_environment(programs), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=_EXAMPLE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"status {done.returncode}\n{code}\n{done.stdout}"
    return done.stdout


def _until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _START_S
    while " ready: " not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.02)


def _wav_samples(file: Path) -> bytes:
    """At the preview voice's own rate; the header must tell their true number."""
    with wave.open(str(file)) as content:
        assert (content.getnchannels(), content.getsampwidth(), content.getframerate()) == (1, 2, 22050)
        samples: bytes = content.readframes(content.getnframes())
        assert len(samples) == 2 * content.getnframes()
    return samples


def _check_speech(samples: bytes, sample_rate: int) -> None:
    assert len(samples) > _SHORTEST_S * 2 * sample_rate
    assert any(samples)


def _section(title: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", README, re.S | re.M)
    assert found, f"no section {title!r}"
    return found[1]


def _table_lines(title: str) -> list[str]:
    return [line for line in _section(title).splitlines() if line.startswith("|")]


def _table(title: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in _table_lines(title)]
    assert len(rows) > 2, f"no table under {title!r}"
    return rows[2:]


def _code(cell: str) -> str:
    found = re.search(r"`([^`]+)`", cell)
    assert found, cell
    return found[1]


def _setting_groups() -> dict[str, list[str]]:
    """Names of settings under the comments that head them in the class."""
    groups: dict[str, list[str]] = {}
    for line in textwrap.dedent(inspect.getsource(Settings)).splitlines():
        if comment := re.fullmatch(r"    # (.+)", line):
            names = groups[comment[1]] = []
        elif (field := re.match(r"    (\w+):", line)) and field[1] in Settings.model_fields:
            names.append(field[1])
    assert [name for names in groups.values() for name in names] == list(Settings.model_fields)
    return groups


def _setting_row(name: str) -> str:
    field = Settings.model_fields[name]
    mark = r" \*" if name in RELOADABLE else r" \*\*" if name in SWITCHABLE else ""
    flag = f"`{configuration.FLAGS[name]}`" if name in configuration.FLAGS else "-"
    default = _shown(field.get_default(call_default_factory=True))
    meaning = field.description or ""
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        meaning += f" ({', '.join(f'`{choice}`' for choice in choices)})"
    return f"| `{ENV_PREFIX}{name.upper()}`{mark} | {flag} | {default} | {meaning} |"


def _shown(default: object) -> str:
    match default:
        case None | []:
            return "-"
        case bool():
            return f"`{str(default).lower()}`"
        case list():
            return ", ".join(f"`{item}`" for item in default)
        case float():
            return f"`{default:g}`"
    return f"`{default}`"


def _size(size_bytes: int) -> str:
    mebibytes, rest = divmod(size_bytes, 1024 * 1024)
    return f"{mebibytes} MiB" if not rest else f"{size_bytes // 1024} KiB"


def _request_errors() -> set[type[errors.Fishs2Error]]:
    """The errors that a request can end with: all but those that keep the daemon from starting."""
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Fishs2Error)}
    return kinds - {errors.ConfigError, errors.ListenError}


def _calls(file: Path, name: str) -> list[ast.Call]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if name in (getattr(call.func, "id", ""), getattr(call.func, "attr", ""))]


def _strings(call: ast.Call) -> list[str]:
    return [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
