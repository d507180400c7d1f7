"""Sampling in the graph, against the reference's float64 filters on the same logits and the same noise."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fishs2_daemon.engines.s2.ggml import Backend, DType, GraphBuilder
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.noise import Noise
from fishs2_daemon.engines.s2.sampling import (
    RANKS,
    RAS_TOP_P,
    RAS_WINDOW,
    Sampler,
    coldness,
    limits,
    replace_repeated,
)
from fishs2_daemon.engines.s2.sizes import padded
from tests.engines.s2.reference.sampling import Sampling, draw, draw_margin, probabilities

GOLDEN = Path(__file__).parents[2] / "golden"
BATCH = 16

Draw = Callable[[np.ndarray, list[Sampling], np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Backend.open("cpu", threads=1) as backend, Model.load(GOLDEN / "tiny-f16.gguf", backend) as model:
        yield model


def sampler_of(model: Model, n: int, *, chunked: bool = False) -> Draw:
    """Draws from logits [BATCH, n] with noise [BATCH, ranks]; rows behind `n` are as large as they get."""
    sampler, g = Sampler(model, n, slots=BATCH + 1, chunked=chunked), GraphBuilder(model.backend, "sampling")
    logits = g.input("logits", DType.F32, padded(n), BATCH)
    limit = g.input("limits", DType.F32, RANKS, BATCH)
    noise = g.input("noise", DType.F32, RANKS, BATCH)
    cold = g.input("coldness", DType.F32, 1, BATCH)
    g.output("ids", sampler.draw(g, sampler.rank(g, logits), limit, noise, cold))
    graph = g.build()
    graph.inputs["logits"][:] = 1e3

    def run(values: np.ndarray, settings: list[Sampling], given: np.ndarray) -> np.ndarray:
        graph.inputs["logits"][:, :n] = values
        graph.inputs["limits"][:] = [limits(each.top_p, each.top_k, RANKS) for each in settings]
        graph.inputs["coldness"][:, 0] = [coldness(each.temperature) for each in settings]
        graph.inputs["noise"][:] = given
        return graph.run()["ids"].reshape(BATCH)

    return run


def settings_of(random: np.random.Generator) -> Sampling:
    return Sampling(
        temperature=float(random.uniform(0.1, 1.9)),
        top_p=float(random.choice([0.3, 0.8, 0.9, 1.0])),
        top_k=int(random.choice([1, 2, 10, 30, 32])),
    )


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("n", [5, 64, 65, 1024, 1500, 4096, 4097])
def test_draws_are_the_references(model: Model, n: int, chunked: bool) -> None:
    """The same candidate each time, but where F32 cannot tell two of them, or an end of the filter, apart."""
    run, random, near = sampler_of(model, n, chunked=chunked), np.random.default_rng(n), 0
    for _ in range(60):
        logits = (random.normal(size=(BATCH, n)) * random.uniform(0.5, 5, (BATCH, 1))).astype(np.float32)
        settings = [settings_of(random) for _ in range(BATCH)]
        noise = random.gumbel(size=(BATCH, RANKS)).astype(np.float32)
        for row, found in enumerate(run(logits, settings, noise)):
            one = (logits[row], settings[row], noise[row])
            if found == draw(*one):
                continue
            near += 1
            shifted = [replace(settings[row], top_p=settings[row].top_p + shift) for shift in (-2e-6, 2e-6)]
            assert draw_margin(*one) < 1e-4 or found in [draw(one[0], each, one[2]) for each in shifted]
    assert near <= 5


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, 0.9, 30), (0.6, 0.8, 8), (1.7, 1.0, 3)])
def test_frequencies(model: Model, temperature: float, top_p: float, top_k: int) -> None:
    """Chi-square over 16,000 draws with the engine's own noise; nothing that the filters drop is ever drawn."""
    n, runs = 300, 1000
    setting = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    logits = np.random.default_rng(1).normal(size=n).astype(np.float32) * 2
    sources = [Noise(seed, codebooks=1, ranks=RANKS) for seed in range(BATCH)]
    run = sampler_of(model, n)
    counts = np.zeros(n)
    for _ in range(runs):
        noise = np.stack([source.frame()[0] for source in sources])
        np.add.at(counts, run(np.tile(logits, (BATCH, 1)), BATCH * [setting], noise), 1)
    expected = probabilities(logits, setting) * runs * BATCH
    assert not counts[expected == 0].any()
    kept = expected > 5
    freedom = kept.sum() - 1
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_greedy_takes_the_likeliest_whatever_the_noise(model: Model) -> None:
    run, random = sampler_of(model, 4097), np.random.default_rng(3)
    logits = random.normal(size=(BATCH, 4097)).astype(np.float32)
    found = run(logits, BATCH * [Sampling(top_k=1)], random.gumbel(size=(BATCH, RANKS)).astype(np.float32))
    assert np.array_equal(found, logits.argmax(axis=1))
    found = run(logits, BATCH * [Sampling(temperature=1e-9)], np.zeros((BATCH, RANKS), np.float32))
    assert np.array_equal(found, logits.argmax(axis=1))


def test_limits() -> None:
    assert limits(0.5, 3, 6) == pytest.approx([4, 0.5, 0.5, -4, -4, -4], abs=1e-6)
    assert limits(0.5, 3, 6)[1] > 0.5
    assert limits(0.01, 5, 6)[0] > 1
    assert (limits(1.0, 32, 32) > 1).all()
    assert limits(1.0, 0, 4).tolist() == limits(1.0, 1, 4).tolist()
    assert limits(0.9, 1000, 4).shape == (4,)


@pytest.mark.parametrize(
    ("drawn", "window", "expected"),
    [
        (7, [], 7),
        (7, [7], 99),
        (7, 9 * [1] + [7], 99),
        (7, [7] + 9 * [1], 99),
        (0, [1, 2, 3], 0),
        (4096, [4095], 4096),
        (4095, [4095, 4095], 99),
    ],
)
def test_repeated_tokens_are_replaced(model: Model, drawn: int, window: list[int], expected: int) -> None:
    """A second draw may be any token, the end token and the same one included."""
    g = GraphBuilder(model.backend, "repeated")
    token, again = (g.input(name, DType.F32, 1, 2) for name in ("drawn", "again"))
    seen = g.input("window", DType.F32, RAS_WINDOW, 2)
    g.output("token", replace_repeated(g, token, again, seen))
    full = np.full((2, RAS_WINDOW), -151678, np.float32)
    full[1, : len(window)] = window
    values = {"drawn": np.float32([[drawn], [drawn]]), "again": np.float32([[99], [99]])}
    with g.build() as graph:
        assert graph.run(window=full, **values)["token"].ravel().tolist() == [drawn, expected]


def test_second_draw_uses_settings_of_its_own(model: Model) -> None:
    """0.9 of probability at temperature 1, but the sequence's top_k."""
    run, random = sampler_of(model, 100), np.random.default_rng(6)
    logits = random.normal(size=(BATCH, 100)).astype(np.float32) * 3
    noise = random.gumbel(size=(BATCH, RANKS)).astype(np.float32)
    settings = BATCH * [Sampling(temperature=1.0, top_p=RAS_TOP_P, top_k=4)]
    found = run(logits, settings, noise)
    assert found.tolist() == [draw(*one) for one in zip(logits, settings, noise, strict=True)]


def test_noise() -> None:
    first, same, other = (Noise(seed, codebooks=10, ranks=RANKS) for seed in (5, 5, 6))
    values = np.stack([first.frame() for _ in range(200)])
    assert values.shape == (200, 11, RANKS)
    assert values.dtype == np.float32
    assert np.array_equal(values, np.stack([same.frame() for _ in range(200)]))
    assert not np.array_equal(values[0], other.frame())
    assert not np.array_equal(values[0], values[1])
    assert np.isfinite(values).all()
    assert abs(values.mean() - np.euler_gamma) < 0.02
    assert abs(values.var() - np.pi**2 / 6) < 0.05
