"""A store in a folder of its own, with one voice that was put there by hand."""

from pathlib import Path

import pytest

from fishs2_daemon.voices.store import VoiceStore
from tests.voices.sounds import wav


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "voices"
    (path / "anna").mkdir(parents=True)
    (path / "anna" / "anna.wav").write_bytes(wav())
    (path / "anna" / "meta.json").write_text('{"prompt_text": "Hello.", "language": "en", "created": 1700000000}')
    return path


@pytest.fixture
def store(root: Path) -> VoiceStore:
    return VoiceStore(root)
