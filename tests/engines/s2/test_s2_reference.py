"""The reference itself, against everything that was recorded from the official classes (specification, section 11).

Largest absolute differences reached, in float64, on a recording made in float32:

    prefill      logits 2.1e-5 (their deviation is 4), hidden 5.2e-6; with rounded RoPE tables, logits 8.0e-6
    24 frames    slow logits 1.1e-5, hidden 2.5e-6, fast logits 8.4e-6; all tokens and codes equal
    decode       samples 6.3e-7; activations 2.9e-6; in pieces against whole 1.0e-15
    encode       latent 7.9e-6, pre_module 3.4e-6, margins 1.6e-6; all codes equal, margins of 3e-5 included

In float32 they are of the same size. Other geometries have no recording: there it must agree with itself.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from tests.engines.s2.reference import (
    Array,
    Cache,
    Decoder,
    DecoderState,
    Drawn,
    Encoder,
    FastAR,
    Model,
    Sampling,
    SlowAR,
    generate,
    load,
)
from tests.engines.s2.reference.sampling import draw, probabilities

GOLDEN = Path(__file__).parents[2] / "golden"
META = json.loads((GOLDEN / "golden_meta.json").read_text())
AR = np.load(GOLDEN / "golden_ar.npz")
CODEC = np.load(GOLDEN / "golden_codec.npz")

#: What the recording's own rounding allows.
LOGITS, HIDDEN, WAVE, ACTIVATION = 3e-5, 1e-5, 1e-6, 1e-5

#: Sizes that nothing in S2 Pro or in the recording shares.
# fmt: off
ODD = replace(
    TINY, layers=2, width=48, heads=6, kv_heads=3, head_dim=20, ffn=72, tied_head=False, qk_norm=False,
    fast_layers=3, fast_width=40, fast_heads=4, fast_kv_heads=1, fast_head_dim=12, fast_ffn=56, rope_base=5e4,
    codebooks=6, codebook_size=32, residual_size=12, codebook_width=5, latent=32, encoder_width=16, encoder_ffn=40,
    encoder_rates=(3, 4), decoder_rates=(2, 6), downsample=(2, 3), encoder_layers=(1, 2), encoder_head_dim=16,
    decoder_width=24, codec_layers=2, codec_heads=3, codec_head_dim=8, codec_ffn=56, codec_window=3,
)
# fmt: on


@pytest.fixture(scope="module")
def model() -> Model:
    return load(GOLDEN / "tiny-f32.gguf")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("odd") / "odd.gguf"
    make_model(path, ODD, seed=3)
    return load(path)


def farthest(found: npt.NDArray[np.floating], wanted: npt.NDArray[np.floating]) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())


def test_both_files_hold_the_same(model: Model) -> None:
    """But for 15 of the encoder's tensors, which F16 rounds by 3e-8; so one file is enough for all that follows."""
    other = load(GOLDEN / "tiny-f16.gguf")
    assert other.config == model.config
    assert other.tensors.keys() == model.tensors.keys()
    for name, values in model.tensors.items():
        assert farthest(other[name], values) < 5e-8, name


@pytest.mark.parametrize("prompt", ["A", "B"])
def test_prefill(model: Model, prompt: str) -> None:
    out = SlowAR(model)(AR[f"{prompt}_prompt"])
    assert farthest(out.logits, AR[f"{prompt}_prefill_logits_all"]) < LOGITS
    assert farthest(out.hidden, AR[f"{prompt}_prefill_hidden_all"]) < HIDDEN


@pytest.mark.parametrize("prompt", ["A", "B"])
def test_rounded_rope(model: Model, prompt: str) -> None:
    recorded = AR[f"{prompt}_prefill_logits_last_bf16rope"]
    rounded, exact = (SlowAR(model, rope)(AR[f"{prompt}_prompt"]).logits[-1] for rope in ("bf16", "exact"))
    assert farthest(rounded, recorded) < LOGITS
    assert farthest(exact, recorded) > 1e-2


@pytest.mark.parametrize("prompt", ["A", "B"])
def test_greedy_frames(model: Model, prompt: str) -> None:
    out = generate(model, AR[f"{prompt}_prompt"], META["frames"], META["im_end"])
    assert np.array_equal(out.frames, AR[f"{prompt}_frames"])
    assert not out.ended
    assert farthest(out.slow_logits, AR[f"{prompt}_slow_logits"]) < LOGITS
    assert farthest(out.slow_hidden, AR[f"{prompt}_slow_hidden"]) < HIDDEN
    assert farthest(out.fast_logits, AR[f"{prompt}_fast_logits"]) < LOGITS


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_greedy_frames_of_a_conversation(model: Model, batch: int) -> None:
    prompt, output = AR[f"long_prompt_{batch}"], AR[f"long_output_{batch}"]
    spoken = output[:, prompt.shape[1] :]
    assert np.array_equal(generate(model, prompt, spoken.shape[1], META["im_end"]).frames, spoken)


def test_generation_stops_before_the_frame_of_the_end_token(model: Model) -> None:
    class EndsAfterThree:
        def token(self, logits: Array) -> int:
            self.left -= 1
            return int(logits.argmax()) if self.left >= 0 else META["im_end"]

        def code(self, codebook: int, logits: Array) -> int:
            return int(logits.argmax())

        left = 3

    out = generate(model, AR["A_prompt"], 24, META["im_end"], EndsAfterThree())
    assert out.ended
    assert np.array_equal(out.frames, AR["A_frames"][:, :3])
    assert len(out.slow_logits) == 4


def test_decode(model: Model) -> None:
    trace: dict[str, Array] = {}
    wave = Decoder(model)(CODEC["dec_codes"], trace=trace)
    assert farthest(wave, CODEC["dec_wave"]) < WAVE
    assert len(trace) == 9
    for name, activation in trace.items():
        recorded = CODEC[f"dec_{name}"]  # of some blocks only the first columns
        assert farthest(activation[:, : recorded.shape[1]], recorded) < ACTIVATION, name


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_decode_in_pieces(model: Model, frames: int) -> None:
    pieces = in_pieces(Decoder(model), CODEC["dec_codes"], frames)
    assert farthest(pieces, CODEC["dec_wave"]) < WAVE
    assert farthest(pieces, Decoder(model)(CODEC["dec_codes"])) < 1e-13


def test_codes_out_of_range_are_clamped(model: Model) -> None:
    codes = CODEC["dec_codes"]
    limits = np.array([META["codebook_size"], *9 * [META["residual_codebook_size"]]])[:, None]
    assert (codes >= limits).any()
    decoder = Decoder(model)
    assert np.array_equal(decoder(codes[:, :4] - 1), decoder(np.clip(codes[:, :4] - 1, 0, limits - 1)))
    assert np.array_equal(decoder(codes), decoder(np.minimum(codes, limits - 1)))


@pytest.mark.parametrize("clip", ["short", "long"])
def test_encode(model: Model, clip: str) -> None:
    trace: dict[str, Array] = {}
    codes, margins = Encoder(model)(CODEC[f"enc_{clip}_pcm16"] / 32768, trace)
    recorded = CODEC[f"enc_{clip}_codes"]
    assert codes.shape == recorded.shape
    # Codebooks after a near-tie are given another remainder.
    certain = np.logical_and.accumulate(CODEC[f"enc_{clip}_margin"] > 1e-5)
    assert np.array_equal(codes[certain], recorded[certain])
    assert certain.all()
    assert farthest(margins, CODEC[f"enc_{clip}_margin"]) < ACTIVATION
    if clip == "short":
        assert farthest(trace["latent"], CODEC["enc_short_latent"]) < 2 * ACTIVATION
        assert farthest(trace["pre_module"], CODEC["enc_short_pre_module"]) < ACTIVATION


def test_float32_on_request() -> None:
    model = load(GOLDEN / "tiny-f32.gguf", np.float32)
    out = generate(model, AR["A_prompt"], 4, META["im_end"])
    wave = Decoder(model)(CODEC["dec_codes"][:, :8])
    assert out.slow_logits.dtype == out.fast_logits.dtype == wave.dtype == np.float32
    assert np.array_equal(out.frames, AR["A_frames"][:, :4])
    assert farthest(wave, CODEC["dec_wave"][: len(wave)]) < 2 * WAVE


def test_steps_agree_with_one_pass(odd: Model) -> None:
    """Of both transformers, on sizes of every other kind."""
    slow, fast, config = SlowAR(odd), FastAR(odd), odd.config.slow
    random = np.random.default_rng(0)
    prompt = np.zeros((7, 9), int)
    prompt[0] = random.integers(0, 250, 9)
    out = generate(odd, prompt, 12, im_end=256)
    columns = np.concatenate([prompt, out.frames], axis=1)
    whole = slow(columns)
    assert farthest(out.slow_logits, whole.logits[8:]) < 1e-12
    for index in range(12):
        logits = fast.logits(whole.fast_input[8 + index], out.frames[1:, index])
        assert farthest(out.fast_logits[index], logits) < 1e-12
    assert config.semantic_begin <= out.frames[0].min() <= out.frames[0].max() <= config.semantic_end
    assert len(np.unique(out.frames)) > 10
    branch = Cache()
    slow(columns[:, :10], branch)
    slow(columns[:, :3], branch.copy())
    assert farthest(slow(columns[:, 10:], branch).logits, whole.logits[10:]) < 1e-12


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_pieces_agree_with_the_whole(odd: Model, frames: int) -> None:
    codes = np.random.default_rng(1).integers(0, 32, (6, 17))
    whole = Decoder(odd)(codes)
    assert len(whole) == 17 * 72
    assert whole.std() > 0.01
    assert farthest(in_pieces(Decoder(odd), codes, frames), whole) < 1e-12


def test_encoding_is_causal(odd: Model) -> None:
    samples = np.random.default_rng(2).uniform(-0.5, 0.5, 72 * 11 + 1)
    codes, margins = Encoder(odd)(samples)
    assert codes.shape == margins.shape == (6, 12)
    start, _ = Encoder(odd)(samples[: 72 * 5])
    assert np.array_equal(start, codes[:, :5])
    assert len(np.unique(codes[0])) > 3


@pytest.mark.parametrize(("dtype", "distance"), [(GgmlType.BF16, 2**-8), (GgmlType.Q8_0, 0.01)])
def test_weights_of_other_types(tmp_path: Path, dtype: GgmlType, distance: float) -> None:
    quants = pytest.importorskip("gguf.quants")

    def quantise(rows: npt.NDArray[np.float32], kind: GgmlType) -> npt.NDArray[np.uint8]:
        return quants.quantize(rows, int(kind))

    for kind in (GgmlType.F32, dtype):
        make_model(tmp_path / f"{kind.name}.gguf", seed=4, dtype=kind, quantise=quantise)
    exact, stored = (load(tmp_path / f"{kind.name}.gguf") for kind in (GgmlType.F32, dtype))
    for name, values in exact.tensors.items():
        assert farthest(stored[name], values) <= distance * np.abs(values).max(), name
    assert any((stored[name] != values).any() for name, values in exact.tensors.items())


def test_filters_come_before_temperature() -> None:
    logits = np.log([0.05, 0.5, 0.15, 0.3])
    kept = probabilities(logits, Sampling(temperature=0.5, top_p=0.85, top_k=30))
    assert np.allclose(kept, [0, 0.25 / 0.34, 0, 0.09 / 0.34])
    assert np.allclose(probabilities(logits, Sampling(1.0, 0.99, 3)), np.array([0, 0.5, 0.15, 0.3]) / 0.95)
    # What crosses top_p is dropped; the likeliest never.
    assert np.array_equal(probabilities(logits, Sampling(1.0, 0.1, 30)), [0, 1, 0, 0])
    assert np.array_equal(probabilities(logits, Sampling(1.0, 1.0, 1)), [0, 1, 0, 0])


def test_draws_follow_the_probabilities() -> None:
    random, sampling, logits = np.random.default_rng(5), Sampling(0.7, 0.95, 6), np.linspace(2, -2, 12)[::-1]
    draws = [draw(logits, sampling, random.gumbel(size=6)) for _ in range(5000)]
    assert farthest(np.bincount(draws, minlength=12) / 5000, probabilities(logits, sampling)) < 0.03
    with pytest.raises(ValueError, match="noise for 3 ranks"):
        draw(logits, sampling, random.gumbel(size=3))


def test_repeated_tokens_are_drawn_again() -> None:
    """But the first frame's token is none that a later one repeats, and end tokens are never drawn again."""
    config = replace(load(GOLDEN / "tiny-f32.gguf").config.slow, semantic_begin=1, semantic_end=3)
    logits = np.log([0.05, 0.6, 0.25, 0.1])
    noise = np.zeros((14, 11, 4))
    noise[:, 1, 1] = 9.0  # the second draw takes the second likeliest
    drawn = Drawn(config, Sampling(1.0, 0.5, 30), noise)
    assert [drawn.token(logits) for _ in range(14)] == [1, 1, *10 * [2], 1, 2]
    assert drawn.redrawn == [*range(2, 12), 13]
    ends = Drawn(config, Sampling(1.0, 0.5, 30), noise)
    assert [ends.token(logits[[1, 0, 2, 3]]) for _ in range(5)] == 5 * [0]
    assert not ends.redrawn


def in_pieces(decoder: Decoder, codes: npt.NDArray[np.integer], frames: int) -> Array:
    state = DecoderState()
    return np.concatenate([decoder(codes[:, at : at + frames], state) for at in range(0, codes.shape[1], frames)])
