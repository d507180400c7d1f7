"""SpeechService over its real worker: what no door adds to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from fishs2_daemon import configuration, service
from fishs2_daemon.daemon import running_service
from fishs2_daemon.errors import (
    Busy,
    EngineUnavailable,
    Loading,
    ShuttingDown,
    TextTooLong,
    UnknownVoice,
)
from fishs2_daemon.speech import EngineState, Pcm, SpeechRequest
from tests.conftest import Speech
from tests.sound import is_alike

LONG = "One sentence after the other is spoken here, and none is short. " * 300


async def spoken(speech: Speech, text: str | AsyncIterator[str], voice: str | None = None) -> bytes:
    async with aclosing(speech.service.speak(SpeechRequest(text, voice=voice))) as blocks:
        return b"".join([block.samples async for block in blocks])


def value(speech: Speech, name: str, **labels: str) -> float:
    return speech.service.metrics.registry.get_sample_value(name, labels) or 0.0


async def chunks(*texts: str) -> AsyncIterator[str]:
    for text in texts:
        yield text


async def test_the_first_block_is_small_and_no_block_is_long(speech: Speech) -> None:
    blocks = [block async for block in speech.service.speak(SpeechRequest("Small blocks. All of them."))]
    assert 0 < blocks[0].duration_s <= 0.04
    assert max(block.duration_s for block in blocks) <= 0.1
    assert {block.sample_rate for block in blocks} == {22050}


async def test_chunks_mean_nothing(speech: Speech) -> None:
    text = "Chunk borders mean nothing. Not within a word, nor between two. Is that so?"
    whole = await spoken(speech, text)
    assert is_alike(await spoken(speech, chunks(*text)), whole)
    assert is_alike(await spoken(speech, chunks(text[:10], "", text[10:])), whole)


async def test_long_texts_come_whole(speech: Speech) -> None:
    sentence = "Nothing is lost in a long text. "
    one = len(await spoken(speech, sentence * 2))
    many = len(await spoken(speech, sentence * 200))
    assert many == pytest.approx(one * 100, rel=0.05)


async def test_a_text_in_an_alphabet_that_the_voice_cannot_read_is_still_audio(speech: Speech) -> None:
    assert len(await spoken(speech, "𓀀𓂀", "en-us")) >= 2 * 2205


@pytest.mark.parametrize("text", ["x" * 100_001, "\U0001f600" * 100_001])
async def test_a_text_beyond_the_limit_is_refused_before_anything_is_spoken(speech: Speech, text: str) -> None:
    with pytest.raises(TextTooLong, match="allowed: 100000"):
        await spoken(speech, text)
    with pytest.raises(TextTooLong):
        await spoken(speech, chunks(text))


async def test_an_unknown_voice_is_refused_with_some_that_exist(speech: Speech) -> None:
    with pytest.raises(UnknownVoice, match=r"no voice 'bob'.*en-us.* and \d+ more"):
        await spoken(speech, "Hello.", "bob")
    speech.settings.default_voice = "nobody"
    with pytest.raises(UnknownVoice, match="FISHS2_DEFAULT_VOICE"):
        await spoken(speech, "Hello.")
    speech.settings.default_voice = "de"
    assert is_alike(await spoken(speech, "Guten Tag."), await spoken(speech, "Guten Tag.", "de"))


async def test_who_speaks_is_told_before_the_first_block(speech: Speech) -> None:
    told: list[str] = []
    request = SpeechRequest("Who is that?", voice="EN-GB")
    async with aclosing(speech.service.speak(request, lambda casting: told.append(casting.name))) as blocks:
        await anext(blocks)
        assert told == ["en-gb"]
        async for _ in blocks:
            pass
    assert told == ["en-gb"]


async def test_leaving_in_mid_answer_frees_the_slot_and_stops_the_work(speech: Speech) -> None:
    for _ in range(40):
        async with aclosing(speech.service.speak(SpeechRequest(LONG))) as blocks:
            await anext(blocks)
            assert speech.service.running == 1
        assert speech.service.running == 0
    assert value(speech, "fishs2_requests_total", outcome="cancelled") == 40
    assert await spoken(speech, "Still here.")


async def test_cancelling_at_any_moment_leaves_nothing_running(speech: Speech) -> None:
    for delay in range(40):
        task = asyncio.create_task(spoken(speech, LONG))
        await asyncio.sleep(delay / 2000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert speech.service.running == speech.service.waiting == 0
    assert await spoken(speech, "Still here.")
    assert len(asyncio.all_tasks()) <= 7


async def test_the_error_of_a_text_s_own_source_ends_the_answer(speech: Speech) -> None:
    async def broken() -> AsyncIterator[str]:
        yield "This is spoken. And this"
        await asyncio.sleep(0.3)
        raise Busy("the writer gave up")

    heard: list[Pcm] = []

    async def listen() -> None:
        async for block in speech.service.speak(SpeechRequest(broken())):
            heard.append(block)  # noqa: PERF401 - what was heard before the error counts

    with pytest.raises(Busy, match="the writer gave up"):
        await listen()
    assert heard
    assert speech.service.running == 0


async def test_a_bug_in_a_text_s_source_ends_the_answer_too(speech: Speech) -> None:
    async def broken() -> AsyncIterator[str]:
        yield "This is spoken. And this"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await spoken(speech, broken())
    assert speech.service.running == 0
    assert await spoken(speech, "Still here.")


async def test_what_comes_after_close_is_refused_and_what_runs_goes_on(speech: Speech) -> None:
    async with aclosing(speech.service.speak(SpeechRequest("This one was here before. It may end."))) as blocks:
        await anext(blocks)
        speech.service.close()
        with pytest.raises(ShuttingDown):
            await spoken(speech, "Too late.")
        assert [block async for block in blocks]


@pytest.fixture
def one_slot(speech: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech.service._admission, "_slots", lambda: 1)
    monkeypatch.setattr(service, "_LEND_S", 0.2)


async def interrupted(goes_on: asyncio.Event) -> AsyncIterator[str]:
    yield "The first sentence is said. "
    await goes_on.wait()
    yield "And this is the second."


async def test_a_text_that_does_not_go_on_lends_its_slot(speech: Speech, one_slot: None) -> None:
    goes_on = asyncio.Event()

    whole = await spoken(speech, "The first sentence is said. And this is the second.")
    speaking = asyncio.create_task(spoken(speech, interrupted(goes_on)))
    async with asyncio.timeout(5):
        while not speech.service.running:
            await asyncio.sleep(0.01)
        other = await spoken(speech, "Somebody else.")
    assert not speaking.done()
    assert speech.service.running == 0
    goes_on.set()
    assert is_alike(await speaking, whole)
    assert is_alike(other, await spoken(speech, "Somebody else."))


async def test_a_text_that_goes_on_waits_for_its_slot_and_not_for_ever(speech: Speech, one_slot: None) -> None:
    goes_on = asyncio.Event()

    for timeout_s in (5.0, 0.2):
        speech.settings.queue_timeout_s = timeout_s
        goes_on.clear()
        speaking = asyncio.create_task(spoken(speech, interrupted(goes_on)))
        await asyncio.sleep(1)
        async with aclosing(speech.service.speak(SpeechRequest(LONG))) as reading:
            await anext(reading)
            goes_on.set()
            await asyncio.sleep(0.5)
            assert speaking.done() == (timeout_s < 1)
        if timeout_s < 1:
            with pytest.raises(Busy, match="no slot became free"):
                await speaking
        else:
            assert await speaking
    assert speech.service.running == 0


async def test_metrics_tell_what_happened(speech: Speech) -> None:
    await spoken(speech, "Count me in.")
    with pytest.raises(UnknownVoice):
        await spoken(speech, "x", "bob")
    assert value(speech, "fishs2_requests_total", outcome="spoken") == 1
    assert value(speech, "fishs2_refusals_total", code="unknown-voice") == 1
    assert value(speech, "fishs2_ttfa_seconds_count") == 1
    assert value(speech, "fishs2_rtf_count") == 1
    assert value(speech, "fishs2_audio_seconds_total") > 0.5


async def test_requests_wait_for_a_loading_engine_and_are_told_when_it_takes_too_long() -> None:
    async with running_service(configuration.load()) as (service, supervisor):
        assert service.state in (EngineState.STARTING, EngineState.LOADING)
        audio = [block async for block in service.speak(SpeechRequest("I waited."))]
        assert audio
        assert supervisor.state is EngineState.READY
    async with running_service(configuration.load(queue_timeout_s=0.001)) as (service, _):
        with pytest.raises(Loading):
            await anext(service.speak(SpeechRequest("I cannot wait.")))
    with pytest.raises(EngineUnavailable):
        await anext(service.speak(SpeechRequest("Nobody is there any more.")))
