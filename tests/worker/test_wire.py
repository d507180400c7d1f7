"""The wire between daemon and worker: every frame goes round, and what is no frame is refused."""

import asyncio
import json
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fishs2_daemon.errors import ProtocolError
from fishs2_daemon.speech import EngineInfo, Pcm, Voice
from fishs2_daemon.worker import wire
from fishs2_daemon.worker.wire import Frame, Kind

U32 = st.integers(0, 0xFFFFFFFF)
TEXT = st.text(st.characters(codec="utf-8"))
FRAMES = st.builds(Frame, st.sampled_from(Kind), U32, st.binary(max_size=300))
VOICES = st.builds(Voice, TEXT, TEXT, st.lists(TEXT, max_size=3).map(tuple))
ENGINES = st.builds(
    EngineInfo, TEXT, st.integers(1, 192_000), st.integers(1, 99), TEXT, st.lists(VOICES, max_size=4).map(tuple)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)


async def frames_of(*pieces: bytes) -> list[Frame]:
    """What a reader makes of a stream that arrives in `pieces`."""
    reader, frames = asyncio.StreamReader(), []

    async def feed() -> None:
        for piece in pieces:
            reader.feed_data(piece)
            await asyncio.sleep(0)
        reader.feed_eof()

    feeding = asyncio.create_task(feed())
    try:
        while (frame := await wire.read_frame(reader)) is not None:
            frames.append(frame)
    finally:
        await feeding
    return frames


def header(kind: int, length: int) -> bytes:
    return struct.pack("!BII", kind, 7, length)


# Round trips


@given(st.lists(FRAMES, max_size=4), st.lists(st.integers(0, 600), max_size=6))
async def test_frames_go_round_however_the_stream_is_cut(frames: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(frame.encode() for frame in frames)
    ends = sorted(min(cut, len(stream)) for cut in cuts)
    pieces = [stream[start:end] for start, end in zip([0, *ends], [*ends, len(stream)], strict=True)]
    assert await frames_of(*pieces) == frames


@given(U32, TEXT)
async def test_texts_go_round(utterance: int, text: str) -> None:
    (frame,) = await frames_of(wire.text_frame(Kind.PHRASE, utterance, text).encode())
    assert (frame.kind, frame.utterance, frame.body.decode()) == (Kind.PHRASE, utterance, text)


@given(st.dictionaries(TEXT.filter(lambda name: name not in ("kind", "utterance")), JSON, max_size=4))
@example({"voice": "\ud800"})
async def test_fields_go_round(fields: dict[str, Any]) -> None:
    (frame,) = await frames_of(wire.json_frame(Kind.START, 3, **fields).encode())
    assert wire.fields_of(frame) == fields


@given(U32, st.binary(max_size=999).map(lambda samples: samples * 2), U32)
async def test_audio_goes_round(utterance: int, samples: bytes, rate: int) -> None:
    (frame,) = await frames_of(wire.audio_frame(utterance, Pcm(samples, rate)).encode())
    assert frame.utterance == utterance
    assert wire.pcm_of(frame) == Pcm(samples, rate)


@given(U32, U32)
async def test_credit_goes_round(utterance: int, consumed: int) -> None:
    (frame,) = await frames_of(wire.credit_frame(utterance, consumed).encode())
    assert (frame.utterance, wire.credit_of(frame)) == (utterance, consumed)


@given(ENGINES)
async def test_engines_go_round(info: EngineInfo) -> None:
    (frame,) = await frames_of(wire.ready_frame(info).encode())
    assert wire.engine_info_of(frame) == info


# What is no frame


async def test_the_end_of_the_stream_between_two_frames_is_the_end() -> None:
    assert await frames_of() == []
    assert await frames_of(Frame(Kind.PING).encode()) == [Frame(Kind.PING)]


@given(FRAMES, st.data())
async def test_a_frame_that_is_cut_off_is_the_end(frame: Frame, data: st.DataObject) -> None:
    whole = frame.encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert await frames_of(whole, whole[:cut]) == [frame]


async def test_a_connection_that_is_reset_is_the_end() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(header(Kind.AUDIO, 10))
    reader.set_exception(ConnectionResetError())
    assert await wire.read_frame(reader) is None


async def test_a_frame_of_an_unknown_kind_is_refused() -> None:
    for kind in set(range(256)) - set(Kind):
        with pytest.raises(ProtocolError, match=f"unknown kind {kind}$"):
            await frames_of(header(kind, 0))


@pytest.mark.parametrize("length", [wire.MAX_BODY_BYTES + 1, 0xFFFFFFFF])
async def test_a_frame_that_is_too_long_is_refused_before_its_body_comes(length: int) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(header(Kind.AUDIO, length))
    with pytest.raises(ProtocolError, match=f"{length} bytes; at most {wire.MAX_BODY_BYTES}"):
        await wire.read_frame(reader)


async def test_a_frame_of_the_greatest_length_is_read() -> None:
    frame = Frame(Kind.AUDIO, 1, bytes(wire.MAX_BODY_BYTES))
    assert await frames_of(frame.encode()) == [frame]


async def test_twenty_thousand_voices_fit_into_a_frame() -> None:
    voices = tuple(Voice(f"a-rather-long-voice-name-{number}", "A description of some length, really", ("en-GB", "en"))
                   for number in range(20_000))  # fmt: skip
    info = EngineInfo("espeak", 22050, 16, voices[0].id, voices)
    (frame,) = await frames_of(wire.ready_frame(info).encode())
    assert wire.engine_info_of(frame) == info


@given(st.binary(max_size=200))
async def test_any_bytes_are_frames_or_an_end_or_refused(stream: bytes) -> None:
    try:
        frames = await frames_of(stream)
    except ProtocolError:
        return
    assert stream.startswith(b"".join(frame.encode() for frame in frames))


# Bodies


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe\xfd", b"{} {}", b"{1: 2}"])
def test_fields_that_are_no_json_object_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^worker frame LOAD: not a JSON object$"):
        wire.fields_of(Frame(Kind.LOAD, 0, body))


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\0\0"])
def test_audio_without_a_rate_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="no sample rate"):
        wire.pcm_of(Frame(Kind.AUDIO, 1, body))


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\0\0", b"\0\0\0\0\0"])
def test_credit_that_is_no_number_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="CREDIT: not a number"):
        wire.credit_of(Frame(Kind.CREDIT, 1, body))


def test_fields_nested_too_deep_are_refused() -> None:
    with pytest.raises(ProtocolError, match="not a JSON object"):
        wire.fields_of(Frame(Kind.LOAD, 0, b'{"a":' * 100_000))


READY = {"name": "espeak", "sample_rate": 22050, "slots": 1, "default_voice": "a", "voices": [["a", "A", ["en"]]]}


@pytest.mark.parametrize("missing", sorted(READY))
def test_an_engine_that_lacks_a_field_is_refused(missing: str) -> None:
    fields = {name: value for name, value in READY.items() if name != missing}
    with pytest.raises(ProtocolError, match=r"^worker frame READY: "):
        wire.engine_info_of(Frame(Kind.READY, 0, json.dumps(fields).encode()))


@pytest.mark.parametrize("voices", [None, 1, [1], [[]], [["a", "A"]], [["a", "A", None]], [["a", "A", ["en"], 1]]])
def test_an_engine_with_voices_that_are_none_is_refused(voices: Any) -> None:
    with pytest.raises(ProtocolError, match=r"^worker frame READY: "):
        wire.engine_info_of(Frame(Kind.READY, 0, json.dumps({**READY, "voices": voices}).encode()))


def test_an_engine_with_a_field_too_many_is_refused() -> None:
    with pytest.raises(ProtocolError, match="surprise"):
        wire.engine_info_of(Frame(Kind.READY, 0, json.dumps({**READY, "surprise": 1}).encode()))


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_understood_or_refused(body: bytes) -> None:
    for understand in (wire.fields_of, wire.pcm_of, wire.credit_of, wire.busy_of, wire.engine_info_of):
        with suppress(ProtocolError):
            understand(Frame(Kind.READY, 0, body))
