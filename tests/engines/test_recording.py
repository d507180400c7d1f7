"""The recordings of a voice as engines read them."""

import hashlib
from pathlib import Path

import pytest

from fishs2_daemon.audio.decode import DecodeLimits
from fishs2_daemon.engines import recording
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import Clip


def clip_of(path: Path, data: bytes) -> Clip:
    path.write_bytes(data)
    return Clip(str(path), hashlib.sha256(data).hexdigest(), "What is said.")


def test_the_file_is_read_as_it_is_and_up_to_its_bound(tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "voice.wav", bytes(range(100)))
    assert recording.read(clip, 100) == bytes(range(100))
    with pytest.raises(EngineError, match=r"^voice\.wav: too large for a reference; at most 99 bytes"):
        recording.read(clip, 99)


def test_another_file_than_was_meant_is_refused(tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "voice.wav", b"one")
    (tmp_path / "voice.wav").write_bytes(b"two")
    with pytest.raises(EngineError, match=r"^voice\.wav: the voice was changed in this moment"):
        recording.read(clip)
    (tmp_path / "voice.wav").unlink()
    with pytest.raises(EngineError, match=r"^voice\.wav: cannot be read: No such file"):
        recording.read(clip)


def test_what_is_no_recording_is_an_error_of_the_engine(tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "voice.wav", b"no sound at all" * 100)
    with pytest.raises(EngineError, match=r"voice\.wav"):
        recording.samples(clip, 44100, DecodeLimits())
