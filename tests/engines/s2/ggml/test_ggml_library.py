"""Finding, loading and checking the libraries. What must happen before any is loaded has a process of its own."""

import ctypes
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fishs2_daemon.engines.s2.ggml import Backend, library
from fishs2_daemon.engines.s2.ggml.backend import default_threads
from fishs2_daemon.errors import EngineError

OPEN = """
import os, sys
from fishs2_daemon.engines.s2.ggml import Backend, library
from fishs2_daemon.errors import EngineError
try:
    Backend.open("cpu")
except EngineError as error:
    sys.exit(f"refused: {error}")
print(os.environ["OMP_WAIT_POLICY"], "ggml" in sys.modules)
"""


def start(path: Path | None = None, code: str = OPEN, **environment: str) -> tuple[int, str]:
    """Run code with `path` before every installed package, and no OMP_WAIT_POLICY unless it is given."""
    root = Path(__file__).parents[4]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(str(p) for p in (path, root) if p)}
    variables.pop("OMP_WAIT_POLICY", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables | environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def fake(kit, tmp_path: Path) -> Path:
    """A package `ggml` with the real libraries, to be spoilt."""
    folder = tmp_path / "ggml"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('the package must not be executed')")
    spec = find_spec("ggml")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent / "lib", folder / "lib")
    return folder


def test_loads_without_executing_the_package(fake: Path) -> None:
    assert start(fake.parent) == (0, "passive False\n")
    # The owner's own choice stays.
    assert start(fake.parent, OMP_WAIT_POLICY="active") == (0, "active False\n")


def test_not_installed(kit, tmp_path: Path) -> None:
    hide = "import sys; sys.modules['ggml'] = None\nimport importlib.util as u; f = u.find_spec\n"
    hide += "u.find_spec = lambda name, *rest: None if name == 'ggml' else f(name, *rest)\n"
    status, text = start(code=hide + OPEN)
    assert status == 1
    assert "refused: ggml is not installed; install it with: pip install ggml-python==0.0.45" in text


@pytest.mark.parametrize("name", ["libggml-base.so", "libggml-cpu.so"])
def test_library_missing(fake: Path, name: str) -> None:
    (fake / "lib" / name).unlink()
    status, text = start(fake.parent)
    assert status == 1
    assert f"{name} is missing; install it with: pip install ggml-python==0.0.45" in text


def test_library_broken(fake: Path) -> None:
    (fake / "lib" / "libggml-cpu.so").write_bytes(b"not a library")
    status, text = start(fake.parent)
    assert status == 1
    assert "refused: ggml cannot be loaded" in text


def test_another_version(fake: Path) -> None:
    base = fake / "lib" / "libggml-base.so"
    content = base.read_bytes()
    assert content.count(b"0.15.3\0") == 1
    base.write_bytes(content.replace(b"0.15.3\0", b"0.16.0\0"))
    status, text = start(fake.parent)
    assert status == 1
    assert "is version 0.16.0, this engine needs 0.15.3; install it with" in text


def test_other_types(fake: Path) -> None:
    base = fake / "lib" / "libggml-base.so"
    base.write_bytes(base.read_bytes().replace(b"\0iq4_xs\0", b"\0iq4_xl\0"))
    status, text = start(fake.parent)
    assert status == 1
    assert "has type 23 as ('iq4_xl', 256, 136), not ('iq4_xs', 256, 136)" in text


def test_a_cuda_library_that_cannot_load_leaves_the_processor(fake: Path) -> None:
    (fake / "lib" / "libggml-cuda.so").write_bytes(b"not a library")
    code = OPEN + "\nprint(Backend.open('auto').device)\nBackend.open('cuda')"
    status, text = start(fake.parent, code)
    assert status == 1
    assert "False\ncpu\n" in text
    assert "EngineError: CUDA cannot be used: the CUDA backend cannot be loaded" in text


def test_cuda_s_libraries_of_the_wheels_are_loaded_when_the_linker_misses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, int]] = []
    monkeypatch.setattr("ctypes.CDLL", lambda path, mode: loaded.append((str(Path(path).relative_to(tmp_path)), mode)))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    of_12 = ["nvidia/cuda_runtime/lib/libcudart.so.12", "nvidia/cublas/lib/libcublasLt.so.12"]
    of_12.append("nvidia/cublas/lib/libcublas.so.12")
    of_13 = [f"nvidia/cu13/lib/{name}.so.13" for name in ("libcudart", "libcublasLt", "libcublas")]
    for name in of_12 + of_13:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    library._preload_cuda("libcublas.so.13: cannot open shared object file")
    assert loaded == [(name, ctypes.RTLD_GLOBAL) for name in of_13]
    loaded.clear()
    library._preload_cuda("libcudart.so.12: cannot open shared object file")
    assert loaded == [(name, ctypes.RTLD_GLOBAL) for name in of_12]
    loaded.clear()
    library._preload_cuda("libcuda.so.1: cannot open shared object file")
    assert loaded == []


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("libcublas.so.13", "; install it with: pip install nvidia-cublas"),
        ("libcublasLt.so.12", "; install it with: pip install nvidia-cublas-cu12"),
        ("libcudart.so.13", "; install it with: pip install nvidia-cuda-runtime"),
        ("libcudart.so.12", "; install it with: pip install nvidia-cuda-runtime-cu12"),
        ("libcuda.so.1", "; it comes with NVIDIA's driver"),
        ("libm.so.6", ""),
    ],
)
def test_a_library_that_is_missing_comes_with_where_it_is_from(missing: str, advice: str) -> None:
    words = f"cannot load library 'x.so': {missing}: cannot open shared object file.  Additionally, ctypes..."
    assert (
        library._reason(OSError(words))
        == f"cannot load library 'x.so': {missing}: cannot open shared object file{advice}"
    )


def test_no_message_of_ggml_outlives_the_interpreter(kit) -> None:
    """The log callback is Python: it must be gone when the interpreter is."""
    code = "from fishs2_daemon.engines.s2.ggml import *\nb = Backend.open('cpu')\ns = Store(b)\n"
    code += "t = s.new(DType.F32, 8)\ns.allocate()\ng = GraphBuilder(b, 'g')\ng.output('o', g.exp(t))\nr = g.build()\n"
    assert start(code=code + "r.run()") == (0, "")


def test_backends(kit) -> None:
    with Backend.open("cpu", threads=3) as backend:
        assert (backend.device, backend.threads) == ("cpu", 3)
        assert backend.description
        memory = backend.memory()
        assert 2**28 < memory.total_bytes >= memory.free_bytes
    for name in ("tpu", "cuda:x", "cpu:0", ""):
        with pytest.raises(EngineError, match="use auto, cpu, cuda or cuda:N"):
            Backend.open(name)
    for threads in (0, -1, 10**6):
        with pytest.raises(EngineError, match="threads"):
            Backend.open("cpu", threads=threads)


def test_default_threads_leave_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= default_threads() <= max(1, len(os.sched_getaffinity(0)) - 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {10**6})
    assert default_threads() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(10**6, 10**6 + 9)))
    monkeypatch.setattr("fishs2_daemon.engines.s2.ggml.backend._quota", lambda: 9)
    assert default_threads() == 8
    monkeypatch.setattr("fishs2_daemon.engines.s2.ggml.backend._quota", lambda: 4)
    assert default_threads() == 3
