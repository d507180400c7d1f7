"""How a file stands, without the network."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fishs2_daemon.artifacts import record as records
from fishs2_daemon.artifacts.errors import ArtifactError

_BLOCK_BYTES = 1 << 20


class State(Enum):
    """What a look at the file's status tells."""

    ABSENT = "not there"
    PARTIAL = "begun"
    WHOLE = "whole"
    UNCHECKED = "not checked"
    CHANGED = "changed since it was checked"


@dataclass(frozen=True, slots=True)
class Standing:
    """`size` is that of what is there, the partial file included."""

    state: State
    size: int = 0


def part_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def corrupt_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.corrupt")


def look(file: Path) -> Standing:
    """Raises `ArtifactError` where the folder cannot be read."""
    try:
        if file.is_file():
            status = file.stat()
            record = records.read(file)
            if record is None:
                return Standing(State.UNCHECKED, status.st_size)
            return Standing(State.WHOLE if record.fits(status) else State.CHANGED, status.st_size)
        part = part_of(file)
        return Standing(State.PARTIAL, part.stat().st_size) if part.is_file() else Standing(State.ABSENT)
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error.strerror})") from None


def sha256_of(file: Path, seen: Callable[[int], None]) -> str:
    """The hash of the whole file; `seen` hears how many bytes were read so far. Raises `ArtifactError`."""
    digest = hashlib.sha256()
    done = 0
    try:
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                seen(done)
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
