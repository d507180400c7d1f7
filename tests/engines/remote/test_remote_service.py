"""What is asked of a local engine, asked of a remote one: the same scenarios, over another daemon's HTTP door."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from fishs2_daemon import configuration
from fishs2_daemon.daemon import running_service
from fishs2_daemon.errors import Busy, DeadlineExceeded, EngineError, EngineUnavailable, UnknownVoice
from fishs2_daemon.speech import EngineState, SamplingOverrides, SpeechRequest
from tests.adapters.openai.harness import FakeService, Running, doors_with
from tests.conftest import Speech
from tests.engines.remote.front import front_of
from tests.engines.remote.server import TONE, Exchange, SpeechServer, serving, wav_of
from tests.test_service import (
    LONG,
    spoken,
    test_a_bug_in_a_text_s_source_ends_the_answer_too,  # noqa: F401
    test_a_text_in_an_alphabet_that_the_voice_cannot_read_is_still_audio,  # noqa: F401
    test_chunks_mean_nothing,  # noqa: F401
    test_leaving_in_mid_answer_frees_the_slot_and_stops_the_work,  # noqa: F401
    test_long_texts_come_whole,  # noqa: F401
    test_metrics_tell_what_happened,  # noqa: F401
    test_the_error_of_a_text_s_own_source_ends_the_answer,  # noqa: F401
    test_the_first_block_is_small_and_no_block_is_long,  # noqa: F401
)


@pytest.fixture
async def upstream() -> AsyncIterator[Running]:
    """The HTTP door of a service with espeak."""
    async with running_service(configuration.load(engine="espeak")) as (service, workers), doors_with() as start:
        await workers.ready(20)
        yield await start(service)


@pytest.fixture
async def speech(upstream: Running) -> AsyncIterator[Speech]:
    async with front_of(f"{upstream.url}/v1") as speech:
        yield speech


async def test_an_unknown_voice_is_refused_and_the_voices_are_those_of_the_server(
    speech: Speech, upstream: Running
) -> None:
    assert {voice.id for voice in speech.service.voices()} == {voice.id for voice in upstream.service.voices()}
    with pytest.raises(UnknownVoice, match=r"no voice 'bob'.* and \d+ more"):
        await spoken(speech, "Hello.", "bob")


async def test_cancelling_at_any_moment_leaves_nothing_running_on_either_side(
    speech: Speech, upstream: Running
) -> None:
    for delay in range(25):
        task = asyncio.create_task(spoken(speech, LONG))
        await asyncio.sleep(delay / 1000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert speech.service.running == speech.service.waiting == 0
    await upstream.until(speaking=False)
    assert await spoken(speech, "Still here.")


async def test_leaving_is_noticed_by_the_server_at_once(speech: Speech, upstream: Running) -> None:
    for _ in range(5):
        async with aclosing(speech.service.speak(SpeechRequest(LONG))) as blocks:
            await anext(blocks)
            await upstream.until(speaking=True)
        await upstream.until(speaking=False, timeout_s=0.5)


async def test_what_the_server_sends_arrives_sample_for_sample() -> None:
    async with doors_with() as start:
        fake = await start(FakeService(configuration.load()))
        fake.service.blocks = 300
        async with front_of(fake.url) as speech:
            assert await spoken(speech, "Whatever it is.") == fake.service.whole
            sampling = SamplingOverrides(seed=3, temperature=0.5)
            async with aclosing(speech.service.speak(SpeechRequest("Drawn.", sampling=sampling))) as blocks:
                assert [block async for block in blocks]
            assert [(each.text, each.sampling) for each in fake.service.asked[1:]] == [
                ("Whatever it is.", SamplingOverrides()), ("Drawn.", sampling),
            ]  # fmt: skip


async def _silent(exchange: Exchange) -> None:
    await exchange.left()


async def _stalling(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(wav_of(TONE))
    await exchange.left()


async def _full(exchange: Exchange) -> None:
    await exchange.error(503, "the queue is full", retry_after="30")


async def _refusing(exchange: Exchange) -> None:
    await exchange.error(422, "the text is too odd")


async def test_deadlines_of_the_service_hold_and_end_the_connection() -> None:
    server = SpeechServer(_silent)
    async with (
        serving(server),
        front_of(server.url, first_audio_timeout_s=0.5, stall_timeout_s=0.5, total_timeout_s=30) as speech,
    ):
        with pytest.raises(DeadlineExceeded, match="no audio came"):
            await spoken(speech, "Text.")
        server.answer = _stalling
        with pytest.raises(DeadlineExceeded, match="no audio came"):
            await spoken(speech, "Text.")
        async with asyncio.timeout(2):
            while server.left < 2:
                await asyncio.sleep(0.01)
        server.answer = _refusing
        with pytest.raises(EngineError, match=r"the text is too odd \(422\)"):
            await spoken(speech, "Text.")
        server.answer = SpeechServer.answer
        assert await spoken(speech, "Text.") == TONE
        assert speech.supervisor.state is EngineState.READY


async def test_where_every_server_is_busy_so_is_the_service() -> None:
    server = SpeechServer(_full)
    async with serving(server), front_of(server.url) as speech:
        with pytest.raises(Busy, match=r"the queue is full \(503\)") as raised:
            await spoken(speech, "Text.")
        assert 25 < raised.value.retry_after_s <= 30


async def test_without_any_server_the_service_says_why() -> None:
    settings = configuration.load(engine="remote", remote_urls=["http://127.0.0.1:1/v1"], queue_timeout_s=10)
    async with running_service(settings) as (service, _):
        with pytest.raises(EngineUnavailable, match=r"http://127.0.0.1:1: nobody answers there"):
            await anext(service.speak(SpeechRequest("Hello.")))


async def test_a_killed_worker_is_replaced(speech: Speech) -> None:
    speech.worker.kill()
    assert await spoken(speech, "Still here.")
