"""Recordings that come with a request: to be cloned for it, and not to be stored as a voice."""

import asyncio
import hashlib
import os
import shutil
import stat
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fishs2_daemon.errors import (
    Busy,
    InvalidReferenceAudio,
    InvalidRequest,
    MissingTranscript,
    StorageError,
    UploadTooLarge,
)
from fishs2_daemon.settings import ENV_PREFIX, Settings
from fishs2_daemon.speech import Clip
from fishs2_daemon.voices.check import check
from fishs2_daemon.voices.limits import VoiceLimits

#: Kept for the next request with the same recording: those of an hour of a busy box, and their codes beside them.
KEPT_BYTES = 256 * 1024 * 1024
KEPT = 256

#: Checks at a time: each is a process that computes.
_CHECKS = 2

_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Recording:
    """`data` is the content, or the path of a file as a client names it. `param` is the field that it came in."""

    data: bytes | str
    transcript: str
    param: str = "references"


@dataclass(slots=True)
class _Kept:
    size_bytes: int
    users: int = 0


class References:
    """Recordings by their content, in a folder that nobody else may read, which is made with the first one.

    Files are named by clients only below `settings.reference_dirs` and the voices folder, and are copied: what is
    spoken with is what was checked. The longest unused ones go first when there are too many.
    """

    def __init__(self, settings: Settings, limits: VoiceLimits | None = None) -> None:
        self._settings = settings
        self._limits = limits or VoiceLimits()
        self._folder: Path | None = None
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._checking: dict[str, asyncio.Task[None]] = {}
        self._checks = asyncio.Semaphore(_CHECKS)

    @property
    def folder(self) -> Path:
        """Of temporary files: mode 0700, gone with `close`."""
        if self._folder is None or not self._folder.is_dir():  # who tidies /tmp up may have taken it
            self._kept.clear()
            self._folder = Path(tempfile.mkdtemp(prefix="fishs2-"))
        return self._folder

    @asynccontextmanager
    async def held(self, recordings: Sequence[Recording]) -> AsyncIterator[tuple[Clip, ...]]:
        """The clips to speak with, whose files stay as long as the context lasts.

        Raises `MissingTranscript`, `InvalidReferenceAudio` and its kinds, `UploadTooLarge`, or `Busy` where all that is
        kept is in use.
        """
        for recording in recordings:
            if not recording.transcript.strip():
                raise MissingTranscript(
                    f"{recording.param}: cloning needs the words that are said in the recording: send reference_text",
                    param=recording.param if recording.param == "references" else "reference_text",
                )
        async with AsyncExitStack() as stack:
            clips = tuple([await stack.enter_async_context(self._clip(recording)) for recording in recordings])
            del recordings  # megabytes, for as long as the speech takes
            yield clips

    async def close(self) -> None:
        """Everything goes; no request may hold a clip any more."""
        for task in self._checking.values():
            task.cancel()
        await asyncio.gather(*self._checking.values(), return_exceptions=True)
        self._kept.clear()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None

    @asynccontextmanager
    async def _clip(self, recording: Recording) -> AsyncIterator[Clip]:
        transcript, param = recording.transcript.strip(), recording.param
        with self._part() as (part, file):
            digest, size_bytes = await asyncio.to_thread(self._copy, recording, file)
            del recording
            if digest in self._kept and not self._path(digest).is_file():
                del self._kept[digest]
            if digest not in self._kept:
                await self._checked(digest, part, param)
            kept = self._keep(digest, size_bytes, part)
        kept.users += 1
        try:
            yield Clip(str(self._path(digest)), digest, transcript)
        finally:
            kept.users -= 1

    @contextmanager
    def _part(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A new file. It is gone afterwards, also where a thread still writes into it for a client that left."""
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix="part-")
        with open(descriptor, "wb") as file:
            try:
                yield Path(name), file
            finally:
                Path(name).unlink(missing_ok=True)

    def _copy(self, recording: Recording, target: BinaryIO) -> tuple[str, int]:
        """Digest and size of what is in `target` now. Runs in a thread."""
        digest, size_bytes = hashlib.sha256(), 0
        try:
            for block in self._blocks(recording):
                size_bytes += len(block)
                if size_bytes > self._limits.clip_bytes:
                    message = f"{recording.param}: more than {self._limits.clip_bytes} bytes"
                    raise UploadTooLarge(message, param=recording.param)
                digest.update(block)
                target.write(block)
            target.flush()
        except OSError as error:
            raise StorageError(f"{recording.param}: the recording was not kept: {error.strerror}") from None
        if not size_bytes:
            raise InvalidReferenceAudio(f"{recording.param}: the recording is empty", param=recording.param)
        return digest.hexdigest(), size_bytes

    def _blocks(self, recording: Recording) -> Iterator[bytes]:
        if isinstance(recording.data, bytes):
            yield recording.data
            return
        roots = [self._settings.voices_dir, *self._settings.reference_dirs]
        with _opened(recording.data, roots, recording.param) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block

    async def _checked(self, digest: str, part: Path, param: str) -> None:
        """Whoever comes while the same recording is being checked waits for that check. Raises what it found."""
        if digest not in self._checking:
            copy = part.with_name(f"check-{digest}")
            os.link(part, copy)
            task = asyncio.create_task(self._check(copy, param))
            self._checking[digest] = task
            task.add_done_callback(lambda done: (self._checking.pop(digest), done.cancelled() or done.exception()))
        try:
            await asyncio.shield(self._checking[digest])
        except InvalidRequest as error:
            raise type(error)(str(error), param=param) from None

    async def _check(self, copy: Path, name: str) -> None:
        async with self._checks:
            await asyncio.to_thread(self._check_now, copy, name)

    def _check_now(self, copy: Path, name: str) -> None:
        limits = self._limits
        try:
            check({copy: name}, shortest_s=limits.shortest_clip_s, longest_s=limits.longest_clip_s)
        finally:
            copy.unlink(missing_ok=True)

    def _keep(self, digest: str, size_bytes: int, part: Path) -> _Kept:
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return self._kept[digest]
        self._make_room(size_bytes)
        path = self._path(digest)
        path.parent.mkdir(exist_ok=True)
        os.replace(part, path)
        kept = self._kept[digest] = _Kept(size_bytes)
        return kept

    def _make_room(self, size_bytes: int) -> None:
        unused = [digest for digest, kept in self._kept.items() if not kept.users]
        taken = sum(kept.size_bytes for kept in self._kept.values())
        while len(self._kept) >= KEPT or taken + size_bytes > KEPT_BYTES:
            if not unused:
                raise Busy("too many recordings are being spoken with")
            digest = unused.pop(0)
            taken -= self._kept.pop(digest).size_bytes
            # With the codes that the engine put beside it.
            shutil.rmtree(self._path(digest).parent, ignore_errors=True)

    def _path(self, digest: str) -> Path:
        return self.folder / digest / "recording"


@contextmanager
def _opened(given: str, roots: Sequence[Path], param: str) -> Iterator[BinaryIO]:
    """A regular file below one of `roots`. Whatever else `given` names, there or not, the answer is the same."""
    allowed = [Path(os.path.realpath(root)) for root in roots]
    for candidate in _candidates(given, roots):
        try:
            real = Path(os.path.realpath(candidate))
            root = next((root for root in allowed if real != root and real.is_relative_to(root)), None)
            if root is None:
                continue
            descriptor = _open_below(root, real.relative_to(root))
        except (OSError, ValueError):  # ValueError: a NUL in the name
            continue
        with open(descriptor, "rb") as file:
            yield file
        return
    raise InvalidReferenceAudio(
        f"{param}: there is no such recording below the voices folder and {ENV_PREFIX}REFERENCE_DIRS", param=param
    )


def _candidates(given: str, roots: Sequence[Path]) -> Iterator[Path]:
    """A relative path is one from where the daemon runs, below the voices folder with `voices/` in front, or below any
    allowed folder."""
    path = Path(given.strip())
    yield path
    if not path.is_absolute() and path.parts:
        if path.parts[0] == "voices":
            yield roots[0].joinpath(*path.parts[1:])
        for root in roots:
            yield root / path


def _open_below(root: Path, path: Path) -> int:
    """Opens a file without following a link that came into its path since that was looked at. Raises OSError."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in path.parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        # Without O_NONBLOCK a pipe would be waited for.
        file = os.open(path.parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise FileNotFoundError(path)
