"""Finds libs2 and loads it, with what it needs."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi

from fishs2_daemon.engines.ggml_environment import set_environment
from fishs2_daemon.engines.s2cpp.cdef import DECLARATIONS, REQUIRED
from fishs2_daemon.engines.s2cpp.linking import Linker, file_names, find
from fishs2_daemon.errors import EngineError

_log = logging.getLogger(__name__)

_LIBRARY = "s2"

#: What libs2 is called elsewhere.
_FOREIGN = {"s2.dll": "Windows", "libs2.dylib": "macOS", "libs2.so": "Linux"}

#: Opened first, where they are: some builds of it name none of them as needed.
_BACKENDS = ("cuda", "vulkan", "metal")
_GGML = ("ggml-base", "ggml-cpu", *(f"ggml-{backend}" for backend in _BACKENDS), "ggml")

#: libs2 writes to standard output; all of it only where the daemon writes down everything.
_LOG_ERRORS, _LOG_ALL = 0, 3


class S2Library:
    """libs2's functions as attributes of `calls`. `backends` are those of ggml that were loaded with it."""

    def __init__(self, path: Path, folders: Sequence[Path]) -> None:
        """Raises `EngineError` where it cannot be loaded, or lacks a function that every release has."""
        self.path = path
        set_environment()
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(DECLARATIONS)
        linker = Linker(self.ffi, folders)
        self.backends = frozenset(_open_ggml(linker, folders)).intersection(_BACKENDS)
        self.calls: Any = linker.open(path, shared=False)
        if lacking := [name for name in REQUIRED if not self.has(name)]:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise EngineError(f"{path} is no libs2 that can be used: it lacks {', '.join(lacking[:3])}{more}")
        if self.has("SetS2LogLevel"):
            self.calls.SetS2LogLevel(_LOG_ALL if _log.isEnabledFor(logging.DEBUG) else _LOG_ERRORS)

    @classmethod
    def load(cls, runtime_dir: str, s2_dll_path: str | None, extra_dirs: Sequence[str]) -> "S2Library":
        """`s2_dll_path` is the library itself, else it lies in `runtime_dir`; `extra_dirs` hold what it needs."""
        path = _locate(Path(runtime_dir), Path(s2_dll_path) if s2_dll_path else None)
        extra = [Path(folder) for folder in extra_dirs]
        for folder in extra:
            if not folder.is_dir():
                _log.warning("FISHS2_RUNTIME_EXTRA_DLL_DIRS: there is no folder %s", folder)
        folders = [folder for folder in (path.parent, *extra, Path(runtime_dir)) if folder.is_dir()]
        return cls(path, folders)

    def has(self, name: str) -> bool:
        return hasattr(self.calls, name)


def _locate(runtime_dir: Path, named: Path | None) -> Path:
    wanted, _ = file_names(_LIBRARY)
    if named:
        if not named.is_file():
            raise EngineError(f"FISHS2_S2_DLL_PATH={named}: there is no such file; it is {wanted} itself, not a folder")
        return named
    setting = f"FISHS2_RUNTIME_DIR={runtime_dir}"
    if not runtime_dir.is_dir():
        raise EngineError(
            f"{setting}: there is no such folder; it holds {wanted} and the ggml libraries, or FISHS2_S2_DLL_PATH "
            f"names {wanted}"
        )
    if path := find(_LIBRARY, runtime_dir):
        return path
    foreign = "".join(
        f"; {name} in it is for {system}, and this is {sys.platform}"
        for name, system in _FOREIGN.items()
        if name != wanted and (runtime_dir / name).is_file()
    )
    raise EngineError(f"{setting}: there is no {wanted} in this folder{foreign}")


def _open_ggml(linker: Linker, folders: Sequence[Path]) -> list[str]:
    """The backends that can be used. One that cannot, for want of its driver, is libs2's business first."""
    opened = []
    for name in _GGML:
        path = next((path for folder in folders if (path := find(name, folder))), None)
        if path is None:
            continue
        try:
            linker.open(path, shared=True)
        except EngineError as error:
            _log.info("%s", error)
        else:
            opened.append(name.removeprefix("ggml-"))
    return opened
