"""Changes while a model is being fetched, or could be: who speaks, how many wait, and how it ends."""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.daemons import Launch, speaks
from tests.reload.conftest import SlowSource
from tests.reload.requests import health, reload, until

LICENCE = {"FISHS2_ACCEPT_LICENSE": "true"}


async def test_another_engine_speaks_at_once_where_the_start_still_fetches(launch: Launch, source: SlowSource) -> None:
    process = launch(FISHS2_ENGINE="s2", **LICENCE, **source.environment)
    await until(lambda: source.is_asked)
    answer = await reload(process, engine="espeak")
    assert (answer.status_code, answer.json()["engine"]) == (200, "espeak")
    assert await speaks(process)
    assert "the model is there" not in process.log.read_text()
    speaking = process.worker
    source.open()
    await process.says("the model is there")
    await asyncio.sleep(0.3)  # nobody else is started now
    assert process.workers == [speaking]


@pytest.mark.usefixtures("needs_s2")
async def test_what_was_fetched_does_not_speak_where_another_was_chosen(launch: Launch, source: SlowSource) -> None:
    process = launch(FISHS2_MODEL_QUANT="q8_0", **LICENCE, **source.environment)
    await until(lambda: source.is_asked)
    await process.says("ready")
    speaking = process.worker
    answer = await reload(process, engine="espeak")
    assert answer.json()["engine"] == "espeak"
    source.open()
    await process.says("the model is there")
    await asyncio.sleep(0.3)  # nobody else is started now
    assert process.workers == [speaking]
    answer = await reload(process, engine="s2")
    assert answer.json()["engine"] == "s2"
    await until(lambda: len(process.workers) == 1)
    assert process.worker != speaking


@pytest.mark.usefixtures("needs_s2")
async def test_the_last_word_counts_where_the_fetched_model_is_being_loaded(launch: Launch, source: SlowSource) -> None:
    process = launch(FISHS2_MODEL_QUANT="q8_0", **LICENCE, **source.environment)
    await process.says("ready")
    source.open()
    await process.says("the model is there")
    answer = await reload(process, engine="espeak")
    assert answer.json()["engine"] == "espeak"
    await until(lambda: len(process.workers) == 1)
    assert (await health(process))["engine"] == "espeak"


async def test_a_licence_that_is_missing_does_not_refuse_other_changes(
    launch: Launch, source: SlowSource, tmp_path: Path
) -> None:
    process = launch(FISHS2_MODEL_QUANT="q8_0", **source.environment)
    await process.says("ready")
    speaking = process.worker
    (tmp_path / ".env").write_text("FISHS2_LANGUAGES=de\nFISHS2_REMOTE_SLOTS=4\n")
    answer = await reload(process)
    assert answer.json() == {"status": "reloaded", "engine": "espeak", "needs_restart": []}
    assert await speaks(process)
    await process.says("speech by de")
    assert process.worker == speaking
    assert not source.is_asked


@pytest.mark.usefixtures("needs_s2")
async def test_files_are_not_forced_again_where_something_else_changes(
    launch: Launch, source: SlowSource, tmp_path: Path
) -> None:
    source.open()
    process = launch("--force-downloads", FISHS2_ENGINE="s2", **LICENCE, **source.environment)
    await process.says("ready: s2 is ready")
    before, asked = process.worker, len(source.hub.seen)
    (tmp_path / ".env").write_text("FISHS2_SLOTS=1\n")
    assert (await reload(process)).status_code == 200
    assert before not in process.workers
    assert len(source.hub.seen) == asked


@pytest.mark.usefixtures("needs_s2")
async def test_a_few_reloads_wait_and_the_next_one_is_refused(launch: Launch, source: SlowSource) -> None:
    process = launch(FISHS2_ENGINE="espeak", **LICENCE, **source.environment)
    await process.says("ready")
    first = asyncio.create_task(reload(process, engine="s2"))
    await until(lambda: source.is_asked)
    others = [asyncio.create_task(reload(process)) for _ in range(4)]
    refused, waiting = await asyncio.wait(others, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert len(refused) == 1
    answer = refused.pop().result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_busy")
    assert answer.headers["Retry-After"] == "5"
    source.open()
    for answer in await asyncio.gather(first, *waiting):
        assert (answer.status_code, answer.json()["engine"]) == (200, "s2")


@pytest.mark.parametrize("asked_to_end", [signal.SIGINT, signal.SIGTERM])
async def test_a_daemon_ends_at_once_though_a_reload_fetches(
    launch: Launch, source: SlowSource, asked_to_end: signal.Signals
) -> None:
    process = launch(FISHS2_ENGINE="espeak", **LICENCE, **source.environment)
    await process.says("ready")
    asking = asyncio.create_task(reload(process, engine="s2"))
    await until(lambda: source.is_asked)
    process.process.send_signal(asked_to_end)
    assert await process.exit_status(2) == 0
    with suppress(httpx.NetworkError, httpx.RemoteProtocolError):  # the connection may be closed instead
        assert (await asking).status_code == 503
