"""The process that decodes uploads: what it answers, and what is said when it dies."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fishs2_daemon.audio.decode import AudioInfo
from fishs2_daemon.errors import InvalidReferenceAudio, ReferenceAudioTooLong, ReferenceAudioTooShort
from fishs2_daemon.voices import check
from tests.voices.sounds import encoded, wav


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "part-1"
    path.write_bytes(wav())
    return path


def test_every_clip_is_described(clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "part 2"
    other.write_bytes(encoded("mp4", "aac", 2))
    infos = check.check({clip: "ä.wav", other: "b"}, shortest_s=0.5, longest_s=3)
    assert infos[clip] == AudioInfo(8000, 1, 1.0, ".wav")
    assert (infos[other].suffix, round(infos[other].duration_s)) == (".m4a", 2)
    assert check.check({}, shortest_s=1, longest_s=2) == {}


@pytest.mark.parametrize(
    ("shortest_s", "longest_s", "kind"), [(1.1, 3, ReferenceAudioTooShort), (0.1, 0.9, ReferenceAudioTooLong)]
)
def test_a_length_that_is_not_allowed(
    clip: Path, shortest_s: float, longest_s: float, kind: type[InvalidReferenceAudio]
) -> None:
    with pytest.raises(kind, match=r"^ä\.wav: ") as caught:
        check.check({clip: "ä.wav"}, shortest_s=shortest_s, longest_s=longest_s)
    assert type(caught.value) is kind
    assert caught.value.param == "files"


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.abort()",
        "import time; time.sleep(60)",
        "print('no answer')",
        "import resource, sys; from fishs2_daemon.voices import check; check._bound_this_process(); bytearray(1 << 31)",
    ],
)
def test_a_check_that_dies_refuses_the_clip(
    clip: Path, program: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(check, "WAIT_S", 0.6)
    monkeypatch.setattr(check, "_COMMAND", (sys.executable, "-c", program))
    with pytest.raises(InvalidReferenceAudio, match=r"^a\.wav: decoding takes too much time or memory"):
        check.check({clip: "a.wav"}, shortest_s=0.5, longest_s=3)
    assert "the check of a.wav failed" in caplog.text


def test_a_decoder_learns_no_secrets(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHS2_API_KEYS", "secret")
    program = (
        "import json, os; print(json.dumps({'error': 'invalid-reference-audio', 'message': ' '.join(os.environ)}))"
    )
    monkeypatch.setattr(check, "_COMMAND", (sys.executable, "-c", program))
    with pytest.raises(InvalidReferenceAudio) as caught:
        check.check({clip: "a.wav"}, shortest_s=0.5, longest_s=3)
    assert "FISHS2_API_KEYS" in os.environ
    assert "FISHS2_API_KEYS" not in str(caught.value)


def test_a_check_that_nobody_waits_for_any_more_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(check.check, {clip: "clip.wav"}, shortest_s=0.5, longest_s=10)
        while not check._running:
            time.sleep(0.01)
        check.end_all()
        with pytest.raises(InvalidReferenceAudio):
            waiting.result(10)
    assert not check._running
