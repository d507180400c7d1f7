"""The scheduler alone: who gets a slot, who is read, who speaks, and that nobody waits for ever."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fishs2_daemon.engines.s2.scheduler import MOST_PASSED_OVER, PIECES, Plan, Scheduler, Seat, Stage

FRAME_S = 0.046


def scheduler(slots: int = 2) -> Scheduler:
    return Scheduler(slots, FRAME_S)


def seated(scheduler: Scheduler, columns: int = 0, priority: int = 0) -> Seat:
    seat = Seat(priority)
    scheduler.join(seat)
    if columns:
        scheduler.ask(seat, columns)
    return seat


def speaking(scheduler: Scheduler) -> Seat:
    seat = seated(scheduler, 1)
    scheduler.has_read(seat, 1, None)
    assert seat.stage is Stage.SPEAKING
    return seat


def read_one(scheduler: Scheduler, seconds: float | None = None) -> Seat:
    read = scheduler.plan().read
    assert read
    scheduler.has_read(*read, seconds)
    return read[0]


def test_a_seat_s_life() -> None:
    plans = scheduler()
    seat = seated(plans)
    assert (seat.slot, seat.stage, plans.plan()) == (0, Stage.RESTING, Plan())
    plans.ask(seat, 600)
    assert plans.plan() == Plan((seat, 512), ())
    plans.has_read(seat, 512, None)
    assert plans.plan() == Plan((seat, 88), ())
    plans.has_read(seat, 88, None)
    assert plans.plan() == Plan(None, (seat,))
    seat.is_held = True
    assert plans.plan() == Plan()
    plans.rest(seat)
    assert (seat.slot, seat.stage, plans.plan()) == (0, Stage.RESTING, Plan())
    plans.leave(seat)
    plans.leave(seat)
    assert (seat.slot, seat.stage, plans.seats) == (None, Stage.GONE, [])


def test_a_prompt_may_come_before_the_slot() -> None:
    plans = scheduler(1)
    first, second, third = (seated(plans, columns) for columns in (5, 7, 0))
    assert [seat.stage for seat in (first, second, third)] == [Stage.READING, Stage.WAITING, Stage.WAITING]
    plans.leave(first)
    assert (second.slot, second.stage, second.unread) == (0, Stage.READING, 7)
    plans.rest(third)  # nothing to stop
    assert third.stage is Stage.WAITING
    plans.leave(second)
    assert (third.slot, third.stage) == (0, Stage.RESTING)


def test_the_lowest_free_slot_is_given() -> None:
    plans = scheduler(3)
    seats = [seated(plans) for _ in range(3)]
    plans.leave(seats[2])
    plans.leave(seats[0])
    assert [seated(plans).slot, seated(plans).slot, seated(plans).slot] == [0, 2, None]


@pytest.mark.parametrize(
    ("measured", "piece"), [(None, 32), (0.0, 32), (0.01, 512), (0.02, 128 * 2), (0.045, 128), (0.2, 32), (5.0, 32)]
)
def test_a_piece_beside_speakers_takes_no_longer_than_a_frame_sounds(measured: float | None, piece: int) -> None:
    """`measured` is what 128 columns took; of sizes that there are."""
    plans = scheduler(3)
    reader = seated(plans, 2000)
    plans.has_read(reader, 128, measured)
    assert plans.plan().read == (reader, 512)  # nobody waits
    speaker = speaking(plans)
    assert plans.plan() == Plan((reader, max(size for size in PIECES if size <= piece)), (speaker,))
    speaker.is_held = True
    assert plans.plan() == Plan((reader, 512), ())


def test_a_rest_takes_as_long_as_the_piece_it_is_filled_up_to() -> None:
    plans = scheduler(2)
    speaking(plans)
    reader = seated(plans, 40)
    plans.has_read(reader, 39, 0.04)
    plans.has_read(reader, 1, 0.01)  # as 32 of them would
    plans.ask(reader, 500)
    assert plans.plan().read == (reader, 128)


def test_those_of_priority_go_first() -> None:
    plans = scheduler(1)
    running = seated(plans)
    book, home, later = seated(plans, priority=1), seated(plans, priority=0), seated(plans, priority=0)
    order = []
    for seat in (running, home, later):
        plans.leave(seat)
        order += [seat for seat in (book, home, later) if seat.slot == 0]
    assert order == [home, later, book]


def test_a_book_is_not_passed_over_for_ever() -> None:
    """However many others there always are, and however long they have waited themselves."""
    plans = scheduler(1)
    running = seated(plans)
    crowd = [seated(plans, priority=0) for _ in range(12)]
    book = seated(plans, priority=1)
    turns = 0
    while book.slot is None:
        plans.leave(running)
        running = next(seat for seat in [*crowd, book] if seat.slot == 0)
        crowd.append(seated(plans, priority=0))
        turns += 1
        assert turns <= MOST_PASSED_OVER + 12 + 1


@pytest.mark.parametrize("others", [1, 12, 20])
def test_no_reader_starves(others: int) -> None:
    """Beside those who have more to read than anyone can."""
    plans = scheduler(others + 1)
    for _ in range(others):
        seated(plans, 10**9, priority=0)
    book = seated(plans, 3 * 512, priority=1)
    gaps, gap = [], 0
    while book.stage is Stage.READING:
        gap = 0 if read_one(plans) is book else gap + 1
        gaps.append(gap)
    assert max(gaps) <= MOST_PASSED_OVER + others


def test_what_a_seat_waited_for_before_gives_it_no_right_now() -> None:
    plans = scheduler(3)
    late = seated(plans, 10**6, priority=1)
    first = seated(plans, 10**6)
    for _ in range(MOST_PASSED_OVER):
        read_one(plans)
    plans.rest(late)  # its prompt was wrong
    plans.ask(late, 10**6)
    assert read_one(plans) is first


@dataclass(eq=False)
class Known:
    """What the model of the machine knows of a seat."""

    seat: Seat
    before: int = 0  # that waited for the same when it began to
    passed: int = 0
    left: bool = False
    asked: list[int] = field(default_factory=list)


@settings(max_examples=60, stateful_step_count=60, deadline=None)
class Rounds(RuleBasedStateMachine):
    """Arrivals, prompts, rounds, holds, ends and departures in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(3, FRAME_S)
        self.known: list[Known] = []

    def present(self, *stages: Stage) -> list[Known]:
        return [each for each in self.known if not each.left and (not stages or each.seat.stage in stages)]

    def pick(self, index: int, *stages: Stage) -> Known | None:
        found = self.present(*stages)
        return found[index % len(found)] if found else None

    def handed_out(self, waiting: list[Known]) -> None:
        """Those who got a slot, one after the other, went before those who still wait."""
        got = [each for each in waiting if each.seat.stage is not Stage.WAITING and not each.left]
        for each in waiting:
            if each.seat.stage is Stage.WAITING:
                each.passed += len(got)
                assert each.passed <= MOST_PASSED_OVER + each.before

    @rule(priority=st.integers(0, 1), columns=st.integers(0, 1500))
    def join(self, priority: int, columns: int) -> None:
        waiting = self.present(Stage.WAITING)
        known = Known(Seat(priority), before=len(waiting))
        self.known.append(known)
        self.scheduler.join(known.seat)
        if columns:
            self.ask_of(known, columns)
        if waiting:
            assert known.seat.stage is Stage.WAITING

    @rule(index=st.integers(0, 99), columns=st.integers(1, 1500))
    def ask(self, index: int, columns: int) -> None:
        known = self.pick(index, Stage.RESTING, Stage.WAITING)
        if known and not known.seat.unread:
            self.ask_of(known, columns)

    def ask_of(self, known: Known, columns: int) -> None:
        readers = self.present(Stage.READING)
        self.scheduler.ask(known.seat, columns)
        if known.seat.stage is Stage.READING:
            known.before, known.passed = len(readers), 0

    @rule(index=st.integers(0, 99))
    def leave(self, index: int) -> None:
        if known := self.pick(index):
            waiting = [each for each in self.present(Stage.WAITING) if each is not known]
            readers = self.present(Stage.READING)
            known.left = True
            self.scheduler.leave(known.seat)
            self.handed_out(waiting)
            for each in waiting:
                if each.seat.stage is Stage.READING:
                    each.before, each.passed = len(readers), 0

    @rule(index=st.integers(0, 99))
    def rest(self, index: int) -> None:
        if known := self.pick(index, Stage.SPEAKING, Stage.READING):
            self.scheduler.rest(known.seat)
            assert known.seat.stage is Stage.RESTING

    @rule(index=st.integers(0, 99), held=st.booleans())
    def hold(self, index: int, held: bool) -> None:
        if known := self.pick(index, Stage.SPEAKING):
            known.seat.is_held = held

    @rule(seconds=st.one_of(st.none(), st.floats(0, 0.2)))
    def round(self, seconds: float | None) -> None:
        readers, speakers = self.present(Stage.READING), self.present(Stage.SPEAKING)
        plan = self.scheduler.plan()
        speak = [each.seat for each in speakers if not each.seat.is_held]
        assert set(plan.speak) == set(speak)
        assert len(plan.speak) == len(speak)
        assert bool(plan.read) == bool(readers)
        if not plan.read:
            return
        seat, columns = plan.read
        assert 0 < columns <= min(seat.unread, PIECES[-1])
        if speak and columns > PIECES[0]:
            size = next(piece for piece in PIECES if piece >= columns)
            assert size * self.scheduler._column_s <= FRAME_S
        for each in readers:
            each.passed = 0 if each.seat is seat else each.passed + 1
            assert each.passed <= MOST_PASSED_OVER + max(each.before, len(readers))
        self.scheduler.has_read(seat, columns, seconds if speak else None)

    @precondition(lambda self: self.present())
    @rule()
    def all_leave(self) -> None:
        for known in self.present():
            known.left = True
            self.scheduler.leave(known.seat)
        assert self.scheduler.seats == []
        assert self.scheduler.plan() == Plan()
        assert [seated(self.scheduler).slot for _ in range(4)] == [0, 1, 2, None]
        for seat in list(self.scheduler.seats):
            self.scheduler.leave(seat)

    @invariant()
    def slots_are_those_that_there_are_each_given_once(self) -> None:
        slots = [each.seat.slot for each in self.present() if each.seat.slot is not None]
        assert len(slots) == len(set(slots))
        assert set(slots) <= set(range(3))
        assert all(each.seat.slot is None for each in self.known if each.left)
        if self.present(Stage.WAITING):
            assert len(slots) == 3


TestRounds = Rounds.TestCase
