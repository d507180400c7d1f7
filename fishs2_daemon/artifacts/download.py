"""A file that is there and whole afterwards, or a reason why not."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fishs2_daemon.artifacts import record as records
from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.errors import ArtifactError, CorruptArtifact, DownloadFailed
from fishs2_daemon.artifacts.lock import writing
from fishs2_daemon.artifacts.part import Part
from fishs2_daemon.artifacts.progress import Progress, Tell
from fishs2_daemon.artifacts.record import Record
from fishs2_daemon.artifacts.standing import State, corrupt_of, look, sha256_of

if TYPE_CHECKING:
    from fishs2_daemon.artifacts.remote import Remote


def download(artifact: Artifact, tell: Tell, wait: Callable[[], None], *, force: bool = False) -> None:
    """Have the file whole at its path: as it is there, else fetched, going on where an interrupted fetch stopped.

    `force` fetches what is there again; what was not known to be whole is set aside as `.corrupt`. One process at a
    time works on a file; `wait` is called in another before it waits, which then uses what the first one got.
    Raises `CorruptArtifact` for a file that is not what it should be, `DownloadFailed` and `ArtifactError`.
    """
    with writing(artifact.path, wait, setting=artifact.folder_setting) as waited:
        state = _state(artifact)
        if state is State.WHOLE and (not force or waited):
            return
        is_doubtful = state in (State.UNCHECKED, State.CHANGED)
        if is_doubtful and not force:
            _check(artifact, tell)
            return
        _fetch(artifact, tell, set_aside=is_doubtful)


def verify(path: Path, tell: Tell, *, sha256: str = "") -> bool | None:
    """Read the whole file. None where nobody ever said what it must be. A file that fails is not trusted any more."""
    record = records.read(path)
    expected = sha256 or (record.sha256 if record else "")
    if not expected:
        return None
    size = look(path).size
    is_whole = sha256_of(path, lambda done: tell(Progress("checking", path.name, done, size))) == expected
    if record:
        _remember(path, record.sha256, record.source, mtime_ns=None if is_whole else 0)
    return is_whole


def _state(artifact: Artifact) -> State:
    """A file that was found whole is not any more what it should be where the user has named another hash since."""
    state = look(artifact.path).state
    record = records.read(artifact.path) if artifact.sha256 else None
    return State.CHANGED if state is State.WHOLE and record and record.sha256 != artifact.sha256 else state


def _check(artifact: Artifact, tell: Tell) -> None:
    """Whether a file that somebody put there is the right one; the source is asked where nothing here tells."""
    record = records.read(artifact.path)
    expected, source = artifact.sha256 or (record.sha256 if record else ""), record.source if record else "checked"
    if not expected and not artifact.url:
        remote = _resolve(artifact)
        expected, source = remote.sha256, remote.source
        if remote.total and remote.total != look(artifact.path).size:
            raise _corrupt(artifact.path, f"has {look(artifact.path).size} bytes, the hub's has {remote.total}")
    size = look(artifact.path).size
    found = sha256_of(artifact.path, lambda done: tell(Progress("checking", artifact.file, done, size)))
    if expected and found != expected:
        raise _corrupt(artifact.path, f"has the SHA-256 {found}, expected is {expected}")
    _remember(artifact.path, found, source)


def _fetch(artifact: Artifact, tell: Tell, *, set_aside: bool = False) -> None:
    """What is there stays until another is whole; `set_aside` keeps it beside that one."""
    remote = _resolve(artifact)
    from fishs2_daemon.artifacts.transfer import transfer

    with Part(artifact.path, tell, artifact.folder_setting) as part:
        transfer(artifact, remote, part, tell)
        found = part.sha256()
        if remote.sha256 and found != remote.sha256:
            part.discard()
            raise CorruptArtifact(
                f"{artifact.file} came with the SHA-256 {found}, expected is {remote.sha256}: it was thrown away; "
                "run the same command again, and look at FISHS2_*_SHA256 or the source if it stays like this"
            )
        if set_aside:
            _set_aside(artifact.path)
        # First the record: a kill in between leaves a part that is complete, and no file that nobody checked.
        _remember(artifact.path, found, remote.source, of=part.path)
        part.finish()


def _resolve(artifact: Artifact) -> "Remote":
    """The HTTP client and the hub's library take half a second to import, and not every installation has them."""
    # Nothing that the library writes may end up in the user's home; it looks when it is imported.
    os.environ.setdefault("HF_HOME", str(artifact.path.parent.absolute() / ".hf"))
    try:
        import huggingface_hub  # noqa: F401

        from fishs2_daemon.artifacts.remote import resolve
    except ModuleNotFoundError as error:
        raise DownloadFailed(f"{error.name} is missing: pip install 'fishs2-daemon[s2]'") from None
    return resolve(artifact)


def _remember(path: Path, sha256: str, source: str, *, of: Path | None = None, mtime_ns: int | None = None) -> None:
    """Write the record of `path`, whose bytes lie at `of` so far. A wrong `mtime_ns` makes it one that does not fit."""
    try:
        status = os.stat(of or path)
        time_ns = status.st_mtime_ns if mtime_ns is None else mtime_ns
        records.write(path, Record(status.st_size, sha256, time_ns, source))
    except OSError as error:
        raise ArtifactError(f"{records.path_of(path)}: cannot be written ({error.strerror})") from None


def _set_aside(path: Path) -> None:
    try:
        path.replace(corrupt_of(path))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be renamed ({error.strerror})") from None


def _corrupt(path: Path, how: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"{path} is not the file it should be: it {how}; "
        f"`fishs2-daemon models get --force` sets it aside as {corrupt_of(path).name} and fetches it again"
    )
