"""The sample voice that comes with the repository: what it is, that it can be cloned, and how it was made."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fishs2_daemon import configuration
from fishs2_daemon.audio.decode import DecodedAudio, DecodeLimits, decode
from fishs2_daemon.daemon import running_service
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import SpeechRequest
from fishs2_daemon.voices.check import check
from fishs2_daemon.voices.limits import VoiceLimits
from fishs2_daemon.voices.store import VoiceStore
from tests.sound import is_alike

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = "sample-robot"
CLIP = ROOT / "voices" / SAMPLE / f"{SAMPLE}.flac"

#: What a repository may carry.
LARGEST_BYTES = 400_000


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The voices of a fresh clone; whatever lies beside the sample here is somebody's own."""
    folder = tmp_path / "voices"
    shutil.copytree(ROOT / "voices" / SAMPLE, folder / SAMPLE, ignore=shutil.ignore_patterns(".*"))
    return folder


def test_it_is_found_where_the_daemon_looks_when_nothing_is_set() -> None:
    """`run.py` starts the daemon in the repository."""
    folder = ROOT / Settings.model_fields["voices_dir"].default
    assert VoiceStore(folder).get(SAMPLE).clips[0].path == CLIP


def test_it_resolves_with_its_words_and_digest(copied: Path) -> None:
    voice = VoiceStore(copied).resolve(SAMPLE)
    assert [(clip.filename, clip.size_bytes, clip.sha256, clip.transcript) for clip in voice.clips] == [
        (CLIP.name, CLIP.stat().st_size, hashlib.sha256(CLIP.read_bytes()).hexdigest(), _script().TEXT)
    ]
    assert (voice.languages, voice.title) == (("en",), "Sample robot")
    assert not list(copied.glob("**/.*"))


def test_it_says_that_it_is_no_person(copied: Path) -> None:
    voice = VoiceStore(copied).get(SAMPLE)
    assert "generated with espeak-ng, no person" in voice.description
    assert "generated with espeak-ng" in str(voice.clips[0].transcript)
    assert "generated with espeak-ng" in (ROOT / "voices" / "README.md").read_text(encoding="utf-8")


def test_its_recording_is_what_a_store_takes() -> None:
    limits = VoiceLimits()
    info = check({CLIP: CLIP.name}, shortest_s=limits.shortest_clip_s, longest_s=limits.longest_clip_s)[CLIP]
    assert CLIP.stat().st_size < LARGEST_BYTES
    assert (info.channels, info.sample_rate) == (1, 22050)
    assert 6 < info.duration_s < 10
    samples = _decoded(CLIP).samples
    assert 0.5 < abs(samples).max() < 1.0
    assert 0.05 < float((samples**2).mean()) ** 0.5 < 0.2


def test_the_script_makes_it_again(tmp_path: Path) -> None:
    made = _script().make(tmp_path / "again").clips[0].path
    here, again = _decoded(CLIP), _decoded(made)
    assert is_alike(_pcm(here), _pcm(again))
    assert _told(made.with_name("meta.json")) == _told(CLIP.with_name("meta.json"))


def test_git_keeps_the_sample_and_nobodys_own_voice(tmp_path: Path) -> None:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    kept = [f"voices/{SAMPLE}/{name}" for name in ("meta.json", CLIP.name)]
    ignored = ["voices/anna/anna.flac", "voices/anna/meta.json", f"voices/{SAMPLE}/.{CLIP.name}.codes.npy"]
    for name in kept + ignored:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    seen = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"], cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert {line[3:] for line in seen.stdout.splitlines()} == {".gitignore", *kept}


@pytest.mark.skipif(importlib.util.find_spec("ggml") is None, reason="ggml-python is not installed")
async def test_it_is_cloned_through_the_real_worker(copied: Path, tmp_path: Path) -> None:
    """By a tiny random model, which speaks noise: another one with the sample than without, and always the same."""
    from fishs2_daemon.engines.s2.tiny import TINY, make_model

    model = tmp_path / "model.gguf"
    make_model(model, replace(TINY, layers=2), seed=3)
    settings = configuration.load(
        engine="s2", model_path=model, tokenizer_path=tmp_path / "tokenizer.json", backend="cpu", n_threads=1,
        max_new_tokens=8, voices_dir=copied,
    )  # fmt: skip
    async with running_service(settings) as (service, workers):
        await workers.ready(60)
        spoken: list[bytes] = []
        for voice in (SAMPLE, None, SAMPLE):
            names: list[str] = []
            request = SpeechRequest("Hello there.", voice=voice)
            audio = [block.samples async for block in service.speak(request, lambda cast: names.append(cast.name))]  # noqa: B023
            spoken.append(b"".join(audio))
            assert names == [voice or "s2"]
    assert spoken[0] == spoken[2] != spoken[1]
    assert any(spoken[0])
    assert [path.suffix for path in (copied / SAMPLE).glob(".*")] == [".npy"]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sample_voice", ROOT / "scripts" / "make_sample_voice.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _decoded(clip: Path) -> DecodedAudio:
    return decode(clip, sample_rate=None, limits=DecodeLimits())


def _pcm(audio: DecodedAudio) -> bytes:
    return (audio.samples * 32767).astype("<i2").tobytes()


def _told(file: Path) -> dict[str, Any]:
    """Without what another version of the encoder, and another day, change."""
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    sizes = [entry.pop("size") for entry in raw["files"]]
    assert sizes == [file.with_name(entry["filename"]).stat().st_size for entry in raw["files"]]
    assert raw.pop("created") > 1_700_000_000
    return raw
