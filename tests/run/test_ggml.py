"""Which ggml run.py installs for whom: with compilers, GPUs and a pip that are scripts of a few lines."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run.project import Box, Result

CUDA_FLAGS = "-DGGML_LLAMAFILE=ON -DGGML_CUDA=ON -DGGML_CUDA_GRAPHS=ON -DGGML_CUDA_NCCL=OFF"


def test_a_backend_that_is_asked_for_is_built_once(box: Box) -> None:
    box.has_cuda()
    first = box.call("--backend", "cuda")
    assert first.daemon["env"]["FISHS2_BACKEND"] == "cuda"
    assert box.builds == [f"{CUDA_FLAGS} -DCMAKE_CUDA_ARCHITECTURES=86"]
    assert (box.root / "compilers").read_text() == f"{box.tools}/nvcc\n"
    assert box.kinds == {"libggml-cuda"}
    assert "run.py: building ggml for cuda: " in first.err
    built, ggml, runtime, package = [call for call in box.calls if "pip" in call and "import" not in call]
    assert "pip wheel" in built
    for option in ("--no-cache-dir", "--no-deps", "--no-binary ggml-python", "ggml-python==0.0.45"):
        assert option in built
    assert "--force-reinstall --no-deps" in ggml
    assert ggml.endswith(".whl")
    assert runtime.endswith("nvidia-cublas>=99,<100 nvidia-cuda-runtime>=98,<99")
    assert package.endswith("--editable .[preview,s2]")
    n = len(box.calls)
    assert box.call("--backend", "cuda").err.count("\n") == 1  # the remark on the preview voice
    assert box.call(FISHS2_BACKEND="cuda").err == ""
    assert len(box.calls) == n


def test_another_backend_is_another_build_and_the_processor_is_in_each(box: Box) -> None:
    box.has_cuda()
    box.has_vulkan(280)
    box.call(FISHS2_ENGINE="s2", FISHS2_BACKEND="cpu")
    assert (box.kinds, len(box.installations)) == (set(), 1)
    for backend, kind in (("cuda", "cuda"), ("cpu", "cuda"), ("auto", "cuda"), ("vulkan", "vulkan"), ("cpu", "vulkan")):
        assert box.call(FISHS2_ENGINE="s2", FISHS2_BACKEND=backend).status == 0
        assert box.kinds == {f"libggml-{kind}"}
    assert [flags.partition(" -DGGML_")[2].split()[0] for flags in box.builds] == ["CUDA=ON", "VULKAN=ON"]
    box.call(FISHS2_ENGINE="s2", FISHS2_BACKEND="cuda")
    assert box.kinds == {"libggml-cuda"}
    assert len(box.builds) == 2, "what was built once is kept"


def test_a_venv_that_is_made_anew_gets_the_wheel_that_was_built(box: Box) -> None:
    box.has_cuda()
    box.call("--backend", "cuda")
    shutil.rmtree(box.site)
    (box.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    box.call("--backend", "cuda")
    assert box.kinds == {"libggml-cuda"}
    assert len(box.builds) == 1


def test_another_version_of_ggml_is_another_build(box: Box) -> None:
    box.has_cuda()
    box.call("--backend", "cuda")
    shutil.rmtree(box.site)
    source = box.root / "run_ggml.py"
    source.write_text(source.read_text().replace('VERSION = "0.0.45"', 'VERSION = "0.0.46"'))
    (box.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    box.call("--backend", "cuda")
    assert len(box.builds) == 2


def test_a_changed_project_leaves_the_build_alone(box: Box) -> None:
    box.has_cuda()
    box.call("--backend", "cuda")
    (box.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    box.call("--backend", "cuda")
    assert len([call for call in box.installations if ".whl" in call]) == 1
    assert len([call for call in box.installations if "--editable" in call]) == 2


def test_cuda_that_cannot_be_had_stops_and_says_what_to_do(box: Box) -> None:
    result = box.call("--backend", "cuda")
    assert (result.status, result.out) == (78, "")
    for word in ("FISHS2_BACKEND=cuda", "nvcc", "CUDA_HOME", "--ggml-wheel", "--backend cpu"):
        assert word in result.err
    assert box.calls == []


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("vulkan", ["glslc", "1.3.272", "spirv-headers", "--ggml-wheel"]),
        pytest.param("metal", ["Apple"], marks=pytest.mark.skipif(sys.platform == "darwin", reason="it is had here")),
    ],
)
def test_without_the_others_the_processor_speaks(box: Box, backend: str, words: list[str]) -> None:
    result = box.call("--backend", backend)
    assert result.status == 0
    for word in (f"FISHS2_BACKEND={backend}", "going on with the", *words):
        assert word in result.err
    assert (box.kinds, box.builds) == (set(), [])


def test_the_headers_of_vulkan_must_be_new_enough(box: Box) -> None:
    box.has_vulkan(239)
    assert "1.3.272" in box.call("--backend", "vulkan").err
    assert box.builds == []


@pytest.mark.parametrize("command", ["say", "bench", "serve"])
def test_other_commands_that_compute_stop_too(box: Box, command: str) -> None:
    assert box.call(command, FISHS2_BACKEND="cuda").status == 78


def test_the_doctor_is_not_stopped_by_what_it_is_asked_about(box: Box) -> None:
    result = box.call("doctor", FISHS2_BACKEND="cuda")
    assert result.daemon["argv"] == ["doctor"]
    assert "FISHS2_BACKEND=cuda" in result.err
    assert "nvcc" in result.err


@pytest.mark.parametrize("arguments", [["models", "get"], ["voices"]])
def test_what_does_not_compute_neither_builds_nor_stops(box: Box, arguments: list[str]) -> None:
    box.has_cuda()
    box.call(*arguments, FISHS2_BACKEND="cuda")
    assert box.builds == []
    assert box.installations[0].endswith(".[preview,s2]")


@pytest.mark.parametrize(
    ("nvcc", "gpu", "built"), [(True, True, True), (True, False, False), (False, True, False)], ids=str
)
def test_auto_takes_cuda_where_there_are_both_a_gpu_and_a_compiler(
    box: Box, nvcc: bool, gpu: bool, built: bool
) -> None:
    box.has_cuda()
    for name, there in (("nvcc", nvcc), ("nvidia-smi", gpu)):
        if not there:
            (box.tools / name).unlink()
    result = box.call(FISHS2_ENGINE="s2")
    assert result.status == 0
    assert (len(box.builds) == 1, "libggml-cuda" in box.kinds) == (built, built)


def test_auto_goes_on_without_cuda_where_that_cannot_be_built_and_does_not_try_for_ever(box: Box) -> None:
    box.has_cuda()
    (box.root / "broken").touch()
    first = box.call(FISHS2_ENGINE="s2")
    assert first.status == 0
    assert "nvcc: sorry" in first.err
    assert "Going on with the processor; --backend cuda tries again." in first.err
    assert box.kinds == set()
    assert box.call(FISHS2_ENGINE="s2").err == ""
    assert len(box.builds) == 1
    (box.root / "broken").unlink()
    assert box.call("--backend", "cuda").status == 0
    assert box.kinds == {"libggml-cuda"}


def test_auto_does_not_try_cuda_where_nothing_can_be_installed(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.has_cuda()
    for name, value in box.sealed.items():
        monkeypatch.setenv(name, value)
    assert box.ggml.choose("auto") == box.ggml.Build("cuda", optional=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != box.root and access(path, mode))
    assert box.ggml.choose("auto") is None
    assert box.ggml.choose("cuda") == box.ggml.Build("cuda"), "this one was asked for"


def test_a_backend_that_was_asked_for_and_cannot_be_built_stops(box: Box) -> None:
    box.has_cuda()
    (box.root / "broken").touch()
    for n in (1, 2):
        result = box.call("--backend", "cuda")
        assert (result.status, result.out) == (1, "")
        for words in ("building ggml for cuda failed", "nvcc: sorry", "install.log", "the whole CUDA toolkit"):
            assert words in result.err
        assert len(box.builds) == n


def test_cuda_without_a_gpu_stops_before_anything_is_built(box: Box) -> None:
    box.has_cuda(gpu=None)
    result = box.call("--backend", "cuda")
    assert (result.status, result.out) == (78, "")
    for words in ("needs a GPU of NVIDIA's", "--skip-gpu-check", "--backend cpu"):
        assert words in result.err
    assert box.builds == []
    assert box.call("doctor", FISHS2_BACKEND="cuda").status == 0, "it is asked what is wrong"


def test_without_a_gpu_the_kernels_are_for_several(box: Box) -> None:
    box.has_cuda(gpu=None)
    box.call("--backend", "cuda", "--skip-gpu-check")
    assert box.builds == [f"{CUDA_FLAGS} -DCMAKE_CUDA_ARCHITECTURES='75-virtual;80-virtual;90-virtual'"]


@pytest.mark.parametrize(
    ("answer", "architectures"),
    [
        ("printf '8.6\\n12.0\\n8.6\\n'", ["120", "86"]),
        ("[ $1 = -L ] || exit 2; echo 'GPU 0: NVIDIA GeForce'", ["native"]),
        ("echo No devices were found; exit 6", []),
        ("echo 'NVIDIA-SMI has failed'", []),
    ],
)
def test_the_driver_tells_what_to_build_for(
    box: Box, monkeypatch: pytest.MonkeyPatch, answer: str, architectures: list[str]
) -> None:
    monkeypatch.setenv("PATH", str(box.tools))
    box.tool("nvidia-smi", answer)
    assert box.ggml._architectures() == architectures


def test_a_driver_that_hangs_and_cannot_be_killed_is_no_gpu(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Undying(subprocess.Popen[bytes]):
        """As one that waits for a dead device."""

        def kill(self) -> None:
            started.append(self)

    monkeypatch.setenv("PATH", str(box.tools))
    monkeypatch.setattr(box.ggml, "_ANSWER_S", 0.3)
    monkeypatch.setattr(subprocess, "Popen", Undying)
    box.tool("nvidia-smi", "exec sleep 30")
    began_s = time.monotonic()
    assert box.ggml._architectures() == []
    took_s = time.monotonic() - began_s
    for process in started:
        process.terminate()
        process.wait()
    assert len(started) == 2, "it is asked in two ways"
    assert took_s < 10


def test_the_compiler_is_found_where_it_is_named_then_in_the_path_then_where_it_usually_lies(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(box.tools))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(box.root / "home"))
    assert box.ggml._nvcc() is None
    for folder in ("cuda/bin", "tools", "home/bin"):
        nvcc = box.script(f"{folder}/nvcc", "#!/bin/sh\n")
        assert box.ggml._nvcc() == nvcc


def test_the_owner_s_own_flags_come_last(box: Box) -> None:
    box.has_cuda()
    box.call("--backend", "cuda", CMAKE_ARGS="-DGGML_CUDA_FORCE_MMQ=ON")
    assert box.builds[0].endswith("-DCMAKE_CUDA_ARCHITECTURES=86 -DGGML_CUDA_FORCE_MMQ=ON")


def test_the_processor_s_build_has_its_fast_kernels(box: Box) -> None:
    box.pip_does(f'echo "$CMAKE_ARGS" >> {box.root}/flags')
    box.call(FISHS2_ENGINE="s2")
    assert box.builds == ["-DGGML_LLAMAFILE=ON"]


def test_a_built_wheel_is_kept_where_the_owner_wants_caches(box: Box, tmp_path_factory: pytest.TempPathFactory) -> None:
    box.has_cuda()
    cache = tmp_path_factory.mktemp("cache")
    box.call("--backend", "cuda", PIP_CACHE_DIR=str(cache))
    assert [path.parent.name[:5] for path in cache.glob("ggml/*/*.whl")] == ["cuda-"]


def test_real_libraries_tell_what_they_are_linked_against(box: Box) -> None:
    library = box.root / "libggml-cuda.so"
    library.write_bytes(b"\x7fELF\0libcublas.so.12\0libcublasLt.so.12\0libm.so.6\0libcudart.so.13\0")
    box.ggml._loads = lambda name: name == "libm.so.6"
    assert box.ggml._runtime_packages(library) == ["nvidia-cublas-cu12", "nvidia-cuda-runtime>=13,<14"]
    box.ggml._loads = lambda name: True
    assert box.ggml._runtime_packages(library) == []


# A wheel of the owner's


def test_a_wheel_that_is_named_is_installed_once(box: Box, tmp_path_factory: pytest.TempPathFactory) -> None:
    (box.tools / "g++").unlink()
    wheel = box.wheel("cuda")
    result = box.call("--ggml-wheel", wheel.name, "--backend", "cuda", cwd=wheel.parent)
    assert result.daemon["env"]["FISHS2_GGML_WHEEL"] == str(wheel)
    assert (box.kinds, box.builds) == ({"libggml-cuda"}, [])
    n = len(box.installations)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert box.call(FISHS2_GGML_WHEEL=str(wheel.relative_to(box.root)), cwd=elsewhere).err == ""
    assert box.call(FISHS2_BACKEND="cuda").err == ""
    assert len(box.installations) == n
    os.utime(wheel, (1, 1))
    box.call(FISHS2_GGML_WHEEL=str(wheel))
    assert len(box.installations) > n


def test_a_wheel_is_enough_to_fetch_a_model_without_a_compiler(box: Box) -> None:
    (box.tools / "g++").unlink()
    assert box.call("models", "get", FISHS2_GGML_WHEEL=str(box.wheel("cuda")), FISHS2_BACKEND="vulkan").status == 0
    assert box.kinds == {"libggml-cuda"}
    assert box.installations[-1].endswith(".[preview,s2]")


def test_a_wheel_is_named_in_the_env_file_too(box: Box) -> None:
    wheel = box.wheel("cuda")
    wheel = wheel.parent.rename(box.root / "cuda- #1") / wheel.name
    (box.root / ".env").write_text(f"# mine\nexport FISHS2_GGML_WHEEL = '{wheel}' # it\nFISHS2_BACKEND=cuda\n")
    assert box.call().status == 0
    assert box.kinds == {"libggml-cuda"}


def test_a_wheel_that_will_not_do_is_refused_before_anything_is_installed(box: Box) -> None:
    def refused(path: Path, **environment: str) -> str:
        result: Result = box.call(FISHS2_GGML_WHEEL=str(path), **environment)
        assert (result.status, result.out) == (78, "")
        assert result.err.count("\n") == 1
        assert box.calls == []
        return result.err

    assert "cannot be read" in refused(box.root / "ggml_python-0.0.45-py3-none-any.whl")
    broken = box.wheel("cuda")
    broken.write_bytes(b"not a wheel")
    assert "cannot be read" in refused(broken)
    assert "is no wheel of ggml-python 0.0.45" in refused(box.wheel(name="ggml_python-0.0.44-py3-none-any.whl"))
    assert "is no wheel of ggml-python 0.0.45" in refused(box.root / "wheels")
    assert "was not built for vulkan" in refused(box.wheel("cuda"), FISHS2_BACKEND="vulkan")
    local = box.wheel("cuda", name="ggml_python-0.0.45+cu130-py3-none-linux_x86_64.whl")
    assert box.call(FISHS2_GGML_WHEEL=str(local), FISHS2_BACKEND="cuda").status == 0


# Broken off


def test_a_build_that_was_broken_off_is_done_again(box: Box) -> None:
    box.has_cuda()
    wheel = box.root / "wheel.sh"
    whole = wheel.read_text()
    wheel.write_text("echo '[1/9] Building'; touch started; exec sleep 60\n")
    process = box.start("--backend", "cuda")
    while not (box.root / "started").exists():
        assert process.poll() is None
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began_s < 5
    assert err.endswith("run.py: stopped\n")
    wheel.write_text(whole)
    assert box.call("--backend", "cuda").status == 0
    assert box.kinds == {"libggml-cuda"}


@pytest.mark.parametrize("backend", ["cuda", "cpu", "auto"])
def test_what_was_half_installed_is_installed_again(box: Box, backend: str) -> None:
    box.has_cuda()
    (box.root / "half").touch()
    assert box.call("--backend", "cuda").status == 1
    assert box.kinds == {"libggml-cuda"}, "half of it lies there"
    result = box.call("--backend", backend, FISHS2_ENGINE="s2")
    assert result.status == 0
    assert [call for call in box.installations if ".whl" in call][-1].count("--force-reinstall") == 1
    assert box.kinds == (set() if backend == "cpu" else {"libggml-cuda"})
