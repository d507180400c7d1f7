import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapters.openai.errors import HttpError
from adapters.openai.schemas import SpeechBody
from tests.adapters.openai.harness import Running

GOOD = {"model": "tts-1", "input": "Good morning"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*SpeechBody.model_fields, "unknown"])


def refusal(**fields: Any) -> dict[str, Any]:
    with pytest.raises(HttpError) as caught:
        SpeechBody.parse(json.dumps(GOOD | fields).encode())
    assert caught.value.status == 422
    return dict(caught.value.body()["error"])


def test_defaults() -> None:
    body = SpeechBody.parse(json.dumps(GOOD).encode())
    assert (body.voice, body.response_format, body.speed, body.stream) == ("default", "wav", 1.0, None)


def test_null_is_absent() -> None:
    absent = dict.fromkeys(set(SpeechBody.model_fields) - set(GOOD)) | {"prosody": {"speed": None}}
    assert SpeechBody.parse(json.dumps(GOOD | absent).encode()) == SpeechBody.parse(json.dumps(GOOD).encode())


def test_what_pandrator_sends() -> None:
    flat = {"temperature": 0.7, "top_p": 0.7, "chunk_length": 200, "latency": "normal", "normalize": True}
    more = {"prosody": {"speed": 1.2, "volume": 0}, "instructions": "calm", "response_format": "wav", "speed": 1.5}
    body = SpeechBody.parse(json.dumps(GOOD | flat | more).encode())
    assert (body.pace, body.temperature, body.top_p, body.normalize) == (1.5, 0.7, 0.7, True)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": "m4a"}, "response_format", "unsupported_format"),
        ({"response_format": 3}, "response_format", "unsupported_format"),
        ({"stream_format": "ws"}, "stream_format", "unsupported_stream_format"),
        ({"stream_format": 1}, "stream_format", "unsupported_stream_format"),
        ({"speed": 0.2}, "speed", "invalid_value"),
        ({"speed": 4.5}, "speed", "invalid_value"),
        ({"speed": "fast"}, "speed", "invalid_value"),
        ({"voice": 7}, "voice", "invalid_value"),
        ({"voice": {"name": "x"}}, "voice", "invalid_value"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"input": ["a"]}, "input", "invalid_value"),
        ({"input": ""}, "input", "invalid_value"),
        ({"reference_audio": 7}, "reference_audio", "invalid_value"),
        ({"speaker_wav": "a.wav"}, "speaker_wav", "invalid_value"),
        ({"references": [{"text": ""}]}, "references.0.audio", "missing_required_parameter"),
        ({"references": [{"audio": ""}] * 17}, "references", "invalid_value"),
        ({"voices": {"one": "anna"}}, "voices.one.[key]", "invalid_value"),
        ({"voices": {"-1": "anna"}}, "voices.-1.[key]", "invalid_value"),
        ({"voices": {"x" * 1000: "anna"}}, "voices." + "x" * 93, "invalid_value"),
        ({"prosody": {"volume": 21}}, "prosody.volume", "invalid_value"),
        ({"text_format": "html"}, "text_format", "invalid_value"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], param: str, code: str) -> None:
    error = refusal(**fields)
    assert (error["param"], error["code"]) == (param, code)
    assert param in error["message"]


def test_refusals_say_what_is_allowed() -> None:
    assert "wav, mp3, opus, aac, flac, pcm" in refusal(response_format="m4a")["message"]
    assert "4" in refusal(speed=5)["message"]
    assert refusal(speed=5, response_format="m4a")["param"] == "speed"


@pytest.mark.parametrize(
    ("fields", "pace"),
    [
        ({}, 1),
        ({"speed": 1.5}, 1.5),
        ({"prosody": {"speed": 1.5}}, 1.5),
        ({"speed": 1.5, "prosody": {"speed": 1.5}}, 1.5),
        ({"speed": 2, "prosody": {"speed": 0.5}}, 2),
        ({"speed": 1, "prosody": {"speed": 0.5}}, 0.5),
    ],
)
def test_pace_is_applied_once(fields: dict[str, Any], pace: float) -> None:
    assert SpeechBody.parse(json.dumps(GOOD | fields).encode()).pace == pace


@pytest.mark.parametrize("name", [" WAV ", "Pcm"])
def test_format_case(name: str) -> None:
    assert (
        SpeechBody.parse(json.dumps(GOOD | {"response_format": name}).encode()).response_format == name.strip().lower()
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        json.dumps(GOOD).encode("utf-16"),
        b'{"model": "tts-1", "input": "\xe9"}',
        b'{"model": "tts-1", "input": "\\ud800"}',
        b"[" * 100_000,
        b"model=tts-1&input=hello",
    ],
)
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        SpeechBody.parse(body)
    assert (caught.value.status, caught.value.code) == (422, "invalid_json")


@example(body=GOOD | {"speed": float("nan")})
@example(body=GOOD | {"speed": 10**400})
@example(body=GOOD | {"speed": True})
@example(body=GOOD | {"voice": {"id": "\x00"}})
@given(body=JSON | st.dictionaries(FIELDS, JSON).map(lambda fields: GOOD | fields))
@settings(max_examples=150, deadline=None)
def test_any_json_is_a_body_or_a_refusal(body: Any) -> None:
    with suppress(HttpError):
        assert 0.25 <= SpeechBody.parse(json.dumps(body).encode()).speed <= 4


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=JSON | st.dictionaries(FIELDS, JSON).map(lambda fields: GOOD | fields))
async def test_any_json_over_the_wire(running: Running, body: Any) -> None:
    answer = await running.request("POST", "/v1/audio/speech", json.dumps(body).encode())
    assert answer.status in (200, 404, 422)
    if answer.status != 200:
        assert answer.error["code"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(min_size=1))
async def test_any_bytes_over_the_wire(running: Running, body: bytes) -> None:
    answer = await running.request("POST", "/audio/speech", body)
    assert answer.status == 422
    assert answer.error
