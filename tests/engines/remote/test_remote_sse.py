"""Server-sent events with audio in them."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.engines.remote import sse
from fishs2_daemon.engines.remote.body import PcmBody, WavBody
from fishs2_daemon.engines.remote.errors import BrokenBody
from fishs2_daemon.engines.remote.sse import SseBody
from tests.engines.remote.server import DONE, RATE, TONE, chunk_event, delta, wav_of
from tests.engines.remote.test_remote_body import fed

SOUND = TONE[:600]
WAV = wav_of(SOUND)

OPENAI = b": hello\n\n" + b"".join(delta(WAV[at : at + 50]) for at in range(0, len(WAV), 50)) + DONE
FILES = [wav_of(SOUND[at : at + 200], open_length=False) for at in range(0, 600, 200)]
SGLANG = b"".join(chunk_event(file, at) for at, file in enumerate(FILES)) + chunk_event(b"", 3, last=True)


@pytest.mark.parametrize("stream", [OPENAI, SGLANG, SGLANG + b"data: [DONE]\n\n"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_both_shapes_cut_at_every_byte(stream: bytes, newline: bytes) -> None:
    stream = stream.replace(b"\n", newline)
    body = SseBody(WavBody())
    assert fed(body, stream, list(range(len(stream)))) == SOUND
    assert body.sample_rate == RATE
    assert body.is_over
    for cut in range(0, len(stream), 37):
        assert fed(SseBody(WavBody()), stream, [cut]) == SOUND


@given(st.lists(st.integers(0, 10_000), max_size=10), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_where_it_is_cut_means_nothing(cuts: list[int], newline: bytes) -> None:
    assert fed(SseBody(WavBody()), OPENAI.replace(b"\n", newline), cuts) == SOUND


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(
                [b"\n", b"\r", b"data:", b"data: ", b"event: x\n", delta(WAV[:60]), DONE, b"data: [DONE]\n\n"]
            ),
            st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5).map(
                lambda value: b"data: " + json.dumps({"type": "speech.audio.delta", "audio": value}).encode() + b"\n\n"
            ),
        ),
        max_size=12,
    )
)
def test_any_bytes_are_samples_or_an_error(pieces: list[bytes]) -> None:
    body = SseBody(WavBody())
    try:
        for piece in pieces:
            assert len(body.feed(piece)) % 2 == 0
        body.end()
    except BrokenBody:
        return
    assert body.is_over


def test_pcm_in_events_has_the_rate_that_they_tell() -> None:
    def event(rate: int) -> bytes:
        audio = {"data": base64.b64encode(SOUND).decode(), "format": "pcm", "sample_rate": rate}
        return b"data: " + json.dumps({"object": "audio.speech.chunk", "audio": audio}).encode() + b"\n\n"

    body = SseBody(PcmBody())
    assert body.feed(event(44100)) == SOUND
    assert body.sample_rate == 44100
    assert body.feed(event(44100)) == SOUND
    with pytest.raises(BrokenBody, match="rate changed"):
        body.feed(event(22050))


def test_an_event_may_have_several_lines_of_data_and_what_is_not_audio_is_passed_over() -> None:
    text = json.dumps({"type": "speech.audio.delta", "audio": base64.b64encode(WAV).decode()}, indent=1)
    stream = b'event: x\nid: 7\nretry: 3\ndata: {"type": "ping"}\n\n'
    stream += b"".join(b"data: " + line.encode() + b"\n" for line in text.splitlines()) + b"\n" + DONE
    assert fed(SseBody(WavBody()), stream, [3, 50]) == SOUND


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (delta(WAV), "without its last event"),
        (b"", "without its last event"),
        (delta(wav_of(SOUND, open_length=False)[:-4]) + DONE, "4 bytes early"),
        (delta(WAV[:20]) + DONE, "within its WAV head"),
        (b"data: {\n\n", "no JSON"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "no JSON"),
        (b"data: 7\n\n", "no JSON object"),
        (b'data: {"type": "speech.audio.delta", "audio": "?"}\n\n', "no base64"),
        (b'event: error\ndata: {"type": "error", "error": {"message": "out of memory"}}\n\n', "out of memory"),
        (b'data: {"error": "gone\\u0007 mad"}\n\n', "gone mad"),
        (b'data: {"type": "error"}\n\n', "without a word"),
        (chunk_event(FILES[0], 0) + chunk_event(wav_of(SOUND, 44100), 1), "rate changed"),
    ],
)
def test_what_is_wrong_is_named(stream: bytes, reason: str) -> None:
    with pytest.raises(BrokenBody, match=reason):
        fed(SseBody(WavBody()), stream, [])


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 100, b"data: x\n", b": x" * 50])
def test_an_event_has_an_end(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_EVENT_BYTES", 10_000)
    body = SseBody(WavBody())

    def feed_all() -> None:
        for _ in range(100_000):
            body.feed(endless)

    with pytest.raises(BrokenBody, match="more than 10000 bytes"):
        feed_all()
