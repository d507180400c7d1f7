"""Whom the engine speaks like."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from fishs2_daemon.engines.s2cpp import references
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import Clip
from fishs2_daemon.text.phrase import Phrase
from tests.engines.s2cpp.standin import Record, StandIn, loaded, said, sound


async def test_a_clip_is_spoken_like_and_encoded_once(each: StandIn, record: Record) -> None:
    anna, bert = record(220), record(330)
    async with loaded(each, n_threads=3) as engine:
        for _ in range(2):
            for voice in (anna, bert):
                assert await said(engine, "Hello.", "You.", clips=(voice.clip,)) == sound(
                    "Hello.", 3, voice.pcm
                ) + sound("You.", 3, voice.pcm)
    assert each.called("encode") == ["encode 45100 bytes, 11 frames, 3 threads"] * 2
    assert each.called("speak Hello.")[0] == "speak Hello.: What I sound like. (11 frames)"
    assert each.called("release")[-1].endswith(", 0 left")


async def test_without_phrases_the_voice_is_made_ready(standin: StandIn, record: Record) -> None:
    anna = record()
    async with loaded(standin) as engine:
        assert await said(engine) == b""
        assert await said(engine, clips=(anna.clip,)) == b""
        assert len(standin.called("encode")) == 1
        assert await said(engine, "Hi.", clips=(anna.clip,)) == sound("Hi.", 3, anna.pcm)
    assert len(standin.called("encode")) == 1


async def test_a_text_is_read_by_the_one_whom_the_model_drew_for_its_beginning(standin: StandIn) -> None:
    short, long, last = "One frames=10.", "Two frames=70.", "Three."
    async with loaded(standin) as engine:
        heard = await said(engine, short, long, last, "Four.")
        first = sound(short, 10)
        second = sound(long, 70, first)
        assert heard == first + second + sound(last, 3, first + second) + sound("Four.", 3, first + second)
        assert await said(engine, last) == sound(last), "the next text is another one's"
    assert [call.rpartition(":")[2] for call in standin.called("speak Three")] == [
        f" {short} {long} (80 frames)",
        "  (0 frames)",
    ]
    assert len(standin.called("encode")) == 2, "3.7 s are enough"
    assert standin.called("release")[-1].endswith(", 0 left")


async def test_each_speaker_of_a_text_goes_on_in_a_voice_of_its_own(standin: StandIn, record: Record) -> None:
    anna = record()
    texts = ("One.", "Two.", "Three.", "Four.")
    turns = [Phrase(text, speaker=number % 2) for number, text in enumerate(texts)]
    async with loaded(standin) as engine:
        one, two = sound("One."), sound("Two.")
        assert await said(engine, *turns) == one + two + sound("Three.", 3, one) + sound("Four.", 3, two)
        heard = await said(engine, *turns, clips=(anna.clip,))
        one, three = sound("One.", 3, anna.pcm), sound("Three.", 3, anna.pcm)
        assert heard == one + two + three + sound("Four.", 3, two)
    assert standin.called("release")[-1].endswith(", 0 left")


async def test_a_phrase_that_did_not_end_is_nothing_to_go_on_with(standin: StandIn) -> None:
    murmur = "Murmur frames=650."
    async with loaded(standin) as engine:
        assert await said(engine, murmur, "Two.", "Three.") == sound(murmur, 650) + sound("Two.") + sound(
            "Three.", 3, sound("Two.")
        )


async def test_codes_are_kept_for_so_many_clips(
    standin: StandIn, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references.References.__init__, "__defaults__", (2,))
    anna, bert, carl = record(220), record(330), record(440)
    async with loaded(standin) as engine:
        for voice in (anna, bert, anna, carl, anna, bert):
            assert await said(engine, "Hi.", clips=(voice.clip,)) == sound("Hi.", 3, voice.pcm)
        assert len(standin.called("encode")) == 4, "only bert's were given back, and made again"
        assert len(standin.called("release codes")) == 2


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("STANDIN_ENCODE", "-1", r"libs2 could not make a voice of 220.wav: it cannot read or encode the audio \(-1\)"),
        ("STANDIN_ENCODE", "0", r"a voice of 220.wav: it was given bad arguments, or its pipeline is not ready \(0\)"),
        ("STANDIN_ENCODE", "-5", r"a voice of 220.wav: a code that this daemon does not know \(-5\)"),
        ("STANDIN_NO_FRAMES", "1", r"libs2 found no voice in 220.wav"),
        ("STANDIN_NO_MEMORY", "codes", r"libs2 has no memory left"),
    ],
)
async def test_a_clip_that_is_not_encoded_is_an_error_and_never_another_voice(
    standin: StandIn, record: Record, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, error: str
) -> None:
    async with loaded(standin) as engine:
        monkeypatch.setenv(variable, value)
        with pytest.raises(EngineError, match=error):
            await said(engine, "Hi.", clips=(record().clip,))
        monkeypatch.delenv(variable)
        assert not standin.called("speak")
        assert await said(engine, "Hi.", clips=(record().clip,)) == sound("Hi.", 3, record().pcm)
    assert standin.called("release")[-1].endswith(", 0 left")


async def test_clips_that_are_none(standin: StandIn, record: Record, tmp_path: Path) -> None:
    anna = record().clip
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF and nothing behind it")
    digest = hashlib.sha256(broken.read_bytes()).hexdigest()
    async with loaded(standin) as engine:
        for clip, error in [
            (replace(anna, path=str(tmp_path / "gone.wav")), "gone.wav: cannot be read: No such file"),
            (replace(anna, sha256="0" * 64), "220.wav: the voice was changed in this moment"),
            (replace(anna, transcript=" "), "220.wav: cloning needs the words that are said in it"),
            (
                Clip(str(broken), digest, "x"),
                "broken.wav: broken, or none of WAV",
            ),
        ]:
            with pytest.raises(EngineError, match=error):
                await said(engine, "Hi.", clips=(clip,))
        with pytest.raises(EngineError, match="2 recordings for one text: libs2 takes one; allowed: one voice a text"):
            await said(engine, "Hi.", clips=(anna, anna))
        assert not standin.called("encode")
