"""A model whose weights lie as the processor multiplies them fastest speaks as it did."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend, store
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.placement import decoder_skips
from fishs2_daemon.engines.s2.tiny import TINY, make_model

GEOMETRY = replace(
    TINY, layers=2, fast_layers=1, width=256, fast_width=256, ffn=512, fast_ffn=256, heads=8, fast_heads=8
)


def logits(path: Path, im_end: int, batch: int) -> np.ndarray:
    """Of a prompt, which is many columns at a time, and of its frame in a batch."""
    with (
        Backend.open("cpu", threads=2) as backend,
        Model.load(path, backend, im_end=im_end, skip=decoder_skips) as model,
    ):
        config = model.config.slow
        weights = model.tensor("layers.0.attention.wqkv.weight")
        assert weights.storage.repacked == store.repacks(backend, weights.dtype, weights.shape)
        columns = np.zeros((config.codebooks + 1, 40), np.int32)
        columns[0] = np.arange(40)
        with closing(Generator(model, slots=batch, context=256, rope="f32", kv_type="f32")) as generator:
            trace = generator.slow_logits(columns)
            codes = np.zeros((batch, config.codebooks), np.int32)
            fast = generator.fast_logits(trace.fast_input[:batch], codes)
        return np.concatenate([trace.logits.ravel(), fast.ravel()])


@pytest.mark.parametrize("codebook_size", [1024, 1100])
def test_its_logits_are_those_of_the_weights_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codebook_size: int
) -> None:
    geometry = replace(GEOMETRY, codebook_size=codebook_size)
    make_model(tmp_path / "model.gguf", geometry, seed=1, dtype=GgmlType.Q4_K)
    found = logits(tmp_path / "model.gguf", geometry.vocabulary.im_end, 4)
    monkeypatch.setattr(store, "repacks", lambda *asked: False)
    expected = logits(tmp_path / "model.gguf", geometry.vocabulary.im_end, 4)
    difference = np.abs(found - expected) / np.abs(expected).max()
    # Sums in another order round here and there an activation to the next of its 8 bits.
    assert np.quantile(difference, 0.5) < 1e-5
    assert np.sqrt(np.mean(difference**2)) < 0.01
