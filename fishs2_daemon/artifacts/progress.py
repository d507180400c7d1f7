"""How far a file is."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`doing` is `fetching`, `checking` or `unpacking`. `total` is None while nobody knows it."""

    doing: str
    file: str
    done: int
    total: int | None

    @property
    def fraction(self) -> float:
        """From 0 to 1; 0 where the total is unknown."""
        return min(self.done / self.total, 1.0) if self.total else 0.0


Tell = Callable[[Progress], None]


class Tenths:
    """Words for a log: a line when a file begins and one at every further tenth of it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last: tuple[str, str, int] = ("", "", 0)

    def __call__(self, progress: Progress) -> None:
        now = (progress.doing, progress.file, int(progress.fraction * 10))
        if now != self._last:
            self._last = now
            of = f" of {megabytes(progress.total)}" if progress.total else ""
            self._say(f"{progress.doing} {progress.file}: {progress.fraction:.0%}{of}")


def megabytes(size: int) -> str:
    """In decimal units, as disks and hubs are labelled."""
    if size >= 1_000_000_000:
        return f"{size / 1e9:.2f} GB"
    if size >= 1_000_000:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e3:.1f} kB"
