"""A daemon that is changed while it speaks, by a signal and over HTTP: to another engine, to another model file."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.daemons import Launch, Process, speaks
from tests.reload.requests import health, lay_models, reload, until


@asynccontextmanager
async def listeners(process: Process) -> AsyncIterator[list[int]]:
    """Two of them, one at each door, speak text after text; what each answer was, a status or whether it was heard."""
    answers: list[int] = []

    async def ask_http(client: httpx.AsyncClient) -> None:
        while True:
            body = {"model": "s2-pro", "input": "Here I am.", "response_format": "wav"}
            answers.append((await client.post("/v1/audio/speech", json=body)).status_code)

    async def ask_wyoming() -> None:
        while True:
            answers.append(200 if await speaks(process) else 500)

    async with httpx.AsyncClient(base_url=process.url, timeout=60) as client:
        asking = [asyncio.create_task(ask_http(client)), asyncio.create_task(ask_wyoming())]
        try:
            yield answers
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.usefixtures("two_models")
async def test_quantisation_and_engine_change_and_no_request_is_refused(launch: Launch) -> None:
    process = launch(FISHS2_MAX_NEW_TOKENS="12")
    await process.says("ready: s2 is ready")
    async with listeners(process) as answers:
        before = process.workers
        answer = await reload(process, model_quant="f16")
        assert (answer.status_code, answer.json()["engine"]) == (200, "s2")
        assert process.workers != before
        answer = await reload(process, engine="espeak")
        assert (answer.status_code, answer.json()["engine"]) == (200, "espeak")
        assert (await health(process))["engine"] == "espeak"
        answer = await reload(process, engine="s2", model_quant="q8_0")
        assert (answer.status_code, answer.json()["engine"]) == (200, "s2")
        heard = len(answers)
        await until(lambda: len(answers) >= heard + 4)
    assert set(answers) == {200}
    await until(lambda: len(process.workers) == 1)
    assert (await health(process))["state"] == "ready"


@pytest.mark.usefixtures("two_models")
async def test_a_signal_switches_to_what_the_environment_file_says(launch: Launch, tmp_path: Path) -> None:
    process = launch(FISHS2_MAX_NEW_TOKENS="12")
    await process.says("ready: s2 is ready")
    before = process.workers
    (tmp_path / ".env").write_text("FISHS2_MODEL_QUANT=f16\nFISHS2_SKIP_DOWNLOADS=true\n")
    process.process.send_signal(signal.SIGHUP)
    await process.says("reloaded")
    assert process.workers != before
    assert await speaks(process)
    again = process.workers
    process.process.send_signal(signal.SIGHUP)
    await process.says("reloaded", 2)
    assert process.workers == again, "nothing has changed: nobody is replaced"


@pytest.mark.usefixtures("needs_s2")
async def test_a_signal_takes_the_model_that_has_come_meanwhile(launch: Launch, tmp_path: Path) -> None:
    process = launch(FISHS2_MAX_NEW_TOKENS="12")
    await process.says("ready")
    assert (await health(process))["engine"] == "espeak"
    lay_models(tmp_path)
    process.process.send_signal(signal.SIGHUP)
    await process.says("reloaded")
    assert (await health(process))["engine"] == "s2"


@pytest.mark.usefixtures("two_models")
async def test_what_cannot_speak_changes_nothing(launch: Launch, tmp_path: Path) -> None:
    process = launch(FISHS2_MAX_NEW_TOKENS="12", FISHS2_SKIP_DOWNLOADS="true")
    await process.says("ready: s2 is ready")
    before = process.workers
    answer = await reload(process, model_quant="q2_k")
    assert answer.status_code == 422
    assert "s2-pro-q2_k.gguf" in answer.json()["error"]["message"]
    assert "s2 goes on speaking" in answer.json()["error"]["message"]
    (tmp_path / "models" / "s2-pro-q4_k_m.gguf").write_bytes(b"GGUF, but nothing of it")
    answer = await reload(process, model_quant="q4_k_m")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    for body in ({"model_quant": "q9"}, {"engine": "hal"}, {"model_path": "/etc/passwd"}, {"engine": 3}):
        answer = await reload(process, **body)
        assert answer.status_code == 422, body
        assert next(iter(body)) in answer.json()["error"]["message"].lower()
    assert process.workers == before
    assert await speaks(process)


@pytest.mark.usefixtures("two_models")
async def test_an_idle_daemon_gives_the_memory_back_and_speaks_again(launch: Launch) -> None:
    process = launch(FISHS2_MAX_NEW_TOKENS="12", FISHS2_IDLE_UNLOAD="0.5")
    await process.says("ready: s2 is ready")
    async with asyncio.timeout(20):
        while (await health(process))["state"] != "unloaded":
            await asyncio.sleep(0.05)
    assert process.workers == []
    assert (await health(process))["status"] == "ok"
    async with httpx.AsyncClient(base_url=process.url) as client:
        assert (await client.get("/ready")).status_code == 200, "who is asked for the next text must wake it"
    peer = await process.connect()
    await peer.send("describe")
    event = await peer.receive()
    assert event
    assert event.data["tts"][0]["voices"]
    assert await speaks(process)
    assert (await health(process))["engine"] == "s2"
