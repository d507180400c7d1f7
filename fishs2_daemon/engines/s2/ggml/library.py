"""Finds, loads and checks the shared libraries that the `ggml-python` package installs.

The package itself is never imported: it loads every backend at import and fails as a whole when one of them cannot.
`libggml.so` (the registry) is left out for the same reason: in a CUDA build it is linked against the CUDA backend.
"""

import ctypes
import functools
import importlib.util
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import cffi

from fishs2_daemon.engines.ggml_environment import set_environment
from fishs2_daemon.engines.s2.ggml.cdef import DECLARATIONS
from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.logs import route_log
from fishs2_daemon.errors import EngineError

VERSION = "0.15.3"

_INSTALL = "install it with: pip install ggml-python==0.0.45"
_BASE, _CPU, _CUDA = "libggml-base.so", "libggml-cpu.so", "libggml-cuda.so"

#: What a CUDA build is linked against, in this order: the last needs the one before.
_CUDA_RUNTIME = ("libcudart.so", "libcublasLt.so", "libcublas.so")

#: The linker names the first that it misses, with its release.
_MISSING = re.compile(r"lib(cudart|cublas(?:Lt)?)\.so\.(\d+)")


class Library:
    """ggml's functions as attributes, found in whichever of the loaded libraries has them.

    `cuda_reason` says why there is no CUDA backend, and is empty when there is one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(DECLARATIONS)
        set_environment(GGML_CUDA_FORCE_CUBLAS_COMPUTE_32F="1")  # see `ModelOps.mul_mat`
        self._parts = [self._open(_BASE), self._open(_CPU)]
        self._check()
        self.cuda_reason = self._open_cuda()
        route_log(self)

    def __getattr__(self, name: str) -> Any:
        for part in self._parts:
            try:
                function = getattr(part, name)
            except AttributeError:
                continue
            setattr(self, name, function)
            return function
        raise EngineError(f"ggml in {self.folder} has no function {name}; {_INSTALL}")

    def _open(self, name: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            raise EngineError(f"ggml is not installed completely: {path} is missing; {_INSTALL}")
        try:
            return self.ffi.dlopen(str(path), os.RTLD_NOW | os.RTLD_GLOBAL)
        except OSError as error:
            raise EngineError(f"ggml cannot be loaded: {_reason(error)}; {_INSTALL}") from None

    def _open_cuda(self) -> str:
        path = self.folder / _CUDA
        if not path.is_file():
            return "the installed ggml-python is a build without CUDA"
        try:
            part = self.ffi.dlopen(str(path), os.RTLD_NOW | os.RTLD_GLOBAL)
        except OSError as missing:
            # Only now: a system's own libraries are the better ones.
            _preload_cuda(str(missing))
            try:
                part = self.ffi.dlopen(str(path), os.RTLD_NOW | os.RTLD_GLOBAL)
            except OSError as error:
                return f"the CUDA backend cannot be loaded: {_reason(error)}"
        self._parts.append(part)
        return ""

    def _check(self) -> None:
        version = self._text(self.ggml_version())
        if version != VERSION:
            raise EngineError(f"ggml in {self.folder} is version {version}, this engine needs {VERSION}; {_INSTALL}")
        for dtype in DType:
            value = int(dtype)
            found = self._text(self.ggml_type_name(value)), self.ggml_blck_size(value), self.ggml_type_size(value)
            traits = self.ggml_get_type_traits(value)
            expected = dtype.label, dtype.block, dtype.block_bytes
            if found != expected or (traits.blck_size, traits.type_size) != expected[1:]:
                raise EngineError(f"ggml in {self.folder} has type {value} as {found}, not {expected}; {_INSTALL}")

    def _text(self, text: Any) -> str:
        return "" if text == self.ffi.NULL else bytes(self.ffi.string(text)).decode(errors="replace")


def library() -> Library:
    """The one loaded library of this process.

    Raises `EngineError`, saying what to install, when it is missing, of another version, or cannot be loaded.
    """
    with _loading:
        return _load()


_loading = threading.Lock()


@functools.cache
def _load() -> Library:
    return Library(_installed())


def _installed() -> Path:
    spec = importlib.util.find_spec("ggml")
    if spec is None or spec.origin is None:
        raise EngineError(f"ggml is not installed; {_INSTALL}")
    return Path(spec.origin).parent / "lib"


def _preload_cuda(error: str) -> None:
    """Load what an error of the dynamic linker misses of CUDA from NVIDIA's wheels, as far as they are there.

    The wheels' folders are none where the linker looks; what is loaded already it takes from anywhere.
    """
    missing = _MISSING.search(error)
    if not missing:
        return
    for name in _CUDA_RUNTIME:
        pattern = f"nvidia/*/lib/{name}.{missing[2]}"
        for path in [path for entry in sys.path if entry for path in Path(entry).glob(pattern)]:
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            break


def _reason(error: OSError) -> str:
    """The linker's own words, without what cffi says about its search, and with what helps."""
    text = (str(error).splitlines() or ["unknown reason"])[0].split(".  Additionally")[0]
    if "libcuda.so" in text:
        return f"{text}; it comes with NVIDIA's driver"
    missing = _MISSING.search(text)
    if not missing:
        return text
    package = "nvidia-cuda-runtime" if missing[1] == "cudart" else "nvidia-cublas"
    # NVIDIA put the release into the packages' names up to 12.
    package += f"-cu{missing[2]}" if int(missing[2]) <= 12 else ""
    return f"{text}; install it with: pip install {package}"
