"""What a client sees when something goes wrong: an error it can act on, and never a stump that looks whole."""

import asyncio
import os
import signal
import socket
import struct
import time

import psutil
import pytest

from tests.wyoming_server.conftest import Door
from tests.wyoming_server.peer import LONG_TEXT, Client


async def half_heard(door: Door, **start: object) -> Client:
    """A client in the middle of an answer: it has heard the beginning and reads no further for now."""
    client = await door.connect(limit=4096)
    await client.send("synthesize", text=LONG_TEXT, **start)
    for kind in ("audio-start", "audio-chunk"):
        event = await client.receive()
        assert event
        assert event.type == kind
    return client


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_worker_that_dies_in_mid_answer_breaks_the_answer_off(door: Door, number: signal.Signals) -> None:
    client = await half_heard(door)
    pid = door.speech.worker.pid
    os.kill(pid, number)
    answer = await client.answer()
    assert answer.error is not None
    assert answer.error["code"] == "internal"
    assert "crashed" in answer.error["text"]
    # Old versions of Home Assistant know no `error`; they fail on the event that never comes to its end.
    assert answer.is_broken_off
    assert answer.kinds[-1] == "error"
    assert "audio-stop" not in answer.kinds

    client = await door.connect()
    await client.send("synthesize", text="The next request speaks.")
    answer = await client.answer()
    assert answer.error is None
    assert answer.audio
    assert door.speech.worker.pid != pid


async def test_an_answer_without_audio_yet_is_replayed_by_the_next_worker(door: Door) -> None:
    door.speech.worker.suspend()
    client = await door.connect()
    await client.send("synthesize", text="Nobody heard this yet.")
    async with asyncio.timeout(5):
        while not door.speech.service.running:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    door.speech.worker.kill()
    answer = await client.answer()
    assert answer.error is None
    assert answer.audio
    assert len(answer.formats) == 1


async def test_an_open_stream_is_replayed_with_all_the_text_so_far(door: Door) -> None:
    door.speech.worker.suspend()
    client = await door.connect()
    await client.send("synthesize-start")
    await client.send("synthesize-chunk", text="The first sentence is here. The second")
    async with asyncio.timeout(5):
        while not door.speech.service.running:
            await asyncio.sleep(0.01)
    door.speech.worker.kill()
    await client.send("synthesize-chunk", text=" one came later.")
    await client.send("synthesize-stop")
    answer = await client.answer("synthesize-stopped")
    assert answer.error is None
    await client.send("synthesize", text="The first sentence is here. The second one came later.")
    again = await client.answer()
    assert len(answer.audio) == pytest.approx(len(again.audio), rel=0.02)


async def test_a_hung_worker_is_killed_and_replaced(door: Door) -> None:
    door.speech.settings.worker_hang_timeout_s = 1.0
    client = await half_heard(door)
    worker = door.speech.worker
    worker.suspend()
    answer = await client.answer()
    assert answer.error is not None
    assert "sign of life" in answer.error["text"]
    assert answer.is_broken_off
    assert not psutil.pid_exists(worker.pid)
    await client.close()
    client = await door.connect()
    await client.send("synthesize", text="On we go.")
    assert (await client.answer()).audio


async def test_a_stream_that_fails_before_its_audio_is_broken_off_too(door: Door) -> None:
    door.speech.settings.first_audio_timeout_s = 0.2
    door.speech.worker.suspend()
    client = await door.connect()
    await client.send("synthesize-start")
    await client.send("synthesize-chunk", text="Hello there. And")
    await client.send("synthesize-stop")
    answer = await client.answer()
    assert answer.kinds == ["error"]
    assert answer.is_broken_off
    door.speech.worker.resume()


async def test_no_audio_in_time_is_an_error(door: Door) -> None:
    door.speech.settings.first_audio_timeout_s = 0.2
    door.speech.worker.suspend()
    client = await door.connect()
    await client.send("synthesize", text="Hello.")
    answer = await client.answer()
    assert answer.kinds == ["error"]
    assert answer.error is not None
    assert answer.error["code"] == "timeout"
    assert answer.is_closed
    door.speech.worker.resume()


async def test_a_stall_in_mid_answer_is_an_error(door: Door) -> None:
    door.speech.settings.stall_timeout_s = 0.3
    client = await half_heard(door)
    door.speech.worker.suspend()
    answer = await client.answer()
    assert answer.error is not None
    assert answer.error["code"] == "timeout"
    assert answer.is_broken_off
    door.speech.worker.resume()


async def test_an_answer_that_takes_too_long_is_ended(door: Door) -> None:
    door.speech.settings.total_timeout_s = 0.3
    client = await half_heard(door)
    await asyncio.sleep(0.4)
    answer = await client.answer()
    assert answer.error is not None
    assert answer.error["code"] == "timeout"
    assert answer.is_broken_off


async def test_a_stream_whose_text_stops_coming_is_an_error(door: Door) -> None:
    door.speech.settings.text_timeout_s = 0.2
    client = await door.connect()
    await client.send("synthesize-start")
    await client.send("synthesize-chunk", text="This is spoken. This is not")
    answer = await client.answer()
    assert answer.error is not None
    assert answer.error["code"] == "timeout"
    assert answer.audio
    assert answer.is_broken_off


async def test_a_client_that_leaves_cancels_its_answer(door: Door) -> None:
    client = await half_heard(door)
    assert door.speech.service.running == 1
    client.writer.transport.abort()
    began = time.monotonic()
    await door.idle()
    assert time.monotonic() - began < 2


async def test_a_client_that_leaves_while_it_waits_frees_its_place(door: Door) -> None:
    listeners = [await half_heard(door) for _ in range(16)]
    waiting = await door.connect()
    await waiting.send("synthesize", text="Wait for me.")
    async with asyncio.timeout(5):
        while not door.speech.service.waiting:
            await asyncio.sleep(0.01)
    waiting.writer.transport.abort()
    async with asyncio.timeout(5):
        while door.speech.service.waiting:
            await asyncio.sleep(0.01)
    for listener in listeners:
        listener.writer.transport.abort()
    await door.idle()


async def test_a_slow_reader_is_dropped_and_hinders_nobody(door: Door) -> None:
    door.speech.settings.write_timeout_s = 0.5
    slow = await half_heard(door)
    quick = await door.connect()
    await quick.send("synthesize", text="Quick as ever.")
    assert (await quick.answer()).audio
    await door.idle()
    with pytest.raises(ConnectionResetError):
        await slow.answer()


async def test_a_full_queue_refuses_at_once(door: Door) -> None:
    door.speech.settings.max_queue = 2
    listeners = [await half_heard(door) for _ in range(16)]
    waiting = [await door.connect() for _ in range(2)]
    for client in waiting:
        await client.send("synthesize", text="I wait.")
    async with asyncio.timeout(5):
        while door.speech.service.waiting < 2:
            await asyncio.sleep(0.01)
    refused = await door.connect()
    await refused.send("synthesize", text="No room.")
    answer = await refused.answer()
    assert answer.kinds == ["error"]
    assert answer.error is not None
    assert answer.error["code"] == "busy"
    for listener in listeners:
        listener.writer.transport.abort()
    for client in waiting:
        assert (await client.answer()).audio


async def test_waiting_has_a_limit(door: Door) -> None:
    door.speech.settings.queue_timeout_s = 0.2
    listeners = [await half_heard(door) for _ in range(16)]
    client = await door.connect()
    await client.send("synthesize", text="I wait.")
    answer = await client.answer()
    assert answer.error is not None
    assert answer.error["code"] == "busy"
    for listener in listeners:
        listener.writer.transport.abort()


@pytest.mark.parametrize(
    ("events", "code", "says"),
    [
        ([("synthesize", {"text": "x", "voice": {"name": "nobody"}})], "unknown-voice", "en-us"),
        ([("synthesize", {"text": "x", "voice": {"language": "tlh"}})], "unknown-voice", "tlh"),
        ([("synthesize", {"text": "x", "voice": {"name": "en-us", "speaker": "bob"}})], "unknown-voice", "bob"),
        ([("synthesize", {"text": "x" * 100_001})], "text-too-long", "100000"),
        ([("synthesize", {"text": "<speak/>", "text_format": "latex"})], "invalid", "text_format"),
        ([("synthesize", {})], "protocol", "text"),
        ([("synthesize", {"text": 5})], "protocol", "string"),
        ([("synthesize", {"text": None})], "protocol", "string"),
        ([("synthesize", {"text": "x", "voice": "x"})], "protocol", "voice"),
        ([("synthesize", {"text": "x", "voice": {"name": 5}})], "protocol", "name"),
        ([("synthesize-start", {"voice": {"name": "nobody"}})], "unknown-voice", "nobody"),
        ([("synthesize-start", {}), ("synthesize-start", {})], "protocol", "synthesize-stop"),
        ([("synthesize-start", {}), ("synthesize-chunk", {})], "protocol", "text"),
        ([("synthesize-start", {}), ("synthesize-chunk", {"text": "x" * 100_001})], "text-too-long", "100000"),
        ([("synthesize-chunk", {"text": "x"})], "protocol", "synthesize-start"),
        ([("synthesize-stop", {})], "protocol", "synthesize-start"),
    ],
)
async def test_a_bad_request_is_one_error_that_says_what_is_wrong(
    door: Door, events: list[tuple[str, dict[str, object]]], code: str, says: str
) -> None:
    client = await door.connect()
    for kind, data in events:
        await client.send(kind, **data)
    answer = await client.answer()
    assert answer.kinds == ["error"]
    assert answer.error is not None
    assert answer.error["code"] == code
    assert says in answer.error["text"]
    # Old versions of Home Assistant would keep the end of a stream without audio as its answer, for good.
    assert answer.is_broken_off is any(kind == "synthesize-start" for kind, _ in events)
    assert answer.is_closed is not answer.is_broken_off


async def test_an_unknown_voice_may_be_set_to_mean_the_default(door: Door) -> None:
    door.speech.settings.unknown_voice = "default"
    client = await door.connect()
    await client.send("synthesize", text="Hello.", voice={"name": "nobody"})
    assert (await client.answer()).audio


async def test_too_many_requests_ahead_are_refused(door: Door) -> None:
    client = await half_heard(door)
    for _ in range(20):
        await client.send("synthesize", text="More.")
    answer = await client.answer()
    assert answer.error is not None
    assert answer.error["code"] == "busy"
    assert answer.is_broken_off


async def test_connections_are_bounded(door: Door) -> None:
    door.speech.settings.max_connections = 3
    clients = [await door.connect() for _ in range(3)]
    for client in clients:
        await client.send("ping")
        assert await client.receive()
    # Home Assistant tries again after a clean end of `describe` or `synthesize`; of a stream it would keep it.
    for kind, data in {"describe": {}, "synthesize": {"text": "No room."}, "synthesize-start": {}}.items():
        refused = await door.connect()
        await refused.send(kind, **data)
        await refused.send("synthesize-chunk", text="What is sent unasked must not cost the peer our error.")
        answer = await refused.answer()
        assert answer.kinds == ["error"]
        assert answer.error is not None
        assert answer.error["code"] == "busy"
        assert answer.is_broken_off is (kind == "synthesize-start")
    silent = await (await door.connect()).answer()
    assert silent.kinds == ["error"]
    assert silent.is_closed
    await clients[0].close()
    async with asyncio.timeout(5):
        while True:
            client = await door.connect()
            await client.send("ping")
            if (event := await client.receive()) and event.type == "pong":
                break


async def test_foreign_peers_are_told_and_refused(door: Door) -> None:
    door.speech.settings.allowed_networks = []
    answer = await (await door.connect()).answer()
    assert answer.error is not None
    assert answer.error["code"] == "forbidden"
    assert "FISHS2_ALLOWED_NETWORKS" in answer.error["text"]


async def test_a_silent_connection_is_closed_but_not_one_that_listens(door: Door) -> None:
    door.speech.settings.idle_timeout_s = 0.3
    listener = await half_heard(door)
    silent = await door.connect()
    answer = await silent.answer()
    assert answer.error is not None
    assert answer.error["code"] == "timeout"
    assert answer.is_closed
    await asyncio.sleep(0.2)
    event = await listener.receive()
    assert event
    assert event.type == "audio-chunk"


async def test_describe_is_answered_while_the_worker_is_down(door: Door) -> None:
    door.speech.worker.kill()
    client = await door.connect()
    await client.send("describe")
    event = await client.receive()
    assert event
    assert event.type == "info"
    assert event.data["tts"][0]["voices"]


async def test_peers_that_talk_rubbish_and_reset_leave_no_trace(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    address = "127.0.0.1", door.port
    for text in (b"rubbish\n" * 3, b'{"type": "synthesize", "data": {"text": "Hello."}}\n') * 10:
        with socket.create_connection(address) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.sendall(text)
    await asyncio.sleep(0.1)
    await door.idle()
    assert "Traceback" not in caplog.text
    client = await door.connect()
    await client.send("synthesize", text="As ever.")
    assert (await client.answer()).audio


async def test_draining_lets_running_answers_finish_and_breaks_off_the_rest(door: Door) -> None:
    quick, slow, idle = await door.connect(), await half_heard(door), await door.connect()
    await quick.send("synthesize", text="I am nearly done. " * 20)
    assert (await quick.receive()).type == "audio-start"  # type: ignore[union-attr]
    door.speech.service.close()
    door.server.stop_accepting()
    draining = asyncio.create_task(door.server.drain(1.0))
    whole = await quick.answer()
    assert whole.kinds[-1] == "audio-stop"
    assert (await idle.answer()).is_closed
    await asyncio.sleep(1.0)
    cut = await slow.answer()
    assert cut.error is not None
    assert cut.error["code"] == "shutting-down"
    assert cut.is_broken_off
    await draining
    with pytest.raises(ConnectionRefusedError):
        await door.connect()
