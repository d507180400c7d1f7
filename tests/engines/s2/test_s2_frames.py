"""Frames, one and several sequences at a time: against the recording, the reference, and each other."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend, DType, GraphBuilder
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.noise import Noise
from fishs2_daemon.engines.s2.sampling import RANKS, Sampling
from fishs2_daemon.engines.s2.stack import mask_rows
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from fishs2_daemon.errors import EngineError
from tests.engines.s2 import reference

GOLDEN = Path(__file__).parents[2] / "golden"
META = json.loads((GOLDEN / "golden_meta.json").read_text())
AR = np.load(GOLDEN / "golden_ar.npz")
PROMPTS = [AR["A_prompt"], AR["B_prompt"], AR["long_prompt_0"], AR["long_prompt_2"]]

GREEDY = Sampling(top_k=1, max_frames=24)


@pytest.fixture(scope="module")
def model(backend: Backend) -> Iterator[Model]:
    with Model.load(GOLDEN / "tiny-f32.gguf", backend, im_end=META["im_end"]) as model:
        yield model


@pytest.fixture(scope="module")
def generator(model: Model) -> Generator:
    """Exact in everything, with room for four."""
    return Generator(model, slots=4, context=1024, rope="f32", kv_type="f32")


def speak(generator: Generator, slots: Sequence[int], most: int = 100) -> list[np.ndarray]:
    """Codes `[K, n]` of each slot, stepped together until all of them end."""
    frames: dict[int, list[np.ndarray]] = {slot: [] for slot in slots}
    for _ in range(most):
        made = dict(zip(slots, generator.step(slots), strict=True))
        for slot, codes in made.items():
            if codes is not None:
                frames[slot].append(codes)
        if all(codes is None for codes in made.values()):
            break
    return [np.array(frames[slot]).T for slot in slots]


@pytest.mark.parametrize("slot", [0, 3])
@pytest.mark.parametrize("prompt", ["A", "B"])
def test_greedy_frames_are_the_official_ones(generator: Generator, prompt: str, slot: int) -> None:
    generator.prefill(slot, AR[f"{prompt}_prompt"])
    generator.start(slot, GREEDY)
    assert np.array_equal(speak(generator, [slot])[0], AR[f"{prompt}_frames"][1:])
    assert generator.finish(slot) == "length"


@pytest.mark.parametrize("prompt", ["A", "B"])
def test_greedy_frames_of_f16(backend: Backend, prompt: str) -> None:
    """Equal up to the first near tie."""
    with Model.load(GOLDEN / "tiny-f16.gguf", backend, im_end=META["im_end"]) as model:
        generator = Generator(model, context=512, rope="f32")
        generator.prefill(0, AR[f"{prompt}_prompt"])
        generator.start(0, GREEDY)
        differ = np.argwhere((speak(generator, [0])[0] != AR[f"{prompt}_frames"][1:]).T)
    assert not len(differ) or AR[f"{prompt}_margins"].T[tuple(differ[0])] < 0.05


def test_four_together_are_each_alone(generator: Generator) -> None:
    alone = []
    for prompt in PROMPTS:
        generator.prefill(1, prompt)
        generator.start(1, GREEDY)
        alone += speak(generator, [1])
    for slot, prompt in enumerate(PROMPTS):
        generator.prefill(slot, prompt)
        generator.start(slot, GREEDY)
    for one, together in zip(alone, speak(generator, range(4)), strict=True):
        assert one.shape == (10, 24)
        assert np.array_equal(one, together)


def test_sequences_join_rest_and_leave(generator: Generator) -> None:
    """Whoever else is in the batch, prefilled, idle between running slots, or gone, nobody notices."""
    wanted = {}
    for slot, prompt in enumerate(PROMPTS):
        generator.prefill(slot, prompt)
        generator.start(slot, GREEDY)
        wanted[slot] = speak(generator, [slot])[0].T.tolist()
        generator.start(slot, GREEDY)
    found: dict[int, list[list[int]]] = {slot: [] for slot in wanted}
    for slots in ([0, 3], [3], [0, 1, 3], [1], [3, 1], [0, 1, 2, 3], [2], [0, 2], [0, 2, 3]) * 24:
        for slot, codes in zip(slots, generator.step(slots), strict=True):
            if codes is not None:
                found[slot].append(codes.tolist())
        if len(found[2]) == 3 and slots == [2]:
            generator.prefill(1, PROMPTS[1])
            generator.start(1, GREEDY)
            found[1].clear()
    assert found == wanted


def test_prefill_in_pieces(generator: Generator) -> None:
    prompt = AR["B_prompt"]
    generator.prefill(2, prompt[:, :100])
    generator.prefill(2, prompt[:, 60:61], 60)
    generator.prefill(2, prompt[:, 61:], 61)
    generator.start(2, GREEDY)
    assert np.array_equal(speak(generator, [2])[0], AR["B_frames"][1:])


@pytest.mark.parametrize("name", ["A", "B"])
def test_drawn_frames_are_the_references(generator: Generator, name: str) -> None:
    """With the engine's noise, repetition-aware sampling included."""
    prompt, model = AR[f"{name}_prompt"], reference.load(GOLDEN / "tiny-f32.gguf")
    source = Noise(11, codebooks=10, ranks=RANKS)
    noise = np.stack([source.frame() for _ in range(40)])
    drawn = reference.Drawn(model.config.slow, reference.Sampling(temperature=0.9, top_p=0.9, top_k=20), noise)
    wanted = reference.generate(model, prompt, 40, META["im_end"], drawn)
    assert drawn.redrawn
    generator.prefill(0, prompt)
    generator.start(0, Sampling(temperature=0.9, top_p=0.9, top_k=20, seed=11, max_frames=40))
    assert np.array_equal(speak(generator, [0])[0], wanted.frames[1:])
    assert generator.finish(0) == ("stop" if wanted.ended else "length")


def test_seeds(generator: Generator) -> None:
    def frames(slots: Sequence[int], seed: int) -> list[np.ndarray]:
        for slot in slots:
            generator.prefill(slot, PROMPTS[0])
            generator.start(slot, Sampling(seed=seed, max_frames=12))
        return speak(generator, slots)

    one = frames([1], 7)[0]
    assert np.array_equal(one, frames([1], 7)[0])
    assert np.array_equal(one, frames([3], 7)[0])
    assert all(np.array_equal(one, other) for other in frames([0, 2, 3], 7))
    assert not np.array_equal(one, frames([1], 8)[0])
    assert np.array_equal(frames([1], -1)[0], frames([1], (1 << 64) - 1)[0])


def test_the_seed_reaches_the_fast_codes(generator: Generator) -> None:
    """Frames of the same token and different codes."""
    seen: dict[int, set[tuple[int, ...]]] = {}
    generator.prefill(0, PROMPTS[0])
    for seed in range(20):
        generator.start(0, Sampling(seed=seed, max_frames=1))
        (codes,) = speak(generator, [0])[0].T.tolist()
        seen.setdefault(codes[0], set()).add(tuple(codes[1:]))
    assert max(map(len, seen.values())) > 1


@pytest.mark.parametrize(("top_k", "seeds", "redrawn_ends"), [(1, [0], 0), (30, [3, 4, 18, 30], 2)])
def test_ends_before_the_end_token_is_spoken(
    backend: Backend, ending: Path, top_k: int, seeds: list[int], redrawn_ends: int
) -> None:
    """Some of these seeds end by a second draw, where the first repeated a token."""
    known = reference.load(ending)
    with Model.load(ending, backend, im_end=META["im_end"]) as model:
        generator = Generator(model, context=512, rope="f32", kv_type="f32")
        generator.prefill(0, AR["A_prompt"])
        for seed in seeds:
            source = Noise(seed, codebooks=10, ranks=RANKS)
            noise = np.stack([source.frame() for _ in range(40)])
            drawn = reference.Drawn(known.config.slow, reference.Sampling(top_k=top_k), noise)
            wanted = reference.generate(known, AR["A_prompt"], 40, META["im_end"], drawn)
            redrawn_ends -= wanted.ended and wanted.frames.shape[1] in drawn.redrawn
            generator.start(0, Sampling(top_k=top_k, seed=seed, max_frames=40))
            assert np.array_equal(speak(generator, [0])[0], wanted.frames[1:])
            assert generator.finish(0) == ("stop" if wanted.ended else "length")
            assert generator.step([0]) == [None]
    assert redrawn_ends == 0


def test_limits_lose_no_frame(model: Model) -> None:
    generator = Generator(model, context=95, rope="f32", kv_type="f32")
    generator.prefill(0, PROMPTS[0])  # 87 columns
    generator.start(0, replace(GREEDY, max_frames=None))
    frames = speak(generator, [0])[0]
    # The last column's state gives a frame, and so does that of each of the eight that fit behind it.
    assert np.array_equal(frames, AR["A_frames"][1:, :9])
    assert generator.finish(0) == "length"
    generator.start(0, replace(GREEDY, max_frames=0))
    assert generator.step([0]) == [None]


@pytest.mark.parametrize("codebook_size", [24, 1100])
def test_other_sizes(backend: Backend, tmp_path: Path, codebook_size: int) -> None:
    """A head of its own, a projection, fewer candidates than ranks; and more than are sorted at once."""
    geometry = replace(TINY, layers=2, tied_head=False, qk_norm=False, fast_width=48, codebooks=4, head_dim=20)
    geometry = replace(geometry, codebook_size=codebook_size)
    path, im_end = tmp_path / "model.gguf", geometry.vocabulary.im_end
    make_model(path, geometry, seed=2, dtype=GgmlType.F32)
    prompt = np.zeros((5, 40), np.int32)
    prompt[0] = np.arange(40)
    source = Noise(3, codebooks=4, ranks=min(RANKS, codebook_size + 1))
    noise = np.stack([source.frame() for _ in range(30)])
    known = reference.load(path)
    drawn = reference.Drawn(known.config.slow, reference.Sampling(), noise)
    wanted = reference.generate(known, prompt, 30, im_end, drawn, rope="bf16")
    with Model.load(path, backend, im_end=im_end) as model:
        generator = Generator(model, context=128, kv_type="f32")
        generator.prefill(0, prompt)
        generator.start(0, Sampling(seed=3, max_frames=30))
        assert np.array_equal(speak(generator, [0])[0], wanted.frames[1:])


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("dtype", [GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q5_K, GgmlType.Q2_K], ids=lambda d: d.name)
def test_quantised_files_speak(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: GgmlType, on_gpu: bool
) -> None:
    """A GPU cannot gather rows of K-quants, and gets those tables in F16: which the processor can run as well."""
    if on_gpu:
        monkeypatch.setattr(Model, "_gatherable", lambda self, dtype: not dtype.is_quantised or dtype is DType.Q8_0)
    wide = replace(TINY, layers=1, width=256, heads=4, head_dim=64, ffn=256, codebooks=3)
    wide = replace(wide, fast_layers=1, fast_width=256, fast_head_dim=64, fast_ffn=256)
    path, im_end = tmp_path / "model.gguf", wide.vocabulary.im_end
    make_model(path, wide, seed=1, dtype=dtype)
    with Model.load(path, backend, im_end=im_end) as model:
        kept = on_gpu and dtype in (GgmlType.Q5_K, GgmlType.Q2_K)
        assert model.tensor("fast_embeddings.weight").dtype is (DType.F16 if kept else DType[dtype.name])
        assert model.tensor("layers.0.attention.wqkv.weight").dtype is DType[dtype.name]
        generator = Generator(model, context=128)
        generator.prefill(0, np.tile(np.int32([[5], [0], [0], [0]]), 20))
        generator.start(0, Sampling(max_frames=6))
        frames = speak(generator, [0])[0]
    assert frames.shape == (3, 6)
    assert 0 <= frames.min() <= frames.max() < wide.codebook_size


def test_weights_that_are_no_numbers(backend: Backend, tmp_path: Path) -> None:
    """Whatever comes of them, it is codes."""
    path = tmp_path / "model.gguf"
    shutil.copy(GOLDEN / "tiny-f32.gguf", path)
    with GgufFile.open(path) as file:
        offsets = [file.tensors[name].offset for name in ("norm.weight", "fast_norm.weight")]
    with path.open("r+b") as raw:
        for offset, value in zip(offsets, (np.nan, np.inf), strict=True):
            raw.seek(offset)
            raw.write(np.full(4, value, np.float32).tobytes())
    with Model.load(path, backend, im_end=META["im_end"]) as model:
        generator = Generator(model, context=256)
        generator.prefill(0, PROMPTS[0])
        generator.start(0, Sampling(max_frames=5))
        frames = speak(generator, [0])[0]
    assert ((frames >= 0) & (frames < META["codebook_size"])).all()


def test_wrong_use(backend: Backend, model: Model) -> None:
    generator = Generator(model, slots=2, context=200)
    with pytest.raises(EngineError, match="no prompt"):
        generator.start(0, GREEDY)
    with pytest.raises(EngineError, match="not started"):
        generator.step([0])
    with pytest.raises(EngineError, match="cannot go on"):
        generator.prefill(0, PROMPTS[0], 1)
    with pytest.raises(EngineError, match="no slot"):
        generator.prefill(2, PROMPTS[0])
    with pytest.raises(EngineError, match="context"):
        generator.prefill(0, PROMPTS[3])
    assert generator.step([]) == []
    with Model.load(GOLDEN / "tiny-f16.gguf", backend) as codec_only, pytest.raises(EngineError, match="transformers"):
        Generator(codec_only)


def test_two_frames_in_flight_are_those_one_after_the_other(generator: Generator) -> None:
    """Each is read while the next one is computed, and the batch changes meanwhile."""
    wanted = []
    for prompt in PROMPTS[:3]:
        generator.prefill(1, prompt)
        generator.start(1, GREEDY)
        wanted.append(speak(generator, [1])[0].T.tolist())
    found: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}
    for slot, prompt in enumerate(PROMPTS[:3]):
        generator.prefill(slot, prompt)
        generator.start(slot, GREEDY)
    for step in range(60):
        generator.submit([slot for slot in found if step >= 3 * slot or step % 2])
        assert generator.in_flight <= 2
        if generator.in_flight == 2 or step > 40:
            for slot, codes in generator.collect().items():
                found[slot].append(codes.tolist())
    while generator.in_flight:
        for slot, codes in generator.collect().items():
            found[slot].append(codes.tolist())
    assert generator.collect() == {}
    assert list(found.values()) == wanted
    assert all(generator.is_over(slot) and generator.finish(slot) == "length" for slot in found)


def test_no_more_than_two_frames_in_flight(generator: Generator) -> None:
    generator.prefill(0, PROMPTS[0])
    generator.start(0, GREEDY)
    generator.submit([0])
    generator.submit([0])
    with pytest.raises(EngineError, match="collect one"):
        generator.submit([0])
    frames = [generator.collect()[0].tolist() for _ in range(2)]
    assert frames == AR["A_frames"][1:, :2].T.tolist()
    # The one that was refused was not started, so it comes yet.
    assert generator.step([0])[0].tolist() == AR["A_frames"][1:, 2].tolist()


def test_frames_in_flight_of_a_text_that_was_stopped_are_nobody_s(generator: Generator) -> None:
    for change in ("rest", "prefill", "start", "load"):
        generator.prefill(0, PROMPTS[1])
        snapshot = generator.save(0, 40)
        generator.start(0, GREEDY)
        generator.submit([0])
        match change:
            case "rest":
                generator.rest(0, 0)
            case "prefill":
                generator.prefill(0, PROMPTS[0])
            case "start":
                generator.start(0, GREEDY)
            case "load":
                generator.load(0, snapshot)
        assert generator.collect() == {}
        snapshot.close()
        generator.prefill(0, PROMPTS[0])
        generator.start(0, GREEDY)
        assert np.array_equal(speak(generator, [0])[0], AR["A_frames"][1:])


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("kept", [0, 3, 5])
def test_a_slot_at_rest_holds_what_counts(generator: Generator, kept: int, ahead: int) -> None:
    """The prompt, and of five frames those that were kept; the last one was fed if another was started behind it."""
    length = PROMPTS[0].shape[1]
    generator.prefill(0, PROMPTS[0])
    generator.start(0, GREEDY)
    for _ in range(5 + ahead):
        generator.submit([0])
        if generator.in_flight > ahead:
            generator.collect()
    known = generator.rest(0, kept)
    assert known == length + min(kept, 4 + ahead)
    with pytest.raises(EngineError, match="cannot go on"):
        generator.prefill(0, PROMPTS[0][:, :1], known + 1)
    codes = AR["A_frames"][1:, :kept]
    spoken = np.concatenate([codes[:1] + META["semantic_begin"], codes])
    whole = np.concatenate([PROMPTS[0], spoken, PROMPTS[2]], axis=1)
    generator.prefill(0, whole[:, known:], known)
    generator.prefill(3, whole)
    for slot in (0, 3):
        generator.start(slot, GREEDY)
    one, other = speak(generator, [0, 3])
    assert np.array_equal(one, other)
    generator.collect()


def test_no_end_before_the_least_frames(backend: Backend, ending: Path) -> None:
    """In a batch with one that has none, and ends when it does alone."""
    with Model.load(ending, backend, im_end=META["im_end"]) as model:
        generator = Generator(model, slots=2, context=512, rope="f32", kv_type="f32")
        for slot in (0, 1):
            generator.prefill(slot, AR["A_prompt"])
        stopped = 0
        for seed in range(8):
            drawn = Sampling(seed=seed, max_frames=70)
            generator.start(0, drawn)
            alone = speak(generator, [0])[0]
            n = alone.shape[1]
            for least in (n, n + 1, n + 4):
                generator.start(0, drawn)
                generator.start(1, replace(drawn, min_frames=least))
                one, other = speak(generator, [0, 1])
                assert np.array_equal(one, alone)
                assert other.shape[1] >= min(least, 70)
                stopped += generator.finish(1) == "stop" and least > n
        assert stopped > 2
        generator.close()


def test_what_is_warm_is_not_built_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does its memory move, whatever is asked for then. A processor's prompts have graphs of their own length."""
    generator = Generator(model, slots=3, context=600, rope="f32", kv_type="f32")
    generator.warm()
    arenas = generator.slow._graphs._arena, generator._frame._graphs._arena
    before = [arena.generation for arena in arenas]
    built: list[str] = []
    build = GraphBuilder.build
    monkeypatch.setattr(GraphBuilder, "build", lambda g, arena=None: built.append(g.name) or build(g, arena))
    for slot, prompt in enumerate(PROMPTS[:3]):
        generator.prefill(slot, np.tile(prompt, 3)[:, : 600 - 30])
        generator.prefill(slot, prompt)
        generator.start(slot, GREEDY)
    assert all(name.startswith("prefill") for name in built)
    built.clear()
    for slots in ([0], [1], [2], [0, 1], [0, 2], [0, 1, 2]):
        generator.step(slots)
    assert built == []
    generator.start(1, replace(GREEDY, min_frames=2))
    generator.step([0, 1])
    generator.step([1])
    assert len(built) == 2
    assert [arena.generation for arena in arenas] == before
    generator.close()


@pytest.mark.parametrize("context", [256, 600, 1024, 5000])
def test_answers_that_must_not_end_move_no_memory_either(model: Model, context: int) -> None:
    """Their graphs are larger; they are built when they are asked for."""
    with closing(Generator(model, slots=2, context=context, kv_type="f32")) as generator:
        generator.warm()
        before = generator._frame._graphs._arena.generation
        for cells in generator.slow.stack.cell_counts():
            for first, size in ((0, 2), (0, 1), (1, 1)):
                generator._frame.get(first, size, cells, endless=True)
        assert generator._frame._graphs._arena.generation == before


@pytest.mark.parametrize("context", [100, 255, 256, 257, 511, 512, 600, 2048, 4096, 5000, 8192])
def test_what_is_warm_are_the_sizes_that_are_asked_for(model: Model, context: int) -> None:
    with closing(Generator(model, slots=1, context=context)) as generator:
        stack = generator.slow.stack
        assert stack.cell_counts() == sorted({stack.cells_for(n) for n in range(1, generator.context + 1)})


@pytest.mark.parametrize(("heads", "kv_heads", "rows"), [(32, 8, 2), (32, 16, 4), (8, 8, 8), (9, 3, 8), (64, 4, 2)])
def test_masks_have_the_rows_that_cuda_looks_at(heads: int, kv_heads: int, rows: int) -> None:
    """By `ncols1` of its attention with eight columns; what lies behind a mask is another input's, or nobody's."""
    assert mask_rows(heads, kv_heads) == rows


def test_whoever_is_not_chosen_for_draws_from_numbers(model: Model) -> None:
    """A row without one is number -1 to CUDA's argmax, and indexes tables."""
    generator = Generator(model, slots=4, context=300)
    for first, batch in ((0, 1), (0, 2), (0, 4)):
        inputs = generator._frame.get(first, batch, 10).inputs
        assert (inputs["limits"] > 0).all()
        assert (inputs["coldness"] > 0).all()
    generator.close()
