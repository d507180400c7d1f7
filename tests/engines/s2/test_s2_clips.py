"""Codes of clips: made once, kept beside them, and never taken for what they are not."""

import hashlib
import json
import os
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fishs2_daemon.engines.s2.clips import ClipCodes
from fishs2_daemon.engines.s2.codec import Encoder
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.prompt import LONGEST_REFERENCE_FRAMES, PromptFormat
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from fishs2_daemon.engines.s2.tokenizer import Tokenizer
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import Clip

GOLDEN = Path(__file__).parents[2] / "golden"
META = json.loads((GOLDEN / "golden_meta.json").read_text())

#: Twenty-four samples a frame.
QUICK = replace(
    TINY, layers=1, fast_layers=1, latent=24, decoder_width=16, encoder_width=4, encoder_rates=(2, 3),
    decoder_rates=(3, 2), encoder_layers=(0, 0), codec_layers=1, codec_heads=2, codec_head_dim=6, codec_ffn=20,
)  # fmt: skip
FRAME, RATE = 24, 44100
CODEC = "c0dec" * 10


class Counted(Encoder):
    calls = 0

    def encode(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        self.calls += 1
        return super().encode(samples)


@pytest.fixture(scope="module")
def model(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("codec") / "codec.gguf"
    make_model(path, QUICK, seed=5)
    with Model.load(path, backend) as model:
        yield model


@pytest.fixture(scope="module")
def encoder(model: Model) -> Iterator[Counted]:
    encoder = Counted(model)
    yield encoder
    encoder.close()


@pytest.fixture(autouse=True)
def _from_zero(encoder: Counted) -> None:
    encoder.calls = 0


def codes_of(encoder: Encoder, codec: str = CODEC) -> ClipCodes:
    """Not closed: the encoder is everyone's."""
    return ClipCodes(encoder.encode, sample_rate=RATE, frame_samples=FRAME, codec=codec)


def recording(path: Path, frames: int = 50, seed: int = 0) -> Clip:
    samples = np.random.default_rng(seed).integers(-9000, 9000, frames * FRAME).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return clip_of(path)


def clip_of(path: Path) -> Clip:
    return Clip(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), "What it says.")


def beside(clip: Clip) -> list[Path]:
    return sorted(path for path in Path(clip.path).parent.iterdir() if path != Path(clip.path))


def test_codes_are_made_once(encoder: Counted, tmp_path: Path) -> None:
    clip = recording(tmp_path / "voice.wav")
    clips = codes_of(encoder)
    first = clips.reference(clip)
    again = clips.reference(replace(clip, transcript="Other words."))
    assert (first.transcript, again.transcript) == ("What it says.", "Other words.")
    assert first.codes.shape == (10, 50)
    (file,) = beside(clip)
    assert file.name == f".voice.wav.{clip.sha256[:16]}.{CODEC[:16]}.codes.npy"
    found = codes_of(encoder).reference(clip)
    assert np.array_equal(first.codes, found.codes)
    assert np.array_equal(first.codes, again.codes)
    assert encoder.calls == 1
    # They are the clip's.
    with wave.open(clip.path) as opened:
        samples = np.frombuffer(opened.readframes(50 * FRAME), "<i2").astype(np.float32) / np.float32(32768)
    assert np.array_equal(encoder.encode(samples), found.codes)


def test_only_so_many_are_kept_in_memory(encoder: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fishs2_daemon.engines.s2.clips._MOST_KEPT", 2)
    clips = codes_of(encoder)
    made = [recording(tmp_path / f"{seed}.wav", 3, seed) for seed in range(3)]
    for clip in [*made, made[0], made[2], made[0]]:
        clips.reference(clip)
    assert list(clips._kept) == [made[2].sha256, made[0].sha256]
    assert encoder.calls == 3


@pytest.mark.parametrize(
    "damage",
    [
        "empty", "cut", "cut in the header", "pickled", "archive", "float", "wide", "flat", "no frames", "too long",
        "a claim", "open bracket", "text", "folder",
    ],
)  # fmt: skip
def test_a_damaged_file_is_made_again(encoder: Counted, tmp_path: Path, damage: str) -> None:
    clip = recording(tmp_path / "voice.wav")
    wanted = codes_of(encoder).reference(clip).codes
    (file,) = beside(clip)
    raw = file.read_bytes()
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(raw[:-7])
        case "cut in the header":
            file.write_bytes(raw[:60])
        case "pickled":
            np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        case "archive":
            with file.open("wb") as target:
                np.savez(target, codes=wanted)
        case "float":
            np.save(file, wanted.astype(np.float32))
        case "wide":
            np.save(file, wanted.astype(np.int32))
        case "flat":
            np.save(file, wanted.ravel())
        case "no frames":
            np.save(file, wanted[:, :0])
        case "too long":
            np.save(file, np.zeros((10, LONGEST_REFERENCE_FRAMES + 1), np.int16))
        case "a claim":
            file.write_bytes(raw.replace(b"(10, 50)", b"(9999999999999, 50)"))
        case "open bracket":
            file.write_bytes(raw.replace(b"(10, 50)", b"(10, 50("))
        case "text":
            file.write_bytes(b"codes")
        case "folder":
            file.unlink()
            file.mkdir()
    assert np.array_equal(codes_of(encoder).reference(clip).codes, wanted)
    assert encoder.calls == 2
    if damage != "folder":
        assert np.array_equal(codes_of(encoder).reference(clip).codes, wanted)
        assert encoder.calls == 2
        assert beside(clip) == [file]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), st.integers(0, 300))
def test_whatever_lies_there_gives_codes(
    encoder: Counted, tmp_path: Path, bytes_: list[tuple[int, int]], end: int
) -> None:
    clip = recording(tmp_path / "voice.wav", 3)
    codes_of(encoder).reference(clip)
    (file,) = beside(clip)
    raw = bytearray(file.read_bytes())
    for at, value in bytes_:
        raw[at % len(raw)] = value
    file.write_bytes(raw[:end])
    codes = codes_of(encoder).reference(clip).codes
    assert codes.dtype == np.int16
    file.unlink(missing_ok=True)


def test_another_clip_under_that_name_and_another_codec(encoder: Counted, tmp_path: Path) -> None:
    (tmp_path / "other.wav").write_bytes(b"")
    clip = recording(tmp_path / "[v]*.wav")
    bystander = recording(tmp_path / "v1.wav", seed=3)
    (tmp_path / "other.wav").unlink()
    codes_of(encoder).reference(bystander)
    codes_of(encoder).reference(clip)
    newer = recording(tmp_path / "[v]*.wav", seed=1)
    codes_of(encoder).reference(newer)
    codes_of(encoder, "an0ther-codec-digest").reference(newer)
    names = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    # The older clip's are gone; those of another model, which may share the folder, are not.
    assert sorted(names) == sorted(
        [
            f".v1.wav.{bystander.sha256[:16]}.{CODEC[:16]}.codes.npy",
            f".[v]*.wav.{newer.sha256[:16]}.{CODEC[:16]}.codes.npy",
            f".[v]*.wav.{newer.sha256[:16]}.an0ther-codec-di.codes.npy",
        ]
    )
    assert encoder.calls == 4


def test_the_model_s_digest_tells_codecs_apart(model: Model, backend: Backend, tmp_path: Path) -> None:
    make_model(tmp_path / "other.gguf", QUICK, seed=6)
    with Model.load(tmp_path / "other.gguf", backend) as other:
        assert other.digest("c.") != model.digest("c.")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(encoder: Counted, tmp_path: Path) -> None:
    clip = recording(tmp_path / "voice.wav")
    tmp_path.chmod(0o555)
    try:
        assert codes_of(encoder).reference(clip).codes.shape == (10, 50)
    finally:
        tmp_path.chmod(0o755)
    assert beside(clip) == []


@pytest.mark.parametrize("step", ["numpy.save", "pathlib.Path.replace"])
def test_codes_that_cannot_be_kept_are_used(
    encoder: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A read-only folder, or a disk that is full; nothing half-written is left."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    clip = recording(tmp_path / "voice.wav")
    clips = codes_of(encoder)
    with monkeypatch.context() as broken:
        broken.setattr(step, refused)
        assert clips.reference(clip).codes.shape == (10, 50)
    assert beside(clip) == []
    assert clips.reference(clip).codes.shape == (10, 50)
    assert encoder.calls == 1


def test_clips_that_are_not_what_was_meant(encoder: Counted, tmp_path: Path) -> None:
    clip = recording(tmp_path / "voice.wav")
    recording(tmp_path / "voice.wav", seed=1)
    clips = codes_of(encoder)
    with pytest.raises(EngineError, match=r"voice\.wav: the voice was changed in this moment"):
        clips.reference(clip)
    Path(clip.path).unlink()
    with pytest.raises(EngineError, match=r"voice\.wav: cannot be read: No such file"):
        clips.reference(clip)
    for name, content in (("text.wav", b"This is no sound."), ("empty.wav", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EngineError, match=name):
            clips.reference(clip_of(tmp_path / name))
    long = recording(tmp_path / "long.wav", LONGEST_REFERENCE_FRAMES + 1)
    with pytest.raises(EngineError, match=r"long\.wav: longer than"):
        clips.reference(long)
    assert encoder.calls == 0
    assert not clips._kept


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (np.full((10, 4), -1), "code -1 of codebook 0, frame 0"),
        (np.full((10, 4), META["codebook_size"]), "code 64 of codebook 0"),
        (np.full((10, 4), 2**15 - 1), "code 32767"),
        (np.zeros((9, 4)), "codes of 9 codebooks, and the model has 10"),
        (np.zeros((2000, 4)), "codes of 2000 codebooks"),
    ],
)
def test_codes_that_the_model_does_not_have_are_refused(
    encoder: Counted, tmp_path: Path, codes: npt.NDArray[np.float64], says: str
) -> None:
    """Such a file was put there by hand. A prompt of it is not made, so nothing of it reaches the device."""
    tokenizer = Tokenizer.open(
        GOLDEN / "tokenizer.json",
        vocab_size=META["vocab_size"],
        semantic_begin=META["semantic_begin"],
        semantic_end=META["semantic_end"],
    )
    prompts = PromptFormat(tokenizer, codebooks=10, codebook_size=META["codebook_size"])
    clip = recording(tmp_path / "voice.wav")
    codes_of(encoder).reference(clip)
    np.save(beside(clip)[0], codes.astype(np.int16))
    reference = codes_of(encoder).reference(clip)
    with pytest.raises(EngineError, match=says):
        prompts.begin([reference])


def test_a_clip_without_words_is_refused(encoder: Counted, tmp_path: Path) -> None:
    clip = recording(tmp_path / "voice.wav")
    with pytest.raises(EngineError, match="needs the transcript"):
        codes_of(encoder).reference(replace(clip, transcript="<|speaker:0|> "))
