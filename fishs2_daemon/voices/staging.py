"""Changes of the voices folder that are whole or not there, whenever the process or the power ends.

    voices/
      anna/                     a voice
      .store/
        gate, lock              see lock.py
        gone-<token>            a removed voice on its way out; anybody may delete it
        meta-<token>            a meta.json that is being written
        work-<token>/           a voice that is being made
          owner                 locked for as long as its maker lives
          new/<id>/             becomes voices/<id>, and is the replaced voice after that
          old/<id>/             only where two folders cannot be exchanged in one step: the replaced voice,
                                while voices/<id> is missing or not yet known to be the new one

All of it is one file system. Every writer begins with `recover`, so that nothing but `old/<id>` of a maker that died
between two steps is ever needed, and that one is put back.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fishs2_daemon.disk import sync_folder
from fishs2_daemon.voices.exchange import exchange
from fishs2_daemon.voices.lock import FolderLock, is_owned, own
from fishs2_daemon.voices.meta import FILE_NAME

STORE_FOLDER = ".store"

_WORK = "work-"
_GONE = "gone-"
_META = "meta-"
_OWNER = "owner"
_NEW = "new"
_OLD = "old"


class Staging:
    """The hidden folder of the voices folder `root`. What is said to need the lock needs it exclusive."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / STORE_FOLDER
        self.lock = FolderLock(self._folder)

    def is_used(self) -> bool:
        """Whether anybody has ever written to the folder through a store."""
        return self._folder.is_dir()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the exclusive lock over a voices folder that is whole."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.lock.exclusive():
            self.recover()
            yield

    @contextmanager
    def new_voice(self, voice_id: str) -> Iterator[Path]:
        """An empty folder for the files of a voice to come; gone at the end, with whatever is in it by then."""
        work = self._folder / (_WORK + secrets.token_hex(8))
        with ExitStack() as owned:
            with self.writing():  # or somebody could take it for a dead writer's before it is owned
                work.mkdir()
                owned.enter_context(own(work / _OWNER))
            try:
                folder = work / _NEW / voice_id
                folder.mkdir(parents=True)
                yield folder
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def publish(self, folder: Path) -> None:
        """Make a folder of `new_voice` the voice of its name, in the place of one that is there. Needs the lock."""
        target = self._root / folder.name
        sync_folder(folder)
        if not os.path.lexists(target):
            folder.rename(target)
        elif not exchange(folder, target):
            self._replace_in_two_steps(folder, target)
        sync_folder(self._root)

    def remove(self, voice_id: str) -> Path:
        """Take a voice away; the caller deletes what is at the answered path. Needs the lock, and no room on disk."""
        gone = self._folder / (_GONE + secrets.token_hex(8))
        (self._root / voice_id).rename(gone)
        sync_folder(self._root)
        return gone

    def rename(self, voice_id: str, new_id: str) -> None:
        """Needs the lock, under which `new_id` is known to be free."""
        (self._root / voice_id).rename(self._root / new_id)
        sync_folder(self._root)

    def write_meta(self, voice_id: str, content: bytes) -> None:
        """Replace `meta.json` of a voice. Needs the lock."""
        written = self._folder / (_META + secrets.token_hex(8))
        try:
            write(written, content)
            written.replace(self._root / voice_id / FILE_NAME)
        finally:
            written.unlink(missing_ok=True)
        sync_folder(self._root / voice_id)

    def is_broken_off(self) -> bool:
        """Whether a voice may be missing that `recover` puts back. Needs a lock of either kind."""
        with suppress(OSError):
            return any((work / _OLD).is_dir() and any((work / _OLD).iterdir()) for work in self._works())
        return False

    def recover(self) -> None:
        """Put back what a dead writer had in its hands, and delete what it left behind. Needs the lock."""
        for work in self._works():
            for old in _entries(work / _OLD):
                target = self._root / old.name
                if os.path.lexists(target):
                    old.rename(self._folder / (_GONE + secrets.token_hex(8)))
                else:
                    old.rename(target)
                    sync_folder(self._root)
            if not is_owned(work / _OWNER):
                discard(work)
        for left in _entries(self._folder):
            if left.name.startswith((_GONE, _META)):
                discard(left)

    def _replace_in_two_steps(self, folder: Path, target: Path) -> None:
        old = folder.parent.parent / _OLD / folder.name
        old.parent.mkdir(exist_ok=True)
        target.rename(old)
        try:
            folder.rename(target)
        except OSError:
            old.rename(target)
            raise
        old.rename(folder)

    def _works(self) -> list[Path]:
        return [entry for entry in _entries(self._folder) if entry.name.startswith(_WORK)]


def discard(path: Path) -> None:
    """Delete a folder, a file or a link; what cannot be deleted now is deleted by a later `recover`."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def write(path: Path, content: bytes) -> None:
    """A new file that is on the disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
