"""A text that is still arriving: its phrases, its errors behind them, and nothing lost or left running."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.errors import DeadlineExceeded, InvalidRequest, SynthesisError, TextTooLong
from fishs2_daemon.text.feed import PhraseFeed
from fishs2_daemon.text.phrases import PhraseSplitter
from fishs2_daemon.text.plan import TextFormat, TextPlan
from fishs2_daemon.text.replacements import Replacements

MAX_CHARS = 100_000
PATIENT_S = 60.0
IMPATIENT_S = 0.001


def feed_of(text: str | AsyncIterator[str], *, max_chars: int = MAX_CHARS, timeout_s: float = PATIENT_S) -> PhraseFeed:
    return PhraseFeed(text, max_chars=max_chars, timeout_s=timeout_s)


async def stream(chunks: Iterable[str], error: Exception | None = None) -> AsyncGenerator[str, None]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk
    if error:
        raise error


class Writer:
    """A text that is written by hand, as an iterator that is no generator; it notes whether a read was cancelled."""

    def __init__(self) -> None:
        self.chunks: asyncio.Queue[str | None] = asyncio.Queue()
        self.reading = False
        self.cancelled = False

    def write(self, *chunks: str | None) -> None:
        for chunk in chunks:
            self.chunks.put_nowait(chunk)

    def __aiter__(self) -> "Writer":
        return self

    async def __anext__(self) -> str:
        self.reading = True
        try:
            if (chunk := await self.chunks.get()) is None:
                raise StopAsyncIteration
            return chunk
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.reading = False


async def phrases_before(feed: PhraseFeed, error: type[Exception]) -> tuple[list[str], Exception]:
    """What the feed gives before it raises `error`."""
    phrases: list[str] = []
    while True:
        try:
            phrases.append(await anext(feed))
        except error as raised:
            return phrases, raised


@asynccontextmanager
async def counted_turns() -> AsyncIterator[Callable[[], int]]:
    """How often the loop was free for somebody else."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(take_turns())
    yield lambda: turns
    other.cancel()
    with suppress(asyncio.CancelledError):
        await other


def phrases_of(chunks: Iterable[str]) -> list[str]:
    splitter = PhraseSplitter()
    return [*(phrase for chunk in chunks for phrase in splitter.feed(chunk)), *splitter.finish()]


# Phrases


async def test_a_whole_text_gives_its_phrases() -> None:
    async with feed_of("One sentence here. And a second one.") as feed:
        assert [phrase async for phrase in feed] == ["One sentence here.", "And a second one."]


@settings(max_examples=50)
@given(st.lists(st.text("ab. ,!。\n\ud800", max_size=200), max_size=8))
async def test_a_streamed_text_gives_what_the_splitter_gives_for_its_chunks(chunks: list[str]) -> None:
    plan = TextPlan(clean=False)
    async with PhraseFeed(stream(chunks), max_chars=MAX_CHARS, timeout_s=PATIENT_S, plan=plan) as feed:
        assert [phrase async for phrase in feed] == phrases_of(chunks)


async def test_a_plan_says_how_the_text_is_read() -> None:
    plan = TextPlan(
        replacements=Replacements({"dr": "doctor"}), style="[whisper] ", sentence_pause_s=0.2, paragraph_pause_s=0.6
    )
    text = "**Hello** Dr No!\n\n<|speaker:3|>See [this](http://example.com). 😀"
    for source in (text, stream(text)):
        async with PhraseFeed(source, max_chars=MAX_CHARS, timeout_s=PATIENT_S, plan=plan) as feed:
            assert [(str(phrase), phrase.pause_s, phrase.speaker) async for phrase in feed] == [
                ("[whisper] Hello doctor No!", 0.6, None),
                ("[whisper] See this.", 0.0, 3),
            ]


async def test_a_text_may_be_left_as_it_is() -> None:
    async with PhraseFeed("*as* `is`", max_chars=10, timeout_s=PATIENT_S, plan=TextPlan(clean=False)) as feed:
        assert [phrase async for phrase in feed] == ["*as* `is`"]


async def test_ssml_is_read_when_it_is_complete_and_refused_when_it_is_malformed() -> None:
    plan = TextPlan(text_format=TextFormat.SSML)
    for source in ("<speak>One.<break time='1s'/>Two.</speak>", stream("<speak>One.<break time='1s'/>Two.</speak>")):
        async with PhraseFeed(source, max_chars=MAX_CHARS, timeout_s=PATIENT_S, plan=plan) as feed:
            assert [(str(phrase), phrase.pause_s) async for phrase in feed] == [("One.", 1.0), ("Two.", 0.0)]
    async with PhraseFeed("<speak>One.", max_chars=MAX_CHARS, timeout_s=PATIENT_S, plan=plan) as feed:
        phrases, error = await phrases_before(feed, InvalidRequest)
        assert phrases == []
        assert isinstance(error, InvalidRequest)
        assert error.param == "input"


async def test_a_long_document_leaves_the_loop_free_in_between() -> None:
    plan = TextPlan(text_format=TextFormat.SSML)
    feed = PhraseFeed("One more. " * 10_000, max_chars=MAX_CHARS, timeout_s=PATIENT_S, plan=plan)
    async with counted_turns() as turns, feed:
        assert len([phrase async for phrase in feed]) == 10_000
    assert turns() >= 100


@pytest.mark.parametrize("text", ["", "   ", "...\n", "\0", "👋🏽"])
async def test_a_text_that_says_nothing_ends_at_once(text: str) -> None:
    async with feed_of(text) as feed:
        assert await anext(feed, None) is None
    async with feed_of(stream(text)) as feed:
        assert await anext(feed, None) is None


async def test_the_end_stays_the_end() -> None:
    async with feed_of("Hello.") as feed:
        assert await anext(feed) == "Hello."
        for _ in range(3):
            assert await anext(feed, None) is None


async def test_a_phrase_comes_while_the_rest_is_not_written_yet() -> None:
    writer = Writer()
    async with feed_of(writer) as feed:
        writer.write("First. S")
        assert await anext(feed) == "First."
        writer.write("econd. T")
        assert await anext(feed) == "Second."
        writer.write("hird", None)
        assert await anext(feed) == "Third"
        assert await anext(feed, None) is None


async def test_a_finished_sentence_does_not_wait_for_the_next_one() -> None:
    writer = Writer()
    async with feed_of(writer) as feed:
        writer.write("Let me look that up.")
        assert await anext(feed) == "Let me look that up."  # and the writer goes on thinking
        writer.write(" Here it is.", None)
        assert [phrase async for phrase in feed] == ["Here it is."]


async def test_a_long_whole_text_leaves_the_loop_free_in_between() -> None:
    async with counted_turns() as turns, feed_of("No end, " * (MAX_CHARS // 8)) as feed:
        while feed.is_starved:
            await asyncio.sleep(0)
        first_after = turns()
        assert (await anext(feed)).startswith("No end, No end,")
        assert [phrase async for phrase in feed]
    assert first_after <= 5, "the first phrase waited for the whole text"
    assert turns() >= 20


# Errors


async def test_a_streamed_text_that_is_too_long_ends_after_the_phrases_before_it() -> None:
    chunks = ["A good beginning. And", " more of it. But then", " it goes on."]
    async with feed_of(stream(chunks), max_chars=45) as feed:
        phrases, error = await phrases_before(feed, TextTooLong)
        assert phrases == ["A good beginning.", "And more of it."]
        assert "45 characters" in str(error)
        assert isinstance(error, TextTooLong)
        assert error.param == "input"
        with pytest.raises(TextTooLong):
            await anext(feed)


async def test_a_streamed_text_may_have_exactly_the_longest_length() -> None:
    async with feed_of(stream(["12345", "67890"]), max_chars=10) as feed:
        assert [phrase async for phrase in feed] == ["1234567890"]


async def test_one_endless_chunk_is_refused_before_it_is_split() -> None:
    async with feed_of(stream(["One. Two. " * 10_000_000]), max_chars=10) as feed:
        assert (await phrases_before(feed, TextTooLong))[0] == []


async def test_a_writer_that_falls_silent_is_given_up_after_the_phrases_before() -> None:
    writer = Writer()
    async with feed_of(writer, timeout_s=IMPATIENT_S) as feed:
        writer.write("I said this. And I was abou")
        phrases, error = await phrases_before(feed, DeadlineExceeded)
        assert phrases == ["I said this."]
        assert "no text came" in str(error)
    assert writer.cancelled


async def test_a_writer_that_never_begins_is_given_up() -> None:
    async with feed_of(Writer(), timeout_s=IMPATIENT_S) as feed:
        assert (await phrases_before(feed, DeadlineExceeded))[0] == []


async def test_the_error_of_the_text_itself_surfaces_after_the_phrases_before() -> None:
    failure = ValueError("the writer broke")
    async with feed_of(stream(["It went well. Then it"], failure)) as feed:
        phrases, error = await phrases_before(feed, ValueError)
        assert phrases == ["It went well."]
        assert error is failure
        with pytest.raises(ValueError, match="the writer broke"):
            await anext(feed)


async def test_a_text_that_is_cancelled_on_its_own_is_no_complete_text() -> None:
    async def text() -> AsyncGenerator[str, None]:
        yield "It went well. Then it"
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        await other

    async with feed_of(text()) as feed:
        assert (await phrases_before(feed, SynthesisError))[0] == ["It went well."]


async def test_what_is_no_text_at_all_is_an_error_and_no_hang() -> None:
    async def numbers() -> AsyncGenerator[str, None]:
        yield 7  # type: ignore[misc]

    async with feed_of(numbers()) as feed:
        assert (await phrases_before(feed, TypeError))[0] == []


async def test_an_error_nobody_asks_for_is_no_trouble() -> None:
    async with feed_of(stream(["Hello."], ValueError("never read"))):
        await asyncio.sleep(0.01)


# Cancelling


async def test_a_cancelled_wait_loses_no_phrase() -> None:
    writer = Writer()
    async with feed_of(writer) as feed:
        for turns in range(10):
            waiting = asyncio.create_task(anext_of(feed))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        writer.write("First. Second. Third", None)
        assert [phrase async for phrase in feed] == ["First.", "Second.", "Third"]


@pytest.mark.parametrize("turns", range(8))
async def test_a_wait_cancelled_in_the_moment_the_phrase_comes_loses_nothing(turns: int) -> None:
    writer = Writer()
    async with feed_of(writer) as feed:
        waiting = asyncio.create_task(anext_of(feed))
        await asyncio.sleep(0)
        writer.write("First. Second. Third", None)
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        got = []
        with suppress(asyncio.CancelledError):
            got.append(await waiting)
        assert [*got, *[phrase async for phrase in feed]] == ["First.", "Second.", "Third"]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["write", "wait", "turn", "cancel"]), max_size=40))
async def test_any_mix_of_waits_and_cancels_gives_every_phrase_once_and_in_order(steps: list[str]) -> None:
    writer, waiting, got, written = Writer(), None, [], 0
    async with feed_of(writer) as feed:
        for step in [*steps, "cancel"]:
            match step:
                case "write":
                    writer.write(f"Number {written} is here. ")
                    written += 1
                case "turn":
                    await asyncio.sleep(0)
                case "wait" if waiting is None:
                    waiting = asyncio.create_task(anext_of(feed))
                case "cancel" if waiting is not None:
                    waiting.cancel()
                    with suppress(asyncio.CancelledError):
                        got.append(await waiting)
                    waiting = None
        writer.write(None)
        got += [phrase async for phrase in feed]
    assert got == [f"Number {number} is here." for number in range(written)]


async def test_leaving_stops_the_reading_of_a_stream() -> None:
    before, writer = asyncio.all_tasks(), Writer()
    async with feed_of(writer) as feed:
        writer.write("First. Second")
        assert await anext(feed) == "First."
        await asyncio.sleep(0)
        assert writer.reading
    await asyncio.sleep(0)
    assert not writer.reading
    assert writer.cancelled
    assert asyncio.all_tasks() == before


async def test_leaving_before_the_reading_began_reads_nothing() -> None:
    before, writer = asyncio.all_tasks(), Writer()
    async with feed_of(writer):
        pass
    await asyncio.sleep(0)
    assert not writer.reading
    assert asyncio.all_tasks() == before


async def test_leaving_stops_the_splitting_of_a_whole_text() -> None:
    before = asyncio.all_tasks()
    async with feed_of("No end, " * (MAX_CHARS // 8)) as feed:
        await anext(feed)
    assert asyncio.all_tasks() == before


async def test_a_generator_can_be_closed_right_after_the_feed_was_left() -> None:
    closed = False

    async def text() -> AsyncGenerator[str, None]:
        nonlocal closed
        try:
            yield "First. Second"
            await asyncio.Event().wait()
        finally:
            closed = True

    writer = text()
    async with feed_of(writer) as feed:
        assert await anext(feed) == "First."
    await asyncio.sleep(0)
    await writer.aclose()
    assert closed


async def test_leaving_waits_for_the_reading_to_end_and_wants_no_error_of_it() -> None:
    async def text() -> AsyncGenerator[str, None]:
        try:
            yield "First. Second"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            raise ValueError("the writer cannot even end")

    writer = text()
    async with feed_of(writer) as feed:
        assert await anext(feed) == "First."
    await writer.aclose()


# Whose silence it is


async def test_the_feed_is_starved_while_the_writer_has_more_to_write_and_all_is_taken() -> None:
    writer = Writer()
    async with feed_of(writer) as feed:
        assert feed.is_starved
        writer.write("First. Second. T")
        await turns_until(lambda: not feed.is_starved)
        assert await anext(feed) == "First."
        assert not feed.is_starved, "a phrase is at hand"
        assert await anext(feed) == "Second."
        assert feed.is_starved
        writer.write(None)
        await turns_until(lambda: not feed.is_starved)
        assert await anext(feed) == "T"
        assert not feed.is_starved, "the text is over"
        assert await anext(feed, None) is None
        assert not feed.is_starved


async def test_a_feed_that_failed_is_not_starved() -> None:
    async with feed_of(stream([], ValueError())) as feed:
        await phrases_before(feed, ValueError)
        assert not feed.is_starved


async def anext_of(feed: PhraseFeed) -> str:
    return await anext(feed)


async def turns_until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
