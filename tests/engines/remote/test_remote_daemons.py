"""A front without an engine of its own before two daemons, each a process with both doors."""

import asyncio
import signal
from typing import Any

import httpx
import pytest

from tests.daemons import Launch, Process, free_port
from tests.sound import is_alike
from tests.wyoming_server.peer import LONG_TEXT

TEXT = "The front has no voice of its own. It asks another one. Does it sound the same?"


async def start(launch: Launch) -> tuple[Process, Process, Process]:
    one, other = launch(FISHS2_ENGINE="espeak"), launch(FISHS2_ENGINE="espeak")
    for upstream in (one, other):
        await upstream.says("ready")
    urls = f"{one.url}/v1, {other.url}"
    front = launch(FISHS2_ENGINE="remote", FISHS2_REMOTE_URLS=urls, FISHS2_REMOTE_SLOTS="4")
    await front.says("ready")
    return front, one, other


async def over_http(process: Process, text: str = TEXT, **fields: Any) -> httpx.Response:
    body = {"model": "tts-1", "input": text, "response_format": "wav", **fields}
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.post(f"{process.url}/v1/audio/speech", json=body)


async def over_wyoming(process: Process, text: str = TEXT) -> Any:
    client = await process.connect()
    await client.send("synthesize", text=text)
    return await client.answer()


def samples(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    assert answer.content[:4] == b"RIFF"
    return answer.content[44:]


async def test_both_doors_speak_with_another_daemon_s_voice(launch: Launch) -> None:
    front, one, _ = await start(launch)
    own = samples(await over_http(one))
    assert is_alike(samples(await over_http(front)), own)
    answer = await over_wyoming(front)
    assert answer.formats[0]["rate"] == 22050
    assert is_alike(answer.audio, own)
    assert is_alike(
        samples(await over_http(front, "Guten Tag.", voice="de")),
        samples(await over_http(one, "Guten Tag.", voice="de")),
    )
    async with httpx.AsyncClient() as client:
        health = (await client.get(f"{front.url}/health")).json()
        listed = [(await client.get(f"{each.url}/v1/audio/voices")).json()["data"] for each in (front, one)]
    assert health["engine"] == "remote"
    assert [voice["id"] for voice in listed[0]] == [voice["id"] for voice in listed[1]]
    assert "Traceback" not in front.log.read_text()


async def test_a_daemon_notices_that_it_was_given_its_own_address(launch: Launch) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    front = launch(FISHS2_ENGINE="remote", FISHS2_PORT=str(port), FISHS2_REMOTE_URLS=url)
    async with asyncio.timeout(10):
        await front.says("this is the daemon that asks: FISHS2_REMOTE_URLS names its own address")
    front.http = port
    assert (await over_http(front)).status_code == 503


@pytest.mark.slow
async def test_upstreams_that_die_and_come_back(launch: Launch) -> None:
    front, one, other = await start(launch)
    one.process.kill()
    for _ in range(3):
        assert samples(await over_http(front))
        assert (await over_wyoming(front)).error is None
    client = await front.half_heard()
    other.process.kill()
    answer = await client.answer()
    assert answer.error is not None
    assert answer.error["code"] == "internal"
    assert "127.0.0.1" in answer.error["text"]
    refused = await over_http(front)
    assert refused.status_code == 500
    assert refused.json()["error"]["message"].startswith("no server speaks: ")
    again = launch(FISHS2_ENGINE="espeak", FISHS2_PORT=str(one.http))
    await again.says("ready")
    async with asyncio.timeout(15):
        while (await over_http(front, "Hello again.")).status_code != 200:
            await asyncio.sleep(0.1)
    front.process.send_signal(signal.SIGTERM)
    assert await front.exit_status() == 0
    assert "Traceback" not in front.log.read_text()


@pytest.mark.slow
async def test_many_at_once_are_shared_out(launch: Launch) -> None:
    front, one, other = await start(launch)
    answers = await asyncio.gather(*(over_http(front, LONG_TEXT[:600]) for _ in range(24)))
    lengths = {len(samples(answer)) for answer in answers}
    assert max(lengths) < 1.05 * min(lengths)
    counts = [each.log.read_text().count("POST /v1/audio/speech 200") for each in (one, other)]
    assert abs(counts[0] - counts[1]) <= 6
