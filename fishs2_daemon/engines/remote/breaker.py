"""The circuit breaker of one upstream.

CLOSED ──failures in a row, or nobody there──▶ OPEN ──pause over, health answered──▶ HALF_OPEN
   ▲                                            ▲                                        │
   └────────────────speech──────────────────────┼──────────speech────────────────────────┤
                                                └──────────failure, longer pause─────────┘
"""

from collections.abc import Callable
from enum import Enum

#: One failure is anybody's; so many in a row are the server's.
FAILURES_TO_OPEN = 3

#: A restarted server is asked again soon; one that stays broken costs a question a minute.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """`clock` gives seconds; `failures` are those in a row.

    Health answers alone never close it: a server may be well and not speak. Half open, nobody's text is tried on it:
    it is greeted.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.state = State.CLOSED
        self._clock = clock
        self.failures = 0
        self._pause_s = 0.0
        self._opened_at = 0.0

    @property
    def pause_left_s(self) -> float:
        """Until the server's health is worth a question; 0 unless open."""
        return max(0.0, self._opened_at + self._pause_s - self._clock()) if self.state is State.OPEN else 0.0

    def spoke(self) -> None:
        """To the end, or so much that nothing is in doubt."""
        self.state = State.CLOSED
        self.failures = 0
        self._pause_s = 0.0

    def failed(self, *, is_gone: bool = False) -> None:
        self.failures += 1
        if self.state is State.OPEN and self.pause_left_s:
            return  # of an answer that had begun before
        if is_gone or self.state is not State.CLOSED or self.failures >= FAILURES_TO_OPEN:
            self.state = State.OPEN
            self._opened_at = self._clock()
            self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)

    def answered(self) -> None:
        """Its health was asked for, and is good."""
        if self.state is State.OPEN and not self.pause_left_s:
            self.state = State.HALF_OPEN
