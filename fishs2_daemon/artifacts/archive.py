"""A zip file from somewhere else: what is in it, and onto the disk with it, once nothing in it can do harm."""

import errno
import io
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from fishs2_daemon.artifacts.errors import ArtifactError, CorruptArtifact
from fishs2_daemon.artifacts.progress import Progress, Tell, megabytes
from fishs2_daemon.disk import sync_folder

#: A runtime has some dozens of files.
MAX_ENTRIES = 4096

#: A runtime with CUDA's own libraries in it takes 2 GB.
MAX_UNPACKED_BYTES = 8 << 30

#: Libraries shrink to a third, deflate (RFC 1951) stops at a thousandth. Of the zip file's own size, so that entries
#: that share their packed bytes count, too.
MAX_RATIO = 100

#: Windows takes 260 characters for a whole path.
MAX_NAME_BYTES = 200

#: What lists the entries is read in one piece.
_MAX_DIRECTORY_BYTES = 4 << 20

_BLOCK_BYTES = 1 << 20

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_ENCRYPTED = 0x1

#: Characters that Windows takes for something else: a drive, a stream of a file, a pattern, another folder.
_FORBIDDEN = frozenset('<>:"|?*\\')

#: Windows takes them for devices in every folder and with every ending.
_DEVICES = frozenset(
    {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
    | {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}
)

#: What `zipfile` raises for a file that is none, is cut short or was damaged.
_BROKEN = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of `size` bytes. `name` is where it goes, below the folder that it is unpacked to."""

    name: PurePosixPath
    size: int
    info: zipfile.ZipInfo


class Archive:
    """Open it as a context. A single folder around everything is left out of the names.

    Raises `CorruptArtifact`, which names the entry, for what is not a zip file or holds anything but plain files under
    plain names; `ArtifactError` where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        with _explained(self._path):
            self._file = _Bounded(self._path)
        try:
            with _explained(self._path):
                self._zip = zipfile.ZipFile(self._file)
            self.entries = _entries(self._path.name, self._zip.infolist(), os.fstat(self._file.fileno()).st_size)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._zip.close()
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    def unpack(self, folder: Path, tell: Tell) -> None:
        """Make `folder`, with every file in it and on the disk. What was written stays when it raises."""
        done = 0
        try:
            folder.mkdir()
            folders = {folder}
            for entry in self.entries:
                file = folder.joinpath(*entry.name.parts)
                file.parent.mkdir(parents=True, exist_ok=True)
                folders |= {parent for parent in file.parents if parent.is_relative_to(folder)}
                with file.open("xb") as stream:
                    for block in self._blocks(entry):
                        stream.write(block)
                        done += len(block)
                        tell(Progress("unpacking", self._path.name, done, self.size))
                    stream.flush()
                    os.fsync(stream.fileno())
            for each in folders:
                sync_folder(each)
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot be written ({error.strerror})") from None

    def _blocks(self, entry: Entry) -> Iterator[bytes]:
        """Not one byte more than was declared, and not one less."""
        count = 0
        with _explained(self._path, f": its entry {entry.info.orig_filename!r}"):
            stream = self._zip.open(entry.info)
        with stream:
            while True:
                with _explained(self._path, f": its entry {entry.info.orig_filename!r}"):
                    block = stream.read(_BLOCK_BYTES)
                count += len(block)
                if count > entry.size or (not block and count < entry.size):
                    raise _refused(
                        self._path.name, entry.info.orig_filename, f"has not the {entry.size} bytes it should"
                    )
                if not block:
                    return
                yield block


class _Bounded(io.FileIO):
    """Whatever a damaged or hostile zip file says of itself, `zipfile` reads no more than this at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of entries has {size} bytes, {_MAX_DIRECTORY_BYTES} are allowed")
        return super().read(-1 if size is None else size)


def _entries(archive: str, infos: list[zipfile.ZipInfo], packed_bytes: int) -> tuple[Entry, ...]:
    if len(infos) > MAX_ENTRIES:
        raise CorruptArtifact(f"{archive}: it has {len(infos)} entries, {MAX_ENTRIES} are allowed")
    most = min(MAX_UNPACKED_BYTES, MAX_RATIO * packed_bytes)
    seen: set[PurePosixPath] = set()
    spellings: dict[str, str] = {}
    files: dict[PurePosixPath, zipfile.ZipInfo] = {}
    total = 0
    for info in infos:
        name = info.orig_filename  # as it stands there: the other one may have been mended
        if wrong := _wrong_name(name) or _wrong_kind(info):
            raise _refused(archive, name, wrong)
        total += info.file_size
        if total > most:
            raise _refused(archive, name, f"makes {megabytes(total)} of it, {megabytes(most)} are allowed")
        path = PurePosixPath(name)
        if path in seen:
            raise _refused(archive, name, "is there twice")
        seen.add(path)
        for each in (path, *path.parents):
            if (spelling := spellings.setdefault(_folded(each), str(each))) != str(each):
                raise _refused(archive, name, f"differs from {spelling!r} only in case or in how its letters are coded")
        if not name.endswith("/"):
            files[path] = info
    for path in seen:
        if file := next((parent for parent in path.parents if parent in files), None):
            raise _refused(archive, str(path), f"lies below {str(file)!r}, which is a file")
    if not files:
        raise CorruptArtifact(f"{archive}: there is no file in it")
    is_wrapped = len({path.parts[0] for path in files}) == 1 and all(len(path.parts) > 1 for path in files)
    return tuple(Entry(PurePosixPath(*path.parts[is_wrapped:]), info.file_size, info) for path, info in files.items())


def _wrong_name(name: str) -> str:
    """Why an entry may not bear this name, on whatever system; empty where it may."""
    if not name.isprintable():
        return "has characters in its name that do not show"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"has a name of more than {MAX_NAME_BYTES} bytes"
    for part in name.removesuffix("/").split("/"):
        if part in ("", ".", ".."):
            return "may lead out of the folder"
        if wrong := _FORBIDDEN.intersection(part):
            return f"has {min(wrong)!r} in its name"
        if part.endswith((" ", ".")):
            return "has a name, or a folder's, with a dot or a space at its end"
        if part.partition(".")[0].rstrip().upper() in _DEVICES:
            return "bears the name of a device of Windows"
    return ""


def _wrong_kind(info: zipfile.ZipInfo) -> str:
    """Why an entry may not be in it; empty where it may."""
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return f"is packed by method {info.compress_type}; stored and deflate are allowed"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if stat.S_ISLNK(kind):
        return "is a symbolic link; the file itself is allowed"
    if kind not in (0, stat.S_IFDIR if info.orig_filename.endswith("/") else stat.S_IFREG):
        return "is no plain file"
    return ""


def _folded(path: PurePosixPath) -> str:
    """The same for names that are one file on some system: Windows and macOS."""
    return unicodedata.normalize("NFC", str(path).casefold())


@contextmanager
def _explained(path: Path, where: str = "") -> Iterator[None]:
    try:
        yield
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file's begin
            raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
        words = " ".join(str(error).split()) or type(error).__name__
        raise CorruptArtifact(f"{path.name}{where or ': it'} is damaged, or no zip file ({words})") from None


def _refused(archive: str, name: str, why: str) -> CorruptArtifact:
    return CorruptArtifact(f"{archive}: its entry {_shown(name)} {why}")


def _shown(name: str) -> str:
    return repr(name if len(name) <= MAX_NAME_BYTES else f"{name[:MAX_NAME_BYTES]}...")
