"""The command as its user meets it: real workers, and the JSON of a whole run."""

from pathlib import Path
from typing import Any

import pytest

from fishs2_daemon.bench import voice
from tests.bench.harness import NEEDS_GGML, check_level, report_of

S2: dict[str, Any] = {"FISHS2_BACKEND": "cpu", "FISHS2_N_THREADS": "1", "FISHS2_CONTEXT": "512"}
TINY = ("--synthetic", "tiny", "--quant", "f16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@NEEDS_GGML
def test_a_model_that_was_made_up_is_measured_with_a_voice_that_was_too(folder: Path) -> None:
    report, shown = report_of(
        *TINY, "--folder", str(folder), "--streams", "1,2,4", "--repeat", "1", "--seconds", "0.5",
        "--reference-seconds", "1", **S2,
    )  # fmt: skip
    for level, streams in zip(report["levels"], (1, 2), strict=True):
        check_level(level, streams, 1)
        assert [request["audio_s"] for request in level["requests"]] == [
            pytest.approx(11 * 2048 / 44100, abs=1e-5)
        ] * streams
        assert level["frames_per_s"] == pytest.approx(11 * streams / level["wall_s"])
        assert level["peak_ram_mb"] > 10
    assert report["notes"] == ["skipped: 4 streams; s2 speaks 2 at a time (--slots N sets it)"]
    assert {kind: figures["answers"] for kind, figures in report["voice"].items()} == {"new": 1, "cold": 1, "warm": 1}
    assert all(figures["ttfa_ms"]["p50"] > 0 for figures in report["voice"].values())
    engine = report["engine"]
    assert (engine["name"], engine["slots"], engine["backend"], engine["context"]) == ("s2", 2, "cpu", 512)
    (file,) = folder.glob("tiny-f16-*/model.gguf")
    assert engine["model"] == {"name": "model.gguf", "size_bytes": file.stat().st_size, "quant": "f16"}
    assert engine["settings"]["n_threads"] == 1
    assert engine["frame_kernels"] > 100
    assert f"one graph of {engine['frame_kernels']} kernels" in shown
    assert report["compared"] is None
    for words in ("TTFA p50, ms", "RTF p99", "new (its codes are made)", "skipped: 4 streams"):
        assert words in shown


@NEEDS_GGML
def test_a_stored_voice_is_measured_and_nothing_is_left_beside_its_clip(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "voices"
    voice.made_up(1, home)
    (home / voice.VOICE).rename(home / "anna")
    before = sorted(path.name for path in (home / "anna").iterdir())
    report, shown = report_of(
        *TINY, "--folder", str(folder), "--streams", "1", "--repeat", "1", "--seconds", "0.2", "--voice", "ANNA",
        **S2, FISHS2_SLOTS="1", FISHS2_VOICES_DIR=str(home), FISHS2_WARM_VOICES="anna", FISHS2_DEFAULT_VOICE="anna",
    )  # fmt: skip
    check_level(report["levels"][0], 1, 1)
    assert set(report["voice"]) == {"new", "cold", "warm"}
    assert sorted(path.name for path in (home / "anna").iterdir()) == before
    assert "warm (it was heard before)" in shown


def test_espeak_is_measured_and_says_that_it_ends_by_itself() -> None:
    report, shown = report_of(
        "--engine", "espeak", "--streams", "1", "--repeat", "2", "--seconds", "1", "--voice", "de"
    )
    check_level(report["levels"][0], 1, 2)
    assert report["levels"][0]["frames_per_s"] is None
    assert (report["engine"]["name"], report["engine"]["model"], report["voice"]) == ("espeak", None, None)
    assert report["notes"] == ["espeak ends by itself: the length of an answer is that of its text"]
    assert "espeak ends by itself" in shown
