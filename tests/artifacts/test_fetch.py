"""What the daemon calls: a process of its own that fetches, reports, and ends when it is told to or left alone."""

import asyncio
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fishs2_daemon import configuration
from fishs2_daemon.artifacts import licence
from fishs2_daemon.artifacts.artifact import ModelFiles, locate
from fishs2_daemon.artifacts.errors import CorruptArtifact, DownloadFailed, LicenseNotAccepted
from fishs2_daemon.artifacts.fetch import fetch, is_wanted
from fishs2_daemon.artifacts.standing import State, look
from tests.artifacts.conftest import MODEL
from tests.artifacts.hub import Hub

PROGRAM = """
import asyncio
from fishs2_daemon import configuration
from fishs2_daemon.artifacts.fetch import fetch
asyncio.run(fetch(configuration.load(), lambda what, fraction: print(what, flush=True)))
"""


def ignore(what: str, fraction: float) -> None:
    pass


def children() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [child for child in mine if "fishs2_daemon.artifacts.child" in child.cmdline()]


async def test_both_files_come_and_progress_is_told(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings = configuration.load(accept_license=True)
    told: list[tuple[str, float]] = []
    files = await fetch(settings, lambda what, fraction: told.append((what, fraction)))
    assert files == ModelFiles(Path("models") / MODEL, Path("models/tokenizer.json"))
    assert files.model.read_bytes() == hub.files[MODEL]
    assert files.tokenizer.read_bytes() == hub.files["tokenizer.json"]
    assert told[-1] == (f"fetching {MODEL} (700.0 kB)", 1.0)
    assert all(0 <= fraction <= 1 for _, fraction in told)
    assert f"fetching {MODEL}: 100% of 700.0 kB" in caplog.text
    assert licence.is_accepted(Path("models"))
    hub.seen.clear()
    assert await fetch(settings, ignore) == files
    assert hub.seen == []
    assert children() == []


async def test_without_the_licence_nothing_is_asked_for(hub: Hub) -> None:
    with pytest.raises(LicenseNotAccepted, match="--accept-license` once, or set FISHS2_ACCEPT_LICENSE=true"):
        await fetch(configuration.load(), ignore)
    assert hub.seen == []
    assert not licence.is_accepted(Path("models"))
    licence.accept(Path("models"), "a test")
    await fetch(configuration.load(), ignore)


async def test_errors_come_through(hub: Hub) -> None:
    settings = configuration.load(accept_license=True)
    hub.hashes[MODEL] = "0" * 64
    with pytest.raises(CorruptArtifact, match="thrown away"):
        await fetch(settings, ignore)
    hub.refuses = (403, "GatedRepo")
    with pytest.raises(DownloadFailed, match="HF_TOKEN"):
        await fetch(settings, ignore)
    assert children() == []


async def test_cancelled_it_stops_at_once_and_goes_on_later(hub: Hub) -> None:
    settings = configuration.load(accept_license=True)
    hub.piece_bytes, hub.piece_pause_s = 20_000, 0.03
    far = asyncio.Event()

    def watch(what: str, fraction: float) -> None:
        if MODEL in what and fraction > 0.2:
            far.set()

    task = asyncio.create_task(fetch(settings, watch))
    async with asyncio.timeout(20):
        await far.wait()
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 0.5
    assert children() == []
    assert look(Path("models") / MODEL).state is State.PARTIAL
    hub.piece_pause_s = 0.0
    await fetch(settings, ignore)
    assert int(hub.gets(MODEL)[-1].headers["range"][6:-1]) > 0.2 * 700_001
    assert look(Path("models") / MODEL).state is State.WHOLE


async def test_a_killed_process_is_an_error(hub: Hub) -> None:
    settings = configuration.load(accept_license=True)
    hub.piece_bytes, hub.piece_pause_s = 20_000, 0.03

    def kill(what: str, fraction: float) -> None:
        if MODEL in what and fraction > 0.2:
            for child in children():
                child.kill()

    with pytest.raises(DownloadFailed, match=r"its process ended \(-9\); try again"):
        await fetch(settings, kill)


async def test_another_process_is_waited_for(hub: Hub) -> None:
    settings = configuration.load(accept_license=True)
    hub.piece_bytes, hub.piece_pause_s = 50_000, 0.03
    told: list[str] = []
    await asyncio.gather(
        fetch(settings, lambda what, _: told.append(what)), fetch(settings, lambda what, _: told.append(what))
    )
    assert any("waiting for another process" in what for what in told)
    assert len(hub.gets(MODEL)) == 1


def test_it_ends_with_its_daemon(hub: Hub) -> None:
    hub.piece_bytes, hub.piece_pause_s = 2_000, 0.03
    environment = {**os.environ, "FISHS2_ACCEPT_LICENSE": "true"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        while MODEL.encode() not in daemon.stdout.readline():
            assert daemon.poll() is None
        (child,) = children()
        daemon.kill()
        daemon.wait()
        child.wait(5)
    assert not child.is_running()


async def test_force_fetches_again(hub: Hub) -> None:
    await fetch(configuration.load(accept_license=True), ignore)
    hub.files[MODEL] = hub.files[MODEL][::-1]
    files = await fetch(configuration.load(force_downloads=True), ignore)
    assert files.model.read_bytes() == hub.files[MODEL]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, False),
        ({"engine": "s2"}, True),
        ({"engine": "espeak", "model_quant": "q8_0"}, False),
        ({"model_quant": "q8_0"}, True),
        ({"model_quant": "q8_0", "skip_downloads": True}, False),
        ({"engine": "s2", "skip_downloads": True, "force_downloads": True}, False),
    ],
)
def test_only_what_was_asked_for_is_fetched(given: dict[str, str], wanted: bool) -> None:
    settings = configuration.load(**given)
    assert is_wanted(settings) is wanted
    files = locate(settings)
    files.model.parent.mkdir()
    files.model.touch()
    files.tokenizer.touch()
    assert not is_wanted(settings)
    settings.force_downloads = True
    assert is_wanted(settings) is wanted


def test_what_does_not_fit_is_not_fetched() -> None:
    settings = configuration.load(engine="s2")
    assert is_wanted(settings)
    settings.decide_quant("q2_k", "q2_k: nothing fits", fits=False)
    assert not is_wanted(settings)
