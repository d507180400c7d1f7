"""The stand-in for libs2, compiled once for each interface that a test wants of it."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fishs2_daemon.audio import wav
from fishs2_daemon.speech import Clip
from tests.engines.s2cpp.standin import Compile, Install, Record, Recording, StandIn

SOURCE = Path(__file__).with_name("standin.c")


@pytest.fixture(scope="session")
def compile_c(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """A library of `source` with these options of the compiler; each is made once."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc), and the stand-in for libs2 is written in C")
    folder = tmp_path_factory.mktemp("standin")

    def make(*options: str, source: Path = SOURCE) -> Path:
        key = hashlib.sha256("\0".join((*options, str(source), source.read_text())).encode()).hexdigest()[:16]
        target = folder / f"{key}.so"
        if not target.exists():
            command = [
                compiler,
                "-std=gnu11",
                "-shared",
                "-fPIC",
                "-o",
                str(target),
                str(source),
                "-lpthread",
                *options,
            ]
            subprocess.run(command, check=True)
        return target

    return make


@pytest.fixture
def install(compile_c: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install("-DOLD_ABI")`"""
    log = tmp_path / "calls.log"
    monkeypatch.setenv("STANDIN_LOG", str(log))

    def make(*options: str) -> StandIn:
        # A path of its own each time: the linker takes one that it has loaded for the same library.
        folder = Path(tempfile.mkdtemp(prefix="runtime-", dir=tmp_path))
        (folder / "tiny.gguf").write_bytes(b"GGUF and weights")
        (folder / "tokenizer.json").write_text("{}")
        shutil.copy(compile_c(*options), folder / "libs2.so")
        return StandIn(folder, log)

    return make


@pytest.fixture
def standin(install: Install) -> StandIn:
    return install()


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """A clip on disk, of a tone of that pitch, and its samples."""

    def make(pitch_hz: float = 220.0, *, seconds: float = 0.5, transcript: str = "What I sound like.") -> Recording:
        time_s = np.arange(int(44100 * seconds)) / 44100
        pcm = (8000 * np.sin(2 * np.pi * pitch_hz * time_s)).astype("<i2").tobytes()
        path = tmp_path / f"{pitch_hz:.0f}.wav"
        path.write_bytes(wav.header(44100, len(pcm)) + pcm)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Recording(Clip(str(path), digest, transcript), pcm)

    return make


@pytest.fixture(params=["-DNEWEST", "-DNO_EX", "-DNO_FROM_FILES", "-DOLD_ABI"])
def each(install: Install, request: pytest.FixtureRequest) -> StandIn:
    """Each generation of the interface."""
    return install(request.param)
