"""The queue in front of the engine: first come, first served; bounded; and no slot is ever lost."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from fishs2_daemon.admission import Admission
from fishs2_daemon.errors import Busy
from fishs2_daemon.speech import Priority

PATIENT_S = 60.0


class Speaker:
    """A request: it holds its slot until it may leave."""

    def __init__(self, admission: Admission, max_waiting: int, timeout_s: float) -> None:
        self.was_admitted = False
        self.is_inside = False
        self.refusal: Busy | None = None
        self.may_leave = asyncio.Event()
        self._slot = admission.slot(Priority.READING, max_waiting, timeout_s)

    async def speak(self) -> None:
        try:
            async with self._slot:
                self.was_admitted = self.is_inside = True
                try:
                    await self.may_leave.wait()
                finally:
                    self.is_inside = False
        except Busy as busy:
            self.refusal = busy


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
        self.slots = self.most_slots = 1
        self.admission = Admission(lambda: self.slots)
        self.tasks: dict[Speaker, asyncio.Task[None]] = {}  # in the order in which they came
        self.is_quiet = True

    def turn(self) -> None:
        """One turn of the loop: what is ready now runs, and nothing that it makes ready."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    @rule(target=speakers, max_waiting=st.integers(0, 4), timeout_s=st.sampled_from([0.5, 1.0, PATIENT_S]))
    def come(self, max_waiting: int, timeout_s: float) -> Speaker:
        speaker = Speaker(self.admission, max_waiting, timeout_s)
        self.tasks[speaker] = self.loop.create_task(speaker.speak())
        self.is_quiet = False
        return speaker

    @rule(speaker=consumes(speakers))
    def leave(self, speaker: Speaker) -> None:
        speaker.may_leave.set()
        self.is_quiet = False

    @rule(speaker=consumes(speakers))
    def cancel(self, speaker: Speaker) -> None:
        self.tasks[speaker].cancel()
        self.is_quiet = False

    @rule(seconds=st.sampled_from([0.3, 0.5, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.loop.now_s += seconds
        self.is_quiet = False

    @rule()
    def one_turn(self) -> None:
        self.turn()

    @rule()
    def settle(self) -> None:
        for _ in range(6 + 4 * len(self.tasks)):
            self.turn()
        self.is_quiet = True

    @precondition(lambda self: self.is_quiet)
    @rule(slots=st.integers(1, 3))
    def resize(self, slots: int) -> None:
        """The engine came back with another number of slots."""
        self.slots = slots
        self.admission.admit()
        self.settle()
        self.most_slots = max(self.most_slots, slots)

    @invariant()
    def never_more_than_the_slots_speak(self) -> None:
        assert sum(speaker.is_inside for speaker in self.tasks) <= self.admission.running <= self.most_slots

    @invariant()
    def a_request_ends_spoken_refused_or_cancelled(self) -> None:
        for speaker, task in self.tasks.items():
            if task.done() and not task.cancelled():
                assert task.exception() is None
                assert (speaker.refusal is None) == speaker.was_admitted

    @precondition(lambda self: self.is_quiet)
    @invariant()
    def the_books_agree(self) -> None:
        inside = [speaker for speaker in self.tasks if speaker.is_inside]
        waiting = self.waiting()
        assert (self.admission.running, self.admission.waiting) == (len(inside), len(waiting))
        assert len(inside) >= self.slots or not waiting, "somebody waits for nobody"

    @precondition(lambda self: self.is_quiet)
    @invariant()
    def nobody_overtakes_who_still_waits(self) -> None:
        places = {speaker: place for place, speaker in enumerate(self.tasks)}
        last_admitted = max((places[speaker] for speaker in self.tasks if speaker.was_admitted), default=-1)
        assert all(places[speaker] > last_admitted for speaker in self.waiting())

    def waiting(self) -> list[Speaker]:
        return [speaker for speaker, task in self.tasks.items() if not task.done() and not speaker.is_inside]

    def teardown(self) -> None:
        try:
            for task in self.tasks.values():
                task.cancel()
            self.settle()
            assert all(task.done() for task in self.tasks.values())
            assert (self.admission.running, self.admission.waiting) == (0, 0), "a slot was lost"
            last = Speaker(self.admission, 0, 0.5)
            last.may_leave.set()
            self.tasks[last] = self.loop.create_task(last.speak())
            self.settle()
            assert last.was_admitted, "a free slot was refused"
            assert self.admission.running == 0
        finally:
            self.loop.close()


AdmissionMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAdmission = AdmissionMachine.TestCase


async def test_a_full_queue_is_refused_at_once_with_a_hint() -> None:
    admission = Admission(lambda: 1)
    async with admission.slot(Priority.READING, 0, PATIENT_S):
        with pytest.raises(Busy, match="1 texts are being spoken and 0 wait") as busy:
            await admission.slot(Priority.READING, 0, PATIENT_S).__aenter__()
        assert busy.value.retry_after_s == 1
        assert (admission.running, admission.waiting) == (1, 0)


async def test_a_wait_ends_with_its_timeout() -> None:
    admission = Admission(lambda: 1)
    async with admission.slot(Priority.READING, 1, PATIENT_S):
        with pytest.raises(Busy, match="no slot became free within 0 s") as busy:
            await admission.slot(Priority.READING, 1, 0.01).__aenter__()
        assert busy.value.retry_after_s == 5
        assert (admission.running, admission.waiting) == (1, 0)


async def test_what_fails_inside_gives_its_slot_back_and_surfaces() -> None:
    admission = Admission(lambda: 1)
    with pytest.raises(ZeroDivisionError):
        async with admission.slot(Priority.READING, 0, PATIENT_S):
            raise ZeroDivisionError
    assert admission.running == 0


async def test_waiters_come_in_one_by_one_in_their_order() -> None:
    admission, order = Admission(lambda: 1), []

    async def speak(number: int) -> None:
        async with admission.slot(Priority.READING, 99, PATIENT_S):
            assert admission.running == 1
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(speak(number))
    assert order == list(range(20))


async def test_a_slot_that_is_lent_is_another_one_s_until_it_is_waited_for_anew() -> None:
    admission = Admission(lambda: 1)
    async with admission.slot(Priority.READING, 0, PATIENT_S) as first:
        first.lend()
        first.lend()
        assert (first.is_lent, admission.running) == (True, 0)
        async with admission.slot(Priority.READING, 0, PATIENT_S):
            taking = asyncio.ensure_future(first.take_again())
            await asyncio.sleep(0.01)
            assert (admission.running, admission.waiting) == (1, 1), (
                "a text that goes on waits in a queue of any length"
            )
        await taking
        assert (first.is_lent, admission.running) == (False, 1)
        await first.take_again()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_whoever_waits_for_a_slot_that_was_lent_is_not_sent_away_for_another() -> None:
    admission = Admission(lambda: 1)
    async with admission.slot(Priority.READING, 0, PATIENT_S) as first:
        first.lend()
        async with admission.slot(Priority.READING, 0, PATIENT_S):
            taking = asyncio.ensure_future(first.take_again())
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                await admission.slot(Priority.CONVERSATION, 1, PATIENT_S).__aenter__()
            assert not taking.done()
        await taking


async def test_what_a_conversation_lends_is_for_conversations() -> None:
    """A long text would not give it back in time."""
    admission = Admission(lambda: 1)
    async with admission.slot(Priority.CONVERSATION, 0, PATIENT_S) as first:
        first.lend()
        reading = asyncio.ensure_future(admission._acquire(Priority.READING, 9, PATIENT_S))
        await asyncio.sleep(0)
        async with admission.slot(Priority.CONVERSATION, 0, PATIENT_S):
            assert admission.running == 1
        await first.take_again()
        first.lend()
        await asyncio.sleep(0)
        assert not reading.done()
    await reading
    assert (admission.running, admission.waiting) == (1, 0)


async def test_a_lent_slot_that_does_not_come_back_in_time_is_busy() -> None:
    admission = Admission(lambda: 1)
    async with admission.slot(Priority.READING, 0, 0.01) as first:
        first.lend()
        async with admission.slot(Priority.READING, 0, PATIENT_S):
            with pytest.raises(Busy, match="no slot became free"):
                await first.take_again()
    assert (admission.running, admission.waiting) == (0, 0)


STEPS = st.lists(st.sampled_from(["lend", "take", "turn", "turns"]), max_size=6)


@given(st.integers(1, 3), st.lists(st.tuples(STEPS, st.integers(0, 40)), min_size=1, max_size=6))
async def test_lending_loses_no_slot_and_makes_none(slots: int, texts: list[tuple[list[str], int]]) -> None:
    """Whatever they do, and whenever each of them is cancelled."""
    admission = Admission(lambda: slots)
    speaking = 0

    async def speak(steps: list[str]) -> None:
        nonlocal speaking
        async with admission.slot(Priority.READING, 99, PATIENT_S) as slot:
            holds = True
            speaking += 1
            try:
                for step in steps:
                    if step == "lend":
                        slot.lend()
                        speaking -= holds
                        holds = False
                    elif step == "take":
                        await slot.take_again()
                        speaking += not holds
                        holds = True
                    for _ in range(5 if step == "turns" else 1):
                        await asyncio.sleep(0)
                        assert speaking <= slots
            finally:
                speaking -= holds

    tasks = [asyncio.create_task(speak(steps)) for steps, _ in texts]
    for turn in range(41):
        for task, (_, cancelled_at) in zip(tasks, texts, strict=True):
            if turn == cancelled_at:
                task.cancel()
        await asyncio.sleep(0)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert outcome is None or isinstance(outcome, asyncio.CancelledError)
    assert (admission.running, admission.waiting, speaking) == (0, 0, 0)


async def test_a_conversation_takes_the_place_of_the_last_reading_in_a_full_queue() -> None:
    admission = Admission(lambda: 1)
    async with admission.slot(Priority.READING, 0, PATIENT_S):
        readings = [asyncio.ensure_future(admission._acquire(Priority.READING, 2, PATIENT_S)) for _ in range(2)]
        await asyncio.sleep(0)
        talking = asyncio.ensure_future(admission._acquire(Priority.CONVERSATION, 2, PATIENT_S))
        with pytest.raises(Busy):
            await readings[1]
        with pytest.raises(Busy):
            await admission._acquire(Priority.READING, 2, PATIENT_S)
        assert admission.waiting == 2
    await talking
    assert admission.running == 1
    assert not readings[0].done()
    admission.running -= 1
    admission.admit()
    await readings[0]
    assert (admission.running, admission.waiting) == (1, 0)
