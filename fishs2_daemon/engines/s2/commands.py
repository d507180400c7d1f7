"""What other threads want of one that computes."""

import queue
from collections.abc import Callable

Command = Callable[[], None]


class Commands:
    """Any thread puts commands, and one carries them out, in their order, when it has the time."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command | None] = queue.SimpleQueue()

    def put(self, command: Command) -> None:
        self._queue.put(command)

    def end(self) -> None:
        """What is put later is not carried out."""
        self._queue.put(None)

    def carry_out(self, *, wait: bool, timeout_s: float | None = None) -> bool:
        """All that are there; where there are none, with `wait`, those that come first, `timeout_s` at the most.
        False when it is over."""
        while wait or not self._queue.empty():
            try:
                command = self._queue.get(timeout=timeout_s)
            except queue.Empty:
                break
            if command is None:
                return False
            command()
            wait = False
        return True
