"""The live protocol, message by message."""

from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from fishs2_daemon.references import Recording
from tests.adapters.fishaudio.harness import decoded_s, peer_of
from tests.adapters.openai.harness import Running, Start
from tests.voices.sounds import wav


async def test_words_become_speech(speaking: Running) -> None:
    async with peer_of(speaking) as peer:
        await peer.start()
        for word in ("Good ", "", "morning. ", "It is ", "a fine ", "day."):
            await peer.say("text", text=word)
        await peer.say("stop")
        assert await peer.finish() == {"event": "finish", "reason": "stop"}
        assert peer.connection.close_code == 1000
    assert 1.5 < peer.audio_s < 5
    assert peer.events > 10


async def test_audio_comes_before_the_text_ends(speaking: Running) -> None:
    async with peer_of(speaking) as peer:
        await peer.start(text="Good morning to all of you here, my friends. And ")
        assert (await peer.event())["event"] == "audio"
        await peer.say("stop")
        assert (await peer.finish())["reason"] == "stop"


async def test_a_flushed_sentence_is_spoken_before_more_comes(speaking: Running) -> None:
    async with peer_of(speaking) as peer:
        await peer.start()
        await peer.say("text", text="Good morning.")
        for _ in range(3):
            await peer.say("flush")
        assert (await peer.event())["event"] == "audio"
        await peer.say("text", text="Good evening.")
        await peer.say("stop")
        await peer.finish()
    assert peer.audio_s > 1.5


async def test_a_flushed_word_is_spoken_before_more_comes(speaking: Running) -> None:
    async with peer_of(speaking) as peer:
        await peer.start()
        await peer.say("text", text="Good morn")
        await peer.say("flush")
        assert (await peer.event())["event"] == "audio"
        await peer.say("stop")
        await peer.finish()


async def test_what_is_flushed_does_not_go_on(start: Start) -> None:
    running = await start()
    async with peer_of(running) as peer:
        await peer.start(text="Hel")
        await peer.say("flush")
        await peer.say("text", text="lo")
        await peer.say("stop")
        await peer.say("text", text=" dropped")
        await peer.finish()
    text = running.service.asked[0].text
    assert "".join([part async for part in text]) == "Hello"


@pytest.mark.parametrize(("format_", "codec"), [("mp3", "mp3float"), ("opus", "opus"), ("wav", "pcm_s16le")])
async def test_formats(running: Running, format_: str, codec: str) -> None:
    async with peer_of(running) as peer:
        await peer.start(format=format_)
        await peer.say("stop")
        await peer.finish()
    assert decoded_s(bytes(peer.audio))[0] == codec


async def test_silence_for_no_text(speaking: Running) -> None:
    async with peer_of(speaking) as peer:
        await peer.start()
        await peer.say("flush")
        await peer.say("stop")
        assert (await peer.finish())["reason"] == "stop"
    assert peer.audio_s == pytest.approx(0.1)
    assert not any(peer.audio)


async def test_unknown_events_and_fields_are_ignored(running: Running) -> None:
    async with peer_of(running) as peer:
        await peer.start(chunk_length=200, latency="normal", invented={"a": [1]}, prosody=None, sample_rate=None)
        await peer.say("telemetry", value=1)
        await peer.say("stop", why="done")
        assert (await peer.finish())["reason"] == "stop"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([b"\xc1"], "no MessagePack"),
        ([b""], "no MessagePack"),
        ([msgpack.packb([1, 2])], "The first message is"),
        ([msgpack.packb({"event": "text", "text": "Hi"})], "The first message is"),
        ([msgpack.packb({"event": "start"})], "no object"),
        ([msgpack.packb({"event": "start", "request": {"text": "", "format": "midi"}})], "format"),
        ([msgpack.packb({"event": "start", "request": {"text": "", "temperature": 9}})], "temperature"),
        ([msgpack.packb({"event": "start", "request": {"text": "", "sample_rate": 5}})], "sample rate"),
        (["start"], "binary"),
        ([None, msgpack.packb({"event": "start", "request": {"text": ""}})], "After start"),
        ([None, msgpack.packb({"event": "text", "text": 5})], "After start"),
        ([None, msgpack.packb({"event": "text"})], "After start"),
        ([None, msgpack.packb(["text"])], "After start"),
        ([None, b"\x81"], "no MessagePack"),
        ([None, "text"], "binary"),
        ([None, msgpack.packb({"event": "text", "text": "a" * 1001})], "longer than 1000 characters"),
        ([None, *[msgpack.packb({"event": "text", "text": "a" * 400})] * 3], "longer than 1000 characters"),
    ],
)
async def test_malformed_messages(start: Start, messages: list[Any], said: str) -> None:
    running = await start(max_text_chars=1000)
    running.service.hang_after = 2
    async with peer_of(running) as peer:
        with suppress(ConnectionClosed):  # it may have been told already
            for message in messages:
                if message is None:
                    await peer.start()
                else:
                    await peer.connection.send(message)
        assert said in await peer.error()
        assert peer.connection.close_code == 1008


async def test_an_error_of_the_engine(running: Running) -> None:
    running.service.error, running.service.fail_after = RuntimeError("/home/me/model.gguf broke"), 2
    async with peer_of(running) as peer:
        await peer.start()
        assert await peer.error() == "Internal server error"
        assert peer.connection.close_code == 1011
    assert peer.audio


async def test_no_start(start: Start) -> None:
    running = await start(body_timeout_s=0.1)
    async with peer_of(running) as peer:
        assert "No start" in await peer.error()


async def test_no_text(speaking: Running) -> None:
    speaking.settings.text_timeout_s = 0.1
    async with peer_of(speaking) as peer:
        await peer.start(text="Good morning.")
        assert "no text came" in await peer.error()
    assert peer.audio_s > 0.5


async def test_recordings(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Recording] = []
    references = running.door._context.references
    original = references.held

    def keep(recordings: list[Recording]) -> Any:
        held.extend(recordings)
        return original(recordings)

    monkeypatch.setattr(references, "held", keep)
    async with peer_of(running) as peer:
        await peer.start(references=[{"audio": wav(1, level=100), "text": "One."}], reference_id="anna")
        await peer.say("stop")
        assert (await peer.finish())["reason"] == "stop"
    assert [(each.data, each.transcript) for each in held] == [(wav(1, level=100), "One.")]
    (clip,) = running.service.asked[0].references
    assert clip.transcript == "One."


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
EVENTS = st.one_of(
    st.fixed_dictionaries(
        {"event": st.sampled_from(["start", "text", "flush", "stop", "x"])}, optional={"text": ANY, "request": ANY}
    ),
    st.just({"event": "start", "request": {"text": "Hi", "format": "pcm"}}),
    ANY,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(EVENTS.map(msgpack.packb) | st.binary(max_size=20), max_size=5))
async def test_any_messages_end_in_a_finish(running: Running, messages: list[bytes]) -> None:
    async with peer_of(running) as peer:
        with suppress(ConnectionClosed):  # it may have been told already
            for message in messages:
                await peer.connection.send(message)
            await peer.connection.send(b"\xc1")
        event = await peer.finish()
        assert event["reason"] in ("stop", "error")
        assert "Internal" not in event.get("message", "")
