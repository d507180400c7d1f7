"""`/v1/tts`: what becomes of every field, in which shape, and every error."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.openai import answers
from fishs2_daemon import errors
from fishs2_daemon.speech import AS_SET, Priority, SamplingOverrides
from tests.adapters.fishaudio.harness import decoded_s, error_of, multipart, post
from tests.adapters.openai.harness import RATE, Answer, Running, Start
from tests.voices.sounds import wav

TEXT = "Good morning."
WORDS = "What is said in it."
SOUND = base64.b64encode(wav()).decode()


@pytest.fixture
async def cloning(start: Start, tmp_path: Path) -> Running:
    """An engine that clones, and the stored voices ben and my-voice."""
    for name in ("ben", "my-voice"):
        (tmp_path / "voices" / name).mkdir(parents=True)
        (tmp_path / "voices" / name / "clip.wav").write_bytes(wav(level=len(name)))
        (tmp_path / "voices" / name / "clip.txt").write_text(WORDS)
    running = await start()
    running.service.engine = replace(running.service.engine, clones=True)
    return running


UNDERSTOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"text": TEXT, "voice": None, "sampling": AS_SET, "clean": None, "voices": {}, "ssml": False}),
    ({}, {"priority": Priority.READING}),
    ({"text": ""}, {"text": ""}),
    ({"reference_id": None, "references": None, "prosody": None}, {"voice": None, "references": ()}),
    ({"reference_id": "ben"}, {"voice": "ben"}),
    ({"reference_id": ["BEN"]}, {"voice": "BEN"}),
    ({"reference_id": "My Voice"}, {"voice": "my-voice"}),
    ({"reference_id": ["ben", "My Voice"]}, {"voice": None, "voices": {0: "ben", 1: "my-voice"}}),
    ({"reference_id": []}, {"voice": None}),
    ({"normalize": False}, {"clean": False}),
    ({"normalize": True}, {"clean": None}),
    (
        {"temperature": 0.5, "top_p": 0.25, "max_new_tokens": 7, "seed": 9},
        {"sampling": SamplingOverrides(7, 0.5, 0.25, None, 9)},
    ),
    (
        {"chunk_length": 200, "latency": "balanced", "min_chunk_length": 50, "repetition_penalty": 1.2}
        | {"condition_on_previous_chunks": True, "early_stop_threshold": 1.0, "use_memory_cache": "on"},
        {"sampling": AS_SET},
    ),
]


@pytest.mark.parametrize("kind", ["msgpack", "json"])
async def test_fields(cloning: Running, kind: str) -> None:
    for fields, asked in UNDERSTOOD:
        answer = await post(cloning, "/v1/tts", {"text": TEXT, **fields}, kind, model="s2-pro")
        assert answer.status == 200, answer.body
        request = cloning.service.asked.pop()
        assert {name: getattr(request, name) for name in asked} == asked


@pytest.mark.parametrize("kind", ["msgpack", "json"])
async def test_recordings(cloning: Running, kind: str) -> None:
    sounds: list[Any] = [wav(level=100), wav(level=200), wav(level=300)]
    if kind == "json":
        sounds = [base64.b64encode(sound).decode() for sound in sounds]
        sounds[1] = f"data:audio/wav;base64,{sounds[1]}"
    one, two, three = ({"audio": sound, "text": f" {number}. "} for number, sound in enumerate(sounds))
    for given_, transcripts in (([one], ["0."]), ([one, two], ["0.", "1."]), ([[one, two], [three]], ["0.", "2."])):
        body = {"text": TEXT, "references": given_, "reference_id": "ben"}
        answer = await post(cloning, "/v1/tts", body, kind)
        assert answer.status == 200, answer.body
        request = cloning.service.asked.pop()
        assert [clip.transcript for clip in request.references] == transcripts
        assert (request.voice, request.voices) == (None, {})


@pytest.mark.parametrize(
    ("fields", "codec", "rate"),
    [
        ({}, "mp3float", RATE),
        ({"format": "mp3", "sample_rate": 44100, "mp3_bitrate": 192, "opus_bitrate": 24}, "mp3float", 44100),
        ({"format": "mp3", "sample_rate": 32000, "mp3_bitrate": 64}, "mp3float", 32000),
        ({"format": "wav"}, "pcm_s16le", 44100),
        ({"format": "wav", "sample_rate": 8000}, "pcm_s16le", 8000),
        ({"format": "opus"}, "opus", 48000),
        ({"format": "opus", "sample_rate": 48000, "opus_bitrate": -1000}, "opus", 48000),
        ({"format": "flac"}, "flac", RATE),
    ],
)
async def test_formats(running: Running, fields: dict[str, Any], codec: str, rate: int) -> None:
    running.service.blocks = 50
    for streaming in (None, False, True):
        await check_format(running, fields, codec, rate, streaming)


async def check_format(running: Running, fields: dict[str, Any], codec: str, rate: int, streaming: bool | None) -> None:
    answer = await post(running, "/v1/tts", {"text": TEXT, "streaming": streaming, **fields})
    assert answer.status == 200, answer.body
    name = fields.get("format", "mp3")
    assert answer.headers["content-disposition"] == f'attachment; filename="audio.{name}"'
    assert answer.headers["x-fishs2-engine"] == "fake"
    content_type = {"mp3": "audio/mpeg", "opus": "audio/ogg"}.get(name, f"audio/{name}")
    assert answer.headers["content-type"] == content_type
    is_stream = streaming if streaming is not None else name != "wav"
    assert ("transfer-encoding" in answer.headers) == is_stream
    found, found_rate, length_s = decoded_s(body_of(answer))
    assert (found, found_rate) == (codec, rate)
    assert length_s == pytest.approx(1.0, abs=0.15)


async def test_pcm(running: Running) -> None:
    for rate in (8000, 16000, 24000, 32000, 44100):
        answer = await post(running, "/v1/tts", {"text": TEXT, "format": "pcm", "sample_rate": rate})
        assert answer.headers["content-type"] == "audio/pcm"
        assert len(body_of(answer)) / (2 * rate) == pytest.approx(0.1, rel=0.02)
    answer = await post(running, "/v1/tts", {"text": TEXT, "format": "pcm"})
    assert len(body_of(answer)) / 88200 == pytest.approx(0.1, rel=0.02)


async def test_prosody(running: Running) -> None:
    running.service.blocks = 100
    lengths, peaks = {}, {}
    for speed, volume in ((1.0, 0.0), (2.0, 0.0), (1.0, -20.0)):
        prosody = {"speed": speed, "volume": volume, "normalize_loudness": False}
        answer = await post(running, "/v1/tts", {"text": TEXT, "format": "pcm", "prosody": prosody})
        samples = memoryview(body_of(answer)).cast("h")
        lengths[speed, volume], peaks[speed, volume] = len(samples), max(samples)
    assert lengths[2.0, 0.0] == pytest.approx(lengths[1.0, 0.0] / 2, rel=0.05)
    assert peaks[1.0, -20.0] == pytest.approx(peaks[1.0, 0.0] / 10, rel=0.05)


async def test_a_form(cloning: Running) -> None:
    parts = (
        ("text", "[whisper] Hello"),
        ("format", "wav"),
        ("temperature", "0.5"),
        ("normalize", "false"),
        ("prosody", '{"speed": 2.0}'),
        ("references", json.dumps([{"audio": SOUND, "text": WORDS}])),
        ("seed", "4"),
    )
    body, headers = multipart(*parts)
    answer = await cloning.request("POST", "/v1/tts", body, headers)
    assert answer.status == 200, answer.body
    assert decoded_s(answer.body)[2] == pytest.approx(0.05, abs=0.02)
    (request,) = cloning.service.asked
    assert (request.text, request.clean) == ("[whisper] Hello", False)
    assert request.sampling == SamplingOverrides(temperature=0.5, seed=4)
    assert [clip.transcript for clip in request.references] == [WORDS]
    body, headers = multipart(("text", "Hi"), ("reference_id", "ben"), ("reference_id", "my-voice"))
    assert (await cloning.request("POST", "/v1/tts", body, headers)).status == 200
    assert cloning.service.asked[1].voices == {0: "ben", 1: "my-voice"}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("format", "wav")], "text: Field required"),
        ([("text", "a"), ("prosody", "{")], "prosody: JSON"),
        ([("text", "a"), ("prosody", "5")], "prosody"),
        ([("text", "a"), ("audio", b"RIFF")], "audio: files are not read"),
        ([("text", "a"), ("text", "b")], "text"),
    ],
)
async def test_wrong_forms(running: Running, parts: list[tuple[str, str | bytes]], said: str) -> None:
    body, headers = multipart(*parts)
    answer = await running.request("POST", "/v1/tts", body, headers)
    assert answer.status == 422
    assert said in error_of(answer)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"text": None}, "text: Field required"),
    ({"text": 5}, "text: "),
    ({"format": "midi"}, "format: "),
    ({"format": "mp3", "mp3_bitrate": 96}, "bit rate of mp3 is one of 64, 128, 192"),
    ({"format": "opus", "opus_bitrate": 128}, "bit rate of opus is one of"),
    ({"format": "opus", "sample_rate": 44100}, "sample rate of opus is one of"),
    ({"format": "wav", "sample_rate": 123}, "sample rate of wav is one of"),
    ({"temperature": 2.5}, "temperature: "),
    ({"top_p": -0.1}, "top_p: "),
    ({"max_new_tokens": 0}, "max_new_tokens: "),
    ({"seed": -1}, "seed: "),
    ({"prosody": {"speed": 9}}, "prosody.speed: "),
    ({"prosody": {"volume": -21}}, "prosody.volume: "),
    ({"prosody": "fast"}, "prosody: "),
    ({"references": "anna"}, "references: "),
    ({"references": [{"text": WORDS}]}, "references.0.audio: Field required"),
    ({"references": [[]]}, "references.0: "),
    ({"references": [{"audio": "?", "text": WORDS}]}, "references.0.audio: the bytes of a recording"),
    ({"references": [{"audio": SOUND}]}, "references.0.text: cloning needs the words"),
    ({"references": [{"audio": SOUND, "text": " "}]}, "references.0.text: cloning needs the words"),
    ({"references": [{"audio": "", "text": WORDS}]}, "references.0: the recording is empty"),
    ({"references": [{"audio": "UklGRg==", "text": WORDS}]}, "references.0: "),
    ({"references": [{"audio": SOUND, "text": "a" * 4097}]}, "references.0.text: "),
    ({"references": [{"audio": SOUND, "text": WORDS}] * 17}, "references: "),
    ({"reference_id": {"id": 5}}, "reference_id"),
    ({"reference_id": ["a"] * 17}, "reference_id: "),
]


@pytest.mark.parametrize("kind", ["msgpack", "json"])
async def test_wrong_values(cloning: Running, kind: str) -> None:
    for fields, said in WRONG:
        answer = await post(cloning, "/v1/tts", {"text": TEXT, **fields}, kind)
        assert answer.status == 422
        assert said in error_of(answer)
    assert not cloning.service.asked


async def test_unknown_voices(cloning: Running) -> None:
    for asked in ("nobody", ["ben", "nobody"], "../ben", "802e3bc2b27e49c2995d23ef70e6ac89"):
        answer = await post(cloning, "/v1/tts", {"text": TEXT, "reference_id": asked})
        assert answer.status == 404
        assert "there is no voice" in error_of(answer)
    assert not cloning.service.asked


async def test_other_types_and_methods(running: Running) -> None:
    answer = await running.request("POST", "/v1/tts", b"<x/>", {"Content-Type": "text/xml"})
    assert answer.status == 415
    assert "application/msgpack" in error_of(answer)
    assert (await running.request("POST", "/v1/tts", b'{"text": "Hi"}')).status == 200
    answer = await running.request("GET", "/v1/tts")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Busy("full"), 503),
        (errors.TextTooLong("too long"), 413),
        (errors.EngineError("/home/me/model.gguf: broken"), 500),
        (errors.DeadlineExceeded("late"), 504),
        (RuntimeError("secret"), 500),
    ],
)
async def test_errors_before_the_first_audio(running: Running, error: Exception, status: int) -> None:
    running.service.error = error
    answer = await post(running, "/v1/tts", {"text": TEXT})
    assert answer.status == status
    assert not {"/home", "secret"} & set(error_of(answer).split())
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_errors_behind_it_break_the_answer_off(running: Running) -> None:
    running.service.error, running.service.fail_after = errors.WorkerCrashed("gone"), 3
    answer = await post(running, "/v1/tts", {"text": TEXT, "format": "pcm"})
    assert answer.status == 200
    assert not answer.body.endswith(b"0\r\n\r\n")


async def test_whole_answers_have_a_bound(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.fishaudio.schemas.MAX_WHOLE_BYTES", 1000)
    answer = await post(running, "/v1/tts", {"text": TEXT, "format": "wav"})
    assert answers.MAX_WHOLE_BYTES > 1000
    assert answer.headers["transfer-encoding"] == "chunked"


async def test_bodies_have_a_bound(start: Start) -> None:
    running = await start(max_text_chars=10)
    for kind in ("msgpack", "json"):
        answer = await post(running, "/v1/tts", b"a" * 46_000_000, kind)
        assert answer.status == 413
        error_of(answer)


async def test_leaving_ends_the_work(speaking: Running) -> None:
    body = msgpack.packb({"text": TEXT * 200})
    head = (
        f"POST /v1/tts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/msgpack\r\nContent-Length: {len(body)}"
    )
    async with speaking.connection(receive_bytes=4096) as (reader, writer):
        writer.write(head.encode() + b"\r\n\r\n" + body)
        assert b" 200 " in await reader.readline()
        await speaking.until(speaking=True)
    await speaking.until(speaking=False, timeout_s=1)


async def test_timestamps(running: Running) -> None:
    running.service.blocks = 50
    body = {"text": TEXT, "format": "pcm", "prosody": {"speed": 2.0}}
    answer = await post(running, "/v1/tts/stream/with-timestamp", body, "json")
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/event-stream"
    lines = body_of(answer).decode().split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert {tuple(event) for event in events} == {
        ("audio_base64", "content", "alignment", "chunk_seq", "chunk_audio_offset_sec")
    }
    audio = b"".join(base64.b64decode(event["audio_base64"]) for event in events)
    assert len(audio) / 88200 == pytest.approx(0.5, rel=0.05)
    assert [event["alignment"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert [event["content"] for event in events] == [TEXT, *[""] * (len(events) - 2), TEXT]
    assert events[-1]["alignment"] == {"segments": [{"text": TEXT, "start": 0.0, "end": 0.5}], "audio_duration": 0.5}
    assert events[-1]["audio_base64"] == ""


async def test_timestamps_that_break_off(running: Running) -> None:
    running.service.error, running.service.fail_after = errors.WorkerCrashed("/usr/bin/x died"), 3
    answer = await post(running, "/v1/tts/stream/with-timestamp", {"text": TEXT, "format": "pcm"})
    last = body_of(answer).decode().split("\n\n")[-2]
    kind, _, data = last.partition("\ndata: ")
    assert kind == "event: error"
    assert json.loads(data) == {"status": 500, "message": "x died"}


def body_of(answer: Answer) -> bytes:
    """The body, out of its chunks where there are any."""
    if "transfer-encoding" not in answer.headers:
        return answer.body
    rest, body = answer.body, b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        if not int(size, 16):
            return body
        rest = rest[int(size, 16) + 2 :]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=10,
)
FIELDS = """text format sample_rate mp3_bitrate opus_bitrate references reference_id normalize prosody temperature top_p
top_k seed max_new_tokens streaming n_threads model"""
NAMES = st.sampled_from(FIELDS.split())
BODIES = st.dictionaries(NAMES, VALUES, max_size=4).map(lambda fields: {"text": "Hi", **fields}) | VALUES


def is_understood(answer: Answer) -> bool:
    if answer.status != 200:
        assert answer.status in (404, 422)
        error_of(answer)
    return answer.status == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES)
async def test_any_msgpack_is_understood_or_refused(running: Running, body: Any) -> None:
    is_understood(await post(running, "/v1/tts", msgpack.packb(body)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(min_size=1), kind=st.sampled_from(["msgpack", "json"]))
async def test_any_bytes_are_refused(running: Running, body: bytes, kind: str) -> None:
    assert not is_understood(await post(running, "/v1/tts", body, kind))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.tuples(NAMES, st.text(max_size=20) | st.binary(max_size=9)), min_size=1, max_size=4))
async def test_any_form_is_understood_or_refused(running: Running, parts: list[tuple[str, str | bytes]]) -> None:
    body, headers = multipart(*parts)
    is_understood(await running.request("POST", "/v1/tts", body, headers))
