"""The voices of a folder, read anew where something changed on disk."""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fishs2_daemon.errors import BrokenVoice, UnknownVoice
from fishs2_daemon.speech import SamplingOverrides
from fishs2_daemon.voices.folder import (
    Look,
    Signature,
    Unreadable,
    is_inside,
    is_visible,
    look,
    prompts,
    read,
    signature,
)
from fishs2_daemon.voices.meta import StoredClip, StoredVoice

_log = logging.getLogger(__name__)

#: A file that was written this recently may be written again without its times moving on: FAT counts in 2 s.
_SETTLING_NS = 2 * 10**9

_ESCAPE = "is a link that leads nowhere in the voices folder"

#: More names than this make an error unreadable.
_NAMES_SHOWN = 20
_NAME_CHARS = 80


@dataclass(frozen=True, slots=True)
class Contents:
    """`voices` can be offered, `broken` maps the id of each other entry that is meant to be a voice to its fault."""

    voices: Mapping[str, StoredVoice]
    broken: Mapping[str, str]

    def find(self, asked: str, *, param: str = "voice") -> str:
        """The id of the entry that `asked` names: exactly, else in another case. Raises `UnknownVoice`."""
        for entries in (self.voices, self.broken):
            if asked in entries:
                return asked
        folded = asked.casefold()
        for name in (*self.voices, *self.broken):
            if name.casefold() == folded:
                return name
        known = list(self.voices)
        more = f" and {len(known) - _NAMES_SHOWN} more" if len(known) > _NAMES_SHOWN else ""
        some = ", ".join(known[:_NAMES_SHOWN]) + more if known else "none"
        raise UnknownVoice(f"there is no stored voice {asked[:_NAME_CHARS]!r}; stored voices: {some}", param=param)

    def voice(self, asked: str, *, param: str = "voice") -> StoredVoice:
        """Raises `UnknownVoice`, or `BrokenVoice` with what is wrong."""
        found = self.find(asked, param=param)
        if found in self.broken:
            raise BrokenVoice(f"the stored voice {found!r} cannot be used: {self.broken[found]}", param=param)
        return self.voices[found]


@dataclass(frozen=True, slots=True)
class _Entry:
    seen: Look
    voice: StoredVoice | None
    fault: str
    read_at_ns: int

    def holds(self, now: Look) -> bool:
        return self.seen == now and now.newest_ns < self.read_at_ns - _SETTLING_NS


class Listing:
    """Reads `root`, an absolute path without links. Not for several threads at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._entries: dict[str, _Entry] = {}
        self._digests: dict[Path, tuple[Signature, int, str]] = {}
        self._warned: dict[str, str] = {}

    def contents(self) -> Contents:
        """By lower-cased id. One that cannot be read is left out, and said once in the log."""
        faults: dict[str, str] = {}  # by path below the root
        entries: dict[str, _Entry] = {}
        transcripts = prompts(self._root)
        for name in self._names(faults):
            try:
                seen = look(self._root, name, transcripts.get(name))
            except OSError as error:
                faults[name] = f"cannot be read ({error.strerror})"
                continue
            faults.update({f"{name}/{link}": _ESCAPE for link in seen.escapes})
            if seen.is_voice:
                entries[name] = self._entry(name, seen)
        self._entries = entries
        contents = _joined(entries)
        self._warn({**faults, **contents.broken})
        return contents

    def digested(self, voice: StoredVoice) -> StoredVoice:
        """`voice` with the digests of its clips as they are now. Raises `BrokenVoice`."""
        clips = tuple(self._digested(voice.id, clip) for clip in voice.clips)
        self._digests = {path: digest for path, digest in self._digests.items() if path.parent.name in self._entries}
        return replace(voice, clips=clips)

    def _names(self, faults: dict[str, str]) -> Iterator[str]:
        try:
            with os.scandir(self._root) as scanned:
                visible = sorted(filter(is_visible, scanned), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        except OSError as error:
            faults["."] = f"cannot be read ({error.strerror})"
            return
        for entry in visible:
            if entry.is_symlink() and not is_inside(self._root, self._root / entry.name):
                faults[entry.name] = _ESCAPE
            elif entry.is_dir():
                yield entry.name

    def _entry(self, name: str, seen: Look) -> _Entry:
        known = self._entries.get(name)
        if known and known.holds(seen):
            return known
        read_at_ns = time.time_ns()
        try:
            return _Entry(seen, read(seen), "", read_at_ns)
        except Unreadable as fault:
            return _Entry(seen, None, str(fault), read_at_ns)

    def _digested(self, voice_id: str, clip: StoredClip) -> StoredClip:
        try:
            # O_NONBLOCK: a pipe that took the file's place must not hold us up.
            with open(os.open(clip.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise BrokenVoice(f"the stored voice {voice_id!r} cannot be used: {clip.filename} is no file")
                now = signature(status)
                seen, read_at_ns, digest = self._digests.get(clip.path, (None, 0, ""))
                if seen != now or now.newest_ns >= read_at_ns - _SETTLING_NS:
                    read_at_ns = time.time_ns()
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    self._digests[clip.path] = now, read_at_ns, digest
        except OSError as error:
            raise BrokenVoice(
                f"the stored voice {voice_id!r} cannot be used: {clip.filename} cannot be read ({error.strerror})"
            ) from None
        return replace(clip, size_bytes=status.st_size, sha256=digest)

    def _warn(self, faults: Mapping[str, str]) -> None:
        for where, fault in faults.items():
            if self._warned.get(where) != fault:
                _log.warning("%s: %s; it is left out of the voices", self._root / where, fault)
        self._warned = dict(faults)


def _joined(entries: Mapping[str, _Entry]) -> Contents:
    """Voices that are based on another get the other's clips."""
    voices: dict[str, StoredVoice] = {}
    broken = {name: entry.fault for name, entry in entries.items() if entry.voice is None}
    for name in sorted(entries, key=lambda name: (name.lower(), name)):
        voice = entries[name].voice
        if voice is None:
            continue
        if voice.clips or voice.based_on is None:
            voices[name] = voice
            continue
        base = entries[voice.based_on].voice if voice.based_on in entries else None
        if base is None or not base.clips:
            broken[name] = f"it is based on {voice.based_on!r}, which is no stored voice with clips of its own"
        else:
            voices[name] = replace(
                voice,
                clips=base.clips,
                languages=voice.languages or base.languages,
                model=voice.model or base.model,
                sampling=voice.sampling if voice.sampling != SamplingOverrides() else base.sampling,
            )
    return Contents(voices, dict(sorted(broken.items())))
