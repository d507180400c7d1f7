"""What the device does next, decided between two frames.

    join ─> waits for a slot ─> rests ─ask─> reads its prompt ─> speaks ─rest─> rests ─> ... ─leave─> the slot is free

Whoever speaks gets a frame in every round; beside it one piece of one prompt is read, so that a newcomer delays the
others by that piece and no more. Pure bookkeeping: it knows no model, no thread and no clock.
"""

from dataclasses import dataclass, field
from enum import Enum

from fishs2_daemon.engines.s2.sizes import PREFILL_TOKENS

#: Sizes that a prompt is read in.
PIECES = PREFILL_TOKENS

#: Whoever was passed over this often, for a slot or for reading, goes before every priority.
MOST_PASSED_OVER = 8


class Stage(Enum):
    WAITING = "waiting for a slot"
    RESTING = "has a slot and nothing to say"
    READING = "its prompt is being read"
    SPEAKING = "gets frames"
    GONE = "has left"


@dataclass(eq=False, slots=True)
class Seat:
    """One text's place in the batch, from `join` to `leave`. A lower `priority` goes first."""

    priority: int = 0
    stage: Stage = Stage.WAITING
    slot: int | None = None
    #: Columns of the prompt that are not read yet.
    unread: int = 0
    #: Whether its listener is so far behind that it gets no frames for now.
    is_held: bool = False
    passed_over: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """One round: a piece of a prompt to read, then a frame for each of `speak`."""

    read: tuple[Seat, int] | None = None
    speak: tuple[Seat, ...] = ()


@dataclass(slots=True)
class Scheduler:
    """While others speak, pieces take no longer than `most_piece_s`, by the measure of the last one."""

    slots: int
    most_piece_s: float
    seats: list[Seat] = field(default_factory=list)
    _column_s: float = 0.0

    def join(self, seat: Seat) -> None:
        self.seats.append(seat)
        self._hand_out()

    def leave(self, seat: Seat) -> None:
        """Its slot is free at once. May be called twice."""
        if seat.stage is not Stage.GONE:
            self.seats.remove(seat)
            seat.stage, seat.slot = Stage.GONE, None
            self._hand_out()

    def ask(self, seat: Seat, columns: int) -> None:
        """A prompt, of which so many columns (one at least) are to be read before it is spoken. It may come before
        there is a slot."""
        seat.unread = columns
        if seat.stage is not Stage.WAITING:
            seat.stage, seat.passed_over = Stage.READING, 0

    def rest(self, seat: Seat) -> None:
        """It has spoken its prompt, or was stopped."""
        seat.unread = 0
        if seat.slot is not None:
            seat.stage = Stage.RESTING

    def plan(self) -> Plan:
        """The next round; nothing in it when there is nothing to do."""
        speakers, readers = [], []
        for seat in self.seats:
            if seat.stage is Stage.SPEAKING and not seat.is_held:
                speakers.append(seat)
            elif seat.stage is Stage.READING:
                readers.append(seat)
        if not readers:
            return Plan(None, tuple(speakers))
        chosen = _first(readers)
        return Plan((chosen, min(chosen.unread, self._piece(bool(speakers)))), tuple(speakers))

    def has_read(self, seat: Seat, columns: int, seconds: float | None) -> None:
        """A piece was read, and took so long, where that was measured. Behind the last one the seat speaks."""
        if seconds is not None:
            # A rest of a prompt takes as long as the whole piece that it is filled up to.
            self._column_s = seconds / next(piece for piece in PIECES if piece >= columns)
        seat.unread -= columns
        if seat.unread <= 0:
            seat.stage = Stage.SPEAKING

    def _piece(self, others_speak: bool) -> int:
        """The largest piece that makes nobody wait too long; the smallest one until it is known how long they take."""
        if not others_speak:
            return PIECES[-1]
        fitting = [piece for piece in PIECES if 0 < piece * self._column_s <= self.most_piece_s]
        return max(fitting, default=PIECES[0])

    def _hand_out(self) -> None:
        taken = {seat.slot for seat in self.seats}
        # The lowest first: the smaller the highest slot in use, the smaller the batch.
        free = [slot for slot in range(self.slots) if slot not in taken]
        while free and (waiting := [seat for seat in self.seats if seat.stage is Stage.WAITING]):
            seat = _first(waiting)
            seat.slot, seat.stage = free.pop(0), Stage.READING if seat.unread else Stage.RESTING


def _first(seats: list[Seat]) -> Seat:
    """The one that was passed over most, if that was too often; else by priority, then order of arrival. The others
    were passed over."""
    chosen = min(seats, key=_rank)
    for seat in seats:
        seat.passed_over += seat is not chosen
    chosen.passed_over = 0
    return chosen


def _rank(seat: Seat) -> tuple[int, int]:
    """Those who waited too long go by that alone: were priority to tell between them, too, the others could be
    overtaken for ever."""
    return (-seat.passed_over, 0) if seat.passed_over >= MOST_PASSED_OVER else (0, seat.priority)
