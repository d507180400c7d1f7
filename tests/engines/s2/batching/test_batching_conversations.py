"""Prompts that go on where others ended: warm voices, turns, texts that may not end yet."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from stage import (
    AR,
    FRAME,
    GREEDY,
    META,
    PROMPTS,
    Machine,
    Stage4,
    prompts,
)

from fishs2_daemon.engines.s2 import vocoder as vocoder_module
from fishs2_daemon.engines.s2.guards import Guard
from fishs2_daemon.engines.s2.prompt import Columns
from fishs2_daemon.errors import EngineError


async def test_a_warm_voice_reads_what_follows_the_prefix(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int, int]] = []
    prefill = stage.machine.generator.prefill

    def counted(slot: int, columns: Columns, start: int = 0) -> None:
        read.append((slot, start, columns.shape[1]))
        prefill(slot, columns, start)

    monkeypatch.setattr(stage.machine.generator, "prefill", counted)
    cold, warm = stage.runner.join(), stage.runner.join()
    prompt = PROMPTS[1]
    first = await stage.say(cold, prompt, prefix=130)
    second = await stage.say(warm, prompt, prefix=130)
    assert read == [(0, 0, 175), (1, 130, 45)]
    assert first.frames == second.frames == AR["B_frames"][1:].T.tolist()
    assert len(stage.machine.prefixes) == 1
    # Another text of the voice, and the voice alone.
    read.clear()
    other = np.concatenate([prompt[:, :130], PROMPTS[0][:, 40:]], axis=1)
    await stage.say(warm, other, prefix=130)
    silent = await stage.say(cold, prompt[:, :130], None, prefix=130)
    assert read == [(1, 130, 47), (0, 129, 1)]
    assert (silent.frames, silent.answer.fed) == ([], 130)
    # A beginning that is read as fast as it is copied is not kept.
    await stage.say(cold, PROMPTS[0], prefix=63)
    assert len(stage.machine.prefixes) == 1


async def test_a_voice_that_was_made_ready_is_warm(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, seat = stage.runner.join(), stage.runner.join()
    await stage.say(ready, PROMPTS[1][:, :130], None, prefix=130)
    prefill, read = stage.machine.generator.prefill, []

    def counted(slot: int, columns: Columns, start: int = 0) -> None:
        read.append(columns.shape[1])
        prefill(slot, columns, start)

    monkeypatch.setattr(stage.machine.generator, "prefill", counted)
    assert (await stage.say(seat, PROMPTS[1], prefix=130)).frames == AR["B_frames"][1:].T.tolist()
    assert read == [45]


async def test_no_memory_for_a_prefix_is_no_error(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise EngineError("there is not enough memory")

    monkeypatch.setattr(stage.machine.generator, "save", full)
    for _ in range(2):
        heard = await stage.say(stage.runner.join(), PROMPTS[1], prefix=130)
        assert heard.frames == AR["B_frames"][1:].T.tolist()
    assert len(stage.machine.prefixes) == 0


# Conversations


class _StuckAt(Guard):
    """Stuck at its fourth frame."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        self._left = 4

    def see(self, codes: Any, samples: Any) -> None:
        self._left -= 1
        self.is_stuck = self._left <= 0


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize("how", ["stop", "length", "kept", "kept late"])
async def test_a_turn_feeds_what_its_slot_does_not_hold(
    machine: Machine, ending_machine: Machine, monkeypatch: pytest.MonkeyPatch, how: str, run_ahead: bool
) -> None:
    """And says what it would say if all of it were read anew. In `kept late` the guard sees too late that a text is
    stuck: it has ended for the one who makes frames."""
    machine = ending_machine if how == "stop" else machine
    sampling = replace(GREEDY, max_frames=40 if how == "stop" else 6)
    if how.startswith("kept"):
        monkeypatch.setattr(vocoder_module, "Guard", _StuckAt)
    if how == "kept late":
        monkeypatch.setattr(vocoder_module, "first_block", lambda *_: 8)
    elif how == "kept":
        sampling = replace(GREEDY, max_frames=300)
    read: list[tuple[int, int]] = []
    prefill = machine.generator.prefill

    def counted(slot: int, columns: Columns, start: int = 0) -> None:
        read.append((start, columns.shape[1]))
        prefill(slot, columns, start)

    told: list[tuple[Columns, npt.NDArray[np.int32]]] = []
    stops = 0
    with machine.running(run_ahead=run_ahead) as stage:
        monkeypatch.setattr(machine.generator, "prefill", counted)
        seat, noise = stage.runner.join(), stage.runner.join()
        aside = asyncio.create_task(stage.say(noise, PROMPTS[3], replace(GREEDY, max_frames=60)))
        conversation, fed = prompts.begin(), 0
        for text in (META["text_A"], "And another one.", "A third."):
            turn = conversation.ask(text)
            read.clear()
            heard = await stage.say(seat, turn.columns, sampling, fed=fed)
            pieces = [each for each in read if each != (0, PROMPTS[3].shape[1])]
            if fed:
                assert min(start for start, _ in pieces) == fed
            answer, n = heard.answer, heard.answer.codes.shape[1]
            told.append((turn.columns, answer.codes))
            assert len(b"".join(heard.blocks)) == n * FRAME * 2
            if how.startswith("kept"):
                assert (n, answer.was_cut) == (4, True)
            elif how == "length":
                assert (n, answer.was_cut) == (6, True)
            stops += not answer.was_cut
            # What ended by its length was not fed its last frame.
            held_back = 1 if how == "length" or (answer.was_cut and how == "stop") else 0
            assert answer.fed == turn.columns.shape[1] + n - held_back
            conversation, fed = turn.answered(answer.codes), answer.fed
        await aside
        monkeypatch.setattr(machine.generator, "prefill", prefill)
    assert how != "stop" or stops
    for columns, codes in told:
        alone = machine.alone(columns, sampling)
        assert np.array_equal(codes, alone[:, : codes.shape[1]])
        assert codes.shape[1] == (4 if how.startswith("kept") else alone.shape[1])


async def test_the_golden_conversation(stage: Stage4) -> None:
    """Of three batches. Each was stopped at six frames."""
    seat, fed = stage.runner.join(), 0
    for batch in range(3):
        prompt, output = AR[f"long_prompt_{batch}"], AR[f"long_output_{batch}"]
        recorded = output[1:, prompt.shape[1] : -1]
        sampling = replace(GREEDY, max_frames=recorded.shape[1])
        heard = await stage.say(seat, prompt, sampling, fed=fed)
        assert np.array_equal(heard.answer.codes, recorded)
        fed = heard.answer.fed
        assert fed == output.shape[1] - 2


async def test_no_end_before_the_least_frames(machine: Machine, ending_machine: Machine) -> None:
    """And one right behind them; whoever else is in the batch."""
    ended = ending_machine.alone(PROMPTS[0], replace(GREEDY, max_frames=90)).shape[1]
    assert 0 < ended < 40
    other = ending_machine.alone(PROMPTS[1], replace(GREEDY, max_frames=40)).T.tolist()
    longer = ending_machine.alone(PROMPTS[0], replace(GREEDY, max_frames=90, min_frames=ended + 5))
    assert longer.shape[1] >= ended + 5
    for run_ahead in (False, True):
        with ending_machine.running(run_ahead=run_ahead) as stage:
            seats = [stage.runner.join() for _ in range(3)]
            heard = await asyncio.gather(
                stage.say(seats[0], PROMPTS[0], replace(GREEDY, max_frames=90, min_frames=ended + 5)),
                stage.say(seats[1], PROMPTS[1], replace(GREEDY, max_frames=40)),
                stage.say(seats[2], PROMPTS[0], replace(GREEDY, max_frames=90, min_frames=ended)),
            )
        assert [each.answer.codes.shape[1] for each in heard][::2] == [longer.shape[1], ended]
        assert heard[0].frames[:ended] == heard[2].frames
        assert np.array_equal(heard[0].answer.codes, longer)
        assert heard[1].frames == other
        assert not heard[2].answer.was_cut
