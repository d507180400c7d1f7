"""The thread that computes frames: it does what the scheduler plans, round after round.

event loop ──join, speak, leave──> Runner ──codes──> Vocoder ──blocks──> event loop
"""

import logging
import threading
import time

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.answer import Answer
from fishs2_daemon.engines.s2.commands import Commands
from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.prefixes import Prefixes
from fishs2_daemon.engines.s2.pulse import Pulse
from fishs2_daemon.engines.s2.scheduler import Scheduler, Seat, Stage
from fishs2_daemon.engines.s2.vocoder import Vocoder
from fishs2_daemon.errors import EngineError

_log = logging.getLogger(__name__)

#: A shorter beginning is read again as fast as it is copied.
_SHORTEST_PREFIX = 64

#: What a thread may take to end; a native call cannot be interrupted.
_ENDING_S = 10.0

_CLOSED = "the engine was closed"


class Runner:
    """Owns the generator. With `run_ahead` a frame is started before the one before it is read, which keeps a GPU
    busy; a processor would compute one too many at each end."""

    def __init__(
        self, generator: Generator, vocoder: Vocoder, prefixes: Prefixes, *, frame_s: float, run_ahead: bool
    ) -> None:
        self.pulse = Pulse()
        self._generator, self._vocoder, self._prefixes = generator, vocoder, prefixes
        self._run_ahead = int(run_ahead)
        self._scheduler = Scheduler(generator.slots, frame_s)
        self._answers: dict[Seat, Answer] = {}
        self._begun: set[Seat] = set()
        self._commands = Commands()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="s2-frames", daemon=True)
        self._thread.start()

    def join(self, priority: int = 0) -> Seat:
        """A seat, which gets a slot as soon as there is one for it."""
        seat = Seat(priority)
        self._commands.put(lambda: self._scheduler.join(seat))
        return seat

    def speak(self, seat: Seat, answer: Answer) -> None:
        """One answer a seat at a time. It ends, whatever becomes of the seat or the runner."""
        with self._closing:
            if not self._closed:
                self._commands.put(lambda: self._ask(seat, answer))
                return
        answer.post_end(EngineError(_CLOSED))

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a slot."""
        return any(seat.stage is Stage.WAITING for seat in tuple(self._scheduler.seats))

    def leave(self, seat: Seat) -> None:
        """Whatever it was saying ends within a frame."""
        self._commands.put(lambda: self._leave(seat))

    def wake(self, seat: Seat) -> None:
        """Its listener has taken a block."""
        if seat.is_held:
            self._look()

    def close(self) -> None:
        """End all answers, and wait for the thread's end; the generator may be closed then. Raises `EngineError` where
        the thread goes on computing. May be called twice."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._commands.end()
        self._thread.join(_ENDING_S)
        if self._thread.is_alive():
            raise EngineError(f"the thread that computes frames did not end within {_ENDING_S:.0f} s")

    def _work(self) -> None:
        busy = False
        while self._commands.carry_out(wait=not busy):
            try:
                with self.pulse:
                    busy = self._round()
            except Exception as error:  # noqa: BLE001 - an edge: those who were speaking hear of it, others go on
                _log.exception("a round failed")
                reason = str(error) if isinstance(error, EngineError) else type(error).__name__
                self._fail_all(f"the engine failed: {reason}")
        self._fail_all(_CLOSED)

    def _look(self) -> None:
        """From any thread: there may be something to do."""
        self._commands.put(_nothing)

    def _round(self) -> bool:
        """Whether there is more to do."""
        for seat, answer in self._answers.items():
            seat.is_held = answer.is_ahead
        plan = self._scheduler.plan()
        if plan.read:
            self._read(*plan.read, timed=bool(plan.speak))
        before = self._generator.in_flight
        if plan.speak:
            self._generator.submit([seat.slot for seat in plan.speak if seat.slot is not None])
        in_flight = self._generator.in_flight
        # Those who are over start none: what they have in flight is waited for.
        left = self._run_ahead if in_flight > before else 0
        self._deliver(self._generator.collect() if in_flight > left else {})
        return bool(plan.read or plan.speak or in_flight)

    def _ask(self, seat: Seat, answer: Answer) -> None:
        if seat.stage is Stage.GONE:
            answer.post_end(EngineError("its listener has left"))
            return
        answer.on_keep = self._look
        self._answers[seat] = answer
        self._scheduler.ask(seat, max(1, answer.columns.shape[1] - answer.fed))

    def _leave(self, seat: Seat) -> None:
        if seat.stage is Stage.SPEAKING and seat.slot is not None:
            self._generator.rest(seat.slot, 0)
        self._answers.pop(seat, None)
        self._begun.discard(seat)
        self._scheduler.leave(seat)
        self._vocoder.leave(seat)

    def _read(self, seat: Seat, most: int, *, timed: bool) -> None:
        """A piece of the seat's prompt; behind the last one it speaks. What is wrong with a prompt ends that alone."""
        answer, slot = self._answers[seat], seat.slot
        if slot is None:
            return
        try:
            if seat not in self._begun:
                self._begun.add(seat)
                self._load_prefix(seat, answer, slot)
            # The last column is always read: its hidden state is where the first frame comes from.
            start = min(answer.columns.shape[1] - seat.unread, answer.columns.shape[1] - 1)
            columns = answer.columns[:, start : start + most]
            if timed:
                self._generator.wait()  # for the frame before
            began = time.perf_counter()
            self._generator.prefill(slot, columns, start)
            if timed:
                self._generator.wait()
            self._scheduler.has_read(seat, columns.shape[1], time.perf_counter() - began if timed else None)
            if seat.stage is Stage.SPEAKING:
                self._start(seat, answer, slot)
        except EngineError as error:
            self._end(seat, answer, error)

    def _load_prefix(self, seat: Seat, answer: Answer, slot: int) -> None:
        if answer.fed == 0 and (snapshot := self._prefixes.get(_key(answer))):
            self._generator.load(slot, snapshot)
            seat.unread = max(1, answer.columns.shape[1] - snapshot.positions)

    def _start(self, seat: Seat, answer: Answer, slot: int) -> None:
        if answer.fed == 0 and answer.prefix >= _SHORTEST_PREFIX:
            size = answer.prefix * self._generator.position_bytes
            self._prefixes.keep(_key(answer), size, lambda: self._generator.save(slot, answer.prefix))
        if answer.sampling is None:
            answer.rest(answer.columns.shape[1])
            self._end(seat, answer)
        else:
            self._generator.start(slot, answer.sampling)

    def _deliver(self, frames: dict[int, npt.NDArray[np.int32]]) -> None:
        for seat, answer in list(self._answers.items()):
            if seat.stage is not Stage.SPEAKING or seat.slot is None:
                continue
            codes = frames.get(seat.slot)
            if answer.kept is None and codes is not None:
                answer.frames.append(codes)
                self._vocoder.put(seat, answer, codes)
            if answer.kept is not None or self._generator.is_over(seat.slot):
                was_cut = self._generator.finish(seat.slot) == "length"
                answer.rest(self._generator.rest(seat.slot, len(answer.frames)), was_cut=was_cut)
                self._end(seat, answer)

    def _end(self, seat: Seat, answer: Answer, error: EngineError | None = None) -> None:
        del self._answers[seat]
        self._begun.discard(seat)
        self._scheduler.rest(seat)
        self._vocoder.end(seat, answer, error)

    def _fail_all(self, reason: str) -> None:
        """Those who wait for a slot have lost nothing yet, unless nobody will be served any more."""
        self._generator.abandon()
        for seat, answer in list(self._answers.items()):
            if seat.slot is not None or self._closed:
                self._end(seat, answer, EngineError(reason))


def _key(answer: Answer) -> bytes:
    return answer.columns[:, : answer.prefix].tobytes()


def _nothing() -> None:
    pass
