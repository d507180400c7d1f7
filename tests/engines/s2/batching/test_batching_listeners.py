"""Those who leave, and those who do not read."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from stage import AR, GREEDY, PATIENCE_S, PROMPTS, SLOTS, Stage4

from fishs2_daemon.engines.s2.answer import MOST_AHEAD
from fishs2_daemon.engines.s2.prompt import Columns
from fishs2_daemon.engines.s2.scheduler import Stage
from fishs2_daemon.errors import EngineError


@pytest.mark.parametrize("frames", [0, 1, 5])
async def test_cancel_frees_the_slot_within_a_frame(
    stage: Stage4, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    submitted: list[list[int]] = []
    submit = stage.machine.generator.submit

    def counted(slots: Sequence[int]) -> None:
        submitted.append(list(slots))
        submit(slots)

    monkeypatch.setattr(stage.machine.generator, "submit", counted)
    seat = stage.runner.join()
    answer = stage.ask(seat, PROMPTS[0], replace(GREEDY, max_frames=None))
    await stage.until(lambda: len(answer.frames) >= frames)
    stage.runner.leave(seat)
    before = len(submitted)
    await stage.until(lambda: seat.stage is Stage.GONE)
    await stage.quiet()
    assert len(submitted) <= before + 1
    assert stage.machine.generator.in_flight == 0
    assert stage.machine.free_streams == SLOTS
    again = stage.runner.join()
    assert (await stage.say(again, PROMPTS[1])).frames == AR["B_frames"][1:].T.tolist()
    assert again.slot == 0


async def test_cancel_in_the_middle_of_a_prompt(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it is not read, and a seat that waits takes the slot."""
    reading, go = threading.Event(), threading.Event()
    columns_read = []
    prefill = stage.machine.generator.prefill

    def slow(slot: int, columns: Columns, start: int = 0) -> None:
        columns_read.append(columns.shape[1])
        reading.set()
        assert go.wait(PATIENCE_S)
        prefill(slot, columns, start)

    monkeypatch.setattr(stage.machine.generator, "prefill", slow)
    long = np.concatenate([PROMPTS[3]] * 3, axis=1)  # two pieces
    seats = [stage.runner.join() for _ in range(SLOTS)]
    stage.ask(seats[0], long)
    waiting = stage.runner.join()
    answer = stage.ask(waiting, PROMPTS[0])
    await stage.until(reading.is_set)
    stage.runner.leave(seats[0])
    go.set()
    assert (await stage.hear(waiting, answer)).frames == AR["A_frames"][1:].T.tolist()
    assert columns_read == [512, PROMPTS[0].shape[1]]


async def test_a_listener_that_does_not_read_holds_its_own_seat(stage: Stage4) -> None:
    slow, quick = stage.runner.join(), stage.runner.join()
    endless = replace(GREEDY, max_frames=MOST_AHEAD + 60, min_frames=MOST_AHEAD + 60)
    answer = stage.ask(slow, PROMPTS[0], endless)
    others = [await stage.say(quick, PROMPTS[1]) for _ in range(3)]
    await stage.until(lambda: slow.is_held)
    await stage.quiet()
    made = len(answer.frames)
    assert MOST_AHEAD < made <= MOST_AHEAD + 2
    others.append(await stage.say(quick, PROMPTS[1]))
    assert len(answer.frames) == made
    assert all(each.frames == AR["B_frames"][1:].T.tolist() for each in others)
    heard = await stage.hear(slow, answer)
    assert len(heard.frames) == MOST_AHEAD + 60
    assert heard.frames[:24] == AR["A_frames"][1:].T.tolist()


async def test_a_failure_reaches_a_listener_whose_seat_is_held(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is sent that could wake the thread that makes frames."""
    seat = stage.runner.join()
    go = threading.Event()

    def failing(*_: object) -> None:
        assert go.wait(PATIENCE_S)
        raise OSError("no sound")

    monkeypatch.setattr(stage.machine.decoder, "decode", failing)
    answer = stage.ask(seat, PROMPTS[0], replace(GREEDY, max_frames=None))
    await stage.until(lambda: seat.is_held)
    go.set()
    with pytest.raises(EngineError, match="decoding failed: OSError"):
        await stage.hear(seat, answer)
