"""Phrases that are joined, and audio that is read ahead."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.engines.remote.ahead import ReadAhead
from fishs2_daemon.engines.remote.phrases import JoinedPhrases
from fishs2_daemon.speech import Pcm
from fishs2_daemon.text.phrase import Phrase
from tests.engines.remote.conftest import Phrases, Remote, loaded
from tests.engines.remote.server import RATE, TONE, Exchange, SpeechServer, wav_of


async def joined(phrases: AsyncIterator[Phrase], most_chars: int = 1000) -> list[Phrase]:
    found = []
    async with ReadAhead(phrases, 1000, len) as waiting:
        source = JoinedPhrases(waiting)
        while (phrase := await source.take(most_chars)) is not None:
            found.append(phrase)
    return found


async def test_what_is_there_is_asked_for_in_one_go(remote: Remote, server: SpeechServer) -> None:
    assert await remote.says("One.", "Two.", "Three.") == TONE
    assert server.texts == ["One. Two. Three."]


@given(
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=20), st.sampled_from([0.0, 0.5])), max_size=12),
    st.integers(0, 60),
)
def test_nothing_is_lost_and_nothing_is_too_long(parts: list[tuple[str, float]], most_chars: int) -> None:
    phrases = [Phrase(text, pause_s) for text, pause_s in parts]
    found = asyncio.run(joined(Phrases(phrases), most_chars))
    assert " ".join(found).split() == [str(phrase) for phrase in phrases]
    assert sum(phrase.pause_s for phrase in found) == sum(phrase.pause_s for phrase in phrases)
    for phrase in found:
        assert len(phrase) <= most_chars or " " not in phrase


async def test_a_pause_ends_what_is_joined_and_is_silence(remote: Remote, server: SpeechServer) -> None:
    audio = await remote.says(Phrase("One."), Phrase("Two.", 0.1), Phrase("Three."))
    assert server.texts == ["One. Two.", "Three."]
    assert audio == TONE + bytes(2 * round(0.1 * RATE)) + TONE


async def test_speakers_are_told_where_they_change() -> None:
    turns = [Phrase("Hello.", 0, 0), Phrase("You.", 0, 0), Phrase("Hi!", 0.2, 1), Phrase("Well.", 0, 1)]
    assert await joined(Phrases(turns)) == ["<|speaker:0|>Hello. You. <|speaker:1|>Hi!", "<|speaker:1|>Well."]


async def test_the_error_of_a_text_comes_behind_its_phrases() -> None:
    async def broken() -> AsyncIterator[Phrase]:
        yield Phrase("One.")
        raise ZeroDivisionError

    async with ReadAhead(broken(), 1000, len) as waiting:
        source = JoinedPhrases(waiting)
        assert await source.take(100) == "One."
        with pytest.raises(ZeroDivisionError):
            await source.take(100)


async def test_the_next_request_goes_out_while_the_first_one_is_heard(remote: Remote, server: SpeechServer) -> None:
    phrases = Phrases(["One."], ends=False)
    async with aclosing(remote.engine.speak(Utterance("default", phrases))) as blocks:
        first = await anext(blocks)
        phrases.put("Two.")
        phrases.put("Three.")
        async with asyncio.timeout(2):
            while len(server.kept) < 2:
                await asyncio.sleep(0.005)
        phrases.end()
        rest = [block async for block in blocks]
    assert server.texts == ["One.", "Two. Three."]
    assert b"".join(block.samples for block in (first, *rest)) == TONE + TONE


async def test_one_request_at_a_time() -> None:
    """A server with one slot would let the second one wait, and then send it away."""
    running = 0

    async def answer(exchange: Exchange) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await exchange.head()
        for at in range(0, len(wav_of(TONE)), 2000):
            await exchange.chunk(wav_of(TONE)[at : at + 2000])
            await asyncio.sleep(0.01)
        running -= 1
        await exchange.end()

    async with loaded(SpeechServer(answer)) as remote:
        assert await remote.says("One.", Phrase("Two.", 0.01), "Three.") == TONE + bytes(2 * 220) + TONE


def size(block: Pcm) -> int:
    return len(block.samples)


async def test_no_more_than_the_bound_is_read_ahead() -> None:
    made = 0
    closed = asyncio.Event()

    async def source() -> AsyncGenerator[Pcm, None]:
        nonlocal made
        try:
            while True:
                made += 1
                yield Pcm(bytes(1000), RATE)
                await asyncio.sleep(0)
        finally:
            closed.set()

    async with aclosing(source()) as spoken, ReadAhead(spoken, 10_000, size) as blocks:
        await asyncio.sleep(0.05)
        assert made == 10
        for _ in range(3):
            await anext(blocks)
        await asyncio.sleep(0.05)
        assert made == 13
    assert closed.is_set()


async def test_an_error_comes_behind_the_blocks_before_it() -> None:
    async def source() -> AsyncGenerator[Pcm, None]:
        yield Pcm(b"ab", RATE)
        raise ZeroDivisionError

    async with ReadAhead(source(), 10_000, size) as blocks:
        await asyncio.sleep(0.01)
        assert (await anext(blocks)).samples == b"ab"
        with pytest.raises(ZeroDivisionError):
            await anext(blocks)


async def test_what_was_never_read_is_closed_too() -> None:
    async def source() -> AsyncGenerator[Pcm, None]:
        yield Pcm(b"ab", RATE)

    async with aclosing(source()) as spoken, ReadAhead(spoken, 10_000, size):
        pass
