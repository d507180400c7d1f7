"""Snapshots of keys and values: bounded in bytes, the least used one first; and what they hold is what was saved."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend, DType, Store
from fishs2_daemon.engines.s2.kv import Snapshot
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.prefixes import Prefixes
from fishs2_daemon.engines.s2.sampling import Sampling
from fishs2_daemon.errors import EngineError

GOLDEN = Path(__file__).parents[2] / "golden"
AR = np.load(GOLDEN / "golden_ar.npz")
IM_END = json.loads((GOLDEN / "golden_meta.json").read_text())["im_end"]


@pytest.fixture(scope="module")
def generator(backend: Backend) -> Iterator[Generator]:
    with (
        Model.load(GOLDEN / "tiny-f32.gguf", backend, im_end=IM_END) as model,
        closing(Generator(model, slots=3, context=600, rope="f32", kv_type="f32")) as generator,
    ):
        yield generator


def some_bytes(backend: Backend, n: int) -> Snapshot:
    """A snapshot of exactly so many bytes, of one position."""
    store = Store(backend)
    tensor = store.new(DType.F32, n // 4)
    store.allocate()
    return Snapshot(1, store, (tensor,), ())


def kept(prefixes: Prefixes, names: str) -> str:
    """Which of these are there, without using one."""
    return "".join(name for name in names if name.encode() in prefixes._snapshots)


def test_the_one_that_was_not_used_for_the_longest_time_goes_first(backend: Backend) -> None:
    prefixes = Prefixes(3 * 1024)
    made = {}
    for name in "abc":
        made[name] = some_bytes(backend, 1024)
        prefixes.keep(name.encode(), 1024, lambda name=name: made[name])  # type: ignore[misc]
    assert (len(prefixes), prefixes.n_bytes) == (3, 3 * 1024)
    assert prefixes.get(b"a") is made["a"]
    assert prefixes.get(b"x") is None
    prefixes.keep(b"d", 1024, lambda: some_bytes(backend, 1024))
    assert kept(prefixes, "abcd") == "acd"
    prefixes.keep(b"e", 2048, lambda: some_bytes(backend, 2048))
    assert kept(prefixes, "abcde") == "de"
    assert not made["a"].store.ready
    assert prefixes.n_bytes == 3 * 1024
    prefixes.clear()
    assert (len(prefixes), prefixes.n_bytes) == (0, 0)


def test_what_is_there_or_too_large_is_not_made(backend: Backend) -> None:
    def unexpected() -> Snapshot:
        raise AssertionError

    prefixes = Prefixes(2048)
    prefixes.keep(b"a", 1024, lambda: some_bytes(backend, 1024))
    prefixes.keep(b"a", 1024, unexpected)
    prefixes.keep(b"b", 2049, unexpected)
    Prefixes(0).keep(b"c", 1, unexpected)
    assert kept(prefixes, "ab") == "a"
    prefixes.clear()


def test_no_memory_is_no_error_and_gives_back_what_there_is(backend: Backend) -> None:
    def full() -> Snapshot:
        raise EngineError("there is not enough memory")

    prefixes = Prefixes(4096)
    prefixes.keep(b"a", 1024, lambda: some_bytes(backend, 1024))
    prefixes.keep(b"b", 1024, full)
    assert len(prefixes) == 0
    prefixes.keep(b"b", 1024, lambda: some_bytes(backend, 1024))
    assert kept(prefixes, "ab") == "b"
    prefixes.clear()


def test_the_size_that_is_asked_for_is_the_size_that_is_taken(generator: Generator) -> None:
    generator.prefill(1, AR["B_prompt"])
    for positions in (1, 64, 130, 175):
        with closing(generator.save(1, positions)) as snapshot:
            assert snapshot.n_bytes == positions * generator.position_bytes


def frames(generator: Generator, slot: int) -> list[list[int]]:
    generator.start(slot, Sampling(top_k=1, max_frames=24))
    found = []
    while (codes := generator.step([slot])[0]) is not None:
        found.append(codes.tolist())
    return found


def test_a_copy_goes_on_in_any_slot(generator: Generator) -> None:
    prompt, wanted = AR["B_prompt"], AR["B_frames"][1:].T.tolist()
    generator.prefill(1, prompt)
    with closing(generator.save(1, 130)) as snapshot:
        generator.prefill(1, AR["A_prompt"])  # the copy is apart
        for slot in (2, 0, 1):
            generator.load(slot, snapshot)
            generator.prefill(slot, prompt[:, 130:], 130)
            assert frames(generator, slot) == wanted
    # Others' slots were left alone.
    generator.prefill(0, prompt)
    generator.prefill(2, prompt)
    with closing(generator.save(0, 175)) as snapshot:
        generator.load(1, snapshot)
    assert frames(generator, 0) == frames(generator, 2) == wanted


def test_wrong_use(generator: Generator) -> None:
    generator.prefill(0, AR["A_prompt"])
    with pytest.raises(EngineError, match="holds 87 positions, not 88"):
        generator.save(0, 88)
    with closing(generator.save(0, 80)) as snapshot:
        generator.load(0, snapshot)
        with pytest.raises(EngineError, match="no prompt"):
            generator.start(0, Sampling())
        with pytest.raises(EngineError, match="cannot go on at 81"):
            generator.prefill(0, AR["A_prompt"][:, 81:], 81)


def test_a_copy_that_fails_gives_its_memory_back(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    stores: list[Store] = []
    allocate = Store.allocate

    def failing(*_: object) -> None:
        raise EngineError("there is not enough memory for this graph")

    def seen(store: Store) -> None:
        stores.append(store)
        allocate(store)

    generator.prefill(0, AR["A_prompt"])
    monkeypatch.setattr(Store, "allocate", seen)
    monkeypatch.setattr("fishs2_daemon.engines.s2.kv.GraphBuilder", failing)
    with pytest.raises(EngineError, match="for this graph"):
        generator.save(0, 80)
    assert [store.ready for store in stores] == [False]
