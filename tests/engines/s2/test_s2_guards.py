import numpy as np
import pytest

from fishs2_daemon.engines.s2.guards import Guard, frame_budget

RATE = 44100
SOUND = np.full(2048, 0.1, np.float32)


@pytest.mark.parametrize(("tokens", "most", "budget"), [(0, 1024, 43), (10, 1024, 199), (1000, 1024, 1024), (5, 7, 7)])
def test_a_text_has_frames_in_proportion_and_never_more_than_the_most(tokens: int, most: int, budget: int) -> None:
    assert frame_budget(tokens, most) == budget


def test_sound_that_changes_goes_on_for_ever() -> None:
    guard = Guard(RATE)
    for number in range(500):
        guard.see(np.array([number % 2, 3]), SOUND)
    assert not guard.is_stuck


def test_a_frame_again_and_again_is_stuck() -> None:
    guard = Guard(RATE)
    frames = 0
    while not guard.is_stuck:
        guard.see(np.array([1, 2, 3]), SOUND)
        frames += 1
    assert frames == 9


def test_a_long_silence_is_stuck_and_a_pause_is_not() -> None:
    guard = Guard(RATE)
    for number in range(200):
        guard.see(np.array([number]), SOUND if number % 40 == 0 else np.zeros(2048, np.float32))
    assert not guard.is_stuck
    frames = 0
    while not guard.is_stuck:
        guard.see(np.array([frames]), np.full(2048, 1e-4, np.float32))
        frames += 1
    assert frames * 2048 / RATE < 2.6
