"""What is remembered of a file that was found whole: a small JSON file beside it."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """A file of `size` bytes and this SHA-256 that came from `source` and was written last at `mtime_ns`."""

    size: int
    sha256: str
    mtime_ns: int
    source: str

    def fits(self, status: os.stat_result) -> bool:
        """Whether a file with this status was not touched since."""
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


def path_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.record.json")


def read(file: Path) -> Record | None:
    """The record of `file`; None where there is none, or none that can be read."""
    values = read_json(path_of(file))
    try:
        record = Record(**values)
    except TypeError:
        return None
    kinds = (int, str, int, str)
    given = (record.size, record.sha256, record.mtime_ns, record.source)
    return record if all(isinstance(value, kind) for value, kind in zip(given, kinds, strict=True)) else None


def write(file: Path, record: Record) -> None:
    """Raises OSError."""
    write_json(path_of(file), asdict(record))


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; an empty one where it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Written aside and renamed: a reader finds the old one or the new one. Raises OSError.

    The name aside is always the same: what a killed writer left there goes with the next one.
    """
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(json.dumps(values), encoding="utf-8")
    aside.replace(path)
