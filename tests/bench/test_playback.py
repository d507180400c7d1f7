"""What a listener hears, and the arithmetic over many of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.bench.measure import heard
from fishs2_daemon.bench.playback import Block, Heard, percentile, percentiles, share_below, underrun
from fishs2_daemon.errors import SynthesisError

SECONDS = st.floats(0, 10)
ARRIVALS = st.lists(st.tuples(SECONDS, st.floats(0.001, 1)), min_size=1).map(
    lambda pairs: list(zip(np.cumsum([gap for gap, _ in pairs]).tolist(), [audio for _, audio in pairs], strict=True))
)


@given(ARRIVALS)
def test_the_silence_is_what_the_latest_block_is_late_by(arrivals: list[tuple[float, float]]) -> None:
    """In closed form: all that a listener waits for a block is what was asked of it, less the sound before it."""
    began = arrivals[0][0]
    late = [at - began - sum(audio for _, audio in arrivals[:index]) for index, (at, _) in enumerate(arrivals)]
    assert underrun(arrivals) == pytest.approx(max(late), abs=1e-9)


@given(ARRIVALS, SECONDS)
def test_when_it_began_does_not_matter(arrivals: list[tuple[float, float]], later_s: float) -> None:
    moved = [(at + later_s, audio) for at, audio in arrivals]
    assert underrun(moved) == pytest.approx(underrun(arrivals), abs=1e-9)


@given(ARRIVALS, st.integers(0, 50), st.floats(0, 5))
def test_a_block_that_comes_later_never_makes_less_silence(
    arrivals: list[tuple[float, float]], index: int, delay_s: float
) -> None:
    index %= len(arrivals)
    delayed = arrivals[: index + 1] + [(at + delay_s, audio) for at, audio in arrivals[index + 1 :]]
    assert underrun(arrivals) - 1e-9 <= underrun(delayed) <= underrun(arrivals) + delay_s + 1e-9


def test_a_listener_waits_for_what_is_late_and_for_nothing_else() -> None:
    assert underrun([(1.0, 0.5), (1.5, 0.5), (1.6, 0.5), (2.5, 0.5)]) == 0
    assert underrun([(1.0, 0.5), (1.75, 0.5), (2.0, 0.5), (3.0, 0.5)]) == pytest.approx(0.25 + 0.25)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentiles_are_numpy_s(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-6)


def test_the_three_percentiles_have_their_names() -> None:
    assert percentiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p95": pytest.approx(2.9), "p99": pytest.approx(2.98)}


def test_a_share_counts_what_is_below_the_limit_alone() -> None:
    assert share_below([0.0, 0.04, 0.05, 0.2], 0.05) == 0.5


def test_sound_begins_with_the_first_block_that_is_not_silent() -> None:
    blocks = (Block(0.1, 1.0, False), Block(0.5, 0.25, True), Block(1.0, 0.25, False))
    answer = Heard("Hello.", blocks)
    assert answer.ttfa_s == 0.5
    assert answer.total_s == 1.0
    assert answer.audio_s == 1.5
    assert answer.rtf == pytest.approx(1 / 1.5)
    assert answer.underrun_s == pytest.approx(0.25)


def test_an_answer_of_silence_is_no_measurement() -> None:
    with pytest.raises(SynthesisError, match=r"server answered with silence to: Hello\."):
        heard("the server", "Hello.", [Block(0.1, 1.0, False)])
