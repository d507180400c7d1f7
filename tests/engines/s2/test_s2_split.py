"""The slow transformer's first layers on a device of their own: whatever is spoken, nobody hears where they are."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fishs2_daemon.engines.base import EngineOptions, Utterance
from fishs2_daemon.engines.s2 import loading, pulse
from fishs2_daemon.engines.s2.codec import Decoder
from fishs2_daemon.engines.s2.engine import S2Engine
from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend, GraphBuilder, Store
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.placement import lower_skips, upper_skips
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from fishs2_daemon.errors import EngineError
from fishs2_daemon.text.phrase import Phrase
from tests.engines.s2 import test_s2_frames as frames
from tests.engines.s2.batching.stage import QUICK, SLOTS, Machine
from tests.engines.s2.test_s2_frames import AR, GOLDEN, GREEDY, META, PROMPTS, speak

FILE = GOLDEN / "tiny-f32.gguf"
LAYERS = 3


@pytest.fixture(scope="module")
def processor() -> Iterator[Backend]:
    with Backend.open("cpu", threads=1) as backend:
        yield backend


@pytest.fixture(scope="module", params=range(1, LAYERS + 1), ids=lambda n: f"{n} of {LAYERS}")
def parts(backend: Backend, processor: Backend, request: pytest.FixtureRequest) -> Iterator[tuple[Model, Model]]:
    """The upper and the lower one."""
    with (
        Model.load(FILE, backend, im_end=META["im_end"], skip=upper_skips(request.param)) as upper,
        Model.load(FILE, processor, im_end=META["im_end"], skip=lower_skips(request.param)) as lower,
    ):
        yield upper, lower


@pytest.fixture(scope="module")
def generator(parts: tuple[Model, Model]) -> Iterator[Generator]:
    with closing(Generator(parts[0], slots=4, context=1024, rope="f32", kv_type="f32", lower=parts[1])) as generator:
        yield generator


def test_each_part_holds_its_layers_and_nothing_of_the_other(parts: tuple[Model, Model]) -> None:
    upper, lower = parts
    assert [*lower.slow_layers, *upper.slow_layers] == [*range(LAYERS)]
    for layer in range(LAYERS):
        name = f"layers.{layer}.feed_forward.w1.weight"
        assert (upper.has(name), lower.has(name)) == (layer in upper.slow_layers, layer in lower.slow_layers)
    for name in ("slow_head", "fast_head", "fast_embeddings.weight", "norm.weight", "c.decoder.model.0.conv.weight"):
        assert (upper.has(name), lower.has(name)) == (True, False)
    for name in ("codebook_embeddings.weight", "semantic_embeddings"):
        assert not upper.has(name)
        assert not lower.has(name)


def test_no_layer_elsewhere_is_nothing_left_out(backend: Backend) -> None:
    names = ("layers.0.attention.wo.weight", "slow_head", "semantic_embeddings", "codebook_embeddings.weight", "x")
    assert not any(map(upper_skips(0), names))
    assert all(map(lower_skips(0), names))
    assert not upper_skips(3)("fast_layers.0.attention.wo.weight")
    assert not upper_skips(1)("layers.11.attention.wo.weight")


# What is spoken is what one device speaks: the tests of that, with these generators


@pytest.mark.parametrize("prompt", ["A", "B"])
def test_greedy_frames_are_the_official_ones(generator: Generator, prompt: str) -> None:
    frames.test_greedy_frames_are_the_official_ones(generator, prompt, 2)


def test_four_together_are_each_alone(generator: Generator) -> None:
    frames.test_four_together_are_each_alone(generator)


def test_sequences_join_rest_and_leave(generator: Generator) -> None:
    frames.test_sequences_join_rest_and_leave(generator)


def test_prefill_in_pieces(generator: Generator) -> None:
    frames.test_prefill_in_pieces(generator)


@pytest.mark.parametrize("name", ["A", "B"])
def test_drawn_frames_are_the_references(generator: Generator, name: str) -> None:
    frames.test_drawn_frames_are_the_references(generator, name)


@pytest.mark.parametrize("kept", [0, 3, 5])
def test_a_slot_at_rest_holds_what_counts(generator: Generator, kept: int) -> None:
    frames.test_a_slot_at_rest_holds_what_counts(generator, kept, 0)


def test_the_golden_conversation(generator: Generator) -> None:
    """Of three batches, each behind what the slot holds already."""
    known = 0
    for batch in range(3):
        prompt, output = AR[f"long_prompt_{batch}"], AR[f"long_output_{batch}"]
        recorded = output[1:, prompt.shape[1] : -1]
        generator.prefill(1, prompt[:, known:], known)
        generator.start(1, replace(GREEDY, max_frames=recorded.shape[1]))
        assert np.array_equal(speak(generator, [1])[0], recorded)
        known = generator.rest(1, recorded.shape[1])
        assert known == output.shape[1] - 2


def test_logits_are_those_of_one_device(generator: Generator) -> None:
    trace = generator.slow_logits(PROMPTS[1])
    assert np.abs(trace.hidden - AR["B_prefill_hidden_all"]).max() < 1e-4
    assert trace.fast_input.shape == trace.hidden.shape


def test_no_frame_before_the_one_before_it_is_collected(generator: Generator) -> None:
    assert not generator.can_run_ahead
    generator.prefill(0, PROMPTS[0])
    generator.start(0, GREEDY)
    generator.submit([0])
    with pytest.raises(EngineError, match="collect one"):
        generator.submit([0])
    found = [generator.collect()[0].tolist(), *speak(generator, [0])[0].T.tolist()]
    assert found == AR["A_frames"][1:].T.tolist()


def test_rounded_rope_and_f16_keys_speak(parts: tuple[Model, Model]) -> None:
    upper, lower = parts
    with closing(Generator(upper, context=256, lower=lower)) as generator:
        generator.prefill(0, PROMPTS[0])
        trace = generator.slow_logits(PROMPTS[0]).logits[-1]
        head = [*range(META["semantic_begin"], META["semantic_end"] + 1), META["im_end"]]
        recorded = AR["A_prefill_logits_last_bf16rope"][head]
        assert np.sqrt(np.mean((trace - recorded) ** 2) / np.mean(recorded**2)) < 3e-3


# Snapshots


def test_a_snapshot_is_of_all_layers(generator: Generator) -> None:
    generator.prefill(0, PROMPTS[1])
    n = PROMPTS[1].shape[1] - 40
    snapshot = generator.save(0, n)
    kv_width = generator._model.config.slow.kv_width
    assert snapshot.n_bytes == n * generator.position_bytes == n * 2 * LAYERS * kv_width * 4
    generator.prefill(0, PROMPTS[2])
    generator.load(3, snapshot)
    generator.prefill(3, PROMPTS[1][:, n:], n)
    generator.start(3, GREEDY)
    assert np.array_equal(speak(generator, [3])[0], AR["B_frames"][1:])
    snapshot.close()
    snapshot.close()
    assert snapshot.lower
    assert not snapshot.lower.store.ready


def test_half_a_snapshot_is_none(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the other device has no room for its half."""
    made: list[Store] = []
    allocate = Store.allocate

    def once(store: Store) -> None:
        if made:
            raise EngineError("there is not enough memory")
        made.append(store)
        allocate(store)

    generator.prefill(0, PROMPTS[0])
    monkeypatch.setattr(Store, "allocate", once)
    with pytest.raises(EngineError, match="not enough memory"):
        generator.save(0, 10)
    assert [store.ready for store in made] == [False]


# Graphs


def test_what_is_warm_is_not_built_again(parts: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Save for prompts, which a processor builds for as they come."""
    upper, lower = parts
    with closing(Generator(upper, slots=2, context=400, rope="f32", kv_type="f32", lower=lower)) as generator:
        generator.warm()
        assert generator.slow.lower
        arena = generator.slow.lower._graphs._arena
        before = arena.generation, generator.lower_n_bytes
        assert before[1] > 0
        built: list[str] = []
        build = GraphBuilder.build
        monkeypatch.setattr(GraphBuilder, "build", lambda g, arena=None: built.append(g.name) or build(g, arena))
        for slot in (0, 1):
            generator.prefill(slot, np.tile(PROMPTS[slot], 3)[:, :370])
            generator.prefill(slot, PROMPTS[slot])
            generator.start(slot, GREEDY)
        for slots in ([0], [1], [0, 1]):
            generator.step(slots)
        assert [name for name in built if name.startswith("frame") or name.endswith(" x 1 tokens")] == []
        assert (arena.generation, generator.lower_n_bytes) == before


def test_parts_that_do_not_fit_together_are_told(backend: Backend, parts: tuple[Model, Model]) -> None:
    upper, lower = parts
    with pytest.raises(EngineError, match=r"of 3 layers, those that were loaded are \["):
        Generator(upper)
    with Model.load(FILE, backend, im_end=META["im_end"]) as whole, pytest.raises(EngineError, match="3 layers"):
        Generator(whole, lower=lower)


# The engine


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "codec.gguf"
    make_model(path, QUICK, seed=5)
    return path


async def test_listeners_hear_it_beside_each_other_and_from_a_warm_voice(generator: Generator, codec: Path) -> None:
    with (
        Backend.open("cpu", threads=1) as sound,
        Model.load(codec, sound) as codec_model,
        Decoder(codec_model, streams=SLOTS) as decoder,
    ):
        machine = Machine(generator, decoder, decoder)
        with machine.running(run_ahead=generator.can_run_ahead) as stage:
            for _ in range(2):
                seats = [stage.runner.join() for _ in "AB"]
                heard = await asyncio.gather(
                    *(stage.say(seat, prompt, prefix=80) for seat, prompt in zip(seats, PROMPTS, strict=False))
                )
                for name, each in zip("AB", heard, strict=True):
                    assert np.array_equal(each.answer.codes, AR[f"{name}_frames"][1:])
                for seat in seats:
                    stage.runner.leave(seat)
                assert len(machine.prefixes) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder / "model.gguf", replace(TINY, layers=LAYERS), seed=3)
    return folder


def options(folder: Path, **settings: Any) -> EngineOptions:
    files = {"model_path": str(folder / "model.gguf"), "tokenizer_path": str(folder / "tokenizer.json")}
    return EngineOptions(**files, n_threads=1, slots=2, context=512, voice_cache_mb=1, max_new_tokens=8, **settings)


async def spoken(options: EngineOptions) -> bytes:
    async def phrases() -> AsyncIterator[Phrase]:
        yield Phrase("Hello there.")
        yield Phrase("And another one.")

    engine = S2Engine(options)
    try:
        await engine.load(lambda what, fraction: None)
        async with aclosing(engine.speak(Utterance("", phrases()))) as blocks:
            return b"".join([block.samples async for block in blocks])
    finally:
        await engine.close()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that says that it is one."""

    def opened(device: str, options: EngineOptions, share: int) -> Backend:
        backend = Backend.open("cpu", threads=1)
        backend.device = "cuda:0"
        return backend

    monkeypatch.setattr(loading, "_backend", opened)


@pytest.mark.parametrize("n_gpu_layers", [0, 1, 2])
async def test_the_engine_speaks_the_same_with_any_number_of_layers_on_the_gpu(
    gpu: None, folder: Path, caplog: pytest.LogCaptureFixture, n_gpu_layers: int
) -> None:
    caplog.set_level(logging.INFO)
    whole = await spoken(options(folder))
    assert "of 3 layers" not in caplog.text
    split = await spoken(options(folder, n_gpu_layers=n_gpu_layers))
    assert f"the first {3 - n_gpu_layers} of 3 layers on " in caplog.text
    assert len(whole) > 4 * 2 * 2048
    a, b = (np.frombuffer(samples, "<i2").astype(int) for samples in (whole, split))
    assert len(a) == len(b)
    assert (np.abs(a - b) <= 1).all()


async def test_a_worker_whose_gpu_does_not_answer_ends(
    gpu: None, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(pulse, "_HUNG_S", 1.0)
    monkeypatch.setattr(pulse, "_LOOK_S", 0.05)
    assert await spoken(options(folder))
    assert not ended
    answers = threading.Event()
    submit = Generator.submit
    monkeypatch.setattr(Generator, "submit", lambda *asked: answers.wait(30) and submit(*asked))
    speaking = asyncio.create_task(spoken(options(folder)))
    async with asyncio.timeout(20):
        while not ended:
            await asyncio.sleep(0.01)
    assert ended[0] == 71
    assert "the GPU has not answered" in caplog.text
    answers.set()
    assert await speaking


@pytest.mark.parametrize(("n_gpu_layers", "lower"), [(-1, None), (3, None), (99, None), (2, range(1)), (0, range(3))])
def test_layers_go_where_they_are_to(gpu: None, folder: Path, n_gpu_layers: int, lower: range | None) -> None:
    told: list[float] = []
    with closing(loading.load(options(folder, n_gpu_layers=n_gpu_layers), told.append)) as loaded:
        assert (loaded.lower and loaded.lower.slow_layers) == lower
        assert loaded.generator.can_run_ahead == (lower is None)
        assert loaded.runner._run_ahead == (lower is None)
    assert told == sorted(told)
    assert (told[0] < 0.5, told[-1]) == (True, 1.0)


def test_without_a_gpu_it_has_no_effect_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with closing(loading.load(options(folder, n_gpu_layers=1, backend="cpu"), lambda done: None)) as loaded:
        assert loaded.lower is None
    assert "FISHS2_N_GPU_LAYERS=1 has no effect" in caplog.text


def test_a_number_that_means_nothing_is_refused(gpu: None, folder: Path) -> None:
    with pytest.raises(EngineError, match=r"FISHS2_N_GPU_LAYERS=-2; allowed: -1 \(all\), and 0 to 3"):
        loading.load(options(folder, n_gpu_layers=-2), lambda done: None)
