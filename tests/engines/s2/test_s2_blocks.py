"""How long blocks are: none comes too late where that can be helped, and the first one comes early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.engines.s2.blocks import SIZES, first_block, next_block, unheard_when_due

RTFS = st.floats(0.01, 3.0)


@pytest.mark.parametrize(
    ("rtf", "frames"),
    [(None, 1), (0.1, 1), (0.3, 1), (0.5, 1), (0.6, 2), (0.75, 4), (0.85, 8), (0.99, 8), (1, 1), (9, 1)],
)
def test_the_first_block(rtf: float | None, frames: int) -> None:
    assert first_block(rtf) == frames


@pytest.mark.parametrize(
    ("rtf", "unheard", "frames"),
    [(None, 50, 1), (0.25, 1, 2), (0.25, 2, 4), (0.25, 4, 8), (0.25, 100, 8), (0.9, 1, 1), (0.25, -3, 1), (0.0, 1, 8)],
)
def test_later_blocks_grow_with_what_is_still_to_be_heard(rtf: float | None, unheard: float, frames: int) -> None:
    assert next_block(rtf, unheard) == frames


@given(RTFS, st.floats(-100, 1000))
def test_sizes_are_those_that_graphs_exist_for(rtf: float, unheard: float) -> None:
    assert first_block(rtf) in SIZES
    assert next_block(rtf, unheard) in SIZES


@given(st.floats(0.0, 3.0), st.integers(1, 12))
def test_what_waits_is_due_when_it_makes_a_block(rtf: float, waiting: int) -> None:
    limit = unheard_when_due(rtf, waiting)
    assert waiting >= next_block(rtf, min(limit, 1e6) * 0.999 - 1e-9)
    assert limit > 1e6 or waiting < next_block(rtf, limit * 1.001 + 1e-9)


@given(st.floats(0.01, 0.85), st.integers(1, 200))
def test_speech_that_is_fast_enough_never_breaks_off(rtf: float, frames: int) -> None:
    """A frame takes `rtf` of the time that it sounds. Up to 0.85 the largest first block is enough: 8 >= 0.85 * 9."""
    sent = waiting = 0
    began = 0.0
    for index in range(1, frames + 1):
        waiting += 1
        now, unheard = index * rtf, sent - (index * rtf - began)
        if waiting < (next_block(rtf, unheard) if sent else first_block(rtf)):
            continue
        if not sent:
            began = now
        assert unheard >= -1e-9 or not sent
        taken = max(size for size in SIZES if size <= waiting)
        sent, waiting = sent + taken, waiting - taken
