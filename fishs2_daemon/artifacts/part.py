"""The partial file: its bytes, their hash, and what they are a part of."""

import errno
import hashlib
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fishs2_daemon.artifacts.artifact import MODELS_DIR
from fishs2_daemon.artifacts.errors import ArtifactError, DownloadFailed
from fishs2_daemon.artifacts.progress import Progress, Tell, megabytes
from fishs2_daemon.artifacts.record import read_json, write_json
from fishs2_daemon.artifacts.standing import part_of
from fishs2_daemon.disk import sync_folder

#: What the disk keeps free beside a file: the notes about it, and what others write meanwhile.
SPARE_BYTES = 64 << 20

_BLOCK_BYTES = 1 << 20

#: A disk, a quota or a limit of this process (setrlimit(2)) that is full.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Origin:
    """What the bytes are a part of; nothing stands for what nobody knows. `validator` is for If-Range."""

    source: str = ""
    sha256: str = ""
    total: int = 0
    validator: str = ""

    def continues(self, begun: "Origin") -> bool:
        """Whether bytes that were `begun` belong to this, as far as one can tell before asking."""
        if self.sha256 and begun.sha256:
            return self.sha256 == begun.sha256
        return bool(begun.validator) and self.source == begun.source


class Part:
    """Open it under the lock of `file`. Bytes are in the system's hands once `append` returns: a kill loses none.

    Its methods raise `DownloadFailed` where the disk is full, `ArtifactError` where it fails.
    """

    def __init__(self, file: Path, tell: Tell, folder_setting: str = MODELS_DIR) -> None:
        self.path = part_of(file)
        self.size = 0
        self.origin = Origin()
        self._origin_path = file.with_name(f"{file.name}.part.json")
        self._file = file
        self._tell = tell
        self._folder_setting = folder_setting
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        try:
            self._stream = self.path.open("a+b", buffering=0)
            self.size = self._stream.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._explained(error) from None
        self.origin = _origin(self._origin_path)
        self._hashed = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stream.close()

    def sha256(self) -> str:
        """Of the bytes so far; those that another process wrote are read first."""
        try:
            self._stream.seek(self._hashed)
            while self._hashed < self.size and (block := self._stream.read(_BLOCK_BYTES)):
                self._digest.update(block)
                self._hashed += len(block)
                self._tell(Progress("checking", self._file.name, self._hashed, self.size))
        except OSError as error:
            raise self._explained(error) from None
        return self._digest.hexdigest()

    def begin(self, origin: Origin) -> None:
        """Throw away what is there. The bytes go before their name does: a kill in between leaves none to mistake."""
        try:
            self._stream.truncate(0)
            self.size = self._hashed = 0
            self._digest = hashlib.sha256()
            self.origin = origin
            write_json(self._origin_path, asdict(origin))
        except OSError as error:
            raise self._explained(error) from None

    def append(self, data: bytes) -> None:
        """Behind the bytes so far, whose hash is known (`sha256`)."""
        rest = memoryview(data)
        try:
            while rest:
                count = self._stream.write(rest)
                self._digest.update(rest[:count])
                self.size += count
                self._hashed = self.size
                rest = rest[count:]
        except OSError as error:
            raise self._explained(error) from None

    def check_room(self, total: int) -> None:
        """Raises `DownloadFailed` where the disk has no room for the rest of a file of `total` bytes."""
        needed = total - self.size + SPARE_BYTES
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError as error:
            raise self._explained(error) from None
        if free < needed:
            raise DownloadFailed(
                f"{self._file.name} needs {megabytes(needed)} more, {megabytes(free)} are free at {self.path.parent}: "
                f"free some, or name another folder with {self._folder_setting}{self.kept()}"
            )

    def finish(self) -> None:
        """The bytes are on the disk and bear the final name."""
        try:
            os.fsync(self._stream.fileno())
            self.path.replace(self._file)
            self._origin_path.unlink(missing_ok=True)
            sync_folder(self._file.parent)
        except OSError as error:
            raise self._explained(error) from None

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin_path.unlink(missing_ok=True)

    def kept(self) -> str:
        """The end of an error's text."""
        return f"; {megabytes(self.size)} are kept, the same command goes on from there" if self.size else ""

    def _explained(self, error: OSError) -> ArtifactError:
        if error.errno in _FULL:
            return DownloadFailed(f"{self._file.name}: the disk at {self.path.parent} is full{self.kept()}")
        return ArtifactError(f"{self.path}: cannot be written ({error.strerror})")


def remove(file: Path) -> int:
    """Bytes freed by removing the partial file of `file` and what belongs to it. Raises OSError."""
    part = part_of(file)
    size = part.stat().st_size if part.exists() else 0
    part.unlink(missing_ok=True)
    file.with_name(f"{file.name}.part.json").unlink(missing_ok=True)
    return size


def _origin(path: Path) -> Origin:
    values = read_json(path)
    try:
        origin = Origin(**values)
    except TypeError:
        return Origin()
    texts = (origin.source, origin.sha256, origin.validator)
    return origin if all(isinstance(text, str) for text in texts) and isinstance(origin.total, int) else Origin()
