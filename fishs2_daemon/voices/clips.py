"""Clips of an upload on their way into the store."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from fishs2_daemon.errors import MissingFiles, UploadTooLarge
from fishs2_daemon.voices import names
from fishs2_daemon.voices.check import check
from fishs2_daemon.voices.limits import VoiceLimits

_BLOCK_BYTES = 1024 * 1024

#: Longest part of a file name that an error repeats.
_NAME_CHARS = 80


@dataclass(frozen=True, slots=True)
class UploadedClip:
    """`filename` is the sender's word and is trusted with nothing; `data` is the content or a file that holds it."""

    filename: str
    data: Path | bytes
    transcript: str | None = None


@dataclass(frozen=True, slots=True)
class ReceivedClip:
    """A clip that was checked and lies in the folder of its voice to come."""

    filename: str
    size_bytes: int
    transcript: str | None


@dataclass(frozen=True, slots=True)
class _Copy:
    clip: UploadedClip
    number: int
    path: Path
    size_bytes: int


def receive(clips: Sequence[UploadedClip], folder: Path, limits: VoiceLimits) -> list[ReceivedClip]:
    """Copies `clips` into `folder`, in alphabetical order in the answer. Empty ones are left out; the same bytes sent
    twice are one clip, with the first transcript that came with them.

    Raises `UploadTooLarge`, `InvalidReferenceAudio` and its kinds, and OSError where the disk is full.
    """
    copies = _copied(clips, folder, limits)
    shown = {copy.path: names.base_name(copy.clip.filename)[:_NAME_CHARS] or "a clip" for copy in copies}
    infos = check(shown, shortest_s=limits.shortest_clip_s, longest_s=limits.longest_clip_s)
    received: dict[str, ReceivedClip] = {}
    for copy in copies:
        name = names.clip_name(copy.clip.filename, copy.number, infos[copy.path].suffix, set(received))
        copy.path.rename(folder / name)
        received[name] = ReceivedClip(name, copy.size_bytes, copy.clip.transcript)
    return [received[name] for name in sorted(received)]


def missing_files() -> MissingFiles:
    return MissingFiles("a voice needs at least one recording that is not empty", param="files")


def _copied(clips: Sequence[UploadedClip], folder: Path, limits: VoiceLimits) -> list[_Copy]:
    copies: dict[str, _Copy] = {}
    total = 0
    for number, clip in enumerate(clips, 1):
        path = folder / f".part-{number}"
        digest, size_bytes = _copy(clip, path, limits)
        if size_bytes == 0 or digest in copies:
            path.unlink()
            if size_bytes and clip.transcript and not copies[digest].clip.transcript:
                first = copies[digest]
                kept = UploadedClip(first.clip.filename, first.clip.data, clip.transcript)
                copies[digest] = _Copy(kept, first.number, first.path, size_bytes)
            continue
        total += size_bytes
        copies[digest] = _Copy(clip, number, path, size_bytes)
        if len(copies) > limits.clips:
            raise UploadTooLarge(f"a voice has at most {limits.clips} clips", param="files")
        if total > limits.voice_bytes:
            raise UploadTooLarge(f"the clips of a voice have at most {limits.voice_bytes} bytes", param="files")
    return list(copies.values())


def _copy(clip: UploadedClip, path: Path, limits: VoiceLimits) -> tuple[str, int]:
    """The SHA-256 and the size of what is now at `path` and on the disk."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("xb") as file:
        for block in _blocks(clip.data):
            size_bytes += len(block)
            if size_bytes > limits.clip_bytes:
                name = names.base_name(clip.filename)[:_NAME_CHARS]
                raise UploadTooLarge(f"{name}: more than {limits.clip_bytes} bytes", param="files")
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), size_bytes


def _blocks(data: Path | bytes) -> Iterator[bytes]:
    with BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
