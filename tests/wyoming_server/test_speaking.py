"""What a well-behaved client sees, with the `wyoming` package's own client where it can."""

import asyncio

import pytest
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from tests.sound import is_alike
from tests.wyoming_server.conftest import Door
from tests.wyoming_server.peer import LONG_TEXT


async def test_synthesize_is_answered_with_one_start_chunks_and_one_stop(door: Door) -> None:
    async with AsyncTcpClient("127.0.0.1", door.port) as client:
        await client.write_event(Synthesize("Good morning. How are you?").event())
        start = await client.read_event()
        assert start
        assert AudioStart.is_type(start.type)
        assert AudioStart.from_event(start) == AudioStart(22050, 2, 1)
        audio, longest = b"", 0
        while (event := await client.read_event()) and AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            assert (chunk.rate, chunk.width, chunk.channels) == (22050, 2, 1)
            longest = max(longest, len(chunk.audio))
            audio += chunk.audio
        assert event
        assert AudioStop.is_type(event.type)
    assert len(audio) > 22050
    assert longest <= 0.1 * 22050 * 2


async def test_a_stream_is_spoken_before_its_text_ends(door: Door) -> None:
    async with AsyncTcpClient("127.0.0.1", door.port) as client:
        await client.write_event(SynthesizeStart(voice=SynthesizeVoice(name="en-gb")).event())
        await client.write_event(SynthesizeChunk("The first sentence is complete. The sec").event())
        kinds = []
        while "audio-chunk" not in kinds:
            event = await asyncio.wait_for(client.read_event(), 5)
            assert event
            kinds.append(event.type)
        await client.write_event(SynthesizeChunk("ond one ends now.").event())
        # Home Assistant repeats the whole text here for servers that do not know streams.
        await client.write_event(Synthesize("The first sentence is complete. The second one ends now.").event())
        await client.write_event(SynthesizeStop().event())
        while not SynthesizeStopped.is_type(kinds[-1]):
            event = await asyncio.wait_for(client.read_event(), 5)
            assert event
            kinds.append(event.type)
    assert kinds[0] == "audio-start"
    assert set(kinds[1:-2]) == {"audio-chunk"}
    assert kinds[-2:] == ["audio-stop", "synthesize-stopped"]


async def test_a_streamed_text_sounds_as_the_whole_text(door: Door) -> None:
    text = "The quick brown fox jumps over the lazy dog. It does so every day! Does it ever rest?"
    client = await door.connect()
    await client.send("synthesize", text=text)
    whole = await client.answer()
    await client.send("synthesize-start")
    for start in range(0, len(text), 9):
        await client.send("synthesize-chunk", text=text[start : start + 9])
    await client.send("synthesize-stop")
    streamed = await client.answer("synthesize-stopped")
    assert is_alike(streamed.audio, whole.audio)


async def test_a_finished_sentence_is_spoken_while_the_writer_pauses(door: Door) -> None:
    client = await door.connect()
    await client.send("synthesize-start")
    await client.send("synthesize-chunk", text="Let me look that up.")
    event = await client.receive()
    assert event
    assert event.type == "audio-start"
    await client.send("synthesize-stop")
    assert (await client.answer("synthesize-stopped")).kinds[-2:] == ["audio-stop", "synthesize-stopped"]


@pytest.mark.parametrize("text", ["", "   \n", "😀 🎉", "...", "***", "\u200b", "\0"])
async def test_nothing_to_say_is_a_tenth_of_a_second_of_silence(door: Door, text: str) -> None:
    client = await door.connect()
    await client.send("synthesize", text=text)
    plain = await client.answer()
    await client.send("synthesize-start")
    await client.send("synthesize-chunk", text=text)
    await client.send("synthesize-stop")
    streamed = await client.answer("synthesize-stopped")
    for answer in (plain, streamed):
        assert answer.error is None
        assert answer.audio == bytes(2 * 2205)
        assert answer.kinds[:2] == ["audio-start", "audio-chunk"]


async def test_several_requests_are_answered_in_order_on_one_connection(door: Door) -> None:
    client = await door.connect()
    texts = ["One.", "Two, three, four, five.", "Six."]
    for text in texts:
        await client.send("synthesize", text=text)
    together = [(await client.answer()).audio for _ in texts]
    alone = []
    for text in texts:
        await client.send("synthesize", text=text)
        alone.append((await client.answer()).audio)
    assert all(map(is_alike, together, alone))
    assert not is_alike(together[0], together[1])


async def test_voices_differ_and_names_are_not_case_sensitive(door: Door) -> None:
    client = await door.connect()
    audio = {}
    for name in ("en-us", "de", "DE", "default"):
        await client.send("synthesize", text="Guten Morgen.", voice={"name": name})
        audio[name] = (await client.answer()).audio
    assert is_alike(audio["de"], audio["DE"])
    assert is_alike(audio["default"], audio["en-us"])
    assert not is_alike(audio["de"], audio["en-us"])


async def test_a_language_without_a_name_chooses_a_voice(door: Door) -> None:
    client = await door.connect()
    await client.send("synthesize", text="Guten Morgen.", voice={"name": "de"})
    named = await client.answer()
    for language in ("de", "de-DE", "de_AT"):
        await client.send("synthesize", text="Guten Morgen.", voice={"language": language})
        assert is_alike((await client.answer()).audio, named.audio)


async def test_describe_is_answered_by_the_library_s_own_reading(door: Door) -> None:
    async with AsyncTcpClient("127.0.0.1", door.port) as client:
        await client.write_event(Describe().event())
        event = await client.read_event()
    assert event
    (program,) = Info.from_event(event).tts
    assert program.name == "fishs2"
    assert program.installed
    assert program.supports_synthesize_streaming
    voices = {voice.name: voice for voice in program.voices}
    assert {"default", "en-us", "de"} <= voices.keys()
    assert all(voice.installed and voice.languages for voice in program.voices)
    assert "fr-fr" not in voices, "only FISHS2_LANGUAGES are offered"


async def test_describe_and_ping_are_answered_while_an_answer_is_spoken(door: Door) -> None:
    client = await door.connect()
    await client.send("synthesize", text=LONG_TEXT)
    assert (await client.receive()).type == "audio-start"  # type: ignore[union-attr]
    await client.send("describe")
    await client.send("ping", text="still there?")
    kinds = []
    while "pong" not in kinds:
        event = await client.receive()
        assert event
        kinds.append(event.type)
        if event.type == "pong":
            assert event.data == {"text": "still there?"}
    assert "info" in kinds


async def test_ping_is_answered(door: Door) -> None:
    async with AsyncTcpClient("127.0.0.1", door.port) as client:
        await client.write_event(Ping(text="x").event())
        event = await client.read_event()
    assert event
    assert Pong.from_event(event) == Pong("x")


async def test_unknown_events_and_unused_payloads_are_ignored(door: Door) -> None:
    client = await door.connect()
    await client.send("select-program", name="fishs2")
    await client.send("from-the-future", anything=[1, {"two": None}])
    client.writer.write(b'{"type":"audio-chunk","payload_length":4}\nabcd')
    await client.send("synthesize", text="Still here.")
    assert (await client.answer()).audio


async def test_inline_data_is_read_as_hand_written_clients_send_it(door: Door) -> None:
    client = await door.connect()
    client.writer.write(b'{"type":"synthesize","data":{"text":"Hello."}}\n')
    assert (await client.answer()).audio
    client.writer.write(b'{"type":"describe","data":null,"data_length":null,"payload_length":0}\n')
    event = await client.receive()
    assert event
    assert event.type == "info"


async def test_many_clients_are_served_at_once_and_do_not_mix(door: Door) -> None:
    texts = [" ".join(["one", "two", "three", "four"][number % 4 :] * (1 + number // 4)) for number in range(30)]

    async def ask(text: str) -> bytes:
        client = await door.connect()
        await client.send("synthesize", text=text)
        answer = await client.answer()
        assert answer.error is None
        return answer.audio

    together = await asyncio.gather(*map(ask, texts))
    alone = [await ask(text) for text in texts]
    assert all(map(is_alike, together, alone))
