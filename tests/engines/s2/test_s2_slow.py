"""The slow transformer, against what was recorded from the official classes and against the numpy reference.

Largest absolute differences reached: F32 file, logits 1.9e-5 and hidden 6.2e-6 on exact angles, last logits 8.1e-6 on
rounded ones; F16 file, logits 1.7e-3 rms relative.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from fishs2_daemon.engines.s2 import kv
from fishs2_daemon.engines.s2.config import ModelConfig
from fishs2_daemon.engines.s2.ggml import Backend, DType
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.slow import SlowAR
from fishs2_daemon.engines.s2.tiny import TINY, Geometry, make_model
from fishs2_daemon.errors import EngineError
from tests.engines.s2 import reference

GOLDEN = Path(__file__).parents[2] / "golden"
META = json.loads((GOLDEN / "golden_meta.json").read_text())
AR = np.load(GOLDEN / "golden_ar.npz")
HEAD = [*range(META["semantic_begin"], META["semantic_end"] + 1), META["im_end"]]


class Biased(Geometry):
    """With all that the official classes allow and S2 Pro lacks."""

    def config(self) -> ModelConfig:
        whole = super().config()
        return replace(whole, slow=replace(whole.slow, qkv_bias=True, o_bias=True, scale_embeddings=False))


ODD = replace(TINY, layers=2, width=48, heads=6, kv_heads=3, head_dim=20, ffn=72, tied_head=False, qk_norm=False)
GEOMETRIES = {
    "odd": replace(ODD, codebooks=6, codebook_size=32, rope_base=5e4),
    "many codes": replace(TINY, layers=1, codebook_size=1500, codebooks=3, tied_head=False),
    "biased": Biased(layers=2, heads=3, kv_heads=1, head_dim=16),
}


def slow_of(model: Model, rope: Literal["bf16", "f32"] = "f32", kv_type: DType = DType.F32) -> SlowAR:
    return SlowAR(model, slots=2, context=1200, rope=rope, kv_type=kv_type)


def far(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())


def rms_relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def random_prompt(config: ModelConfig, length: int) -> np.ndarray:
    """Text and frames by turns of a few columns."""
    random, slow = np.random.default_rng(5), config.slow
    semantic = np.arange(length) // 7 % 2 == 1
    codes = random.integers(0, slow.codebook_size, (slow.codebooks, length)) * semantic
    tokens = np.where(semantic, codes[0] + slow.semantic_begin, random.integers(0, slow.semantic_begin, length))
    return np.concatenate([tokens[None], codes]).astype(np.int32)


@pytest.mark.parametrize("prompt", ["A", "B"])
def test_equals_the_official_prefill(backend: Backend, prompt: str) -> None:
    with Model.load(GOLDEN / "tiny-f32.gguf", backend, im_end=META["im_end"]) as model:
        trace = slow_of(model).trace(1, AR[f"{prompt}_prompt"])
        assert far(trace.logits, AR[f"{prompt}_prefill_logits_all"][:, HEAD]) < 1e-4
        assert far(trace.hidden, AR[f"{prompt}_prefill_hidden_all"]) < 1e-4


@pytest.mark.parametrize("prompt", ["A", "B"])
def test_rounded_rope_is_the_official_engines(backend: Backend, prompt: str) -> None:
    recorded = AR[f"{prompt}_prefill_logits_last_bf16rope"][HEAD]
    with Model.load(GOLDEN / "tiny-f32.gguf", backend, im_end=META["im_end"]) as model:
        assert far(slow_of(model, "bf16").trace(0, AR[f"{prompt}_prompt"]).logits[-1], recorded) < 1e-4
        assert far(slow_of(model, "f32").trace(0, AR[f"{prompt}_prompt"]).logits[-1], recorded) > 5e-3


@pytest.mark.parametrize("prompt", ["A", "B"])
def test_f16_file(backend: Backend, prompt: str) -> None:
    with Model.load(GOLDEN / "tiny-f16.gguf", backend, im_end=META["im_end"]) as model:
        trace = slow_of(model, kv_type=DType.F16).trace(0, AR[f"{prompt}_prompt"])
        assert rms_relative(trace.logits, AR[f"{prompt}_prefill_logits_all"][:, HEAD]) < 3e-3
        assert rms_relative(trace.hidden, AR[f"{prompt}_prefill_hidden_all"]) < 3e-3


@pytest.mark.parametrize("rope", ["bf16", "f32"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_any_geometry_equals_the_reference(
    backend: Backend, tmp_path: Path, name: str, rope: Literal["bf16", "f32"]
) -> None:
    geometry, path = GEOMETRIES[name], tmp_path / "model.gguf"
    make_model(path, geometry, seed=3, dtype=GgmlType.F32)
    im_end = geometry.vocabulary.im_end
    columns = random_prompt(geometry.config(), 600)  # more than one piece, more than one step of cells
    wanted = reference.SlowAR(reference.load(path), "exact" if rope == "f32" else "bf16")(columns)
    first = geometry.config().slow.semantic_begin
    head = [*range(first, first + geometry.codebook_size), im_end]
    with Model.load(path, backend, im_end=im_end) as model:
        trace = slow_of(model, rope).trace(0, columns)
    assert far(trace.logits, wanted.logits[:, head]) < 1e-4
    assert far(trace.hidden, wanted.hidden) < 1e-4
    assert far(trace.fast_input, wanted.fast_input) < 1e-4


@pytest.mark.parametrize("attention", ["one kernel", "values by head", "values by position"])
def test_pieces_equal_the_whole(backend: Backend, monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
    if attention == "values by head":
        monkeypatch.setattr(kv, "is_fused", lambda *given: False)
    with Model.load(GOLDEN / "tiny-f32.gguf", backend, im_end=META["im_end"]) as model:
        columns, slow = random_prompt(model.config, 700), slow_of(model)
        slow.cache.fused = attention == "one kernel"
        whole, at = slow.trace(1, columns).hidden[-40:], 0
        for length in (1, 31, 33, 150, 445):
            slow.prefill(0, columns[:, at : at + length], at)
            at += length
        assert far(slow.trace(0, columns[:, at:], at).hidden, whole) < 2e-5
        assert far(slow.trace(1, columns[:, 660:], 660).hidden, whole) < 2e-5


@pytest.mark.parametrize("fused", [True, False])
def test_a_copy_is_as_good_as_what_was_read(backend: Backend, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    """In another slot, with something else in this one."""
    monkeypatch.setattr(kv, "is_fused", lambda *given: fused)
    with Model.load(GOLDEN / "tiny-f32.gguf", backend, im_end=META["im_end"]) as model:
        columns, slow = random_prompt(model.config, 300), slow_of(model)
        wanted = slow.trace(0, columns[:, 260:], 260).hidden
        slow.prefill(0, columns)
        whole = slow.trace(0, columns[:, 260:], 260).hidden
        assert far(whole, wanted) > 1e-2
        snapshot = slow.save(0, 260)
        slow.prefill(0, columns[:, ::-1])
        slow.load(1, snapshot)
        snapshot.close()
        assert far(slow.trace(1, columns[:, 260:], 260).hidden, whole) < 2e-5


#: Largest rms relative distance of a quantised file's logits from the same file's in F32, with random weights.
QUANTISED = {
    GgmlType.BF16: 0.01,
    GgmlType.Q8_0: 0.03,
    GgmlType.Q6_K: 0.07,
    GgmlType.Q5_K: 0.13,
    GgmlType.Q4_K: 0.25,
    GgmlType.Q3_K: 0.55,
    GgmlType.Q2_K: 0.9,
}


@pytest.mark.parametrize("dtype", QUANTISED, ids=lambda dtype: dtype.name)
def test_quantised_files(backend: Backend, tmp_path: Path, dtype: GgmlType) -> None:
    wide = replace(TINY, layers=1, width=256, heads=4, head_dim=64, ffn=256, tied_head=dtype is not GgmlType.Q4_K)
    wide = replace(wide, fast_layers=1, fast_width=256, fast_head_dim=64, fast_ffn=256, codebooks=3)
    hidden = []
    for kind in (GgmlType.F32, dtype):
        make_model(tmp_path / f"{kind.name}.gguf", wide, seed=1, dtype=kind)
        with Model.load(tmp_path / f"{kind.name}.gguf", backend, im_end=wide.vocabulary.im_end) as model:
            hidden.append(slow_of(model).trace(0, random_prompt(model.config, 100)).logits)
    assert 0 < rms_relative(hidden[1], hidden[0]) < QUANTISED[dtype]


def test_says_what_is_wrong_with_a_prompt(backend: Backend) -> None:
    with Model.load(GOLDEN / "tiny-f16.gguf", backend, im_end=META["im_end"]) as model:
        slow, good = slow_of(model), np.zeros((11, 4), np.int32)
        wrong = [good[:10], good[:, :0], good.astype(np.float32), good - 1, good + 64, good[0]]
        wrong += [np.concatenate([good[:1] + META["vocab_size"], good[1:]])]
        for columns in wrong:
            with pytest.raises(EngineError):
                slow.prefill(0, columns)
        for slot, start in ((2, 0), (-1, 0), (0, 1197), (0, -1)):
            with pytest.raises(EngineError):
                slow.prefill(slot, good, start)
        slow.prefill(1, good, 1196)
        with pytest.raises(EngineError, match="5000 positions"):
            SlowAR(model, slots=1, context=5000, rope="f32", kv_type=DType.F16)


def test_progress_and_a_codec_without_transformers(backend: Backend) -> None:
    told: list[float] = []
    with Model.load(GOLDEN / "tiny-f16.gguf", backend, told.append) as model:
        assert told == sorted(told)
        assert told[-1] == 1
        assert not model.has("layers.0.attention.wqkv.weight")
        assert model.has("c.decoder.model.0.conv.weight")
    with Model.load(GOLDEN / "tiny-f16.gguf", backend, skip=lambda name: name.endswith("conv.weight")) as model:
        assert not model.has("c.decoder.model.0.conv.weight")
        assert model.values("c.decoder.model.0.conv.weight").shape == (48, 64, 7)
        assert model.tensor("c.decoder.model.0.conv.bias").dtype is DType.F32
    with pytest.raises(EngineError, match="end token"):
        Model.load(GOLDEN / "tiny-f16.gguf", backend, im_end=META["vocab_size"])
