"""Several servers: who is asked, who is spared, who comes back."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.engines.remote.breaker import FAILURES_TO_OPEN
from fishs2_daemon.errors import Busy, EngineError
from tests.engines.remote.conftest import QUICK, Phrases, Remote, loaded
from tests.engines.remote.server import TONE, Answer, Exchange, SpeechServer, wav_of


async def _held(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(wav_of(TONE))
    await exchange.left()


async def _broken(exchange: Exchange) -> None:
    await exchange.error(500, "broken")


def busy(times: int, status: int = 503, **headers: str) -> Answer:
    async def answer(exchange: Exchange) -> None:
        if len(exchange.server.kept) <= times:
            await exchange.error(status, "the queue is full", **headers)
        else:
            await exchange.speech()

    return answer


async def until(condition: object, timeout_s: float = 3) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_the_one_with_the_least_to_do_is_asked() -> None:
    servers = [SpeechServer(_held) for _ in range(3)]
    async with loaded(*servers) as remote:
        running = []
        for _ in range(9):
            running.append(remote.engine.speak(Utterance("default", Phrases(["Text."]))))
            await anext(running[-1])
        assert [len(server.kept) for server in servers] == [3, 3, 3]
        for blocks in running[1::3]:
            await blocks.aclose()
        for _ in range(3):
            running.append(remote.engine.speak(Utterance("default", Phrases(["Text."]))))
            await anext(running[-1])
        assert sorted(len(server.kept) for server in servers) == [3, 3, 6]
        for blocks in running:
            await blocks.aclose()


async def test_one_text_stays_with_one_server() -> None:
    servers = SpeechServer(), SpeechServer()
    async with loaded(*servers) as remote:
        for _ in range(4):
            phrases = Phrases(["One."], ends=False)
            async with aclosing(remote.engine.speak(Utterance("default", phrases))) as blocks:
                for text in ("Two.", "Three."):
                    await anext(blocks)
                    phrases.put(text)
                phrases.end()
                assert [block async for block in blocks]
    for server in servers:
        assert server.texts == ["One.", "Two.", "Three."] * 2


async def test_a_server_that_is_gone_is_not_asked_until_it_is_back() -> None:
    gone, well = SpeechServer(), SpeechServer()
    async with loaded(gone, well) as remote:
        await gone.stop()
        for _ in range(5):
            assert await remote.says("Text.") == TONE
        assert len(well.kept) == 5
        await gone.start()
        await until(lambda: len(gone.greetings) == 2)
        await asyncio.sleep(0.1)
        assert await remote.says("Text.") == TONE
        assert await remote.says("Text.") == TONE
        assert len(gone.kept) == len(well.kept) - 5 == 1


async def test_a_server_that_always_breaks_off_is_left_alone() -> None:
    async def breaks_off(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(wav_of(TONE))
        await asyncio.sleep(0.01)
        exchange.writer.transport.abort()

    server = SpeechServer(breaks_off)
    async with loaded(server, deadlines=replace(QUICK, health_every_s=5)) as remote:
        for _ in range(5):
            with pytest.raises(EngineError, match="the connection broke"):
                await remote.says("Text.")
        assert len(server.kept) == 3


async def test_all_gone_is_told_at_once_with_every_address() -> None:
    servers = SpeechServer(), SpeechServer()
    async with loaded(*servers) as remote:
        for server in servers:
            await server.stop()
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(EngineError, match="no server speaks") as raised:
                await remote.says("Text.")
            assert time.monotonic() - began < 0.3
            for server in servers:
                assert f"127.0.0.1:{server.port}" in str(raised.value)


async def test_a_server_that_answers_and_does_not_speak_is_left_alone() -> None:
    """Three failures, then a greeting after a pause, then a longer pause: its health is good all the time."""
    server = SpeechServer(_broken)
    async with loaded(server, deadlines=replace(QUICK, health_every_s=0.5)) as remote:
        server.greeting = _broken
        for _ in range(20):
            with pytest.raises(EngineError, match=r"broken \(500\)"):
                await remote.says("Text.")
        assert len(server.kept) == 3
        for greetings, pause_s in ((2, 1.0), (3, 2.0)):
            began = time.monotonic()
            await until(lambda wanted=greetings: len(server.greetings) == wanted)
            assert pause_s - 0.1 < time.monotonic() - began < pause_s + 0.5
            with pytest.raises(EngineError, match=r"broken \(500\)"):
                await remote.says("Text.")
        assert len(server.kept) == 3
        assert server.health_checks > 3


async def test_one_failure_is_forgiven_when_it_speaks_again() -> None:
    once, well = SpeechServer(_broken), SpeechServer()
    async with loaded(once, well) as remote:
        assert await remote.says("Text.") == TONE
        assert len(once.kept) == 1
        once.answer = SpeechServer.answer
        await until(lambda: len(once.greetings) == 2)
        await asyncio.sleep(0.05)
        assert await remote.says("Text.") == TONE
        assert len(once.kept) == 2


async def test_a_sick_server_is_not_asked() -> None:
    sick, well = SpeechServer(), SpeechServer()
    async with loaded(sick, well) as remote:
        sick.health = 503
        checks = sick.health_checks
        await until(lambda: sick.health_checks > checks + 2)
        for _ in range(3):
            await remote.says("Text.")
        assert not sick.kept


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_spared_for_as_long_as_it_asks(status: int) -> None:
    full, well = SpeechServer(busy(9, status, retry_after="30")), SpeechServer()
    async with loaded(full, well) as remote:
        for _ in range(4):
            assert await remote.says("Text.") == TONE
        assert len(full.kept) == 1


async def test_where_all_are_busy_a_text_waits() -> None:
    servers = SpeechServer(busy(1, retry_after="1")), SpeechServer(busy(1, retry_after="7"))
    async with loaded(*servers) as remote:
        began = time.monotonic()
        assert await remote.says("Text.") == TONE
        assert 0.9 < time.monotonic() - began < 1.6
        assert [len(server.kept) for server in servers] == [2, 1]


async def test_nobody_waits_for_longer_than_patience() -> None:
    server = SpeechServer(busy(9, retry_after="5"))
    async with loaded(server) as remote:
        began = time.monotonic()
        with pytest.raises(Busy, match=r"the queue is full \(503\)") as raised:
            await remote.says("Text.")
        assert time.monotonic() - began < 0.5
        assert raised.value.retry_after_s == 5


@pytest.mark.parametrize("told", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_a_server_that_wants_to_be_asked_again_at_once_is_not_asked_in_a_loop(told: str) -> None:
    server = SpeechServer(busy(10**6, retry_after=told))
    async with loaded(server, deadlines=replace(QUICK, patience_s=0.2)) as remote, asyncio.timeout(2):
        with pytest.raises(Busy, match=r"the queue is full \(503\)"):
            await remote.says("Text.")
        assert len(server.kept) == 1


async def test_a_server_with_a_queue_is_busy_and_not_broken() -> None:
    """It speaks one text at a time, and lets the others wait in silence."""
    turn = asyncio.Lock()

    async def queueing(exchange: Exchange) -> None:
        async with turn:
            await exchange.head()
            for at in range(0, len(wav_of(TONE)), 2500):
                await exchange.chunk(wav_of(TONE)[at : at + 2500])
                await asyncio.sleep(0.1)
            await exchange.end()

    async with loaded(SpeechServer(queueing), deadlines=replace(QUICK, health_every_s=9)) as remote:
        texts = [asyncio.create_task(remote.says("Text.")) for _ in range(2 + FAILURES_TO_OPEN)]
        await asyncio.wait(texts, return_when=asyncio.FIRST_EXCEPTION)
        await asyncio.sleep(0.05)
        assert await remote.says("Text.") == TONE
        answers = await asyncio.gather(*texts, return_exceptions=True)
    late = [str(answer) for answer in answers if answer != TONE]
    assert FAILURES_TO_OPEN <= len(late) < len(answers)
    assert all("no audio within 0.6 s, while it speaks others" in text for text in late)


async def test_a_text_that_has_begun_waits_for_its_server() -> None:
    async def second_is_busy(exchange: Exchange) -> None:
        await busy(2)(exchange) if len(exchange.server.kept) == 2 else await exchange.speech()

    servers = SpeechServer(second_is_busy), SpeechServer(second_is_busy)
    async with loaded(*servers) as remote:
        phrases = Phrases(["One."], ends=False)
        async with aclosing(remote.engine.speak(Utterance("default", phrases))) as blocks:
            heard = (await anext(blocks)).samples
            phrases.put("Two.")
            phrases.end()
            heard += b"".join([block.samples async for block in blocks])
        assert heard == TONE + TONE
    assert [server.texts for server in servers] == [["One.", "Two.", "Two."], []]


async def test_a_text_that_has_begun_asks_a_server_that_sent_others_away() -> None:
    async def one_is_enough(exchange: Exchange) -> None:
        if exchange.request.fields["input"] == "Another.":
            await exchange.error(503, "the queue is full", retry_after="30")
        else:
            await exchange.speech()

    async with loaded(SpeechServer(one_is_enough)) as remote:
        phrases = Phrases(["One."], ends=False)
        async with aclosing(remote.engine.speak(Utterance("default", phrases))) as blocks:
            await anext(blocks)
            with pytest.raises(Busy, match="queue is full"):
                await remote.says("Another.")
            phrases.put("Two.")
            phrases.end()
            assert [block async for block in blocks]


async def test_a_voice_is_spoken_by_a_server_that_has_it() -> None:
    one, other = SpeechServer(voices={"voices": ["anna"]}), SpeechServer(voices={"voices": ["anna", "bert"]})
    async with loaded(one, other) as remote:
        assert [voice.id for voice in remote.engine.info().voices] == ["anna", "bert"]
        for _ in range(3):
            await remote.says("Text.", voice="bert")
        assert [len(one.kept), len(other.kept)] == [0, 3]
        assert other.kept[0].fields["voice"] == "bert"
        with pytest.raises(EngineError, match="no server has the voice 'carl' any more"):
            await remote.says("Text.", voice="carl")


async def test_voices_that_come_later_are_listed() -> None:
    server = SpeechServer(voices={"data": [{"id": "anna", "language": "de"}]})
    async with loaded(server) as remote:
        assert {voice.id: voice.languages for voice in remote.engine.info().voices} == {"anna": ("de",)}
        server.voices = {"data": [{"id": "anna"}, {"id": "bert", "languages": ["en-GB", "en"]}]}
        await until(lambda: len(remote.engine.info().voices) == 2)
        assert [voice.languages for voice in remote.engine.info().voices] == [("en-GB", "en")] * 2


async def test_every_server_speaks_at_one_rate() -> None:
    async def higher(exchange: Exchange) -> None:
        await exchange.speech(bytes(2 * 4410), 44100)

    async def lower(exchange: Exchange) -> None:
        await exchange.speech(bytes(2 * 2205))

    servers = SpeechServer(lower), SpeechServer(higher, greeting=higher)
    async with loaded(*servers) as remote:
        answers = [await remote.blocks("Text.") for _ in range(2)]
    assert [len(server.kept) for server in servers] == [1, 1]
    for blocks in answers:
        assert {block.sample_rate for block in blocks} == {22050}
        assert sum(len(block.samples) for block in blocks) == 2 * 2205


async def test_closing_the_engine_ends_every_task_and_connection(remote: Remote, server: SpeechServer) -> None:
    await remote.says("Text.")
    await remote.engine.close()
    await remote.engine.close()
    await until(lambda: not server.writers)
    with pytest.raises(EngineError, match="no server was asked yet"):
        await remote.says("Text.")


async def test_a_text_that_goes_on_when_the_engine_is_closed_is_an_error(remote: Remote) -> None:
    phrases = Phrases(["One."], ends=False)
    async with aclosing(remote.engine.speak(Utterance("default", phrases))) as blocks:
        await anext(blocks)
        await remote.engine.close()
        phrases.put("Two.")
        phrases.end()
        with pytest.raises(EngineError):
            _ = [block async for block in blocks]
