"""The word of docs/: names and links exist, settings are accepted, and what can be run here is run."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import typer

from adapters.fishaudio import routes as fishaudio
from adapters.openai import admin
from adapters.openai.server import ROUTES
from fishs2_daemon import cli, configuration, service
from fishs2_daemon.settings import Settings
from fishs2_daemon.text import phrases
from fishs2_daemon.text.feed import PAUSE_S
from fishs2_daemon.worker import child, wire
from tests.test_readme import SERVE, Block, _blocks, _run
from tests.test_readme import ports as ports
from tests.voices.sounds import wav

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fishs2_daemon"
TEXTS = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "voices" / "README.md")
}
PAGES = sorted(TEXTS)

#: Pages whose examples are run here, as far as they change nothing of the machine.
RUN = ("docs/home-assistant.md", "docs/pandrator.md", "docs/scale-out.md", "voices/README.md")

#: What each example leaves behind or prints, by its page, its section and its number there.
OUTCOMES = {
    "docs/home-assistant.md A cloned voice in the pipeline 1": ["anna: stored in"],
    "docs/home-assistant.md Ask it what Home Assistant asks 1": ["fishs2 ", "streams: True", "first sound", "door.wav"],
    "docs/pandrator.md Voices 1": ['"status": "ok"', '"sample_count": 1', '"deleted": true', "chapter.wav"],
    "docs/scale-out.md A door here, the GPU there 2": ["hello.wav"],
    "docs/scale-out.md Change it while it speaks 1": ['"status": "reloaded", "engine": "espeak"'],
    "docs/scale-out.md Change it while it speaks 2": ['"status": "reloaded", "engine": "espeak"'],
    "voices/README.md The sample voice 1": ["robot.wav"],
}

#: Another program's own.
FOREIGN = {"FISHS2_API_KEY"}

#: Where a path in a text is one of the file system and not of the HTTP door.
_FILES = ("/dev/", "/etc/", "/home/", "/opt/", "/proc/", "/sys/", "/usr/", "/var/")

#: What clients put a path behind.
_BASES = ("/", "/v1")

#: Where the pages have a second machine, this one stands in.
ANOTHER_MACHINE = "192.168.1.20"

_SHORTEST_BYTES = 2000


def _examples() -> Iterator[Block]:
    for page in RUN:
        for block in _blocks(TEXTS[page]):
            starts_a_daemon = re.search(rf"{SERVE}($| -)", block.script)
            if block.language in ("sh", "python") and block.script and not starts_a_daemon:
                yield replace(block, name=f"{page} {block.name}")


EXAMPLES = list(_examples())


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.name)
def test_example_does_what_it_says(block: Block, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "curl " in block.script and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    code = block.script.replace(ANOTHER_MACHINE, "127.0.0.1")
    if "127.0.0.1" in code:
        ports = request.getfixturevalue("ports")
        code = code.replace("127.0.0.1:8020", f"127.0.0.1:{ports['HTTP']}").replace("10200", ports["Wyoming"])
    if block.language == "sh":
        # What a reader has where he stands: a clone, and a recording of his own.
        (tmp_path / "anna.wav").write_bytes(wav())
        code = f"mkdir voices\ncp -r '{ROOT}/voices/sample-robot' voices/\ncp '{tmp_path}/anna.wav' .\n{code}"
    printed = _run(block.language, code, tmp_path / "work")
    for outcome in OUTCOMES[block.name]:
        if outcome.endswith(".wav"):
            assert (tmp_path / "work" / outcome).stat().st_size > _SHORTEST_BYTES
        else:
            assert outcome in printed


def test_every_example_has_an_outcome() -> None:
    assert [block.name for block in EXAMPLES] == list(OUTCOMES)


@pytest.mark.parametrize("page", PAGES)
def test_settings_named_exist(page: str) -> None:
    names = set(re.findall(r"FISHS2_\w+", TEXTS[page])) - FOREIGN
    assert configuration.unknown_names(names) == []


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_examples_are_accepted(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    for block in _blocks(TEXTS[page]):
        if block.language == "ini" and "[Service]" not in block.code:
            (tmp_path / ".env").write_text(block.code)
            given = configuration.load().model_fields_set
            lines = [line.partition("=")[0] for line in block.code.splitlines() if line.startswith("FISHS2_")]
            assert {f"FISHS2_{name.upper()}" for name in given} >= set(lines) != set()


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_flags_exist(page: str) -> None:
    for program, words in _commands(TEXTS[page]):
        node: Any = typer.main.get_command(cli.app)
        flags = {"--help"}
        if program == SERVE:
            if words and words[0] in ("test", "setup"):
                continue
            if not words or words[0].startswith("-"):
                flags |= _flags_of_run()
                words = ["serve", *words]
        for word in words:
            if word.startswith("-") and word != "-":
                known = flags | {option for parameter in node.params for option in parameter.opts}
                assert word.partition("=")[0] in known, f"{program} {shlex.join(words)}"
            elif hasattr(node, "commands"):
                assert word in node.commands, f"{program} {shlex.join(words)}"
                node = node.commands[word]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", TEXTS[page], flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if urlsplit(link).scheme:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES)
def test_urls_are_those_of_the_door(page: str) -> None:
    routes = [*ROUTES, *fishaudio.ROUTES, admin.route(cast(Any, None))]
    table = [(re.compile(re.sub(r"<[^>]+>", ".+", path)), route.methods) for route in routes for path in route.paths]
    for method, path in _urls(TEXTS[page]):
        allowed = {each for pattern, methods in table if pattern.fullmatch(path) for each in methods}
        assert allowed, path
        assert not method or method in allowed, f"{method} {path}"


def test_the_drawing_is_that_of_the_code() -> None:
    drawing = next(block.code for block in _blocks(TEXTS["docs/README.md"]) if block.language == "text")
    places = re.findall(r"(?<![\w/])[a-z_]+(?:/[a-z_]+)*(?:/|\.py)(?=[\s:])", drawing)
    assert {"service.py", "worker/pool.py", "worker/child.py", "wyoming_server/", "adapters/openai/"} <= set(places)
    assert [place for place in places if not (ROOT / place).exists() and not (PACKAGE / place).exists()] == []
    assert set(re.findall(r"^    (\w+) +phrase ->", drawing, re.M)) == set(child.ENGINES)
    blocks = (
        f"blocks of {service._BLOCK_S * 1000:.0f} ms at most, the first one of {service._FIRST_BLOCK_S * 1000:.0f} ms"
    )
    assert blocks in drawing
    assert f"at most {wire.WINDOW_BYTES // 1024} KiB of sound" in TEXTS["docs/README.md"]


def test_the_first_phrase_is_that_of_the_code() -> None:
    page = TEXTS["docs/home-assistant.md"]
    assert phrases.FIRST_SHORTEST_TOKENS == 6
    assert "a clause of six tokens or more" in page
    assert f"after {phrases.FIRST_LONGEST_TOKENS} tokens at the latest" in page
    assert f"pauses for {PAUSE_S:g} s" in page
    assert f"one block of {service._FIRST_BLOCK_S * 1000:.0f} ms" in page


@cache
def _flags_of_run() -> set[str]:
    told = subprocess.run([sys.executable, ROOT / "run.py", "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"^ +(--[\w-]+)", told.stdout, re.M))


def _commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Programs of this project and their arguments, in examples and in the text."""
    scripts = [block.code.replace("\\\n", " ") for block in _blocks(text) if block.language == "sh"]
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    for code in (*scripts, *re.findall(r"`([^`]+)`", prose)):
        for found in re.finditer(rf"(?<![\w/-])({re.escape(SERVE)}|fishs2-daemon)(?=\s|$)([^\n|;&]*)", code):
            yield found[1], shlex.split(found[2], comments=True)


def _urls(text: str) -> Iterator[tuple[str, str]]:
    """(method or nothing, path) of what is asked of a daemon; a base URL is none."""
    for method, path in re.findall(r"`(?:(GET|POST|PUT|PATCH|DELETE) )?(/[\w./-]+)`", text):
        if path not in _BASES and not path.startswith(_FILES):
            yield method, path
    for path in re.findall(r"https?://[\w.]+:\d+(/[\w./-]*)", text):
        if path not in _BASES:
            yield "", path


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
