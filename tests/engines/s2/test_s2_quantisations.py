"""Every variant of the public model loads, and computes nearly what its weights in full precision give."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fishs2_daemon.engines.s2.codec import Decoder
from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend, DType, dequantize
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile, TensorInfo
from fishs2_daemon.engines.s2.gguf_writer import write_gguf
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.placement import converted
from fishs2_daemon.engines.s2.sampling import Sampling
from fishs2_daemon.engines.s2.tiny import QUANTISATIONS, TINY, make_model, metadata, plan

#: Rows of whole blocks of 256, and two layers: of a mixture's types one has the better, the other the base.
GEOMETRY = replace(
    TINY, layers=2, width=256, heads=4, kv_heads=2, head_dim=64, ffn=256, codebooks=4, codec_layers=1,
    fast_layers=2, fast_width=256, fast_heads=4, fast_kv_heads=2, fast_head_dim=64, fast_ffn=256,
)  # fmt: skip

FRAMES = 5

#: Root mean squares of what logits may differ by, in those of the logits: from the same values in F32, which shows that
#: the type is read and multiplied correctly; then the slow ones, and the fast ones, from the weights before they were
#: quantised. Made-up weights lose more than trained ones do: they are spread evenly, and no layer corrects another.
#: Measured on a processor, in this order and to two digits, for each of them:
DISTANCES = [
    ("f32", 1e-6, 1e-6, 1e-6),  # 0, 0, 0
    ("f16", 0.0035, 0.0035, 0.0021),  # 0.0023, 0.0023, 0.0014
    ("bf16", 0.008, 0.013, 0.008),  # 0.0053, 0.0084, 0.0051
    ("q8_0", 0.025, 0.034, 0.021),  # 0.017, 0.022, 0.014
    ("q6_k", 0.037, 0.085, 0.053),  # 0.024, 0.057, 0.035
    ("q5_k_m", 0.038, 0.17, 0.09),  # 0.025, 0.11, 0.060
    ("q4_k_m", 0.036, 0.30, 0.17),  # 0.024, 0.20, 0.12
    ("q3_k", 0.036, 0.73, 0.40),  # 0.024, 0.49, 0.27
    ("q2_k", 0.039, 1.0, 0.68),  # 0.026, 0.83, 0.45
]

PROMPT = np.zeros((1 + GEOMETRY.codebooks, 32), np.int32)
PROMPT[0] = np.arange(32) * 8
PROMPT[:, 24:] = np.arange(8)  # codes, too
PROMPT[0, 24:] += GEOMETRY.vocabulary.semantic_begin

CODES = np.random.default_rng(1).integers(0, GEOMETRY.codebook_size, (32, GEOMETRY.codebooks))


@dataclass(frozen=True, slots=True)
class Logits:
    slow: npt.NDArray[np.float32]  # [T, codebook_size + 1]
    fast: npt.NDArray[np.float32]  # [T, K - 1, codebook_size]
    fast_input: npt.NDArray[np.float32]  # [T, width]

    @classmethod
    def of(cls, generator: Generator, fast_input: npt.NDArray[np.float32] | None = None) -> "Logits":
        """`fast_input` makes what the fast transformer is given the same for all files."""
        trace = generator.slow_logits(PROMPT)
        given = trace.fast_input if fast_input is None else fast_input
        return cls(trace.logits, generator.fast_logits(given, CODES), given)


@contextmanager
def loaded(path: Path, backend: Backend) -> Iterator[tuple[Model, Generator]]:
    with Model.load(path, backend, im_end=GEOMETRY.vocabulary.im_end, skip=converted) as model:
        generator = Generator(model, context=128)
        yield model, generator
        generator.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


@pytest.fixture(scope="module")
def exact(backend: Backend, folder: Path) -> Logits:
    make_model(folder / "exact.gguf", GEOMETRY, seed=6, dtype=QUANTISATIONS["f32"])
    with loaded(folder / "exact.gguf", backend) as (_, generator):
        return Logits.of(generator)


def distance(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """The root mean square of the difference, in that of what is wanted."""
    return float(np.sqrt(np.mean(np.square(found - wanted)) / np.mean(np.square(wanted))))


def exactly_its_values(path: Path, target: Path) -> None:
    """A file of the same values, all in F32."""
    config = GEOMETRY.config()
    with GgufFile.open(path) as file:

        def values(info: TensorInfo) -> list[bytes]:
            found = file.tensors[info.name]
            rows = file.data(info.name).reshape(prod(found.shape[1:]), -1)
            return [dequantize(rows, DType[found.type.name]).tobytes()]

        write_gguf(target, metadata(config, GgmlType.F32), plan(config, GgmlType.F32), values)


@pytest.mark.parametrize(("name", "own", "slow", "fast"), DISTANCES)
def test_a_variant_loads_and_speaks_with_logits_near_those_of_full_precision(
    backend: Backend, folder: Path, exact: Logits, name: str, own: float, slow: float, fast: float
) -> None:
    path = folder / f"{name}.gguf"
    make_model(path, GEOMETRY, seed=6, dtype=QUANTISATIONS[name])
    with loaded(path, backend) as (model, generator):
        found = Logits.of(generator, exact.fast_input)
        generator.prefill(0, PROMPT)
        generator.start(0, Sampling(top_k=1, max_frames=FRAMES))
        frames = [frame for _ in range(FRAMES) if (frame := generator.step([0])[0]) is not None]
        with Decoder(model) as decoder:
            samples = decoder.open_stream().decode(np.stack(frames, axis=1))
    assert distance(found.slow, exact.slow) < slow
    assert distance(found.fast, exact.fast) < fast
    assert len(frames) == FRAMES
    assert samples.shape == (FRAMES * 2048,)
    assert np.isfinite(samples).all()
    assert 0.001 < np.sqrt(np.mean(np.square(samples))) < 0.5

    exactly_its_values(path, folder / "values.gguf")
    with loaded(folder / "values.gguf", backend) as (_, generator):
        same = Logits.of(generator, exact.fast_input)
    assert distance(found.slow, same.slow) < own
    assert distance(found.fast, same.fast) < own


def test_the_mixtures_are_mixed(folder: Path) -> None:
    make_model(folder / "mixed.gguf", GEOMETRY, dtype=QUANTISATIONS["q4_k_m"])
    with GgufFile.open(folder / "mixed.gguf") as file:
        kinds = {name: info.type for name, info in file.tensors.items()}
    assert [kinds[f"layers.{index}.attention.wqkv.weight"] for index in (0, 1)] == [GgmlType.Q4_K, GgmlType.Q6_K]
    assert [kinds[f"layers.{index}.feed_forward.w1.weight"] for index in (0, 1)] == [GgmlType.Q4_K, GgmlType.Q4_K]
    assert (kinds["embeddings.weight"], kinds["fast_output.weight"]) == (GgmlType.Q4_K, GgmlType.Q6_K)
    assert {kind for name, kind in kinds.items() if name.startswith("c.") or "norm" in name} == {GgmlType.F16}
