"""The engine on the stand-in, in this process: what is heard, when it stops, what goes wrong."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from fishs2_daemon.engines import rests
from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.engines.s2cpp.thread import Handover
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import Pcm
from fishs2_daemon.text.phrase import Phrase
from tests.engines.remote.conftest import Phrases
from tests.engines.s2cpp.standin import FRAME, Install, Record, StandIn, loaded, phrases, said, sound


async def test_audio_is_what_the_library_emits_sample_for_sample(each: StandIn) -> None:
    async with loaded(each) as engine:
        assert await said(engine, "Hello.") == sound("Hello.")
        assert await said(engine, "One word, frames=37.") == sound("One word, frames=37.", 37)
        assert await said(engine, "Grüße, 世界\0!") == sound("Grüße, 世界 !")
    assert each.called("release")[-1].endswith(", 0 left"), "all that was made was given back"


async def test_phrases_have_their_pauses_and_those_without_words_are_only_that(standin: StandIn) -> None:
    async with loaded(standin) as engine:
        heard = await said(engine, Phrase("Hi.", pause_s=0.1), Phrase("  \n", pause_s=0.05), Phrase(""))
        assert heard == sound("Hi.") + bytes(2 * (4410 + 2205))
    assert len(standin.called("speak")) == 1


async def test_an_older_release_is_taken_until_its_phrase_is_whole(install: Install) -> None:
    standin = install("-DOLD_ABI")
    async with loaded(standin) as engine:
        speaking = asyncio.create_task(said(engine, "frames=160 slow=40"))
        await asyncio.sleep(0.1)
        speaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await speaking
        assert standin.calls[-1] == "returned 1"
        assert await said(engine, "Next.") == sound("Next.")


@pytest.mark.parametrize("how", ["split", "glued", "odd", "glued odd", "foreign", "foreign split odd", "empty"])
async def test_however_the_stream_is_cut_and_whoever_calls(standin: StandIn, how: str) -> None:
    text = f"Hello {how} frames=9."
    async with loaded(standin) as engine:
        assert await said(engine, text) == sound(text, 9)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("code=0", r"libs2 could not speak the text: it was given bad arguments, or its pipeline is not ready \(0\)"),
        ("code=-1", r"could not read the reference and spoke in another voice \(-1\)"),
        ("code=-4", r"the synthesis failed \(-4\)$"),
        ("code=-6", r"could not write its WAV file \(-6\)"),
        ("code=-7", r"a reference needs the words that are said in it \(-7\)"),
        ("code=-8", r"the reference came without its length \(-8\)"),
        ("code=-9", r"nothing to hand its audio to \(-9\)"),
        ("code=-10", r"it stopped, and nobody had asked it to \(-10\)"),
        ("code=-3", r"a code that this daemon does not know \(-3\)"),
        ("code=2", r"a code that this daemon does not know \(2\)"),
        ("frames=0", r"libs2 spoke the text without a sound"),
    ],
)
async def test_each_return_code_is_an_error_of_its_own(each: StandIn, text: str, error: str) -> None:
    async with loaded(each) as engine:
        with pytest.raises(EngineError, match=error):
            await said(engine, text)
        assert await said(engine, "Go on.") == sound("Go on.")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("code=-4 message", r"the synthesis failed \(-4\): the KV cache is too small for the prompt"),
        ("tired", r"it stopped, and nobody had asked it to \(-10\)"),
        ("garbage", r"does not begin as a WAV file"),
        ("rate=24000", r"24000 Hz, 1 channels, 16 bit; this engine takes 44100 Hz"),
    ],
)
async def test_what_else_goes_wrong_in_a_stream(standin: StandIn, text: str, error: str) -> None:
    async with loaded(standin) as engine:
        with pytest.raises(EngineError, match=error):
            await said(engine, text)
        assert await said(engine, "Go on.") == sound("Go on.")


async def test_a_call_that_comes_too_late_does_no_harm(standin: StandIn) -> None:
    async with loaded(standin) as engine:
        await said(engine, "late")
        async with asyncio.timeout(5):
            while not standin.called("late:"):
                await asyncio.sleep(0.01)
        assert standin.called("late:") == ["late: 0"]


async def test_samples_of_the_older_interface_are_clamped(install: Install) -> None:
    async with loaded(install("-DOLD_ABI")) as engine:
        heard = memoryview(await said(engine, "too loud")).cast("h")
        assert list(heard[:3]) == [32767, -32768, 0]


async def test_closing_stops_the_library_within_a_block(standin: StandIn) -> None:
    async with loaded(standin) as engine:
        text = "frames=400 slow=20"
        async with aclosing(engine.speak(Utterance("default", phrases(text)))) as blocks:
            first = await anext(blocks)
            assert sound(text, 400).startswith(first.samples)
        assert standin.calls[-1] == "returned -10"
        assert await said(engine, "Next.") == sound("Next.")
    assert "two at once" not in standin.calls


async def test_a_slow_listener_holds_the_library_up_and_can_still_leave(standin: StandIn) -> None:
    async with loaded(standin) as engine:
        text = "frames=2000"
        async with aclosing(engine.speak(Utterance("default", phrases(text)))) as blocks:
            await anext(blocks)
            await asyncio.sleep(0.3)
            taken = len((await anext(blocks)).samples)
            assert 2 * 44100 <= taken <= 2 * 44100 + 16 * 2 * FRAME, "a second lies ready, and a block"
            assert not standin.called("returned")
            await asyncio.sleep(0.1)
        assert standin.calls[-1] == "returned -10"


async def test_a_cancelled_task_leaves_the_pipeline_free(standin: StandIn, record: Record) -> None:
    async with loaded(standin) as engine:
        task = asyncio.create_task(said(engine, "frames=400 slow=20", clips=(record().clip,)))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await said(engine, "Next.") == sound("Next.")
    assert "two at once" not in standin.calls


async def test_two_texts_at_once_take_turns(standin: StandIn) -> None:
    texts = [f"frames=20 slow=5 number {number}" for number in range(4)]
    async with loaded(standin) as engine:
        heard = await asyncio.gather(*(said(engine, text) for text in texts))
        assert heard == [sound(text, 20) for text in texts]
        await asyncio.gather(said(engine, "A 1", "A 2", "A 3"), said(engine, "B 1", "B 2", "B 3"))
    assert "two at once" not in standin.calls
    assert [call[6:9] for call in standin.called("speak")[4:]] == ["A 1", "A 2", "A 3", "B 1", "B 2", "B 3"]


async def test_a_text_that_does_not_go_on_lets_others_speak(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rests, "_REST_S", 0.05)
    text = Phrases(["A 1"], ends=False)
    async with (
        asyncio.timeout(10),
        loaded(standin) as engine,
        aclosing(engine.speak(Utterance("default", text))) as blocks,
    ):
        heard = (await anext(blocks)).samples
        rest = asyncio.create_task(_rest(blocks))
        assert await said(engine, "B 1", "B 2") == sound("B 1") + sound("B 2", reference=sound("B 1"))
        text.put("A 2")
        text.end()
        assert heard + await rest == sound("A 1") + sound("A 2", reference=sound("A 1"))
    assert "two at once" not in standin.calls
    assert standin.called("release")[-1].endswith(", 0 left")


async def _rest(blocks: AsyncIterator[Pcm]) -> bytes:
    return b"".join([block.samples async for block in blocks])


async def test_a_text_that_is_spoken_when_the_engine_is_closed_is_not_spoken_to_its_end(each: StandIn) -> None:
    async with loaded(each) as engine:
        speaking = asyncio.create_task(said(engine, "frames=160 slow=40"))
        await asyncio.sleep(0.1)
        await engine.close()
        assert "returned -10" in each.calls or "stride" not in "".join(each.calls)
        with pytest.raises(EngineError, match="libs2 is not loaded"):
            await speaking
        with pytest.raises(EngineError, match="libs2 is not loaded"):
            await said(engine, "Hi.")
    assert each.called("release")[-1].endswith(", 0 left")


@pytest.mark.parametrize("clones", [False, True])
async def test_a_phrase_that_comes_while_the_engine_is_closed_reaches_no_library(
    standin: StandIn, record: Record, clones: bool
) -> None:
    async with loaded(standin) as engine:
        source, heard = Phrases(["One."], ends=False), asyncio.Event()

        async def listen() -> None:
            async with aclosing(engine.speak(Utterance("default", source, (record().clip,) * clones))) as blocks:
                async for _ in blocks:
                    heard.set()

        listening = asyncio.create_task(listen())
        await heard.wait()
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(engine.close())
        source.put("Two.")
        with pytest.raises(EngineError, match="libs2 is not loaded"):
            await listening
        await closing
    assert standin.calls[-1].endswith(", 0 left"), "nothing behind the end"


async def test_an_engine_that_is_closed_just_before_a_phrase_is_spoken(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loaded(standin) as engine:
        closing: list[asyncio.Task[None]] = []

        def handover() -> Handover:
            closing.append(asyncio.create_task(engine.close()))
            return Handover()

        monkeypatch.setattr("fishs2_daemon.engines.s2cpp.engine.Handover", handover)
        with pytest.raises(EngineError, match="libs2 is not loaded"):
            await said(engine, "One.")
        await asyncio.gather(*closing)
    assert standin.calls[-1].endswith(", 0 left"), "nothing behind the end"


async def test_the_loop_goes_on_while_the_library_computes(install: Install) -> None:
    async with loaded(install("-DOLD_ABI")) as engine:
        speaking = asyncio.create_task(said(engine, "frames=160 slow=30"))
        ticks = 0
        while not speaking.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 15
        assert threading.active_count() < 10


async def test_sampling_is_as_asked_and_else_as_set(standin: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    async with loaded(standin, max_new_tokens=300, temperature=0.7, top_p=0.6, top_k=20, n_threads=5) as engine:
        await said(engine, "Hi.")
        await said(engine, "Hi.", max_new_tokens=50, temperature=0, top_p=1, top_k=0, min_tokens_before_end=60, seed=1)
        await said(engine, "Hi.", seed=2)
    assert standin.called("params") == [
        "params 300 0.70 0.60 20 0 5 0",
        "params 50 0.00 1.00 4096 50 5 0",
        "params 300 0.70 0.60 20 0 5 0",
    ]
    assert [record.message for record in caplog.records].count(
        "libs2 takes no seed: a text sounds a little different each time"
    ) == 1


async def test_sampling_that_is_not_taken(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    async with loaded(standin) as engine:
        monkeypatch.setenv("STANDIN_PARAMS", "0")
        with pytest.raises(EngineError, match="does not take the sampling settings"):
            await said(engine, "Hi.")
