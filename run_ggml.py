"""Which build of ggml is in `.venv`, and the making of another one. Standard library only.

Every build computes on the processor; one for a GPU is made from source by its maker's compiler, or is a wheel that the
owner names. What was built is kept in pip's cache: a `.venv` that is made anew does not build for half an hour again.
"""

import contextlib
import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from run_install import PROCESSOR_FLAGS, ROOT, VENV, Stop, pip, tell

EX_CONFIG = 78

VERSION = "0.0.45"

#: What the last installation left: a wheel's identity, or one of these two. It lies in `.venv`, and goes with it.
NOTE = VENV / "ggml-stamp"
_UNFINISHED = "unfinished"
_NO_CUDA = "CUDA could not be built"

#: The backends that need a build of their own.
KINDS = ("cuda", "vulkan", "metal")

_FLAGS = {
    "cpu": "",
    # NCCL would be one more library to need; nothing here computes one text on several GPUs.
    "cuda": "-DGGML_CUDA=ON -DGGML_CUDA_GRAPHS=ON -DGGML_CUDA_NCCL=OFF",
    "vulkan": "-DGGML_VULKAN=ON",
    "metal": "-DGGML_METAL=ON",
}

#: Where NVIDIA's own packages put the compiler, and no PATH names it.
_CUDA = "/usr/local/cuda/bin"

#: Where no GPU answers: what kernels differ by, as code that the driver completes when it first loads it.
_ANY_GPU = ("75-virtual", "80-virtual", "90-virtual")

#: ggml's source names what older headers of Vulkan do not have (VK_EXT_layer_settings).
_OLDEST_VULKAN = (1, 3, 272)

#: nvidia-smi wakes the driver up, which takes a few seconds at the most.
_ANSWER_S = 20.0

#: A killed process is gone in a moment, but for one that waits for a dead device.
_REAP_S = 1.0

_WHEEL_NAME = re.compile(rf"ggml_python-{re.escape(VERSION)}(\+[\w.]+)?-.+\.whl")

#: What is there only in part, most often, where a build fails.
_WHOLE = {
    "cuda": "\nIt needs the whole CUDA toolkit, with cuBLAS's headers, and a g++ that is not too new for that toolkit.",
    "vulkan": "\nIt needs glslc, Vulkan's headers and loader, and the package spirv-headers.",
}

_NO_CARD = """\
FISHS2_BACKEND=cuda (--backend cuda) needs a GPU of NVIDIA's, and `nvidia-smi` shows none here. One of these helps:
  install NVIDIA's driver, and start the machine again
  build for another machine all the same: --skip-gpu-check (FISHS2_SKIP_GPU_CHECK)
  do without: --backend cpu"""

_MISSING = {
    "cuda": """\
FISHS2_BACKEND=cuda (--backend cuda) needs ggml with CUDA, and nothing here can make it. One of these helps:
  install NVIDIA's CUDA toolkit, which has the compiler `nvcc` (Debian, Ubuntu: sudo apt install nvidia-cuda-toolkit),
    and g++; if it is not in PATH, CUDA_HOME says where it is
  name a wheel of ggml-python {version} that was built with CUDA: --ggml-wheel FILE (FISHS2_GGML_WHEEL)
  do without: --backend cpu""",
    "vulkan": """\
FISHS2_BACKEND=vulkan (--backend vulkan) needs ggml with Vulkan, and nothing here can make it: going on with the
processor. One of these helps:
  install the shader compiler `glslc`, Vulkan's headers of 1.3.272 or newer, and g++ (Debian 13, Ubuntu 24.04:
    sudo apt install glslc libvulkan-dev spirv-headers g++); VULKAN_SDK says where LunarG's SDK is, if you have that
  name a wheel of ggml-python {version} that was built with Vulkan: --ggml-wheel FILE (FISHS2_GGML_WHEEL)
  do without: --backend cpu""",
    "metal": "FISHS2_BACKEND=metal (--backend metal) is for Apple's machines: going on with the processor",
}


@dataclass(frozen=True, slots=True)
class NamedWheel:
    """A file of the owner's. Another one of the same name, size and time counts as the same."""

    path: Path

    @property
    def present(self) -> bool:
        return _note() == self._identity and bool(installed_kinds())

    @property
    def _identity(self) -> str:
        stat = self.path.stat()
        return f"wheel {self.path.name} {stat.st_size} {stat.st_mtime_ns}"

    def install(self) -> None:
        _install(self.path)
        NOTE.write_text(self._identity)


@dataclass(frozen=True, slots=True)
class Build:
    """ggml for a kind of backend, from its source. With `optional`, one that fails leaves the processor's in place."""

    kind: str
    optional: bool = False

    @property
    def present(self) -> bool:
        return self.kind in installed_kinds() or (self.optional and _note() == _NO_CUDA)

    def install(self) -> None:
        try:
            _install(self._wheel())
        except Stop as stop:
            if not self.optional:
                raise
            tell(f"{stop}\nGoing on with the processor; --backend {self.kind} tries again.")
            NOTE.write_text(_NO_CUDA)
        else:
            NOTE.unlink()

    def _wheel(self) -> Path:
        environment = _toolchain(self.kind)
        compiler = _said(environment["CUDACXX"], "--version") if "CUDACXX" in environment else ""
        identity = hashlib.sha256((VERSION + environment["CMAKE_ARGS"] + compiler).encode()).hexdigest()[:16]
        kept = ROOT / os.environ.get("PIP_CACHE_DIR", ".pip-cache") / "ggml" / f"{self.kind}-{identity}"
        if found := next(iter(kept.glob("*.whl")), None):
            return found
        fresh = kept.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        tell(f"building ggml for {self.kind}: {environment['CMAKE_ARGS']}")
        if self.kind == "vulkan":
            tell("the S2 engine does not compute on Vulkan yet: docs/gpu.md says what does")
        if self.kind != "cpu":
            tell("by the number of cores this takes 5 to 60 minutes, once. Ctrl-C stops it; --backend cpu does without")
        started_s = time.monotonic()
        # Verbose, for the compilers' steps. Without pip's cache, which knows a wheel by its source, not by its flags.
        how = ("--verbose", "--no-cache-dir", "--no-deps", "--no-binary", "ggml-python", "--wheel-dir", fresh)
        what, doing = f"ggml-python=={VERSION}", f"building ggml for {self.kind}"
        try:
            pip("wheel", *how, what, doing=doing, environment=environment)
        except Stop as stop:
            raise Stop(f"{stop}{_WHOLE.get(self.kind, '')}") from None
        shutil.rmtree(kept, ignore_errors=True)
        fresh.rename(kept)
        tell(f"built in {(time.monotonic() - started_s) / 60:.0f} min")
        return next(kept.glob("*.whl"))


def choose(backend: str, wheel: str = "", *, without_card: bool = False) -> NamedWheel | Build | None:
    """What `backend` needs, or the `wheel` that the owner named; None where anything will do.

    Raises `Stop` with status 78 for a wheel that will not do, and where CUDA is asked for by name and cannot be made,
    or has no GPU here, unless it is wanted `without_card`.
    The others are gone on without: managers name them by the machine's kind, and the processor speaks, too.
    """
    if wheel:
        return _named(Path(wheel), backend)
    there = installed_kinds()
    if backend in there or (backend in KINDS and _can_build(backend)):
        if backend == "cuda" and backend not in there and not without_card and not _architectures():
            raise Stop(_NO_CARD, EX_CONFIG)
        return Build(backend)
    if backend == "cuda":
        raise Stop(_MISSING[backend].format(version=VERSION), EX_CONFIG)
    if backend in KINDS:
        tell(_MISSING[backend].format(version=VERSION))
    # What is only better with CUDA starts without, where nothing can be installed.
    tries = backend == "auto" and "cuda" not in there and _note() != _NO_CUDA and os.access(ROOT, os.W_OK)
    if tries and _can_build("cuda") and _architectures():
        return Build("cuda", optional=True)
    return Build("cpu") if _note() == _UNFINISHED else None


def has_compiler() -> bool:
    return any(map(shutil.which, ("c++", "g++", "clang++")))


def installed_kinds() -> set[str]:
    """What the ggml in `.venv` computes on: "cpu", "cuda", ...; nothing where none is, or a half installed one."""
    note = _note()
    if note == _UNFINISHED:
        return set()
    unusable = {"base", "cuda"} if note == _NO_CUDA else {"base"}
    return {path.stem.removeprefix("libggml-") for path in _libraries("libggml-*")} - unusable


def _libraries(pattern: str) -> list[Path]:
    return list(VENV.glob(f"lib/python*/site-packages/ggml/lib/{pattern}"))


def _note() -> str:
    try:
        return NOTE.read_text()
    except OSError:
        return ""


def _named(path: Path, backend: str) -> NamedWheel:
    path = ROOT / path.expanduser()
    if not _WHEEL_NAME.fullmatch(path.name):
        raise Stop(
            f"FISHS2_GGML_WHEEL: {path} is no wheel of ggml-python {VERSION}, the version needed here", EX_CONFIG
        )
    try:
        with zipfile.ZipFile(path) as archive:
            kinds = set(re.findall(r"ggml/lib/libggml-(\w+)\.", "\n".join(archive.namelist())))
    except (OSError, zipfile.BadZipFile) as error:
        raise Stop(f"FISHS2_GGML_WHEEL: {path} cannot be read: {error}", EX_CONFIG) from None
    if backend in KINDS and backend not in kinds:
        raise Stop(f"FISHS2_GGML_WHEEL: {path} was not built for {backend}", EX_CONFIG)
    return NamedWheel(path)


def _install(wheel: Path) -> None:
    NOTE.write_text(_UNFINISHED)
    doing = f"installing {wheel.name}"
    pip("install", "--force-reinstall", "--no-deps", wheel, doing=doing)
    for library in _libraries("libggml-cuda.so"):
        if packages := _runtime_packages(library):
            tell(f"fetching CUDA's libraries: {', '.join(packages)}")
            pip("install", *packages, doing="fetching CUDA's libraries")


def _runtime_packages(library: Path) -> list[str]:
    """The packages with what `library` is linked against, as far as the system has none of it."""
    text = library.read_bytes().decode("latin-1")
    needed = sorted(set(re.findall(r"lib(cublas|cudart)\.so\.(\d+)", text)))
    return [_package(name, int(release)) for name, release in needed if not _loads(f"lib{name}.so.{release}")]


def _package(name: str, release: int) -> str:
    full = {"cublas": "nvidia-cublas", "cudart": "nvidia-cuda-runtime"}[name]
    # NVIDIA put the release into the packages' names up to 12.
    return f"{full}>={release},<{release + 1}" if release > 12 else f"{full}-cu{release}"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _can_build(kind: str) -> bool:
    if not has_compiler():
        return False
    if kind == "cuda":
        return _nvcc() is not None
    if kind == "vulkan":
        return shutil.which("glslc", path=_path(_vulkan_sdk() / "bin")) is not None and _has_vulkan_headers()
    return sys.platform == "darwin"


def _toolchain(kind: str) -> dict[str, str]:
    """The environment that builds for `kind`. The owner's own CMAKE_ARGS come last, and beat what is ahead of them."""
    flags = [PROCESSOR_FLAGS, _FLAGS[kind]]
    environment = {}
    nvcc = _nvcc()
    if kind == "cuda" and nvcc:
        environment = {"PATH": _path(nvcc.parent), "CUDACXX": str(nvcc)}
        flags.append("-DCMAKE_CUDA_ARCHITECTURES=" + shlex.quote(";".join(_architectures() or _ANY_GPU)))
    if kind == "vulkan":
        environment = {"PATH": _path(_vulkan_sdk() / "bin")}
    flags.append(os.environ.get("CMAKE_ARGS", ""))
    return {**environment, "CMAKE_ARGS": " ".join(filter(None, flags))}


def _path(first: Path) -> str:
    return os.pathsep.join((str(first), os.environ.get("PATH", "")))


def _nvcc() -> Path | None:
    named = [os.path.join(home, "bin") for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    # What is named goes before what lies in PATH, and that before where the toolkit lies if nobody said otherwise.
    folders = os.pathsep.join((*named, os.environ.get("PATH", ""), _CUDA))
    found = shutil.which("nvcc", path=folders)
    return Path(found) if found else None


def _architectures() -> list[str]:
    """Of the GPUs of NVIDIA's that answer: such as ["86"], or ["native"] where the driver is too old to tell."""
    if not shutil.which("nvidia-smi"):
        return []
    versions = re.findall(r"(?m)^(\d+)\.(\d)$", _said("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"))
    if versions:
        return sorted({major + minor for major, minor in versions})
    return ["native"] if "GPU 0" in _said("nvidia-smi", "-L") else []


def _said(*command: str) -> str:
    """What it prints; nothing where it fails, is not there, or hangs, even if it cannot be killed."""
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet)
    except OSError:
        return ""
    try:
        output, _ = process.communicate(timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_S)
        return ""
    finally:
        if process.stdout:
            process.stdout.close()
    return output.decode(errors="replace") if process.returncode == 0 else ""


def _vulkan_sdk() -> Path:
    return Path(os.environ.get("VULKAN_SDK", "/usr"))


def _has_vulkan_headers() -> bool:
    for folder in (_vulkan_sdk(), Path("/usr/local"), Path("/usr")):
        file = folder / "include/vulkan/vulkan_core.h"
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            release = re.search(r"VK_HEADER_VERSION_COMPLETE +VK_MAKE_API_VERSION\(0, *(\d+), *(\d+)", text)
            patch = re.search(r"VK_HEADER_VERSION +(\d+)", text)
            if release and patch:
                return (int(release[1]), int(release[2]), int(patch[1])) >= _OLDEST_VULKAN
    return False
