"""`meta.json`, written by people, by the reference wrapper and by chance."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.errors import InvalidRequest
from fishs2_daemon.speech import SAMPLING_RANGES, SamplingOverrides
from fishs2_daemon.voices import meta

#: Everything that JSON can say, with Python's own numbers that are none.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)

NAMES = ("voice_id", "created", "model", "language", "languages", "prompt_text", "files", "title", "description")
KEYS = st.sampled_from((*NAMES, "tags", "visibility", "style", "sampling", "based_on", "mode"))


def test_what_the_reference_wrapper_writes_is_read() -> None:
    raw = {
        "voice_id": "sample_male", "created": 1_745_000_000, "model": None, "language": "en", "mode": "clone",
        "prompt_text": " Hello there. ", "files": [{"filename": "sample_male.wav", "size": 1}],
    }  # fmt: skip
    known = meta.parse(raw)
    assert (known.created, known.languages, known.prompt_text) == (1_745_000_000, ("en",), "Hello there.")
    assert known.files == {"sample_male.wav": meta.FileEntry(None, is_uploaded=False)}


@pytest.mark.parametrize(
    ("raw", "key", "said"),
    [
        ({"prompt_text": 5}, "prompt_text", "must be a text"),
        ({"prompt_text": "x" * 4097}, "prompt_text", "more than 4096 characters"),
        ({"created": "yesterday"}, "created", "Unix seconds"),
        ({"created": True}, "created", "Unix seconds"),
        ({"created": math.nan}, "created", "Unix seconds"),
        ({"created": math.inf}, "created", "Unix seconds"),
        ({"created": -1}, "created", "Unix seconds"),
        ({"created": 10**300}, "created", "Unix seconds"),
        ({"tags": "a"}, "tags", "a list of at most 32 texts"),
        ({"tags": ["a"] * 33}, "tags", "a list of at most 32 texts"),
        ({"tags": [1]}, "tags", "must be a text"),
        ({"visibility": "secret"}, "visibility", "private, public, unlist"),
        ({"style": "[whisper]"}, "style", "without brackets"),
        ({"style": "a\nb"}, "style", "one line"),
        ({"style": "<|im_end|>"}, "style", "without brackets"),
        ({"sampling": []}, "sampling", "an object"),
        ({"sampling": {"temprature": 1}}, "sampling", "no 'temprature'; it has max_new_tokens, min_tokens"),
        ({"sampling": {"top_p": 1.1}}, "sampling", "sampling.top_p must be a number from 0 to 1"),
        ({"files": {}}, "files", "a list of objects"),
        ({"files": [{}]}, "files", "with a filename"),
        ({"files": [{"filename": "a", "text": 1}]}, "text", "must be a text"),
    ],
)
def test_a_wrong_value_is_named(raw: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said.replace("[", r"\[")) as caught:
        meta.parse(raw)
    assert caught.value.param == key


@pytest.mark.parametrize("name", SAMPLING_RANGES)
def test_sampling_is_bounded(name: str) -> None:
    kind, least, most = SAMPLING_RANGES[name]
    for allowed in (least, most, None):
        assert getattr(SamplingOverrides(**{name: allowed}), name) == allowed
    for wrong in (least - 1, most + 1, "1", True, math.nan, *([least + 0.5] if kind is int else [])):
        with pytest.raises(InvalidRequest, match=f"sampling.{name} must be .* from {least} to {most}"):
            SamplingOverrides(**{name: wrong})


@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_any_json_is_read_or_refused(raw: dict[str, Any]) -> None:
    try:
        known = meta.parse(meta.load(json.dumps(raw).encode()))
    except InvalidRequest:
        return
    for value in (known.title, known.prompt_text, known.style, *known.tags, *known.languages):
        assert value is None or (value.encode() and value == value.strip())


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_refused(content: bytes) -> None:
    try:
        raw = meta.load(content)
    except InvalidRequest:
        return
    assert meta.load(meta.dump(raw)).keys() == raw.keys() or b"\\ud" in content


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b"{}" + b" " * meta.META_BYTES, b"\xff\xfe{}", b""])
def test_hostile_json_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest):
        meta.load(content)


def test_what_is_written_can_be_read_again() -> None:
    assert meta.load(meta.dump({"title": "Ä \ud800", "x": [1]})) == {"title": "Ä ?", "x": [1]}
    with pytest.raises(InvalidRequest, match="more than"):
        meta.dump({"x": "y" * meta.META_BYTES})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested"):
        meta.dump({"x": deep})
