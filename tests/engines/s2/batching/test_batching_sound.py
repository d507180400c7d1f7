"""What is heard of several who speak at a time, whoever comes and goes."""

import asyncio
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from stage import (
    AR,
    FRAME,
    GREEDY,
    PATIENCE_S,
    PROMPTS,
    SLOTS,
    Machine,
    Stage4,
    has_frames,
)

from fishs2_daemon.engines.s2 import vocoder as vocoder_module
from fishs2_daemon.engines.s2.answer import Answer


async def test_a_full_batch_of_late_comers_hears_what_each_hears_alone(machine: Machine) -> None:
    wanted = [machine.alone(prompt).T.tolist() for prompt in PROMPTS]
    assert wanted[0] == AR["A_frames"][1:].T.tolist()
    for run_ahead in (False, True):
        with machine.running(run_ahead=run_ahead) as stage:
            order = [3, 0, 1, 2]
            seats = {index: stage.runner.join() for index in order}
            answers: dict[int, Answer] = {}
            for index in order:
                answers[index] = stage.ask(seats[index], PROMPTS[index])
                await stage.until(partial(has_frames, answers[index], 2))
            heard = await asyncio.gather(*(stage.hear(seats[index], answers[index]) for index in order))
            assert {seat.slot for seat in seats.values()} == set(range(SLOTS))
            for index, each in zip(order, heard, strict=True):
                assert each.frames == wanted[index]
                assert len(b"".join(each.blocks)) == 24 * FRAME * 2
                assert each.answer.was_cut


@pytest.mark.parametrize("plan", ["1", "2", "4", "8", "random", "all at once"])
async def test_streamed_sound_is_the_whole_s(
    stage: Stage4, exact_samples: None, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    chance = random.Random(plan)

    def size(*_: object) -> int:
        return int(plan) if plan.isdecimal() else chance.choice((1, 2, 4, 8))

    monkeypatch.setattr(vocoder_module, "first_block", size)
    monkeypatch.setattr(vocoder_module, "next_block", size)
    lengths = (23, 9, 16, 1)
    seats = [stage.runner.join() for _ in lengths]
    gate = threading.Event()
    together = []
    decode = stage.machine.decoder.decode

    def counted(streams: Sequence[Any], codes: Any) -> Any:
        assert gate.wait(PATIENCE_S)
        together.append(len(streams))
        return decode(streams, codes)

    monkeypatch.setattr(stage.machine.decoder, "decode", counted)
    answers = [
        stage.ask(seat, prompt, replace(GREEDY, max_frames=n))
        for seat, prompt, n in zip(seats, PROMPTS, lengths, strict=True)
    ]
    if plan == "all at once":
        await stage.until(lambda: [len(answer.frames) for answer in answers] == list(lengths))
    gate.set()
    heard = await asyncio.gather(*map(stage.hear, seats, answers))
    assert plan != "all at once" or 4 in together
    for each, n in zip(heard, lengths, strict=True):
        assert each.samples.shape == (n * FRAME,)
        assert np.abs(each.samples - stage.machine.whole(each.answer.codes)).max() <= 1e-6


async def test_sound_goes_on_over_the_answers_of_a_seat(stage: Stage4, exact_samples: None) -> None:
    seat, other = stage.runner.join(), stage.runner.join()
    aside = asyncio.create_task(stage.say(other, PROMPTS[1]))
    first = await stage.say(seat, PROMPTS[0], replace(GREEDY, max_frames=7))
    second = await stage.say(seat, PROMPTS[2], replace(GREEDY, max_frames=5))
    await aside
    both = np.concatenate([first.answer.codes, second.answer.codes], axis=1)
    whole = stage.machine.whole(both)
    assert np.abs(np.concatenate([first.samples, second.samples]) - whole).max() <= 1e-6
    # Which is not the second one by itself.
    assert np.abs(second.samples - stage.machine.whole(second.answer.codes)).max() > 1e-3


async def test_what_is_sent_is_sixteen_bits(stage: Stage4) -> None:
    heard = await stage.say(stage.runner.join(), PROMPTS[0])
    sent = np.frombuffer(b"".join(heard.blocks), "<i2")
    assert np.abs(sent / 32767 - stage.machine.whole(heard.answer.codes)).max() <= 0.5 / 32767 + 1e-6


async def test_the_first_block_of_a_late_comer_waits_for_no_long_one(
    stage: Stage4, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes before the blocks of those who have something to hear."""
    decoded: list[list[int]] = []
    wait = threading.Event()
    decode = stage.machine.decoder.decode

    def slow(streams: Any, codes: Any) -> Any:
        assert wait.wait(PATIENCE_S)
        decoded.append([given.shape[1] for given in codes])
        return decode(streams, codes)

    monkeypatch.setattr(stage.machine.decoder, "decode", slow)
    monkeypatch.setattr(vocoder_module, "next_block", lambda *_: 8)
    early, late = stage.runner.join(), stage.runner.join()
    first = stage.ask(early, PROMPTS[0], replace(GREEDY, max_frames=17))
    await stage.until(lambda: len(first.frames) == 17)
    second = stage.ask(late, PROMPTS[1], replace(GREEDY, max_frames=1))
    await stage.until(lambda: len(second.frames) == 1)
    wait.set()
    await asyncio.gather(stage.hear(early, first), stage.hear(late, second))
    # The early one's first block was on its way already. It has sixteen frames more, of which one goes along.
    assert decoded[1] == [1, 1]


async def test_frames_that_wait_for_others_are_heard_in_time(stage: Stage4) -> None:
    """As while somebody's prompt is read: the fourth, that would make a block, does not come for a while."""
    seat, frame = stage.runner.join(), np.zeros(10, np.int32)
    answer = Answer(PROMPTS[0], fed=0, prefix=0, sampling=GREEDY)
    stage.vocoder._rtf = 0.2
    stage.vocoder.put(seat, answer, frame)
    async with asyncio.timeout(PATIENCE_S):
        sizes = [len((await anext(answer)).samples)]
        for _ in range(3):
            stage.vocoder.put(seat, answer, frame)
        while sum(sizes) < 4 * FRAME * 2:
            sizes.append(len((await anext(answer)).samples))
    stage.vocoder.leave(seat)
