"""The stored voices: recordings that a cloning engine speaks with.

Every method does blocking work on files, `create` also waits for a process that decodes the clips: call them in a
thread. They may run in several threads, and in several processes on one folder, at once.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Unpack

from fishs2_daemon.errors import BrokenVoice, Busy, InvalidRequest, StorageError, TooManyVoices, VoiceExists
from fishs2_daemon.voices import content, folder, meta, names
from fishs2_daemon.voices.clips import UploadedClip, missing_files, receive
from fishs2_daemon.voices.content import NewVoice, VoiceChanges
from fishs2_daemon.voices.limits import VoiceLimits
from fishs2_daemon.voices.listing import Contents, Listing
from fishs2_daemon.voices.meta import StoredVoice
from fishs2_daemon.voices.staging import Staging, discard, write

_log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class VoiceStore:
    """The voices in `folder`, which is made when the first one is.

    An id that is asked for is one of the listing, exactly or in another case, and never becomes a path by itself:
    `UnknownVoice` otherwise. Every change is whole or not there, whenever the process ends; leftovers of one that was
    killed are cleaned up here. Writing raises `StorageError` where the disk is full or the folder is not ours.
    """

    def __init__(self, folder: Path, limits: VoiceLimits | None = None) -> None:
        self._root = Path(os.path.realpath(folder))
        self._limits = limits or VoiceLimits()
        self._staging = Staging(self._root)
        self._listing = Listing(self._root)
        self._mutex = threading.Lock()  # of the listing, inside of the folder's lock
        self._put_right()

    def list(self) -> tuple[StoredVoice, ...]:
        """By lower-cased id. Read anew where something changed on disk."""
        with self._reading() as contents:
            return tuple(contents.voices.values())

    def get(self, voice_id: str) -> StoredVoice:
        """Raises `UnknownVoice`, or `BrokenVoice` for one that is there and cannot be used."""
        with self._reading() as contents:
            return contents.voice(voice_id)

    def resolve(self, voice_id: str) -> StoredVoice:
        """`get`, with the digests of the clips at the same moment: what a request speaks with."""
        with self._reading() as contents:
            voice = contents.voice(voice_id)
            with self._mutex:
                return self._listing.digested(voice)

    def create(self, new: NewVoice, clips: Sequence[UploadedClip], replace: bool = True) -> StoredVoice:
        """Store a voice under its normalised id, in the place of one that is there.

        Raises `InvalidRequest` and its kinds: `MissingFiles`, `UploadTooLarge`, `InvalidReferenceAudio`,
        `ReferenceAudioTooShort`, `ReferenceAudioTooLong`, `TooManyVoices`, and `VoiceExists` without `replace`.
        """
        now_s = time.time()
        given = (new.voice_id, new.title, names.stem(clips[0].filename) if clips else None)
        asked = next((name for name in given if name and name.strip()), "")
        voice_id = names.voice_id(asked, now_s)
        replace = replace and bool(names.normalised(asked))  # never what was made in the same second
        raw = content.of_new(new, voice_id, int(now_s))
        for clip in clips:
            meta.text({"transcript": clip.transcript}, "transcript", meta.TRANSCRIPT_CHARS)
        with self._storing(voice_id):
            with self._reading() as contents:  # tells most of those whom the second look would refuse, after seconds
                self._refuse_place(contents, voice_id, replace)
                raw["based_on"] = _base(contents, new.based_on, voice_id)
            with self._staging.new_voice(voice_id) as staged:
                received = receive(clips, staged, self._limits)
                if not received and new.based_on is None:
                    raise missing_files()
                write(staged / meta.FILE_NAME, meta.dump(content.with_clips(raw, received)))
                with self._writing() as contents:
                    self._refuse_place(contents, voice_id, replace)
                    _base(contents, new.based_on, voice_id)
                    self._staging.publish(staged)
                    return self._contents().voice(voice_id)

    def update(self, voice_id: str, **changes: Unpack[VoiceChanges]) -> StoredVoice:
        """Change what is said of a voice; its clips stay. Raises `UnknownVoice`, `BrokenVoice` or `InvalidRequest`."""
        with self._changing(voice_id) as contents:
            voice = contents.voice(voice_id, param="voice_id")
            self._write_meta(voice.id, content.of_changes(changes))
            return self._contents().voice(voice.id)

    def rename(self, voice_id: str, new_id: str) -> StoredVoice:
        """Give a voice another id; voices that are based on it follow. Raises `UnknownVoice`, `BrokenVoice`,
        `InvalidRequest`, or `VoiceExists`."""
        wanted = names.voice_id(new_id, time.time())
        with self._changing(voice_id) as contents:
            voice = contents.voice(voice_id, param="voice_id")
            if wanted != voice.id:
                if os.path.lexists(self._root / wanted):
                    raise VoiceExists(f"there is a {wanted!r} already", param="voice_id")
                self._staging.rename(voice.id, wanted)
                for other in contents.voices.values():
                    if other.based_on == voice.id:
                        self._write_meta(other.id, {"based_on": wanted})
                self._write_meta(wanted, {})
            return self._contents().voice(wanted)

    def delete(self, voice_id: str) -> None:
        """Also of one that is broken. Raises `UnknownVoice` with param `voice_id`."""
        with self._changing(voice_id) as contents:
            gone = self._staging.remove(contents.find(voice_id, param="voice_id"))
        discard(gone)

    def _contents(self) -> Contents:
        with self._mutex:
            return self._listing.contents()

    @contextmanager
    def _reading(self) -> Iterator[Contents]:
        for _ in range(2):
            with self._staging.lock.shared() as locked:
                if not self._staging.is_broken_off():
                    contents = self._contents()
                    if locked or not self._staging.is_used():
                        yield contents
                        return
            self._put_right()
        with self._staging.lock.shared():
            yield self._contents()

    @contextmanager
    def _writing(self) -> Iterator[Contents]:
        with self._staging.writing():
            yield self._contents()

    @contextmanager
    def _changing(self, voice_id: str) -> Iterator[Contents]:
        with self._reading() as contents:  # an unknown voice is unknown in a folder that cannot be written, too
            contents.find(voice_id, param="voice_id")
        with self._storing(voice_id), self._writing() as contents:
            yield contents

    def _put_right(self) -> None:
        """What a killed writer left; a user who may only read leaves it to others."""
        if self._staging.is_used():
            with suppress(OSError, Busy), self._staging.writing():
                pass

    @contextmanager
    def _storing(self, voice_id: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
            _log.error("the voice %r was not stored or changed", voice_id, exc_info=error)
            raise StorageError(f"the voice {voice_id!r} was not stored or changed: {reason}") from None

    def _refuse_place(self, contents: Contents, voice_id: str, replace: bool) -> None:
        if voice_id in contents.voices or voice_id in contents.broken:
            if not replace:
                raise VoiceExists(f"there is a voice {voice_id!r} already", param="voice_id")
        elif os.path.lexists(self._root / voice_id):
            raise VoiceExists(f"{voice_id!r} is taken by something that is no voice", param="voice_id")
        elif len(contents.voices) + len(contents.broken) >= self._limits.voices:
            raise TooManyVoices(f"there are {self._limits.voices} voices, which is the most", param="voice_id")

    def _write_meta(self, voice_id: str, changes: Mapping[str, Any]) -> None:
        seen = folder.look(self._root, voice_id)
        try:
            raw = {**folder.read_meta(seen), "voice_id": voice_id, **changes}
        except folder.Unreadable as fault:
            raise BrokenVoice(f"the stored voice {voice_id!r} cannot be used: {fault}", param="voice_id") from None
        meta.parse(raw)
        sizes = {name: seen.files[name].size_bytes for name in seen.clips}
        self._staging.write_meta(voice_id, meta.dump(content.with_sizes(raw, sizes, "prompt_text" in changes)))


def _base(contents: Contents, based_on: str | None, voice_id: str) -> str | None:
    """The id of the voice that a new one is based on. Raises `UnknownVoice`, `BrokenVoice` or `InvalidRequest`."""
    if based_on is None:
        return None
    base = contents.voice(based_on, param="based_on")
    if base.id == voice_id or base.has_clips_of_another:
        raise InvalidRequest(
            f"based_on must be another voice, with clips of its own; {base.id!r} is none", param="based_on"
        )
    return base.id
