"""One server that breaks the rules: an error in words, in time, and nothing left behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.errors import EngineError
from tests.engines.remote.conftest import Phrases, Remote, loaded
from tests.engines.remote.server import (
    DONE,
    RATE,
    TONE,
    Answer,
    Exchange,
    SpeechServer,
    chunk_event,
    delta,
    tone,
    wav_of,
)

WAV = wav_of(TONE)


async def _silent(exchange: Exchange) -> None:
    await exchange.left()


async def _head_alone(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.left()


async def _closed_behind_the_head(exchange: Exchange) -> None:
    await exchange.head()
    exchange.writer.close()


async def _wav_head_alone(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(WAV[:44])
    await exchange.left()


async def _nothing_in_it(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(WAV[:44])
    await exchange.end()


async def _garbage(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(bytes(range(256)) * 10)
    await exchange.end()


async def _wrong_wav(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(WAV[:22] + b"\x07" + WAV[23:])
    await exchange.end()


async def _no_http(exchange: Exchange) -> None:
    await exchange.raw(b"SSH-2.0-OpenSSH_9.9\r\n")
    exchange.writer.close()


async def _endless_head(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.raw(b"x-more: " + b"x" * 1000 + b"\r\n")


async def _trickling_head(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.raw(b"x-more: x\r\n")
        await asyncio.sleep(0.05)


async def _endless_events(exchange: Exchange) -> None:
    await exchange.head(kind="text/event-stream")
    while True:
        await exchange.chunk(b": still there\n\n")
        await asyncio.sleep(0.01)


async def _bad_chunks(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.raw(b"many\r\nbytes\r\n")
    await exchange.left()


async def _redirect(exchange: Exchange) -> None:
    await exchange.whole(307, b"", location="/v1/audio/speech")


async def _html(exchange: Exchange) -> None:
    await exchange.whole(200, b"<html>Welcome</html>", "text/html")


async def _packed(exchange: Exchange) -> None:
    await exchange.whole(200, b"\x1f\x8b" + bytes(50), "audio/wav", content_encoding="gzip")


async def _five_hundred(exchange: Exchange) -> None:
    await exchange.error(500, "the GPU is\nout of memory \x1b[31m")


async def _endless_error(exchange: Exchange) -> None:
    await exchange.head(500, "text/plain")
    while True:
        await exchange.chunk(b"error " * 1000)


async def _long_answer_claimed(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: 5000\r\n\r\n")
    exchange.writer.close()


BEFORE_AUDIO = [
    (_silent, "no audio within 0.6 s"),
    (_head_alone, "no audio within 0.6 s"),
    (_wav_head_alone, "no audio within 0.6 s"),
    (_trickling_head, "no audio within 0.6 s"),
    (_endless_events, "no audio within 0.6 s"),
    (_closed_behind_the_head, "the connection broke"),
    (_endless_head, "the connection broke"),
    (_bad_chunks, "the connection broke"),
    (_no_http, "the connection broke"),
    (_long_answer_claimed, "the connection broke"),
    (_nothing_in_it, "broken: it ended without a sound"),
    (_garbage, "broken: it is no WAV"),
    (_wrong_wav, "broken: its WAV has format 1, 16 bits, 7 channels"),
    (_redirect, r"sends us elsewhere \(307\)"),
    (_html, "broken: it is 'text/html', not wav"),
    (_packed, "compressed"),
    (_five_hundred, r"the GPU is out of memory \[31m \(500\)"),
    (_endless_error, r"error error.*\.\.\. \(500\)"),
]


@pytest.fixture
async def remote(server: SpeechServer) -> AsyncIterator[Remote]:
    async with loaded(server) as remote:
        yield remote


@pytest.mark.parametrize(("answer", "reason"), BEFORE_AUDIO, ids=[case[0].__name__ for case in BEFORE_AUDIO])
async def test_before_the_first_audio(remote: Remote, server: SpeechServer, answer: Answer, reason: str) -> None:
    server.answer = answer
    async with asyncio.timeout(3):
        with pytest.raises(
            EngineError, match=rf"(?s)^no server speaks: http://127.0.0.1:{server.port}.*{reason}"
        ) as raised:
            await remote.says("Text.")
    assert str(raised.value).isprintable()
    assert len(server.kept) == 1
    server.answer = SpeechServer.answer
    assert await remote.says("Text.") == TONE


#: Waiting once for what says nothing is enough.
QUICKLY = [answer for answer, reason in BEFORE_AUDIO if "within" not in reason]


@pytest.mark.parametrize("answer", [_silent, *QUICKLY], ids=lambda answer: answer.__name__)
async def test_another_server_speaks_instead(answer: Answer) -> None:
    broken, well = SpeechServer(answer), SpeechServer()
    async with loaded(broken, well) as remote:
        broken.greeting = answer
        for _ in range(2):
            assert await remote.says("Text.") == TONE
    assert len(broken.kept) == 1
    assert len(well.kept) == 2


async def _silence_midway(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(WAV[:4000])
    await exchange.left()


async def _cut_midway(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(WAV[:4000])
    await asyncio.sleep(0.05)
    exchange.writer.close()


async def _reset_midway(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(WAV[:4000])
    await asyncio.sleep(0.05)
    exchange.writer.transport.abort()


async def _short_of_its_length(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(wav_of(TONE, open_length=False)[:-100])
    await exchange.end()


async def _error_event_midway(exchange: Exchange) -> None:
    await exchange.head(kind="text/event-stream")
    await exchange.chunk(delta(WAV[:4000]))
    await asyncio.sleep(0.05)
    await exchange.chunk(b'data: {"type": "error", "error": {"message": "it broke"}}\n\n')
    await exchange.end()


async def _no_last_event(exchange: Exchange) -> None:
    await exchange.head(kind="text/event-stream")
    await exchange.chunk(delta(WAV[:4000]))
    await exchange.end()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_silence_midway, "it fell silent for 0.6 s"),
        (_cut_midway, "the connection broke"),
        (_reset_midway, "the connection broke"),
        (_short_of_its_length, "100 bytes early"),
        (_error_event_midway, "it broke"),
        (_no_last_event, "without its last event"),
    ],
)
async def test_behind_the_first_audio_nobody_else_is_asked(answer: Answer, reason: str) -> None:
    servers = SpeechServer(answer), SpeechServer(answer)
    heard = bytearray()

    async def listen(remote: Remote) -> None:
        async with aclosing(remote.engine.speak(Utterance("default", Phrases(["Text."])))) as blocks:
            async for block in blocks:
                heard.extend(block.samples)

    async with loaded(*servers) as remote, asyncio.timeout(3):
        with pytest.raises(EngineError, match=reason):
            await listen(remote)
    assert heard
    assert TONE.startswith(heard)
    assert len(servers[0].kept + servers[1].kept) == 1


async def test_a_later_phrase_is_not_spoken_by_somebody_else() -> None:
    async def once(exchange: Exchange) -> None:
        if len(exchange.server.kept) > 1:
            await exchange.error(500, "not again")
        else:
            await exchange.speech()

    servers = SpeechServer(once), SpeechServer(once)
    async with loaded(*servers) as remote:
        phrases = Phrases(["One."], ends=False)
        async with aclosing(remote.engine.speak(Utterance("default", phrases))) as blocks:
            await anext(blocks)
            phrases.put("Two.")
            phrases.end()
            with pytest.raises(EngineError, match="not again"):
                _ = [block async for block in blocks]
    assert sorted(len(server.kept) for server in servers) == [0, 2]


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("shape", ["wav", "pcm", "openai", "sglang"])
async def test_streams_of_every_shape_cut_anywhere(shape: str, step: int) -> None:
    sound = TONE[:400]
    whole = wav_of(sound)
    kind, data = {
        "wav": ("audio/wav", whole),
        "pcm": ("audio/pcm", sound),
        "openai": ("text/event-stream", b"".join(delta(whole[at : at + 99]) for at in range(0, 444, 99)) + DONE),
        "sglang": (
            "text/event-stream",
            b"".join(chunk_event(wav_of(sound[at : at + 100], open_length=False), at) for at in range(0, 400, 100))
            + chunk_event(b"", 9, last=True),
        ),
    }[shape]

    async def answer(exchange: Exchange) -> None:
        await exchange.head(kind=kind, x_sample_rate=str(RATE))
        for at in range(0, len(data), step):
            await exchange.chunk(data[at : at + step])
        await exchange.end()

    async with loaded(SpeechServer(answer)) as remote:
        assert await remote.says("Text.") == sound


@pytest.mark.parametrize("framing", ["length", "close"])
async def test_bodies_without_chunks(framing: str) -> None:
    async def answer(exchange: Exchange) -> None:
        if framing == "length":
            await exchange.whole(200, WAV, "audio/wav")
        else:
            await exchange.raw(b"HTTP/1.0 200 OK\r\nContent-Type: audio/wav\r\n\r\n" + WAV)
            exchange.writer.close()

    async with loaded(SpeechServer(answer)) as remote:
        assert await remote.says("Text.") == TONE


async def test_closing_the_answer_closes_the_connection_at_once(remote: Remote, server: SpeechServer) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(WAV)
        await exchange.left()

    server.answer = endless
    for number in range(1, 6):
        blocks = remote.engine.speak(Utterance("default", Phrases(["Text."])))
        await anext(blocks)
        assert server.left == number - 1
        await blocks.aclose()
        async with asyncio.timeout(0.2):
            while server.left < number:
                await asyncio.sleep(0.001)


async def test_cancelling_at_any_moment_leaves_nothing(remote: Remote, server: SpeechServer) -> None:
    async def slow(exchange: Exchange) -> None:
        await exchange.head()
        for at in range(0, len(WAV), 500):
            await exchange.chunk(WAV[at : at + 500])
            await asyncio.sleep(0.001)
        await exchange.end()

    server.answer = slow
    before = len(asyncio.all_tasks())
    for delay in range(30):
        task = asyncio.create_task(remote.says("One.", "Two."))
        await asyncio.sleep(delay / 1000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(1):
        while len(asyncio.all_tasks()) > before + 2 or len(server.writers) > 3:
            await asyncio.sleep(0.01)
    assert await remote.says("Text.") == TONE


async def test_a_slow_listener_holds_up_no_server(remote: Remote, server: SpeechServer) -> None:
    ended = asyncio.Event()
    sound = tone(20)

    async def answer(exchange: Exchange) -> None:
        await exchange.speech(sound)
        ended.set()

    server.answer = answer
    async with aclosing(remote.engine.speak(Utterance("default", Phrases(["Text."])))) as blocks:
        await anext(blocks)
        await asyncio.wait_for(ended.wait(), 2)
        await asyncio.sleep(0.8)  # longer than any gap may be: the listener's time is not the server's
        assert len(b"".join([block.samples async for block in blocks])) > 0
