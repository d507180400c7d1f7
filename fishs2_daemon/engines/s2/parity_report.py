"""What a comparison prints: a line for each quantity, and whether all of them are within their tolerances."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fishs2_daemon.engines.s2.parity_recorded import Array, Recorded

Kind = Literal["logits", "wave"]

#: Logits may be off by the allowed rms difference, the gap between two by 1.4 times that. A choice whose margin
#: exceeds four such deviations has to be the same.
_MARGIN_DEVIATIONS = 6


@dataclass(frozen=True, slots=True)
class Tolerance:
    """`measure` is "max", the largest absolute difference, or "rms", that of the differences relative to that of the
    values. `logits` holds for hidden states and activations, too."""

    measure: Literal["max", "rms"]
    logits: float
    wave: float

    def margin(self, logits: Array) -> float:
        """A choice whose logit exceeds the next one by no more may be made otherwise."""
        if self.measure == "max":
            return 2 * self.logits
        return _MARGIN_DEVIATIONS * self.logits * _rms(logits)

    @property
    def cosine_margin(self) -> float:
        """The same of the encoder's choices, which are between cosines: values of the order of 1."""
        return self.logits


#: Section 11 of the specification, by the type of a file's weights (and of the keys and values that go with it).
EXACT = Tolerance("max", logits=1e-4, wave=1e-5)
ROUNDED = Tolerance("rms", logits=3e-3, wave=1e-3)


class Report:
    """Prints as it goes, so that what a crash leaves says how far it came."""

    def __init__(self) -> None:
        self.compared = 0
        self.failed = 0

    def of(self, source: str, tolerance: Tolerance = EXACT) -> "Lines":
        return Lines(self, source, tolerance)

    def line(self, source: str, name: str, text: str, ok: bool | None) -> None:
        """`ok` is None where there was nothing to compare."""
        if ok is not None:
            self.compared += 1
            self.failed += not ok
        print(f"{source:<22} {name:<28} {text}{'' if ok is None else '  ok' if ok else '  FAIL'}", flush=True)


class Lines:
    """The part of a report about one file."""

    def __init__(self, report: Report, source: str, tolerance: Tolerance) -> None:
        self._report = report
        self._source = source
        self.tolerance = tolerance

    def close(self, name: str, found: Array, wanted: Array, kind: Kind = "logits") -> None:
        """Whether numbers are within the tolerance for their kind."""
        if found.shape != wanted.shape:
            self.verdict(name, f"has shape {list(found.shape)}, recorded is {list(wanted.shape)}", False)
            return
        difference = found.astype(np.float64) - wanted
        largest, rms = float(np.abs(difference).max(initial=0)), _rms(difference)
        scale = _rms(wanted)
        relative = rms / scale if scale else rms
        limit = self.tolerance.logits if kind == "logits" else self.tolerance.wave
        measured = largest if self.tolerance.measure == "max" else relative
        text = f"max {largest:.1e}  rms {relative:.1e}  ({self.tolerance.measure} at most {limit:.0e})"
        self.verdict(name, text, measured <= limit)  # NaN is not

    def same(self, name: str, found: Array, wanted: Array) -> None:
        """Whether whole numbers `[..., n]` are equal."""
        if found.shape != wanted.shape:
            self.verdict(name, f"has shape {list(found.shape)}, recorded is {list(wanted.shape)}", False)
            return
        equal = int((found == wanted).sum())
        self.verdict(name, f"{equal} of {wanted.size} equal", equal == wanted.size)

    def verdict(self, name: str, text: str, ok: bool) -> None:
        self._report.line(self._source, name, text, ok)

    def skipped(self, name: str, why: str) -> None:
        self._report.line(self._source, name, f"not compared: {why}", None)

    def unused(self, recorded: Recorded) -> None:
        for key in recorded.unused:
            self._report.line(recorded.name, key, "not compared: nothing that this tool knows", None)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """An error in here is a failed comparison, and the rest goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - an edge: recordings and engines of any state are compared
            reason = " ".join(str(error).split())
            self.verdict(name, f"{type(error).__name__}: {reason:.200}", False)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
