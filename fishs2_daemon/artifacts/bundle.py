"""A zip file that becomes the runtime folder of the s2cpp engine.

runtime/fishs2sharp           the folder; it appears whole or not at all
runtime/fishs2sharp.old       what somebody had put there, set aside
runtime/.fishs2sharp.bundle   only while it is fetched: the zip file, what was unpacked of it, what it replaces
"""

import itertools
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from fishs2_daemon.artifacts import record as records
from fishs2_daemon.artifacts import standing
from fishs2_daemon.artifacts.archive import Archive
from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.download import download
from fishs2_daemon.artifacts.errors import ArtifactError, CorruptArtifact, DownloadFailed
from fishs2_daemon.artifacts.lock import writing
from fishs2_daemon.artifacts.part import SPARE_BYTES
from fishs2_daemon.artifacts.progress import Progress, Tell, megabytes
from fishs2_daemon.artifacts.runtime import Runtime, look, missing, write_manifest
from fishs2_daemon.disk import sync_folder
from fishs2_daemon.settings import Settings

_log = logging.getLogger(__name__)

_FOLDER_SETTING = "FISHS2_RUNTIME_DIR"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A zip file at `url` that is to become `folder`. `sha256` is empty where nobody said what it must be."""

    folder: Path
    url: str
    sha256: str = ""

    @property
    def source(self) -> str:
        """The address without its query, which may be a signature."""
        return urlsplit(self.url)._replace(query="").geturl()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, "folder": Path(values["folder"])})


def bundle_of(settings: Settings) -> Bundle | None:
    """What the settings name; None where they name no bundle, or libs2 itself."""
    if settings.s2_dll_path or not settings.runtime_zip_url:
        return None
    return Bundle(settings.runtime_dir, settings.runtime_zip_url, settings.runtime_zip_sha256 or "")


def wanted(settings: Settings) -> Bundle | None:
    """The bundle that a daemon with these settings is to fetch before its engine can start."""
    bundle = bundle_of(settings) if settings.engine == "s2cpp" and not settings.skip_downloads else None
    try:
        return None if bundle and not settings.force_downloads and look(bundle.folder).is_usable else bundle
    except ArtifactError:
        return bundle  # the fetch says why


def install(
    bundle: Bundle, tell: Tell, wait: Callable[[], None], *, force: bool = False, platform: str = sys.platform
) -> None:
    """Have a usable runtime in the bundle's folder: as it is there, else fetched and unpacked.

    `force` fetches it again. What was there and is no bundle as it came is then kept beside it as `.old`; without
    `force` it stays where it is, and `CorruptArtifact` says so. One process at a time works on a folder; `wait` is
    called in another before it waits. Killed at any moment, it leaves no folder or a whole one, and bytes to go on
    with. Raises `CorruptArtifact` for a zip file that is damaged, hostile or no runtime for this system, which is
    thrown away; `DownloadFailed` and `ArtifactError`.
    """
    folder = Path(os.path.abspath(bundle.folder))
    if not folder.name:
        raise ArtifactError(f"{folder}: a runtime cannot lie there; name another folder with FISHS2_RUNTIME_DIR")
    with writing(folder, wait, setting=_FOLDER_SETTING) as waited:
        work = folder.with_name(f".{folder.name}.bundle")
        there = look(folder, platform)
        if there.is_usable and (waited or not force):
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed behind its last step
            return
        if not (there.is_free or force):
            raise CorruptArtifact(
                f"{bundle.folder} is not a whole runtime ({there}); `fishs2-daemon models runtime --force` sets it "
                "aside and fetches FISHS2_RUNTIME_ZIP_URL, or name another folder with FISHS2_RUNTIME_DIR"
            )
        try:
            zipped = _fetched(bundle, work / f"{folder.name}.zip", tell)
            fresh = _unpacked(bundle, zipped, work / "new", tell, platform)
        except CorruptArtifact:
            shutil.rmtree(work, ignore_errors=True)
            raise
        _take_place(fresh, there, work / "replaced")
        shutil.rmtree(work, ignore_errors=True)


def _fetched(bundle: Bundle, path: Path, tell: Tell) -> Path:
    record = records.read(path)
    is_of = record is not None and record.source == bundle.source and bundle.sha256 in ("", record.sha256)
    if not is_of or standing.look(path).state is not standing.State.WHOLE:
        with suppress(OSError):  # there is none, or the download says what is wrong with the folder
            path.unlink()
    artifact = Artifact(path, path.name, "", bundle.url, bundle.sha256, folder_setting=_FOLDER_SETTING)
    download(artifact, _while_it_fits(tell, path), lambda: None)
    return path


def _unpacked(bundle: Bundle, zipped: Path, fresh: Path, tell: Tell, platform: str) -> Path:
    shutil.rmtree(fresh, ignore_errors=True)  # of a killed process
    with Archive(zipped) as archive:
        sizes = {str(entry.name): entry.size for entry in archive.entries}
        if lacks := missing(sizes, platform):
            raise CorruptArtifact(
                f"{bundle.source} is no runtime for this system ({platform}): there is no {', '.join(lacks)} in it"
            )
        _check_room(zipped, archive.size, "to be unpacked")
        try:
            archive.unpack(fresh, tell)
            write_manifest(fresh, bundle.source, sizes)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    sync_folder(fresh)
    return fresh


def _take_place(fresh: Path, there: Runtime, replaced: Path) -> None:
    folder = there.folder
    before: Path | None = None
    shutil.rmtree(replaced, ignore_errors=True)  # of a killed process
    try:
        if there.is_bundle:
            before = folder.rename(replaced)
        elif not there.is_free:
            aside = _free_name(folder)
            before = folder.rename(aside)
            _log.warning("%s: what was there is set aside as %s", folder, aside.name)
        elif folder.is_dir():
            folder.rmdir()
        fresh.rename(folder)
    except OSError as error:
        if before:  # what there was is better than nothing
            with suppress(OSError):
                before.rename(folder)
        raise ArtifactError(f"{folder}: cannot be put in place ({error.strerror})") from None
    sync_folder(folder.parent)


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}.old{number or ''}") for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def _while_it_fits(tell: Tell, zipped: Path) -> Tell:
    """`tell`, which ends a fetch at its begin where there is no room to unpack it: files are not larger packed."""
    is_checked = False

    def both(progress: Progress) -> None:
        nonlocal is_checked
        if progress.doing == "fetching" and progress.total and not is_checked:
            is_checked = True
            _check_room(zipped, 2 * progress.total - progress.done, "to be fetched and unpacked")
        tell(progress)

    return both


def _check_room(zipped: Path, needed: int, what_for: str) -> None:
    needed += SPARE_BYTES
    try:
        free = shutil.disk_usage(zipped.parent).free
    except OSError as error:
        raise ArtifactError(f"{zipped.parent}: cannot be read ({error.strerror})") from None
    if free < needed:
        raise DownloadFailed(
            f"{zipped.name} needs {megabytes(needed)} {what_for}, {megabytes(free)} are free at "
            f"{zipped.parent.parent}: free some, or name another folder with FISHS2_RUNTIME_DIR; what came is kept"
        )
