"""Shared libraries by their files: what they are called here, what they were built for, and what they need."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fishs2_daemon.errors import EngineError

#: ELF's `e_machine`, as far as anybody builds libs2 for it.
_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}

#: glibc, musl, macOS.
_MISSING = re.compile(
    r"([\w.+-]+\.so[\w.]*): cannot open shared object"
    r"|Error loading shared library ([^\s:]+):"
    r"|Library not loaded: (?:\S*/)?([^\s/]+)"
)

#: A library stays as long as the process: its own threads and its GPU driver may outlive whoever used it.
_kept: list[Any] = []


def file_names(name: str) -> tuple[str, str]:
    """What the library `name` is called on this system, and the pattern of its names with a version."""
    if sys.platform == "win32":
        return f"{name}.dll", f"{name}.dll"
    if sys.platform == "darwin":
        return f"lib{name}.dylib", f"lib{name}.*.dylib"
    return f"lib{name}.so", f"lib{name}.so.*"


def find(name: str, folder: Path) -> Path | None:
    """The library `name` in `folder`, the one without a version first."""
    plain, versioned = file_names(name)
    found = [folder / plain, *sorted(folder.glob(versioned), reverse=True)]
    return next((path for path in found if path.is_file()), None)


class Linker:
    """Opens libraries that need each other, and finds what they need in `folders`, wherever the system looks itself."""

    def __init__(self, ffi: Any, folders: Sequence[Path]) -> None:
        self._ffi = ffi
        self._folders = folders
        if sys.platform == "win32":
            _kept.extend(os.add_dll_directory(str(folder)) for folder in folders)

    def open(self, path: Path, *, shared: bool) -> Any:
        """With `shared` others find their functions in it. Raises `EngineError` with the linker's own reason."""
        return self._open(path, {path}, shared=shared)

    def _open(self, path: Path, tried: set[Path], *, shared: bool) -> Any:
        """`tried` are those that wait for this one, too: they may need each other."""
        _check_machine(path)
        flags = _flags(shared=shared)
        while True:
            try:
                library = self._ffi.dlopen(str(path), flags)
            except OSError as error:
                reason = _reason(error)
            else:
                _kept.append(library)
                return library
            needed = self._needed(reason)
            if needed is None or needed in tried:
                raise EngineError(f"{path} cannot be loaded: {reason}{_advice(reason)}")
            tried.add(needed)
            self._open(needed, tried, shared=True)

    def _needed(self, reason: str) -> Path | None:
        """What a reason misses, where it lies in one of the folders."""
        name = missing(reason)
        found = [folder / name for folder in self._folders if (folder / name).is_file()] if name else []
        return found[0] if found else None


def missing(reason: str) -> str | None:
    """The library that a linker's reason says it does not find."""
    found = _MISSING.search(reason)
    return next((name for name in found.groups() if name), None) if found else None


def _flags(*, shared: bool) -> int:
    if sys.platform == "win32":
        return 0
    return os.RTLD_NOW | (os.RTLD_GLOBAL if shared else os.RTLD_LOCAL)


def _check_machine(path: Path) -> None:
    """The system's own linker says of a library for another processor that there is no such file."""
    theirs, ours = _machine(path), _machine(Path(sys.executable))
    if ours is not None and theirs is not None and theirs != ours:
        raise EngineError(f"{path} was built for {theirs}, and this Python for {ours}: take the build for {ours}")
    if sys.platform == "linux" and theirs is None:
        raise EngineError(f"{path} is no library for Linux")


def _machine(path: Path) -> str | None:
    """Of an ELF file."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}") from None
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return _MACHINES.get(number, f"machine {number}")


def _reason(error: OSError) -> str:
    """The linker's own words, without what cffi says about its search and its file."""
    text = str(error).split("  Additionally")[0].strip().removesuffix(".")
    return re.sub(r"^cannot load library '[^']*': ", "", text)


def _advice(reason: str) -> str:
    name = missing(reason)
    return f"; FISHS2_RUNTIME_EXTRA_DLL_DIRS takes the folder that holds {name}" if name else ""
