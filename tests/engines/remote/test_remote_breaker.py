"""The circuit breaker as a state machine."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fishs2_daemon.engines.remote.breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    Breaker,
    State,
)


class BreakerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 128.0
        self.breaker = Breaker(lambda: self.now)
        self.in_a_row = 0
        self.pause_s = 0.0

    @rule(seconds=st.integers(0, 100))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def spoke(self) -> None:
        self.breaker.spoke()
        self.in_a_row, self.pause_s = 0, 0.0
        assert self.breaker.state is State.CLOSED

    @rule(is_gone=st.booleans())
    def failed(self, is_gone: bool) -> None:
        before, left_s = self.breaker.state, self.breaker.pause_left_s
        self.in_a_row += 1
        self.breaker.failed(is_gone=is_gone)
        if before is State.OPEN and left_s:
            assert self.breaker.pause_left_s == left_s
        elif is_gone or before is not State.CLOSED or self.in_a_row >= FAILURES_TO_OPEN:
            assert self.breaker.state is State.OPEN
            assert self.breaker.pause_left_s == min(max(2 * self.pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            self.pause_s = self.breaker.pause_left_s
        else:
            assert self.breaker.state is State.CLOSED

    @rule()
    def answered(self) -> None:
        before, left_s = self.breaker.state, self.breaker.pause_left_s
        self.breaker.answered()
        assert self.breaker.state is (State.HALF_OPEN if before is State.OPEN and not left_s else before)

    @precondition(lambda self: self.breaker.state is State.OPEN)
    @rule()
    def pause_ends(self) -> None:
        self.now += self.breaker.pause_left_s
        assert self.breaker.pause_left_s == 0

    @invariant()
    def a_pause_is_bounded_and_only_of_an_open_one(self) -> None:
        assert 0 <= self.breaker.pause_left_s <= LONGEST_PAUSE_S
        assert self.breaker.state is State.OPEN or not self.breaker.pause_left_s


TestBreaker = BreakerMachine.TestCase
