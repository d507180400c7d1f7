"""The preview engine against libespeak-ng itself: the same voices, the same samples, and a prompt end."""

import asyncio
import base64
import importlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.engines.espeak import EspeakEngine
from fishs2_daemon.errors import EngineError
from fishs2_daemon.text.phrase import Phrase

#: The library's state goes from one phrase to the next and is one for the process, so what is compared sample for
#: sample is spoken in processes of its own.

#: The library driven directly. Each call of `calls` is a voice's identifier, a text, whether a pause follows, and the
#: number of the callback that stops it (0: none).
REFERENCE = """
import base64, json, sys
import cffi
order = json.load(sys.stdin)
ffi = cffi.FFI()
ffi.cdef('''
    typedef struct { char *name; char *languages; char *identifier; unsigned char more[4]; int score; void *spare; }
            voice;
    typedef int (*callback)(short *wav, int count, void *events);
    int espeak_Initialize(int output, int buffer_ms, const char *path, int options);
    void espeak_SetSynthCallback(callback);
    const voice **espeak_ListVoices(voice *like);
    int espeak_SetVoiceByName(const char *name);
    int espeak_Synth(const char *text, size_t size, unsigned int position, int position_type, unsigned int end,
                     unsigned int flags, unsigned int *identifier, void *user);
''')
espeak = ffi.dlopen(order["library"])
rate = espeak.espeak_Initialize(2, 60, order["data"].encode() if order["data"] else ffi.NULL, 0)
samples, number, last = bytearray(), 0, 0
@ffi.callback("int(short *, int, void *)")
def heard(wav, count, events):
    global number
    number += 1
    if number == last:
        return 1
    if wav != ffi.NULL:
        samples.extend(ffi.buffer(wav, 2 * count))
    return 0
espeak.espeak_SetSynthCallback(heard)
voices, listed = [], espeak.espeak_ListVoices(ffi.NULL)
while listed[0] != ffi.NULL:
    tags, at = [], listed[0].languages
    while at[0] != b"\\0":
        tags.append(ffi.string(at + 1).decode())
        at += 2 + len(tags[-1])
    voices.append([ffi.string(listed[0].name).decode(), ffi.string(listed[0].identifier).decode(), tags])
    listed += 1
spoken = []
for voice, text, pause, last in order["calls"]:
    number = 0
    samples.clear()
    assert espeak.espeak_SetVoiceByName(voice.encode()) == 0
    raw = text.encode() + b"\\0"
    assert espeak.espeak_Synth(raw, len(raw), 0, 0, 0, 1 | (0x1000 if pause else 0), ffi.NULL, ffi.NULL) == 0
    spoken.append(base64.b64encode(samples).decode())
print(json.dumps({"rate": rate, "voices": voices, "spoken": spoken}))
"""

#: The engine. `utterances` are a voice and its phrases each, at the same time or one after the other; the first may
#: be a text that is cancelled after its first block.
ENGINE = """
import asyncio, base64, json, sys
from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.engines.espeak import EspeakEngine
class Watched(EspeakEngine):
    phrases = []
    callbacks = 0
    def _synthesise(self, voice, phrase, sink):
        self.phrases.append(phrase)
        super()._synthesise(voice, phrase, sink)
    def _on_samples(self, wav, count, events):
        self.callbacks += 1
        return super()._on_samples(wav, count, events)
async def each(phrases):
    for phrase in phrases:
        yield Phrase(phrase)
async def whole(engine, voice, phrases):
    samples = b"".join([block.samples async for block in engine.speak(Utterance(voice, each(phrases)))])
    return base64.b64encode(samples).decode()
async def main():
    order, engine = json.load(sys.stdin), Watched()
    await engine.load(lambda what, fraction: None)
    callbacks = 0
    if order["cancelled"]:
        blocks = engine.speak(Utterance(order["cancelled"][0], each(order["cancelled"][1])))
        await anext(blocks)
        await blocks.aclose()
        callbacks = engine.callbacks
    if order["together"]:
        spoken = await asyncio.gather(*(whole(engine, *utterance) for utterance in order["utterances"]))
    else:
        spoken = [await whole(engine, *utterance) for utterance in order["utterances"]]
    await engine.close()
    print(json.dumps({"spoken": spoken, "phrases": engine.phrases, "callbacks": callbacks}))
asyncio.run(main())
"""

LONG = "This is a sentence of some length, and it goes on, and on. " * 1000


def run(script: str, order: dict[str, Any]) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(order), capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == 0, child.stderr
    answer: dict[str, Any] = json.loads(child.stdout)
    answer["spoken"] = [base64.b64decode(samples) for samples in answer["spoken"]]
    return answer


def library_driven_directly(*calls: tuple[str, str, bool, int]) -> dict[str, Any]:
    try:
        loader = importlib.import_module("espeakng_loader")
    except ImportError:
        library, data = "libespeak-ng.so.1", None
    else:
        library, data = loader.get_library_path(), loader.get_data_path()
    return run(REFERENCE, {"library": library, "data": data, "calls": calls})


def engine_in_a_process(
    *utterances: tuple[str, list[str]], together: bool = False, cancelled: tuple[str, list[str]] | None = None
) -> dict[str, Any]:
    return run(ENGINE, {"utterances": utterances, "together": together, "cancelled": cancelled})


class Watched(EspeakEngine):
    """Notes for which phrase each callback of the library came, and whether nobody wanted it any more."""

    def __init__(self) -> None:
        super().__init__()
        self.phrases: list[str] = []
        self.callbacks: list[tuple[str, bool]] = []

    def _synthesise(self, voice: str, phrase: str, sink: Any) -> None:
        self.phrases.append(phrase)
        super()._synthesise(voice, phrase, sink)

    def _on_samples(self, wav: Any, count: int, events: Any) -> int:
        assert self._sink
        self.callbacks.append((self.phrases[-1], self._sink.aborted))
        return super()._on_samples(wav, count, events)


@pytest.fixture
async def engine() -> AsyncIterator[Watched]:
    engine = Watched()
    await engine.load(lambda what, fraction: None)
    yield engine
    await engine.close()


def utterance(*phrases: str, voice: str = "en-us") -> Utterance:
    async def each() -> AsyncIterator[str]:
        for phrase in phrases:
            yield Phrase(phrase)

    return Utterance(voice, each())


async def whole(engine: EspeakEngine, *phrases: str, voice: str = "en-us") -> bytes:
    async with aclosing(engine.speak(utterance(*phrases, voice=voice))) as blocks:
        return b"".join([block.samples async for block in blocks])


# Voices


async def test_the_voices_are_those_the_library_lists(engine: Watched) -> None:
    listed = library_driven_directly()
    voices = engine.info().voices
    named = [entry for entry in listed["voices"] if not entry[1].startswith("mb/")]
    assert [voice.description for voice in voices] == [name for name, _, _ in named]
    assert len({voice.id for voice in voices}) == len(voices)
    assert engine.info().sample_rate == listed["rate"]
    for voice, (_, identifier, tags) in zip(voices, named, strict=True):
        assert voice.id in (tags[0], identifier.rpartition("/")[2].lower())
        assert {tag.partition("-")[0] for tag in tags} <= set(voice.languages)
        for tag in voice.languages:
            assert any(known.lower().startswith(tag.lower()) for known in tags)


@pytest.mark.parametrize(
    ("voice", "languages"),
    [
        ("en-us", ("en-US", "en")),
        ("en-gb", ("en-GB", "en")),
        ("en-gb-x-rp", ("en-GB", "en")),
        ("pt-br", ("pt-BR", "pt")),
        ("es-419", ("es-419", "es")),
        ("de", ("de",)),
        ("cmn", ("cmn", "zh")),
    ],
)
async def test_languages_are_bcp_47_tags_the_narrowest_first(
    engine: Watched, voice: str, languages: tuple[str, ...]
) -> None:
    by_id = {entry.id: entry for entry in engine.info().voices}
    assert set(by_id[voice].languages) >= set(languages)
    assert by_id[voice].languages[0] == languages[0]


async def test_every_voice_speaks(engine: Watched) -> None:
    silent = [voice.id for voice in engine.info().voices if not await whole(engine, "1 2.", voice=voice.id)]
    assert silent == []


@pytest.mark.parametrize("before", ["jbo", "uk", "be"])
async def test_a_voice_sounds_the_same_whoever_spoke_before(engine: Watched, before: str) -> None:
    """These bring a pace of their own. No two sayings are of exactly the same length, with any voices."""
    seconds = len(await whole(engine, "Good morning, everybody."))
    slow = len(await whole(engine, "One two three.", voice=before))
    assert len(await whole(engine, "Good morning, everybody.")) == pytest.approx(seconds, rel=0.01)
    assert len(await whole(engine, "One two three.", voice=before)) == pytest.approx(slow, rel=0.01)


async def test_american_english_is_the_default(engine: Watched) -> None:
    assert engine.info().default_voice == "en-us"
    assert engine.info().name == "espeak"


# Samples


def test_the_samples_are_the_librarys_own() -> None:
    phrases = [
        ("en-us", "gmw/en-US", "Good morning.", True),
        ("en-us", "gmw/en-US", "Good morning", False),
        ("en-us", "gmw/en-US", "Is it 3.14, or 22 / 7?", True),
        ("en-gb", "gmw/en", "The quick brown fox jumps over the lazy dog;", False),
        ("de", "gmw/de", "Fünf Äpfel kosten 2,50 Euro!", True),
        ("fr-fr", "roa/fr", "Où êtes-vous ?", True),
        ("cmn", "sit/cmn", "你好，世界。", True),
        ("hi", "inc/hi", "नमस्ते दुनिया।", True),
        ("en-us", "gmw/en-US", "And so on " * 30, False),
    ]
    direct = library_driven_directly(*((identifier, text, pause, 0) for _, identifier, text, pause in phrases))
    ours = engine_in_a_process(*((voice, [text]) for voice, _, text, _ in phrases))
    assert [len(samples) for samples in ours["spoken"]] == [len(samples) for samples in direct["spoken"]]
    assert ours["spoken"] == direct["spoken"]
    assert all(direct["spoken"])


def test_the_phrases_of_an_utterance_follow_each_other() -> None:
    phrases = ["Good morning,", "this is the news.", "Nothing happened"]
    direct = library_driven_directly(
        ("gmw/en-US", phrases[0], False, 0), ("gmw/en-US", phrases[1], True, 0), ("gmw/en-US", phrases[2], False, 0)
    )
    assert engine_in_a_process(("en-us", phrases))["spoken"] == [b"".join(direct["spoken"])]


def test_utterances_that_speak_together_take_turns_and_neither_mixes() -> None:
    voices = {"en-us": "gmw/en-US", "de": "gmw/de", "fr-fr": "roa/fr"}
    utterances = [(voice, [f"{word} in {voice}," for word in ("one", "two", "three", "four")]) for voice in voices]
    ours = engine_in_a_process(*utterances, together=True)
    assert sorted(ours["phrases"]) == sorted(phrase for _, phrases in utterances for phrase in phrases)
    assert [phrase.split()[0] for phrase in ours["phrases"][:3]] == ["one"] * 3, "nobody speaks twice before all did"
    direct = library_driven_directly(
        *((voices[phrase.split()[-1].strip(",")], phrase, False, 0) for phrase in ours["phrases"])
    )
    for (_, phrases), spoken in zip(utterances, ours["spoken"], strict=True):
        places = [ours["phrases"].index(phrase) for phrase in phrases]
        assert places == sorted(places)
        assert spoken == b"".join(direct["spoken"][place] for place in places)


async def test_as_many_utterances_as_there_are_slots_speak_at_once(engine: Watched) -> None:
    slots = engine.info().slots
    spoken = await asyncio.gather(*(whole(engine, f"Number {number},", "yes.") for number in range(slots)))
    assert all(spoken)
    assert engine.phrases[:slots] == [f"Number {number}," for number in range(slots)]


async def test_blocks_are_whole_samples_at_the_rate_of_the_engine(engine: Watched) -> None:
    async with aclosing(engine.speak(utterance("Good morning."))) as blocks:
        async for block in blocks:
            assert block.sample_rate == engine.info().sample_rate
            assert block.samples
            assert len(block.samples) % 2 == 0


async def test_the_first_block_comes_while_the_phrase_is_still_being_spoken(engine: Watched) -> None:
    async with aclosing(engine.speak(utterance(LONG))) as blocks:
        await anext(blocks)
        assert engine._sink is not None, "the library has finished the phrase"


# Texts that hurt


@pytest.mark.parametrize("text", ["one\0two", "one \0\0 two", "\0one two"])
def test_a_nul_parts_words_and_ends_nothing(text: str) -> None:
    plain = text.replace("\0", " ")
    assert engine_in_a_process(("en-us", [text]))["spoken"] == engine_in_a_process(("en-us", [plain]))["spoken"]


@pytest.mark.parametrize(
    "text", ["\ud800 one", "one \udfff\ud800", "\x1b[31mone", "<speak>one", "[[one]]", "e\u0301" * 300, "x" * 10_000]
)
async def test_odd_texts_are_spoken_and_break_nothing(engine: Watched, text: str) -> None:
    assert await whole(engine, text)
    assert await whole(engine, "Good morning.")


@pytest.mark.parametrize("text", ["", " ", "\n", "\u200d"])
async def test_a_phrase_without_words_breaks_nothing(engine: Watched, text: str) -> None:
    await whole(engine, text)
    assert await whole(engine, text, "Good morning.")


async def test_an_utterance_without_phrases_is_silent(engine: Watched) -> None:
    assert await whole(engine) == b""


# Cancelling


async def test_a_closed_utterance_ends_within_a_block_and_the_next_one_begins(engine: Watched) -> None:
    speaking = engine.speak(utterance(LONG))
    await anext(speaking)
    waiting = asyncio.create_task(whole(engine, "Good morning."))
    await asyncio.sleep(0)
    await speaking.aclose()
    late = [unwanted for phrase, unwanted in engine.callbacks if phrase == LONG].count(True)
    assert late == 1, "the callback that tells the library to stop is the only one that comes in vain"
    assert await waiting
    assert engine.phrases == [LONG, "Good morning."]
    after = engine.callbacks[engine.callbacks.index((LONG, True)) + 1 :]
    assert {phrase for phrase, _ in after} == {"Good morning."}


def test_a_cancelled_utterance_leaves_nothing_to_be_heard_in_the_next() -> None:
    ours = engine_in_a_process(("en-us", ["Good morning."]), ("de", ["Guten Tag."]), cancelled=("en-us", [LONG]))
    direct = library_driven_directly(
        ("gmw/en-US", LONG, True, ours["callbacks"]),
        ("gmw/en-US", "Good morning.", True, 0),
        ("gmw/de", "Guten Tag.", True, 0),
    )
    assert ours["spoken"] == direct["spoken"][1:]


async def test_a_waiting_utterance_that_is_cancelled_never_reaches_the_library(engine: Watched) -> None:
    speaking = engine.speak(utterance(LONG))
    await anext(speaking)
    waiting = asyncio.create_task(whole(engine, "Never said."))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    await speaking.aclose()
    assert await whole(engine, "Good morning.")
    assert "Never said." not in engine.phrases


async def test_an_utterance_can_be_closed_while_it_waits_for_its_next_phrase(engine: Watched) -> None:
    async def endless() -> AsyncIterator[str]:
        yield Phrase("Good morning.")
        await asyncio.Event().wait()

    task = asyncio.create_task(listened_to(engine, Utterance("en-us", endless())))
    while not engine.callbacks:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await whole(engine, "Good morning.")


async def listened_to(engine: EspeakEngine, utterance: Utterance) -> None:
    async with aclosing(engine.speak(utterance)) as blocks:
        async for _ in blocks:
            pass


async def test_the_error_of_the_phrases_surfaces_after_what_was_said(engine: Watched) -> None:
    async def broken() -> AsyncIterator[str]:
        yield Phrase("Good morning.")
        raise KeyError("text")

    blocks, heard = engine.speak(Utterance("en-us", broken())), b""

    async def hear() -> None:
        nonlocal heard
        async for block in blocks:
            heard += block.samples

    with pytest.raises(KeyError, match="text"):
        await hear()
    assert heard


# What is not there


@pytest.mark.parametrize("voice", ["", "nope", "en-us\0", "gmw/en-US", "../../etc/passwd", "\ud800"])
async def test_an_unknown_voice_is_an_error_that_names_it_and_ends_nothing_else(engine: Watched, voice: str) -> None:
    with pytest.raises(EngineError) as refused:
        await whole(engine, "Good morning.", voice=voice)
    assert str(refused.value) == f"espeak-ng cannot load the voice {voice!r}"
    assert await whole(engine, "Good morning.")


def install(monkeypatch: pytest.MonkeyPatch, library: str, data: str) -> None:
    """Let the wheel be one that has its files there."""
    wheel = SimpleNamespace(get_library_path=lambda: library, get_data_path=lambda: data)
    monkeypatch.setitem(sys.modules, "espeakng_loader", wheel)


async def test_a_missing_library_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "/nowhere/libespeak-ng.so", "/nowhere")
    engine = EspeakEngine()
    with pytest.raises(EngineError, match=r"^espeak-ng is not installed .*install"):
        await engine.load(lambda what, fraction: None)
    with pytest.raises(EngineError, match="not loaded"):
        engine.info()
    await engine.close()


async def test_a_missing_data_folder_is_an_error_that_names_it_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = pytest.importorskip("espeakng_loader")
    install(monkeypatch, loader.get_library_path(), "/nowhere")
    engine = EspeakEngine()
    with pytest.raises(EngineError, match="cannot use its data folder /nowhere"):
        await engine.load(lambda what, fraction: None)
    await engine.close()
    monkeypatch.undo()
    good = EspeakEngine()
    await good.load(lambda what, fraction: None)
    assert await whole(good, "Good morning.")
    await good.close()


async def test_loading_tells_its_progress() -> None:
    engine, told = EspeakEngine(), []
    await engine.load(lambda what, fraction: told.append((what, fraction)))
    assert told[0] == ("loading espeak-ng", 0.0)
    await engine.close()
