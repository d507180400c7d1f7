"""The runtime folder of the s2cpp engine: whether libs2 and what it needs are in it."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fishs2_daemon.artifacts.errors import ArtifactError
from fishs2_daemon.artifacts.record import read_json, write_json

#: Files that a runtime has, by `sys.platform`; libs2 itself comes first.
REQUIRED = {
    "win32": ("s2.dll", "ggml-base.dll", "ggml.dll", "ggml-cpu.dll"),
    "darwin": ("libs2*.dylib", "libggml*.dylib"),
    "linux": ("libs2.so*", "libggml*.so*"),
}

#: What came in a bundle, and from where: in the folder, so that both appear at once.
MANIFEST = "fishs2-bundle.json"

#: The size of what has none: a link that leads nowhere, a socket.
_NO_FILE = -1


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a look into a runtime folder tells.

    `has_library`: libs2 is there. `lacks`: what a runtime on this system has and this one has not, and files of its
    bundle that are gone or were changed. `source`: where its bundle came from, empty where it was put there by hand.
    `is_free`: nobody loses anything when a bundle becomes this folder. `is_bundle`: it is a bundle as it came.
    """

    folder: Path
    has_library: bool = False
    lacks: tuple[str, ...] = ()
    source: str = ""
    size_bytes: int = 0
    is_free: bool = False
    is_bundle: bool = False

    @property
    def is_usable(self) -> bool:
        """Whoever put libs2 there without its ggml may have built it so, or have named another folder for that."""
        return self.has_library and not (self.source and self.lacks)

    def __str__(self) -> str:
        if self.is_free:
            return "not there"
        whence = f"from {self.source}" if self.source else "put there by hand"
        return f"{whence}, lacks {', '.join(self.lacks)}" if self.lacks else f"whole, {whence}"


def look(folder: Path, platform: str = sys.platform) -> Runtime:
    """Raises `ArtifactError` where the folder cannot be read."""
    try:
        if not os.path.lexists(folder):
            return Runtime(folder, lacks=required(platform), is_free=True)
        if not folder.is_dir():
            return Runtime(folder, lacks=required(platform))
        is_free = not folder.is_symlink() and not any(folder.iterdir())
        source, listed = _manifest(folder)
        sizes = _sizes(folder, "**/*" if source else "*")  # whose folder it is not, who knows how deep that is
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be read ({error.strerror})") from None
    lacks = missing((name for name, size in sizes.items() if size != _NO_FILE), platform)
    changed = [name for name, size in listed.items() if sizes.get(name) != size]
    return Runtime(
        folder,
        has_library=required(platform)[0] not in lacks,
        lacks=tuple(dict.fromkeys([*lacks, *changed])),
        source=source,
        size_bytes=sum(size for size in sizes.values() if size != _NO_FILE),
        is_free=is_free,
        is_bundle=bool(source) and sizes == listed,
    )


def required(platform: str = sys.platform) -> tuple[str, ...]:
    """Patterns of the files that have to be at the top of a runtime folder."""
    return REQUIRED.get(platform, REQUIRED["linux"])


def missing(names: Iterable[str], platform: str = sys.platform) -> tuple[str, ...]:
    """Which of the required files are not among `names`, which are written `folder/file`."""
    found = [name.lower() if platform == "win32" else name for name in names if "/" not in name]
    return tuple(pattern for pattern in required(platform) if not any(fnmatchcase(name, pattern) for name in found))


def write_manifest(folder: Path, source: str, sizes: dict[str, int]) -> None:
    """Remember what came in a bundle. Raises `ArtifactError`."""
    listed = {name: size for name, size in sizes.items() if name != MANIFEST}
    try:
        write_json(folder / MANIFEST, {"source": source, "files": listed})
    except OSError as error:
        raise ArtifactError(f"{folder / MANIFEST}: cannot be written ({error.strerror})") from None


def _manifest(folder: Path) -> tuple[str, dict[str, Any]]:
    values = read_json(folder / MANIFEST)
    source, files = values.get("source"), values.get("files")
    return (source, files) if isinstance(source, str) and isinstance(files, dict) else ("", {})


def _sizes(folder: Path, pattern: str) -> dict[str, int]:
    """Of everything in `folder` but folders and the manifest."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size if path.is_file() else _NO_FILE
        for path in folder.glob(pattern)
        if path != folder / MANIFEST and (path.is_symlink() or not path.is_dir())
    }
