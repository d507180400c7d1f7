"""The codec's encoder, against the recording of the official classes and, in other sizes, against the numpy reference.

Reached on the golden files: all codes equal, of f32 and of f16 weights; f32, latents 8.9e-6 (of values up to 9).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fishs2_daemon.engines.s2.codec import Decoder, Encoder
from fishs2_daemon.engines.s2.codec.window_attention import Rope
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.placement import converted
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from fishs2_daemon.errors import EngineError
from tests.engines.s2 import reference

GOLDEN = Path(__file__).parents[2] / "golden"
CODEC = np.load(GOLDEN / "golden_codec.npz")

SMALL = replace(
    TINY,
    codebooks=5,
    codebook_size=40,
    residual_size=12,
    codebook_width=5,
    latent=32,
    decoder_width=8,
    encoder_width=8,
    encoder_rates=(3, 4),
    decoder_rates=(2, 6),
    downsample=(2, 3),
    encoder_layers=(1, 2),
    encoder_head_dim=16,
    encoder_ffn=40,
    codec_layers=2,
    codec_heads=3,
    codec_head_dim=8,
    codec_window=4,
)

GEOMETRIES = {
    "small": SMALL,
    "no transformer": replace(SMALL, encoder_layers=(0, 0), codec_window=1),
    "other rates": replace(
        SMALL, encoder_rates=(1, 2, 5), decoder_rates=(10,), downsample=(1, 4), encoder_layers=(0, 0, 1)
    ),
    "two codebooks": replace(SMALL, codebooks=2),
}


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend.open("cpu", threads=1) as backend:
        yield backend


def clip(name: str) -> npt.NDArray[np.float32]:
    samples: npt.NDArray[np.float32] = (CODEC[f"enc_{name}_pcm16"] / 32768).astype(np.float32)
    return samples


def certain(margins: npt.NDArray[np.floating], least: float) -> npt.NDArray[np.bool_]:
    """Codebooks after a near-tie are given another remainder, so they tell nothing either."""
    return np.logical_and.accumulate(margins > least)


def noise(n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n).astype(np.float32)


@pytest.mark.parametrize(("file", "least"), [("tiny-f32.gguf", 1e-5), ("tiny-f16.gguf", 1e-3)])
def test_golden_codes(backend: Backend, file: str, least: float) -> None:
    with Model.load(GOLDEN / file, backend, skip=converted) as model, Encoder(model, rope="f32") as encoder:
        for name in ("short", "long"):
            codes, recorded = encoder.encode(clip(name)), CODEC[f"enc_{name}_codes"]
            assert codes.dtype == np.int32
            assert codes.shape == recorded.shape
            sure = certain(CODEC[f"enc_{name}_margin"], least)
            assert sure.mean() > 0.9
            assert np.array_equal(codes[sure], recorded[sure])


def test_golden_activations(backend: Backend) -> None:
    samples = clip("short")
    padded = np.pad(samples, (0, -len(samples) % 2048))
    with Model.load(GOLDEN / "tiny-f32.gguf", backend) as model, Encoder(model, rope="f32") as encoder:
        seen = encoder.trace(padded)
    assert np.abs(seen["latent"] - CODEC["enc_short_latent"]).max() < 2e-5
    assert np.abs(seen["pre_module"] - CODEC["enc_short_pre_module"]).max() < 1e-5
    assert np.array_equal(seen["codes_0"][0], CODEC["enc_short_codes"][0])


@pytest.mark.parametrize("rope", ["f32", "bf16"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_other_sizes(backend: Backend, tmp_path: Path, name: str, rope: Rope) -> None:
    """Clips longer than every window, and of every rest."""
    geometry, path = GEOMETRIES[name], tmp_path / "model.gguf"
    make_model(path, geometry, seed=9, dtype=GgmlType.F32)
    plain = reference.load(path)
    frame = plain.config.codec.frame_samples
    model_of = Model.load(path, backend, skip=converted)
    with model_of as model, Encoder(model, rope=rope) as encoder:
        for n in (1, frame, 7 * frame + 1, 45 * frame - 1):
            expected, margins = reference.Encoder(plain, "exact" if rope == "f32" else rope)(noise(n))
            codes = encoder.encode(noise(n))
            assert codes.shape == expected.shape == (geometry.codebooks, -(-n // frame))
            sure = certain(margins, 1e-4)
            assert sure.mean() > 0.9
            assert np.array_equal(codes[sure], expected[sure])


def test_a_clip_does_not_depend_on_earlier_ones(backend: Backend) -> None:
    with Model.load(GOLDEN / "tiny-f16.gguf", backend) as model, Encoder(model) as encoder:
        first = encoder.encode(clip("short"))
        encoder.encode(noise(5000))
        assert np.array_equal(encoder.encode(clip("short")), first)


def test_nothing_is_built_before_it_is_needed(backend: Backend) -> None:
    with Model.load(GOLDEN / "tiny-f16.gguf", backend) as model:
        held = model.n_bytes
        encoder = Encoder(model)
        assert model.n_bytes == held
        assert encoder.encode(np.empty(0, np.float32)).shape == (10, 0)
        encoder.close()
        encoder.close()
        with pytest.raises(EngineError, match="is closed"):
            encoder.encode(noise(10))


def test_wrong_samples(backend: Backend) -> None:
    with Model.load(GOLDEN / "tiny-f16.gguf", backend) as model, Encoder(model) as encoder:
        for wrong in (noise(10).reshape(2, 5), noise(10).astype(np.float64), np.zeros(10, np.int16)):
            with pytest.raises(EngineError, match="encodes mono float32"):
                encoder.encode(wrong)
        for value in (np.nan, np.inf, -1e30):
            wrong = noise(10)
            wrong[7] = value
            with pytest.raises(EngineError, match="or no numbers"):
                encoder.encode(wrong)


def test_there_and_back(backend: Backend) -> None:
    """One model serves both; what was encoded has as many frames as what comes back."""
    with Model.load(GOLDEN / "tiny-f16.gguf", backend) as model, Encoder(model) as encoder, Decoder(model) as decoder:
        codes = encoder.encode(noise(3 * 2048 + 5))
        with decoder.open_stream() as stream:
            assert stream.decode(codes).shape == (4 * 2048,)
