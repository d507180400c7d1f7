"""Everything at once."""

import asyncio
import random
from dataclasses import replace

import pytest
from stage import (
    AR,
    PATIENCE_S,
    PROMPTS,
    SLOTS,
    Machine,
    prompts,
)

from fishs2_daemon.engines.s2.sampling import Sampling


@pytest.mark.parametrize(("seed", "run_ahead"), [(1, False), (2, True)])
async def test_sixty_random_operations(machine: Machine, seed: int, run_ahead: bool) -> None:
    """Arrivals, texts of several turns, cancels at any moment, and listeners that stop reading for a while."""
    chance = random.Random(seed)
    ends: list[str] = []
    listeners: list[asyncio.Task[None]] = []
    with machine.running(run_ahead=run_ahead) as stage:
        machine.prefixes._most_bytes = 200 * machine.generator.position_bytes

        async def listen(number: int) -> None:
            seat = stage.runner.join(chance.randint(0, 1))
            try:
                conversation, fed = prompts.begin(), 0
                for _ in range(chance.randint(1, 3)):
                    turn = conversation.ask(" ".join(["word"] * chance.randint(1, 60)))
                    sampling = Sampling(seed=number, max_frames=chance.choice([0, 1, 5, 12, 40]))
                    sampling = replace(sampling, min_frames=chance.choice([0, 0, 3]))
                    answer = stage.ask(seat, turn.columns, sampling, fed=fed, prefix=chance.choice([0, 70, 80]))
                    async for _ in answer:
                        stage.runner.wake(seat)
                        if chance.random() < 0.1:
                            await asyncio.sleep(chance.random() * 0.05)
                    assert answer.codes.shape[1] <= (sampling.max_frames or 0)
                    conversation, fed = turn.answered(answer.codes), answer.fed
                ends.append("end")
            except asyncio.CancelledError:
                ends.append("cancelled")
            finally:
                stage.runner.leave(seat)

        for number in range(60):
            if chance.random() < 0.6 or not listeners:
                listeners.append(asyncio.create_task(listen(number)))
            else:
                chance.choice(listeners).cancel()
            await asyncio.sleep(chance.random() * 0.03)
            assert machine.prefixes.n_bytes <= machine.prefixes._most_bytes
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*listeners, return_exceptions=True)
        await stage.until(lambda: not stage.runner._scheduler.seats)
        await stage.quiet()
        # The others were cancelled before they began.
        assert len(ends) + sum(task.cancelled() for task in listeners) == len(listeners)
        assert {"end", "cancelled"} == set(ends)
        assert (stage.runner._answers, stage.runner._begun, stage.vocoder._tracks) == ({}, set(), {})
        assert machine.free_streams == SLOTS
        assert machine.prefixes.n_bytes <= machine.prefixes._most_bytes
        seats = [stage.runner.join() for _ in range(SLOTS)]
        heard = await asyncio.gather(*(stage.say(seat, prompt) for seat, prompt in zip(seats, PROMPTS, strict=True)))
        assert sorted(seat.slot for seat in seats if seat.slot is not None) == list(range(SLOTS))
        assert heard[0].frames == AR["A_frames"][1:].T.tolist()
        assert heard[1].frames == AR["B_frames"][1:].T.tolist()
