"""What the engine says that it will take, against what it takes; and how many slots that makes."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from fishs2_daemon.engines.s2.codec import Decoder
from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend, Memory
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.memory import slots_for, weights_of
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.needs import RESERVE, Needs, lower_needs, needs
from fishs2_daemon.engines.s2.placement import decoder_skips, gatherable, lower_skips, upper_skips
from fishs2_daemon.engines.s2.tiny import QUANTISATIONS, TINY, make_model
from fishs2_daemon.engines.s2.tiny_geometry import S2_PRO
from fishs2_daemon.errors import EngineError

MB = 1 << 20
NEEDS = Needs(weights=5000 * MB, graphs=220 * MB, codec=80 * MB, voices=500 * MB, positions=600 * MB, stream=50 * MB)
ONCE = 5800 * MB + RESERVE

#: S2 Pro's proportions; a transformer whose graphs are larger than their headers.
SCALED = replace(
    TINY, layers=4, width=256, heads=8, kv_heads=2, head_dim=64, ffn=960, codebook_size=1024, decoder_width=64,
    encoder_width=4, text_pieces=12000, reserved_tokens=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scaled") / "model.gguf"
    make_model(path, SCALED, seed=1, dtype=GgmlType.F16)
    return path


@pytest.fixture(scope="module")
def model(backend: Backend, scaled: Path) -> Iterator[Model]:
    with Model.load(scaled, backend, im_end=SCALED.vocabulary.im_end, skip=decoder_skips) as model:
        yield model


def device(free: int, name: str = "cuda:0") -> Any:
    return SimpleNamespace(device=name, memory=lambda: Memory(free, 24 << 30))


@pytest.mark.parametrize(
    ("asked", "free", "slots"),
    [
        (0, ONCE + 650 * MB, 1),
        (0, ONCE + 650 * MB * 3 - 1, 2),
        (0, ONCE + 650 * MB * 3, 3),
        (0, ONCE + 650 * MB * 100, 8),
        (1, ONCE + 650 * MB * 100, 1),
        (20, ONCE + 650 * MB * 20, 20),
        (3, ONCE + 650 * MB * 3, 3),
    ],
)
def test_slots_on_a_gpu(asked: int, free: int, slots: int) -> None:
    assert slots_for(asked, NEEDS, device(free)) == slots


@pytest.mark.parametrize(("asked", "slots"), [(0, 2), (5, 5)])
def test_slots_on_a_processor(asked: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "MemTotal: 99 kB\nMemAvailable:   90000000 kB\nBuffers: 1 kB\n")
    assert slots_for(asked, NEEDS, device(0, "cpu")) == slots


def test_a_processor_has_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all that is there, which is what ggml says."""
    monkeypatch.setattr(Path, "read_text", lambda self: "MemTotal: 99000000 kB\nMemAvailable: 1000 kB\n")
    with pytest.raises(EngineError, match="and 0 MB are free"):
        slots_for(0, NEEDS, device(1 << 40, "cpu"))


@pytest.mark.parametrize("text", ["", "MemAvailable: many kB\n", "MemAvailable:\n"])
def test_ggml_is_believed_where_the_system_tells_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert slots_for(0, NEEDS, device(1 << 40, "cpu")) == 2


@pytest.mark.parametrize(
    ("asked", "free", "says"),
    [
        (0, ONCE + 650 * MB - 1, "1 slots need 6962 MB on cuda:0"),
        (0, 1000 * MB, "and 1000 MB are free"),
        (3, ONCE + 650 * MB * 2, "3 slots need 8262 MB on cuda:0"),
        (1, 0, r"\(weights 5000, graphs 812, voices 500, each slot 650 MB\), and 0 MB are free: fewer FISHS2_SLOTS"),
    ],
)
def test_too_little_memory_is_told_with_the_sums(asked: int, free: int, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        slots_for(asked, NEEDS, device(free))


def test_a_machine_that_tells_nothing_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert slots_for(0, NEEDS, device(1 << 40, "cpu")) == 2


@pytest.mark.parametrize(("slots", "context"), [(1, 255), (1, 1000), (2, 4000), (3, 1024)])
def test_keys_and_values_are_told_exactly(model: Model, slots: int, context: int) -> None:
    told = needs(SCALED.config(), 0, context=context, voices=0, fused=False)
    with closing(Generator(model, slots=slots, context=context)) as generator:
        assert generator.slow.cache.n_bytes == slots * told.positions


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
@pytest.mark.parametrize(("slots", "context"), [(1, 1000), (2, 4000), (4, 2048)])
def test_graphs_and_streams_are_told_within_a_factor_of_two(
    model: Model, slots: int, context: int, kv_type: Literal["f16", "f32"]
) -> None:
    with (
        closing(Generator(model, slots=slots, context=context, kv_type=kv_type)) as generator,
        Decoder(model, streams=slots, together=True) as decoder,
    ):
        generator.warm()
        decoder.warm(slots)
        told = needs(SCALED.config(), 0, context=context, voices=0, fused=generator.slow.cache.fused)
        taken = generator.n_bytes - generator.slow.cache.n_bytes + decoder.n_bytes
    assert taken / 2 < told.graphs + told.codec + slots * told.stream < taken * 2


def test_weights_are_those_that_lie_on_the_device(backend: Backend, scaled: Path) -> None:
    """Of the text embedding there are few rows there, and the codec's convolutions are larger."""
    with GgufFile.open(scaled) as file:
        told = weights_of(file, SCALED.config(), on_gpu=False)
        on_disk = sum(tensor.nbytes for tensor in file.tensors.values())
    with (
        Model.load(scaled, backend, im_end=SCALED.vocabulary.im_end, skip=decoder_skips) as model,
        Decoder(model),
    ):
        taken = model.n_bytes
    assert abs(told - taken) < 0.01 * taken
    assert abs(on_disk - taken) > 0.05 * taken  # else this test could not tell


@pytest.mark.parametrize("quant", ["f16", "q8_0", "q6_k", "q4_k_m"])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_weights_of_every_type_are_told(
    backend: Backend, tmp_path: Path, quant: str, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU gathers from few types; its tables are F16 then. Rows of all matrices are whole blocks of 256."""
    geometry = replace(SCALED, ffn=1024, fast_width=256, fast_heads=4, fast_head_dim=64, fast_ffn=256)
    path = tmp_path / "model.gguf"
    make_model(path, geometry, dtype=QUANTISATIONS[quant])
    if on_gpu:
        monkeypatch.setattr(Model, "_gatherable", lambda self, dtype: gatherable(GgmlType[dtype.name], on_gpu=True))
    with GgufFile.open(path) as file:
        told, other = (weights_of(file, geometry.config(), on_gpu=each) for each in (on_gpu, not on_gpu))
    with Model.load(path, backend, im_end=geometry.vocabulary.im_end, skip=decoder_skips) as model, Decoder(model):
        taken = model.n_bytes
    assert abs(told - taken) < 0.01 * taken
    assert (told != other) == quant.endswith(("k", "k_m"))


def test_s2_pro_fits_where_it_is_said_to() -> None:
    """With two slots of 4096 positions."""
    told = needs(S2_PRO.config(), 0, context=4096, voices=0, fused=True)
    # 2 * 36 layers * 8 heads * 128 * 4352 cells in F16
    assert told.positions == 641_728_512
    # The decoder's graphs take 82 MB; measured.
    assert 80 * MB < told.codec < 100 * MB
    assert told.graphs < 150 * MB
    assert told.stream < 10 * MB


# With the first layers elsewhere


def test_too_little_memory_of_a_gpu_names_the_way_out() -> None:
    with pytest.raises(EngineError, match="with fewer FISHS2_N_GPU_LAYERS the processor does the others"):
        slots_for(1, NEEDS, device(0))


def test_too_little_memory_of_a_processor_has_no_such_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "MemAvailable: 1000 kB\n")
    with pytest.raises(EngineError, match="on cpu") as caught:
        slots_for(1, NEEDS, device(0, "cpu"))
    assert "N_GPU_LAYERS" not in str(caught.value)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_weights_of_a_split_lie_on_two_devices(backend: Backend, scaled: Path, n: int) -> None:
    """All but the codebooks' embeddings, which lie on neither."""
    upper, lower = upper_skips(n), lower_skips(n)
    with GgufFile.open(scaled) as file:
        told = [weights_of(file, SCALED.config(), *skip, on_gpu=False) for skip in ((), (upper,), (lower,))]
    taken = []
    for skip in (decoder_skips, lambda name: decoder_skips(name) or upper(name), lower):
        with Model.load(scaled, backend, im_end=SCALED.vocabulary.im_end, skip=skip) as model:
            taken.append(model.n_bytes)
    gone, lies_below = taken[0] - taken[1], taken[2]
    assert abs(told[0] - told[1] - gone) < 0.01 * gone
    assert abs(told[2] - lies_below) < 0.01 * lies_below
    assert lies_below < gone


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_split_is_told_for_both_devices(backend: Backend, scaled: Path, n: int) -> None:
    """Keys and values exactly, and the rest within a factor of two."""
    config, im_end, context = SCALED.config(), SCALED.vocabulary.im_end, 2000
    told = needs(config, 0, context=context, voices=400, fused=False, lower=n)
    told_lower = lower_needs(config, 0, context=context, voices=400, lower=n)
    assert (told.voices, told_lower.voices) == (400 - 100 * n, 100 * n)
    upper = upper_skips(n)
    with (
        Model.load(scaled, backend, im_end=im_end, skip=lambda name: decoder_skips(name) or upper(name)) as model,
        Model.load(scaled, backend, im_end=im_end, skip=lower_skips(n)) as lower_model,
        Decoder(model, streams=2, together=True) as decoder,
        closing(Generator(model, slots=2, context=context, lower=lower_model)) as generator,
    ):
        generator.warm()
        decoder.warm(2)
        layers = generator.slow.lower
        assert layers
        kept, lower_kept = generator.slow.cache.n_bytes, layers.stack.cache.n_bytes
        assert (kept, lower_kept) == (2 * told.positions, 2 * told_lower.positions)
        taken = generator.n_bytes - kept + decoder.n_bytes
        lower_taken = generator.lower_n_bytes - lower_kept
    assert taken / 2 < told.graphs + told.codec + 2 * told.stream < taken * 2
    assert lower_taken / 2 < told_lower.graphs < lower_taken * 2


def test_half_of_s2_pro_is_half_of_its_keys_and_values() -> None:
    config = S2_PRO.config()
    whole = needs(config, 0, context=4096, voices=0, fused=True)
    upper = needs(config, 0, context=4096, voices=0, fused=True, lower=18)
    lower = lower_needs(config, 0, context=4096, voices=0, lower=18)
    assert 2 * upper.positions == 2 * lower.positions == whole.positions
    assert upper.graphs == whole.graphs
    # Most of it is the scores of attention, which the processor writes down: of 512 tokens, 32 heads, 4352 cells.
    assert 1 < lower.graphs / (512 * 32 * 4352 * 4) < 1.5
