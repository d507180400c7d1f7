"""`run.py` in a copy of the project whose `.venv`, compilers and GPUs are small shell scripts."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

FILES = ("run.py", "run_install.py", "run_ggml.py")

#: All that the scripts need of the machine: whatever compiler, GPU or Vulkan it has is not seen.
_TOOLS = ("cat", "cp", "mkdir", "mv", "rm", "sleep", "touch")

FAKE_DAEMON = """\
#!{python}
import json, os, sys, time
settings = {{name: value for name, value in os.environ.items() if name.startswith(("FISHS2_", "PIP_", "HF_", "TMP"))}}
print(json.dumps({{"argv": sys.argv[1:], "env": settings, "cwd": os.getcwd(), "pid": os.getpid()}}), flush=True)
time.sleep(float(os.environ.get("FAKE_SLEEP_S", "0")))
sys.exit(int(os.environ.get("FAKE_STATUS", "0")))
"""

FAKE_PYTHON = """\
#!/bin/sh
echo "$*" >> {root}/calls
case "$*" in
*"pip install"*) . {root}/pip.sh ;;
*"pip wheel"*) . {root}/wheel.sh ;;
*ruff*) exit "${{RUFF_STATUS:-0}}" ;;
*mypy*) exit "${{MYPY_STATUS:-0}}" ;;
*pytest*) exit "${{PYTEST_STATUS:-0}}" ;;
esac
"""


class Project:
    """A folder with run.py, the scripts, and a `.venv` whose Python notes down how it is called.

    `run`, `installing` and `ggml` are its three modules, with paths of this folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in (*FILES, "scripts", ".ci"):
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, root / name)
        (root / "pyproject.toml").write_text("[project]\n")
        self.python = self.script(".venv/bin/python", FAKE_PYTHON.format(root=root))
        self.daemon = self.script(".venv/bin/fishs2-daemon", FAKE_DAEMON.format(python=sys.executable))
        self.pip_does("exit 0")
        self.tools = root / "tools"
        self.tools.mkdir()
        for name in _TOOLS:
            (self.tools / name).symlink_to(str(shutil.which(name)))
        source = root / "run_ggml.py"
        source.write_text(source.read_text().replace("/usr/local/cuda", f"{root}/cuda"))
        self.installing, self.ggml, self.run = load(root)

    def script(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def pip_does(self, text: str) -> None:
        (self.root / "pip.sh").write_text(text)

    def tool(self, name: str, text: str = "exit 0") -> Path:
        """A program that the machine has."""
        return self.script(f"tools/{name}", f"#!/bin/sh\n{text}\n")

    def stamp(self, *extras: str) -> None:
        (self.root / ".venv/run-stamp").write_text("\n".join([self.installing._fingerprint(), *extras]))

    @property
    def sealed(self) -> dict[str, str]:
        """An environment in which there are no compilers and no GPUs but those that the test put into `tools`."""
        return {"PATH": str(self.tools), "CUDA_HOME": "", "CUDA_PATH": "", "VULKAN_SDK": str(self.root / "sdk")}

    @property
    def calls(self) -> list[str]:
        calls = self.root / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    @property
    def installations(self) -> list[str]:
        return [call for call in self.calls if "pip install" in call]

    def start(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, self.root / "run.py", *arguments],
            cwd=cwd or self.root,
            env=own_environment() | self.sealed | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str, cwd: Path | None = None, **environment: str) -> "Result":
        process = self.start(*arguments, cwd=cwd, **environment)
        out, err = process.communicate(timeout=60)
        return Result(process.returncode, out, err)


#: Makes a wheel that says what it was built for, and notes down how.
WHEEL = """\
echo "$CMAKE_ARGS" >> {root}/flags
echo "$CUDACXX" >> {root}/compilers
[ ! -e {root}/broken ] || {{ echo "nvcc: sorry"; exit 1; }}
for word; do
    case "$last" in --wheel-dir) folder=$word ;; esac
    last=$word
done
mkdir -p "$folder"
touch "$folder/ggml_python-0.0.45-py3-none-linux_x86_64.whl"
"""

#: Puts ggml's libraries where the real one does: those of a wheel by the folder it lies in, else the processor's.
INSTALL = """\
lib={root}/.venv/lib/python3.11/site-packages/ggml/lib
case "$*" in
*.whl*) rm -rf $lib; kind=none; case "$*" in */cuda-*) kind=cuda ;; */vulkan-*) kind=vulkan ;; esac ;;
*s2*) [ ! -d $lib ] || exit 0; kind=none ;;
*) exit 0 ;;
esac
mkdir -p $lib
touch $lib/libggml-base.so $lib/libggml-cpu.so
case $kind in
cuda) echo "libcublas.so.99 libcudart.so.98 libcublasLt.so.99 libcuda.so.1" > $lib/libggml-cuda.so ;;
vulkan) touch $lib/libggml-vulkan.so ;;
esac
[ ! -e {root}/half ] || {{ rm {root}/half; kill -KILL $$; }}
"""


class Box(Project):
    """A machine with a C++ compiler, and whatever else a test puts there."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.tool("g++")
        self.pip_does(INSTALL.format(root=root))
        (root / "wheel.sh").write_text(WHEEL.format(root=root))
        self.site = root / ".venv/lib/python3.11/site-packages"

    def has_cuda(self, *, gpu: str | None = "8.6") -> None:
        """nvcc, and a GPU of this compute capability."""
        self.tool("nvcc", "echo release 13.0")
        if gpu is not None:
            self.tool("nvidia-smi", f"printf '{gpu}\\n'")

    def has_vulkan(self, patch: int) -> None:
        self.tool("glslc")
        header = self.root / "sdk/include/vulkan/vulkan_core.h"
        header.parent.mkdir(parents=True)
        header.write_text(
            f"#define VK_HEADER_VERSION {patch}\n"
            "#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, 3, VK_HEADER_VERSION)\n"
        )

    @property
    def kinds(self) -> set[str]:
        return {path.stem for path in self.site.glob("ggml/lib/*")} - {"libggml-base", "libggml-cpu"}

    @property
    def builds(self) -> list[str]:
        flags = self.root / "flags"
        return flags.read_text().splitlines() if flags.exists() else []

    def wheel(self, *kinds: str, name: str = "ggml_python-0.0.45-py3-none-linux_x86_64.whl") -> Path:
        """A wheel of the owner's, in a folder whose name tells the scripts what is in it."""
        path = self.root / "-".join((*kinds, "wheels")) / name
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for kind in ("base", "cpu", *kinds):
                archive.writestr(f"ggml/lib/libggml-{kind}.so", "")
        return path


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def daemon(self) -> dict[str, Any]:
        assert self.status == 0, self.err
        seen: dict[str, Any] = json.loads(self.out)
        return seen


def own_environment() -> dict[str, str]:
    ours = ("FISHS2_", "PIP_CACHE_DIR", "HF_HOME", "TMPDIR", "TEMP", "TMP")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def load(root: Path) -> tuple[ModuleType, ModuleType, ModuleType]:
    """run_install, run_ggml and run of a folder: modules of these names that were loaded from another one are left."""
    names = ("run_install", "run_ggml", "run")
    modules = []
    for name in names:
        spec = importlib.util.spec_from_file_location(name, root / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        modules.append(module)
    for name in names:
        del sys.modules[name]
    return modules[0], modules[1], modules[2]
