"""What a benchmark is to do, checked before anything is loaded."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fishs2_daemon.errors import InvalidRequest

_T = TypeVar("_T", int, float)

#: As `FISHS2_SLOTS` allows.
MOST_STREAMS = 64

MOST_ROUNDS = 10_000

#: A context of 32768 positions holds more, but no listener waits for one answer that long.
LONGEST_S = 600.0

#: What the codec of a voice takes.
LONGEST_REFERENCE_S = 120.0

#: Of a synthetic voice: what people upload.
REFERENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Compared:
    """Another server: `url` is what `/audio/speech` is appended to, and `rate` that of the PCM it streams."""

    url: str
    model: str
    voice: str
    rate: int
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """`voice` and `reference_s` (of a made-up voice; 0: none) exclude each other; `shape` is that of a random model."""

    streams: tuple[int, ...]
    repeat: int
    seconds: float
    voice: str | None
    reference_s: float
    shape: str | None
    quant: str
    folder: Path | None
    json: Path | None
    compared: Compared | None
    ratios: bool

    @classmethod
    def of(
        cls,
        *,
        streams: str,
        repeat: str,
        seconds: str,
        voice: str | None,
        reference_seconds: str | None,
        synthetic: str | None,
        quant: str,
        folder: str | None,
        json: str | None,
        compare: str | None,
        compare_model: str,
        compare_voice: str,
        compare_rate: str,
        compare_key_file: str | None,
        ratios: bool,
    ) -> "Plan":
        """From the flags as they were typed. Raises `InvalidRequest` that names the flag and what is allowed."""
        if voice and reference_seconds is not None:
            raise InvalidRequest("--voice, --reference-seconds: allowed: one of them")
        if ratios and compare:
            raise InvalidRequest("--ratios, --compare: allowed: one of them")
        target = Path(json) if json else None
        if target and not _is_writable(target):
            raise InvalidRequest(f"--json {target}: allowed: the path of a file in a folder that may be written")
        given = reference_seconds or ("0" if voice or not synthetic else str(REFERENCE_S))
        return cls(
            streams=_levels(streams),
            repeat=_number("--repeat", repeat, int, 1, MOST_ROUNDS),
            seconds=_number("--seconds", seconds, float, 0.1, LONGEST_S),
            voice=voice,
            reference_s=_number("--reference-seconds", given, float, 0, LONGEST_REFERENCE_S),
            shape=synthetic or ("bench" if ratios else None),
            quant=quant,
            folder=Path(folder) if folder else None,
            json=target,
            compared=Compared(
                compare.rstrip("/"), compare_model, compare_voice,
                _number("--compare-rate", compare_rate, int, 4000, 192_000),
                Path(compare_key_file) if compare_key_file else None,
            ) if compare else None,
            ratios=ratios,
        )  # fmt: skip


def _is_writable(target: Path) -> bool:
    """As far as can be told before it is written."""
    folder = target.parent
    return folder.is_dir() and os.access(folder, os.W_OK) and (target.is_file() or not target.exists())


def _levels(given: str) -> tuple[int, ...]:
    levels = [_number("--streams", part, int, 1, MOST_STREAMS) for part in given.split(",")]
    return tuple(sorted(set(levels)))


def _number(flag: str, given: str, kind: Callable[[str], _T], least: float, most: float) -> _T:
    try:
        value = kind(given)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        what = "a number" if kind is float else "a whole number"
        raise InvalidRequest(f"{flag}: {given.strip()!r} is not allowed; allowed: {what} from {least:g} to {most:g}")
    return value
