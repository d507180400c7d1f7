"""The fast transformer, against what was recorded from the official classes and against the numpy reference.

Largest absolute difference of logits reached: F32 file 7.2e-6; F16 file, 1.8e-3 rms relative.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from fishs2_daemon.engines.s2 import kv
from fishs2_daemon.engines.s2.config import ModelConfig
from fishs2_daemon.engines.s2.fast import FastAR
from fishs2_daemon.engines.s2.ggml import Backend, DType
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.tiny import TINY, Geometry, make_model
from tests.engines.s2 import reference

GOLDEN = Path(__file__).parents[2] / "golden"
META = json.loads((GOLDEN / "golden_meta.json").read_text())
AR = np.load(GOLDEN / "golden_ar.npz")


class Unlike(Geometry):
    """With all that the official classes allow and S2 Pro lacks."""

    def config(self) -> ModelConfig:
        whole = super().config()
        fast = replace(whole.fast, qk_norm=True, qkv_bias=True, o_bias=True, tied_head=True, normed_input=False)
        return replace(whole, fast=fast)


NARROW = replace(TINY, fast_width=40, fast_heads=4, fast_kv_heads=1, fast_head_dim=12, fast_ffn=56)
NARROW = replace(NARROW, layers=1, fast_layers=3, codebooks=6, codebook_size=32, rope_base=5e4)
GEOMETRIES = {
    "narrow": NARROW,
    "without bias": replace(NARROW, project_in_bias=False),
    "two codebooks": replace(TINY, layers=1, codebooks=2),
    "many codebooks, many codes": replace(TINY, layers=1, codebooks=18, codebook_size=1100),
    "unlike": Unlike(layers=1),
}


def golden_logits(backend: Backend, file: str, prompt: str, slots: int, kv_type: DType) -> np.ndarray:
    with Model.load(GOLDEN / file, backend, im_end=META["im_end"]) as model:
        fast = FastAR(model, slots=slots, rope="f32", kv_type=kv_type)
        return fast.logits(AR[f"{prompt}_slow_hidden"][:24], AR[f"{prompt}_frames"][1:].T)


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("prompt", ["A", "B"])
def test_equals_the_official_logits(backend: Backend, monkeypatch: pytest.MonkeyPatch, prompt: str, slots: int) -> None:
    wanted = AR[f"{prompt}_fast_logits"][:, 1:]
    for fused in (True, False):
        monkeypatch.setattr(kv, "is_fused", lambda *given, fused=fused: fused)
        assert np.abs(golden_logits(backend, "tiny-f32.gguf", prompt, slots, DType.F32) - wanted).max() < 1e-4
        found = golden_logits(backend, "tiny-f16.gguf", prompt, slots, DType.F16)
        assert np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) < 3e-3


@pytest.mark.parametrize("rope", ["bf16", "f32"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_any_geometry_equals_the_reference(
    backend: Backend, tmp_path: Path, name: str, rope: Literal["bf16", "f32"]
) -> None:
    geometry, path, random = GEOMETRIES[name], tmp_path / "model.gguf", np.random.default_rng(2)
    make_model(path, geometry, seed=4, dtype=GgmlType.F32)
    states = random.normal(size=(4, geometry.width)).astype(np.float32)
    codes = random.integers(0, geometry.codebook_size, (4, geometry.codebooks))
    wanted = reference.FastAR(reference.load(path), "exact" if rope == "f32" else "bf16")
    with Model.load(path, backend, im_end=geometry.vocabulary.im_end) as model:
        found = FastAR(model, slots=3, rope=rope, kv_type=DType.F32).logits(states, codes)
    for index in range(4):
        assert np.abs(found[index] - wanted.logits(states[index], codes[index])[1:]).max() < 1e-4
