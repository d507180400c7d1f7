"""The queue in front of the engine: first come, first served; bounded; and no slot is ever lost."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from fishs2_daemon.admission import Admission
from fishs2_daemon.errors import Busy

PATIENT_S = 60.0


class Speaker:
    """A request: it holds its slot until `leave`, and notes in `admitted` when its turn came."""

    def __init__(self, admission: Admission, admitted: "list[Speaker]", max_waiting: int, timeout_s: float) -> None:
        self.is_inside = False
        self.outcome: Busy | None = None
        self._admission = admission
        self._admitted = admitted
        self._may_leave = asyncio.Event()
        self.task = asyncio.ensure_future(self._speak(max_waiting, timeout_s))

    def leave(self) -> None:
        self._may_leave.set()

    async def _speak(self, max_waiting: int, timeout_s: float) -> None:
        try:
            async with self._admission.slot(max_waiting, timeout_s):
                self.is_inside = True
                self._admitted.append(self)
                try:
                    await self._may_leave.wait()
                finally:
                    self.is_inside = False
        except Busy as busy:
            self.outcome = busy


class _Clocked(asyncio.SelectorEventLoop):
    """A real event loop whose clock is set by hand, so that a timeout comes exactly when a rule says."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s


class AdmissionMachine(RuleBasedStateMachine):
    """Requests come, wait, give up, are cancelled and leave, with any number of turns of the loop in between."""

    speakers: Bundle[Speaker] = Bundle("speakers")

    def __init__(self) -> None:
        super().__init__()
        self.loop = _Clocked()
        self.admission = Admission()
        self.most_slots = self.admission.slots
        self.come: list[Speaker] = []
        self.admitted: list[Speaker] = []
        self.cancelled: set[Speaker] = set()
        self.settled = True

    def turn(self) -> None:
        """One turn of the loop: what is ready now runs, and nothing that it makes ready."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    @rule(target=speakers, max_waiting=st.integers(0, 4), timeout_s=st.sampled_from([0.5, 1.0, PATIENT_S]))
    def come_in(self, max_waiting: int, timeout_s: float) -> Speaker:
        """A request arrives; its first step runs in the next turn."""
        asyncio.set_event_loop(None)
        speaker = self.loop.run_until_complete(self._make(max_waiting, timeout_s))
        self.come.append(speaker)
        self.settled = False
        return speaker

    async def _make(self, max_waiting: int, timeout_s: float) -> Speaker:
        return Speaker(self.admission, self.admitted, max_waiting, timeout_s)

    @rule(speaker=consumes(speakers))
    def leave(self, speaker: Speaker) -> None:
        speaker.leave()
        self.settled = False

    @rule(speaker=consumes(speakers))
    def cancel(self, speaker: Speaker) -> None:
        self.cancelled.add(speaker)
        speaker.task.cancel()
        self.settled = False

    @rule(seconds=st.sampled_from([0.3, 0.5, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.loop.now_s += seconds
        self.settled = False

    @rule()
    def one_turn(self) -> None:
        self.turn()

    @rule()
    def settle(self) -> None:
        for _ in range(12):
            self.turn()
        self.settled = True

    @precondition(lambda self: self.settled)
    @rule(slots=st.integers(1, 3))
    def resize(self, slots: int) -> None:
        """The engine came back with another number of slots."""
        self.admission.slots = slots
        self.most_slots = max(self.most_slots, slots)

    @invariant()
    def never_more_than_the_slots_speak(self) -> None:
        assert sum(speaker.is_inside for speaker in self.come) <= self.admission.running <= self.most_slots
        assert self.admission.waiting >= 0

    @invariant()
    def nobody_overtakes(self) -> None:
        places = [self.come.index(speaker) for speaker in self.admitted]
        assert places == sorted(places)

    @invariant()
    def the_books_agree_once_all_is_quiet(self) -> None:
        if self.settled:
            waiting = [speaker for speaker in self.come if not speaker.task.done() and not speaker.is_inside]
            assert self.admission.running == sum(speaker.is_inside for speaker in self.come)
            assert self.admission.waiting == len(waiting)
            if waiting and self.admission.slots == self.most_slots:
                assert self.admission.running > 0, "somebody waits for nobody"

    @invariant()
    def a_request_ends_spoken_refused_or_cancelled(self) -> None:
        for speaker in self.come:
            if speaker.task.done() and not speaker.task.cancelled():
                assert speaker.task.exception() is None
                assert (speaker.outcome is not None) == (speaker not in self.admitted)

    def teardown(self) -> None:
        try:
            for speaker in self.come:
                speaker.task.cancel()
            self.settle()
            assert all(speaker.task.done() for speaker in self.come)
            assert (self.admission.running, self.admission.waiting) == (0, 0), "a slot was lost"
            self.admission.slots = 1
            self.loop.run_until_complete(self._fits_at_once())
        finally:
            self.loop.close()

    async def _fits_at_once(self) -> None:
        async with self.admission.slot(0, 0):
            assert self.admission.running == 1


AdmissionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestAdmission = AdmissionMachine.TestCase
