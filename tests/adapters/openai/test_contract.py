"""What `POST /v1/audio/speech` makes of every field, and which error comes first."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.openai.schemas import SpeechBody
from fishs2_daemon import errors
from fishs2_daemon.speech import AS_SET, Priority, SamplingOverrides
from tests.adapters.openai.harness import Answer, Running, Start
from tests.voices.sounds import wav

TEXT = "Good morning."
WORDS = "What is said in it."
SOUND = base64.b64encode(wav()).decode()


@pytest.fixture
async def cloning(start: Start, tmp_path: Path) -> Running:
    """An engine that clones, the stored voices ben, with words, and mute, without; clips/a.wav that may be named."""
    for name in ("voices/ben/ben.wav", "voices/mute/mute.wav", "clips/a.wav", "secret/s.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(wav(level=len(name)))
    (tmp_path / "voices" / "ben" / "meta.json").write_text(
        json.dumps({"prompt_text": WORDS, "style": "calm", "sampling": {"top_k": 7, "top_p": 0.1}})
    )
    running = await start(reference_dirs=[tmp_path / "clips"])
    running.service.engine = replace(running.service.engine, clones=True)
    return running


async def speak(running: Running, **fields: Any) -> Answer:
    body = json.dumps({"model": "tts-1", "input": TEXT, **fields}).encode()
    return await running.request("POST", "/v1/audio/speech", body)


def sampling(**values: Any) -> dict[str, SamplingOverrides]:
    return {"sampling": SamplingOverrides(**values)}


OPTIONS = {"max_new_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 9, "min_tokens_before_end": 2}

UNDERSTOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"text": TEXT, "voice": None, "sampling": AS_SET, "style": None, "ssml": False, "clean": None, "voices": {}}),
    ({"model": " FishS2 "}, {"priority": Priority.READING}),
    ({"model": "fishaudio/s2-pro"}, {}),
    ({"input": "  "}, {"text": "  "}),
    ({"voice": ""}, {"voice": None}),
    ({"voice": " Default "}, {"voice": None}),
    ({"voice": "random"}, {"voice": None}),
    ({"voice": "Alloy"}, {"voice": None}),
    ({"voice": None}, {"voice": None}),
    ({"voice": {"id": "ben"}}, {"voice": "ben"}),
    ({"voice": "ECHO"}, {"voice": "echo"}),
    ({"reference_id": "ben"}, {"voice": "ben"}),
    ({"instructions": "Speak [softly]\n<and> slowly"}, {"style": "Speak softly and slowly"}),
    ({"instructions": "word " * 100}, {"style": ("word " * 40).strip()}),
    ({"instructions": "x" * 300}, {"style": "x" * 200}),
    ({"instructions": " \u0000\u202e[] "}, {"style": None}),
    ({"instructions": "calm", "control": " whisper "}, {"style": "whisper, calm"}),
    ({"control": "whisper"}, {"style": "whisper"}),
    ({"fishs2": OPTIONS}, sampling(**OPTIONS)),
    ({"fishs2": {"n_threads": 4, "verbose": True, "temperature": None, "unknown": 1}}, {"sampling": AS_SET}),
    (OPTIONS, sampling(**OPTIONS)),
    ({**OPTIONS, "fishs2": {"top_k": 4}}, sampling(**OPTIONS | {"top_k": 4})),
    ({"seed": 2**63 - 1}, sampling(seed=2**63 - 1)),
    ({"normalize": False}, {"clean": False}),
    ({"normalize": True}, {"clean": True}),
    ({"text_format": "SSML", "input": "<speak>Hi</speak>"}, {"ssml": True}),
    ({"text_format": "text"}, {"ssml": False}),
    ({"voices": {"0": "anna", "1": {"id": "ben"}, "2": "nova"}}, {"voices": {0: "anna", 1: "ben", 2: "default"}}),
    ({"chunk_length": 200, "latency": "balanced", "unknown": [1]}, {}),
    ({"reference_audio": " ", "speaker_wav": ["", "x"], "references": []}, {"references": ()}),
    ({"reference_text": WORDS, "prompt_text": ""}, {"references": ()}),
    # As Pandrator sends it
    (
        {
            "voice": "default", "response_format": "wav", "speed": 1.2, "temperature": 0.7, "top_p": 0.6,
            "chunk_length": 200, "latency": "normal", "normalize": True,
            "prosody": {"speed": 1.2, "volume": -3, "normalize_loudness": True},
        },
        {**sampling(temperature=0.7, top_p=0.6), "clean": True, "voice": None},
    ),
    # `instructions` as JSON
    ({"instructions": '{"fishs2": {"top_k": 3, "top_p": 0.5}, "top_k": 4}'}, sampling(top_k=4, top_p=0.5)),
    ({"instructions": '{"top_k": 4}', "fishs2": {"top_k": 5}}, sampling(top_k=5)),
    ({"instructions": '{"top_k": 4}', "top_k": 6, "seed": 1}, sampling(top_k=4, seed=1)),
    ({"instructions": ' {"fishs2": null, "control": null, "top_k": null}'}, {"sampling": AS_SET, "style": None}),
    ({"instructions": '{"control": " shout ", "language": "de", "xtts": {"speed": 9}}'}, {"style": "shout"}),
    ({"instructions": '{"control": "shout"}', "control": "whisper"}, {"style": "whisper"}),
    ({"instructions": "{}"}, {"style": None}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), UNDERSTOOD)
async def test_what_is_understood(running: Running, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    answer = await speak(running, **fields)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.body[:4] == b"RIFF"
    (asked,) = running.service.asked
    assert {name: getattr(asked, name) for name in expected} == expected


BAD = "invalid_value"
JSON_CODES = "invalid_instructions_"

REFUSED: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": None}, 422, "missing_required_parameter", "model"),
    ({"model": 3}, 422, BAD, "model"),
    ({"model": "xtts"}, 404, "model_not_found", "model"),
    ({"input": None}, 422, "missing_required_parameter", "input"),
    ({"input": ""}, 422, BAD, "input"),
    ({"voice": 5}, 422, BAD, "voice"),
    ({"voice": {"name": "x"}}, 422, BAD, "voice"),
    ({"response_format": "m4a"}, 422, "unsupported_format", "response_format"),
    ({"stream_format": "ws"}, 422, "unsupported_stream_format", "stream_format"),
    ({"stream": "perhaps"}, 422, BAD, "stream"),
    ({"speed": 0.2}, 422, BAD, "speed"),
    ({"speed": 4.1}, 422, BAD, "speed"),
    ({"sample_rate": 0}, 422, BAD, "sample_rate"),
    ({"sample_rate": 12345}, 422, BAD, "sample_rate"),
    ({"sample_rate": 44100, "response_format": "opus"}, 422, BAD, "sample_rate"),
    ({"instructions": 3}, 422, BAD, "instructions"),
    ({"instructions": "x" * 4097}, 422, BAD, "instructions"),
    ({"control": "x" * 513}, 422, BAD, "control"),
    ({"fishs2": 3}, 422, BAD, "fishs2"),
    ({"fishs2": {"max_new_tokens": 0}}, 422, BAD, "fishs2.max_new_tokens"),
    ({"fishs2": {"max_new_tokens": 8193}}, 422, BAD, "fishs2.max_new_tokens"),
    ({"fishs2": {"temperature": 2.1}}, 422, BAD, "fishs2.temperature"),
    ({"fishs2": {"temperature": float("nan")}}, 422, BAD, "fishs2.temperature"),
    ({"fishs2": {"top_p": 1.1}}, 422, BAD, "fishs2.top_p"),
    ({"fishs2": {"top_k": 501}}, 422, BAD, "fishs2.top_k"),
    ({"fishs2": {"top_k": -1}}, 422, BAD, "fishs2.top_k"),
    ({"fishs2": {"min_tokens_before_end": 8193}}, 422, BAD, "fishs2.min_tokens_before_end"),
    ({"fishs2": {"n_threads": 513}}, 422, BAD, "fishs2.n_threads"),
    ({"fishs2": {"verbose": "loud"}}, 422, BAD, "fishs2.verbose"),
    ({"temperature": -1}, 422, BAD, "temperature"),
    ({"seed": 2**63}, 422, BAD, "seed"),
    ({"chunk_length": "long"}, 422, BAD, "chunk_length"),
    ({"prosody": {"speed": 5}}, 422, BAD, "prosody.speed"),
    ({"prosody": {"normalize_loudness": 7}}, 422, BAD, "prosody.normalize_loudness"),
    ({"reference_audio": ["a"]}, 422, BAD, "reference_audio"),
    ({"reference_text": "x" * 4097}, 422, BAD, "reference_text"),
    ({"prompt_text": "x" * 4097}, 422, BAD, "prompt_text"),
    ({"speaker_wav": "a.wav"}, 422, BAD, "speaker_wav"),
    ({"voices": ["anna"]}, 422, BAD, "voices"),
    ({"instructions": "{"}, 422, JSON_CODES + "json", "instructions"),
    ({"instructions": "{'top_k': 3}"}, 422, JSON_CODES + "json", "instructions"),
    ({"instructions": '{"top_p": NaN}'}, 422, JSON_CODES + "json", "instructions"),
    ({"instructions": '{"a":' * 800}, 422, JSON_CODES + "json", "instructions"),
    ({"instructions": '{"fishs2": 3}'}, 422, JSON_CODES + "fishs2", "instructions"),
    ({"instructions": '{"fishs2": {"top_k": 501}}'}, 422, JSON_CODES + "fishs2", "instructions"),
    ({"instructions": '{"temperature": "hot"}'}, 422, JSON_CODES + "fishs2", "instructions"),
    ({"instructions": '{"prompt_text": 3}'}, 422, JSON_CODES + "prompt_text", "instructions"),
    ({"instructions": '{"reference_text": []}'}, 422, JSON_CODES + "reference_text", "instructions"),
    ({"instructions": '{"control": {}}'}, 422, JSON_CODES + "control", "instructions"),
    ({"instructions": json.dumps({"control": "x" * 513})}, 422, JSON_CODES + "payload", "instructions"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "code", "param"), REFUSED)
async def test_what_is_refused(running: Running, fields: dict[str, Any], status: int, code: str, param: str) -> None:
    answer = await speak(running, **fields)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param)
    assert running.service.asked == []


def clips_of(running: Running) -> list[tuple[str, str]]:
    (asked,) = running.service.asked
    return [(Path(clip.path).name, clip.transcript) for clip in asked.references]


@pytest.mark.parametrize("name", ["reference_audio", "prompt_audio", "ref_audio", "speaker_wav"])
@pytest.mark.parametrize("words", ["reference_text", "ref_text", "prompt_text", "instructions"])
async def test_a_recording_on_the_server(cloning: Running, name: str, words: str) -> None:
    path: Any = ["clips/a.wav", "unused"] if name == "speaker_wav" else "clips/a.wav"
    said = json.dumps({"prompt_text": WORDS}) if words == "instructions" else WORDS
    answer = await speak(cloning, **{name: path, words: said, "voice": "nobody looks it up"})
    assert answer.status == 200, answer.body
    assert clips_of(cloning) == [("recording", WORDS)]
    assert cloning.service.asked[0].voice is None
    assert answer.headers["x-fishs2-voice"] == "a recording"


async def test_which_recording_and_which_words_win(cloning: Running) -> None:
    await speak(cloning, reference_audio="clips/none.wav", references=[{"audio": SOUND, "text": WORDS}])
    assert clips_of(cloning) == [("recording", WORDS)]
    cloning.service.asked.clear()
    refused = await speak(cloning, reference_audio="clips/none.wav", ref_audio="clips/a.wav", reference_text=WORDS)
    assert refused.error["param"] == "reference_audio"
    texts = {"reference_text": "1", "ref_text": "2", "prompt_text": "4"}
    said = {"instructions": json.dumps({"reference_text": "3", "prompt_text": "5"})}
    for number in range(1, 6):
        await speak(cloning, ref_audio="clips/a.wav", **texts, **said)
        assert clips_of(cloning) == [("recording", str(number))]
        cloning.service.asked.clear()
        texts = {name: text for name, text in texts.items() if text != str(number)}
        said = {"instructions": json.dumps({"prompt_text": "5"})} if number >= 3 else said


@pytest.mark.parametrize("audio", [SOUND, "data:audio/wav;base64," + SOUND, SOUND[:76] + "\n" + SOUND[76:]])
async def test_an_inline_recording(cloning: Running, audio: str) -> None:
    both = [{"audio": audio, "text": "One."}, {"audio": base64.b64encode(wav(level=9)).decode(), "text": "Two."}]
    assert (await speak(cloning, references=both)).status == 200
    assert clips_of(cloning) == [("recording", "One."), ("recording", "Two.")]


async def test_a_stored_voice(cloning: Running) -> None:
    answer = await speak(cloning, voice="BEN")
    assert (answer.headers["x-fishs2-engine"], answer.headers["x-fishs2-voice"]) == ("fake", "ben")
    assert (cloning.service.asked[0].voice, cloning.service.asked[0].references) == ("BEN", ())
    cloning.service.asked.clear()
    assert (await speak(cloning, voice="ben", prompt_text="Other words.", top_p=0.9)).status == 200
    assert clips_of(cloning) == [("ben.wav", "Other words.")]
    (asked,) = cloning.service.asked
    assert (asked.style, asked.sampling) == ("calm", SamplingOverrides(top_k=7, top_p=0.9))
    cloning.service.asked.clear()
    assert (await speak(cloning, voice="mute", reference_text="Hm.")).status == 200
    assert clips_of(cloning) == [("mute.wav", "Hm.")]


CLONES_REFUSED: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"voice": "nobody"}, 404, "voice_not_found", "voice"),
    ({"voice": "../secret"}, 404, "voice_not_found", "voice"),
    ({"voice": "nobody", "reference_text": WORDS}, 404, "voice_not_found", "voice"),
    ({"voice": "mute"}, 422, "missing_prompt_text", "reference_text"),
    ({"voice": "mute", "reference_text": " "}, 422, "missing_prompt_text", "reference_text"),
    ({"ref_audio": "clips/a.wav"}, 422, "missing_prompt_text", "reference_text"),
    ({"ref_audio": "clips/a.wav", "voice": "ben", "ref_text": ""}, 422, "missing_prompt_text", "reference_text"),
    ({"references": [{"audio": SOUND}]}, 422, "missing_prompt_text", "references"),
    ({"references": [{"audio": "***", "text": WORDS}]}, 422, "invalid_reference_audio", "references.0.audio"),
    ({"references": [{"audio": "data:,x", "text": WORDS}]}, 422, "invalid_reference_audio", "references.0.audio"),
    ({"references": [{"audio": "", "text": WORDS}]}, 422, "invalid_reference_audio", "references"),
    ({"references": [{"audio": "AAAA", "text": WORDS}]}, 422, "invalid_reference_audio", "references"),
    ({"ref_audio": "secret/s.wav", "ref_text": WORDS}, 422, "invalid_reference_audio", "ref_audio"),
    ({"ref_audio": "clips/\u0000", "ref_text": WORDS}, 422, "invalid_reference_audio", "ref_audio"),
    ({"speaker_wav": ["/etc/passwd"], "ref_text": WORDS}, 422, "invalid_reference_audio", "speaker_wav"),
    ({"reference_audio": "http://127.0.0.1/", "ref_text": WORDS}, 422, "invalid_reference_audio", "reference_audio"),
    ({"reference_audio": "voices/ben/meta.json", "ref_text": "x"}, 422, "invalid_reference_audio", "reference_audio"),
    ({"voices": {"0": "ben", "1": "anna"}}, 422, BAD, "voices"),
    ({"voices": {"1": "ben"}}, 422, BAD, "voices"),
    # In the order of the contract: body, format, instructions, model, voice, transcript, recording.
    ({"response_format": "x", "speed": 9}, 422, BAD, "speed"),
    ({"response_format": "x", "instructions": "{", "model": "x"}, 422, "unsupported_format", "response_format"),
    ({"instructions": "{", "model": "x", "voice": "nobody"}, 422, JSON_CODES + "json", "instructions"),
    ({"model": "x", "voice": "nobody", "ref_audio": "x"}, 404, "model_not_found", "model"),
    ({"ref_audio": "none", "ref_text": ""}, 422, "missing_prompt_text", "reference_text"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "code", "param"), CLONES_REFUSED)
async def test_refused_clones(
    cloning: Running, fields: dict[str, Any], status: int, code: str, param: str, tmp_path: Path
) -> None:
    answer = await speak(cloning, **fields)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param)
    assert cloning.service.asked == []
    assert str(tmp_path) not in answer.raw.decode()


STRANGE = st.sampled_from(
    [
        "", " ", "a", "\x00", "../..", "/etc/passwd", "voices/ben/ben.wav", "clips/a.wav", "clips", "ben", "mute", "0",
        SOUND, "data:audio/wav;base64,AAAA", "{", '{"control": "\\ud800"}', "wav", "sse", "ssml", "<speak>", WORDS,
        0, 1, -1, 2**64, 0.5, 1e308, True, [], ["clips/a.wav"], [{"audio": SOUND, "text": WORDS}], [{}], {"0": "ben"},
        {"id": "ben"}, {"speed": 2}, {"top_k": 3}, {"0": "ben", "1": "ben"},
    ]
)  # fmt: skip


@given(fields=st.dictionaries(st.sampled_from(list(SpeechBody.model_fields)), STRANGE, max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_field_is_an_error_of_ours(cloning: Running, fields: dict[str, Any]) -> None:
    answer = await speak(cloning, **fields)
    assert answer.status in (200, 404, 422)
    if answer.status != 200:
        assert answer.error["code"]


async def test_halves_of_characters_become_question_marks(cloning: Running) -> None:
    said = {"instructions": '{"reference_text": "a \\ud800", "control": "b \\udc00"}'}
    assert (await speak(cloning, ref_audio="clips/a.wav", **said)).status == 200
    assert clips_of(cloning) == [("recording", "a ?")]
    assert cloning.service.asked[0].style == "b ?"


async def test_synthesis_comes_last(cloning: Running) -> None:
    cloning.service.error = errors.EngineUnavailable("no model at /srv/models/s2.gguf")
    answer = await speak(cloning, voice="ben")
    assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")
    assert answer.error["message"] == "no model at s2.gguf"


async def test_a_preset_name_is_a_voice_once_there_is_one(cloning: Running, tmp_path: Path) -> None:
    await speak(cloning, voice="alloy")
    (tmp_path / "voices" / "ben").rename(tmp_path / "voices" / "Alloy")
    await speak(cloning, voice="alloy")
    assert [asked.voice for asked in cloning.service.asked] == [None, "Alloy"]
