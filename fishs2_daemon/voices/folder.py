"""One entry of the voices folder: what lies there, and the voice that it makes.

Only regular files count, and only those whose name does not begin with a dot: engines keep what they derive from a
clip in hidden files beside it. Nothing outside the voices folder is read through a symbolic link.
"""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fishs2_daemon.errors import InvalidRequest
from fishs2_daemon.voices import meta, names
from fishs2_daemon.voices.meta import StoredClip, StoredVoice

#: A folder with more files than this is somebody's archive.
FILES = 1000

_PROMPTS = "prompts"
_TEXT = ".txt"

#: UTF-8 takes at most four bytes for a character.
_TRANSCRIPT_BYTES = 4 * meta.TRANSCRIPT_CHARS


class Unreadable(Exception):
    """Why an entry is no voice, for a log and for whoever asks for it."""


class Signature(NamedTuple):
    """What changes when a file's content does."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @property
    def newest_ns(self) -> int:
        return max(self.mtime_ns, self.ctime_ns)


@dataclass(frozen=True, slots=True)
class Look:
    """A folder's files as they are now. Equal signatures of two looks mean that nothing was written in between.

    `escapes` are the links that lead nowhere in the voices folder. `prompt` is the file of the voice's transcript that
    lies outside of its folder.
    """

    path: Path
    files: Mapping[str, Signature]
    escapes: tuple[str, ...]
    prompt: tuple[Path, Signature] | None
    too_many: bool

    @property
    def clips(self) -> list[str]:
        return sorted(name for name in self.files if os.path.splitext(name)[1].lower() in names.AUDIO_SUFFIXES)

    @property
    def is_voice(self) -> bool:
        return meta.FILE_NAME in self.files or bool(self.clips) or self.too_many

    @property
    def newest_ns(self) -> int:
        signatures = [*self.files.values(), *([self.prompt[1]] if self.prompt else [])]
        return max((each.newest_ns for each in signatures), default=0)


def signature(status: os.stat_result) -> Signature:
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def prompts(root: Path) -> dict[str, tuple[Path, Signature]]:
    """The transcripts that lie outside of their voices' folders, by voice."""
    found: dict[str, tuple[Path, Signature]] = {}
    for folder in (root / _PROMPTS, root.parent / _PROMPTS):  # the latter counts where both have one
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(_TEXT) and entry.is_file(follow_symlinks=False):
                    found[entry.name.removesuffix(_TEXT)] = Path(entry.path), signature(entry.stat())
    return found


def look(root: Path, voice_id: str, prompt: tuple[Path, Signature] | None = None) -> Look:
    """Raises OSError where the entry is gone or closed to this user."""
    path = root / voice_id
    files: dict[str, Signature] = {}
    escapes: list[str] = []
    with os.scandir(path) as entries:
        visible = list(islice(filter(is_visible, entries), FILES + 1))
    for entry in visible:
        if entry.is_symlink() and not is_inside(root, path / entry.name):
            escapes.append(entry.name)
            continue
        with suppress(FileNotFoundError):
            status = entry.stat()
            if stat.S_ISREG(status.st_mode):
                files[entry.name] = signature(status)
    return Look(path, files, tuple(sorted(escapes)), prompt, len(visible) > FILES)


def is_visible(entry: "os.DirEntry[str]") -> bool:
    """Not hidden, and with a name that can be shown: neither bytes outside of UTF-8 nor line breaks."""
    return not entry.name.startswith(".") and entry.name.isprintable()


def is_inside(root: Path, path: Path) -> bool:
    """Whether `path`, links followed, is something in `root`."""
    try:
        return root in Path(os.path.realpath(path, strict=True)).parents
    except OSError:  # it leads nowhere, or in a circle
        return False


def read(seen: Look) -> StoredVoice:
    """The voice of a folder, without what it takes from another that it is based on. Raises `Unreadable`."""
    if seen.too_many:
        raise Unreadable(f"there are more than {FILES} files in it")
    raw = read_meta(seen)
    try:
        known = meta.parse(raw)
    except InvalidRequest as error:
        raise Unreadable(f"{meta.FILE_NAME}: {error}") from None
    clips = tuple(
        StoredClip(seen.path / name, name, seen.files[name].size_bytes, _transcript(seen, known, name, index == 0))
        for index, name in enumerate(seen.clips)
    )
    if not clips and known.based_on is None:
        raise Unreadable("there is no audio file in it")
    created = known.created if known.created is not None else _oldest_s(seen)
    return StoredVoice(
        id=seen.path.name,
        title=known.title or seen.path.name,
        description=known.description or "",
        created=created,
        model=known.model,
        languages=known.languages,
        tags=known.tags,
        visibility=known.visibility or meta.VISIBILITIES[0],
        style=known.style,
        sampling=known.sampling,
        based_on=known.based_on,
        clips=clips,
    )


def read_meta(seen: Look) -> dict[str, Any]:
    """`meta.json` as it is, empty where there is none. Raises `Unreadable`."""
    if meta.FILE_NAME not in seen.files:
        return {}
    try:
        return meta.load(_content(seen.path / meta.FILE_NAME, meta.META_BYTES))
    except InvalidRequest as error:
        raise Unreadable(f"{meta.FILE_NAME}: {error}") from None


def _transcript(seen: Look, known: meta.Meta, clip: str, is_first: bool) -> str | None:
    entry = known.files.get(clip, meta.FileEntry(None, False))
    if entry.text:
        return entry.text
    if is_first and known.prompt_text:
        return known.prompt_text
    beside = [name for name in (names.stem(clip) + _TEXT, clip + _TEXT) if name in seen.files]
    paths = [seen.path / name for name in beside]
    if is_first and seen.prompt and not entry.is_uploaded:
        paths.append(seen.prompt[0])
    return next(filter(None, map(_text, paths)), None)


def _text(path: Path) -> str | None:
    try:
        return meta.text(
            {path.name: _content(path, _TRANSCRIPT_BYTES).decode("utf-8-sig")}, path.name, meta.TRANSCRIPT_CHARS
        )
    except UnicodeDecodeError:
        raise Unreadable(f"{path.name} is not in UTF-8") from None
    except InvalidRequest as error:
        raise Unreadable(str(error)) from None


def _content(path: Path, most: int) -> bytes:
    """One byte more than `most` where there are more, for the reader to refuse."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read ({error.strerror})") from None


def _oldest_s(seen: Look) -> int:
    return min((each.mtime_ns for each in seen.files.values()), default=0) // 10**9
