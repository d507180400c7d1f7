"""What fails ends those whom it is about, and nobody else."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stage import (
    AR,
    FRAME,
    GREEDY,
    META,
    PATIENCE_S,
    PROMPTS,
    RATE,
    SLOTS,
    Machine,
    Stage4,
)

from fishs2_daemon.engines.s2.runner import Runner
from fishs2_daemon.engines.s2.vocoder import Vocoder
from fishs2_daemon.errors import EngineError


async def test_a_round_that_fails_ends_those_who_speak(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = stage.machine.generator.submit
    rounds = 0

    def failing(slots: Sequence[int]) -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 5:
            raise OSError("a device is gone")
        submit(slots)

    seats = [stage.runner.join() for _ in range(SLOTS)]
    waiting = stage.runner.join()
    answer = stage.ask(waiting, PROMPTS[1])
    with monkeypatch.context() as broken:
        broken.setattr(stage.machine.generator, "submit", failing)
        ended = await asyncio.gather(*map(stage.say, seats, PROMPTS), return_exceptions=True)
    assert [str(error) for error in ended] == SLOTS * ["the engine failed: OSError"]
    assert all(isinstance(error, EngineError) for error in ended)
    for seat in seats:
        stage.runner.leave(seat)
    assert (await stage.hear(waiting, answer)).frames == AR["B_frames"][1:].T.tolist()
    heard = await stage.say(stage.runner.join(), PROMPTS[0])
    assert heard.frames == AR["A_frames"][1:].T.tolist()


async def test_a_prompt_that_is_wrong_ends_alone(stage: Stage4) -> None:
    good, bad = stage.runner.join(), stage.runner.join()
    wrong = PROMPTS[0].copy()
    wrong[3, 5] = META["codebook_size"]
    aside = asyncio.create_task(stage.say(good, PROMPTS[1]))
    with pytest.raises(EngineError, match="does not have"):
        await stage.say(bad, wrong)
    with pytest.raises(EngineError, match="exceed the context"):
        await stage.say(bad, np.tile(PROMPTS[0], 12))
    assert (await aside).frames == AR["B_frames"][1:].T.tolist()
    assert (await stage.say(bad, PROMPTS[0])).frames == AR["A_frames"][1:].T.tolist()


async def test_a_decoder_that_fails_ends_those_who_were_heard(
    stage: Stage4, exact_samples: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = stage.machine.decoder.decode, 0

    def failing(streams: Any, codes: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise MemoryError
        return decode(streams, codes)

    seat = stage.runner.join()
    with monkeypatch.context() as broken:
        broken.setattr(stage.machine.decoder, "decode", failing)
        with pytest.raises(EngineError, match="decoding failed: MemoryError"):
            await stage.say(seat, PROMPTS[0], replace(GREEDY, max_frames=None))
    # The same seat, and from the start: what the broken stream held is not the beginning of anything.
    heard = await stage.say(seat, PROMPTS[0])
    assert heard.frames == AR["A_frames"][1:].T.tolist()
    assert np.abs(heard.samples - stage.machine.whole(heard.answer.codes)).max() <= 1e-6


async def test_no_memory_for_a_stream_ends_that_answer(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise EngineError("there is not enough memory")

    seat = stage.runner.join()
    with monkeypatch.context() as broken:
        broken.setattr(stage.machine.decoder, "open_stream", full)
        with pytest.raises(EngineError, match="not enough memory"):
            await stage.say(seat, PROMPTS[0])
    assert len((await stage.say(seat, PROMPTS[0])).frames) == 24


async def test_close_ends_every_answer(machine: Machine) -> None:
    """Those that speak, that are read, that wait for a slot or for a block; and those that come too late."""
    vocoder = Vocoder(machine.decoder, RATE, FRAME)
    runner = Runner(machine.generator, vocoder, machine.prefixes, frame_s=FRAME / RATE, run_ahead=True)
    stage = Stage4(machine, runner, vocoder)
    seats = [runner.join() for _ in range(SLOTS + 2)]
    answers = [stage.ask(seat, PROMPTS[0], replace(GREEDY, max_frames=None)) for seat in seats]
    await stage.until(lambda: len(answers[0].frames) > 3)
    await asyncio.to_thread(runner.close)
    await asyncio.to_thread(vocoder.close)
    runner.close()
    vocoder.close()
    assert not any(thread.name.startswith("s2-") for thread in threading.enumerate())
    late = stage.ask(seats[0], PROMPTS[0])
    for seat, answer in zip([*seats, seats[0]], [*answers, late], strict=True):
        with pytest.raises(EngineError, match="was closed"):
            await stage.hear(seat, answer)
    for track in vocoder._tracks.values():
        if track.stream:
            track.stream.close()


async def test_an_answer_of_a_seat_that_left_ends(stage: Stage4) -> None:
    seat = stage.runner.join()
    stage.runner.leave(seat)
    with pytest.raises(EngineError, match="left"):
        await stage.say(seat, PROMPTS[0])


async def test_a_thread_that_does_not_end_is_told_of(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may take its model's memory away."""
    go, busy = threading.Event(), threading.Event()
    prefill = machine.generator.prefill

    def stuck(*given: Any) -> None:
        busy.set()
        assert go.wait(PATIENCE_S)
        prefill(*given)

    monkeypatch.setattr("fishs2_daemon.engines.s2.runner._ENDING_S", 0.05)
    with machine.running() as stage:
        with monkeypatch.context() as slow:
            slow.setattr(machine.generator, "prefill", stuck)
            stage.ask(stage.runner.join(), PROMPTS[0])
            await stage.until(busy.is_set)
            with pytest.raises(EngineError, match="did not end"):
                stage.runner.close()
            go.set()
        monkeypatch.setattr("fishs2_daemon.engines.s2.runner._ENDING_S", 10.0)
