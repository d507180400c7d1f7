"""Ids from whatever people call a voice."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.errors import InvalidRequest
from fishs2_daemon.voices import names


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("Anna", "anna"),
        ("  Jürgen Müller (warm) ", "jurgen-muller-warm"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full-width"),
        ("a__b--c---d", "a__b-c-d"),
        ("_-x-_", "x"),
        ("../../etc/passwd", "etc-passwd"),
        ("pandrator-my-voice-1a2b3c4d5e", "pandrator-my-voice-1a2b3c4d5e"),
        ("", "voice-1700000000"),
        ("日本語", "voice-1700000000"),
        ("..", "voice-1700000000"),
        ("\0", "voice-1700000000"),
    ],
)
def test_ids_are_normalised(asked: str, expected: str) -> None:
    assert names.voice_id(asked, 1_700_000_000.9) == expected


@pytest.mark.parametrize("asked", ["con", "NUL", "Com1", "lpt9", "aux.", " PRN "])
def test_device_names_are_refused(asked: str) -> None:
    with pytest.raises(InvalidRequest, match="Windows") as caught:
        names.voice_id(asked, 0)
    assert caught.value.param == "voice_id"


def test_an_id_is_bounded() -> None:
    assert names.voice_id("x" * names.ID_CHARS, 0) == "x" * names.ID_CHARS
    with pytest.raises(InvalidRequest, match="at most 100 characters, this one 101"):
        names.voice_id("x" * (names.ID_CHARS + 1), 0)


@given(st.text(st.characters(), max_size=120))
def test_every_id_is_a_plain_file_name_and_stays_what_it_is(asked: str) -> None:
    try:
        made = names.voice_id(asked, 0)
    except InvalidRequest:
        return
    assert re.fullmatch(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?", made)
    assert "--" not in made
    assert names.voice_id(made, 1) == made


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("Anna's Voice.WAV", "anna-s-voice.wav"),
        ("C:\\Users\\me\\a.mp3", "a.mp3"),
        ("../../a.flac", "a.flac"),
        ("upload", "upload.ogg"),
        ("meta.json", "meta.ogg"),
        (".wav", "wav.ogg"),
        ("a.b.c.wav", "a-b-c.wav"),
        ("日本.wav", "sample_7.wav"),
        ("nul.wav", "sample_7.wav"),
        ("", "sample_7.ogg"),
        ("x" * 300 + ".wav", "x" * 64 + ".wav"),
    ],
)
def test_file_names_are_normalised(filename: str, expected: str) -> None:
    assert names.clip_name(filename, 7, ".ogg", set()) == expected


def test_file_names_that_collide_are_numbered() -> None:
    taken = {"a.wav", "a-2.wav"}
    assert names.clip_name("A.wav", 1, ".wav", taken) == "a-3.wav"
    assert names.clip_name("a.mp3", 1, ".wav", taken) == "a.mp3"


@given(st.text(st.characters(), max_size=300))
def test_every_file_name_is_a_plain_visible_clip(filename: str) -> None:
    made = names.clip_name(filename, 1, ".wav", set())
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*\.[a-z0-9]+", made)
    assert "." + made.rpartition(".")[2] in names.AUDIO_SUFFIXES
    assert len(made) < 100
