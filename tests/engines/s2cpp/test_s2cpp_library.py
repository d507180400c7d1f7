"""libs2 is found, and loaded with what it needs, or it is said what is missing."""

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.engines.s2cpp import linking
from fishs2_daemon.engines.s2cpp.cdef import REQUIRED
from fishs2_daemon.engines.s2cpp.library import S2Library
from fishs2_daemon.engines.s2cpp.model import Device, devices
from fishs2_daemon.errors import EngineError
from tests.engines.s2cpp.standin import Compile, Install, StandIn


def load(folder: Path, named: Path | None = None, *extra: Path) -> S2Library:
    return S2Library.load(str(folder), str(named) if named else None, [str(each) for each in extra])


def refusal(folder: Path, named: Path | None = None, *extra: Path) -> str:
    with pytest.raises(EngineError) as refused:
        load(folder, named, *extra)
    return str(refused.value)


@pytest.fixture
def make(compile_c: Compile, tmp_path: Path) -> Callable[..., None]:
    """A library of one function, `make(path, "function")`, that may need another one: `make(..., needs=path)`."""

    def build(target: Path, function: str, *, needs: Path | None = None, calls: str = "", soname: str = "") -> None:
        source = tmp_path / "part.c"
        source.write_text(
            f"int {calls}(void); int {function}(void) {{ return {calls}(); }}"
            if calls
            else f"int {function}(void) {{ return 7; }}"
        )
        options = [f"-Wl,-soname,{soname or target.name}"]
        if needs:
            options += [f"-L{needs.parent}", f"-l:{needs.name}"]
        target.parent.mkdir(exist_ok=True)
        shutil.copy(compile_c(*options, source=source), target)

    return build


def test_every_function_of_the_first_releases_is_required(install: Install) -> None:
    library = load(install("-DOLD_ABI").folder)
    assert all(library.has(name) for name in REQUIRED)
    assert not library.has("S2SynthesizeStreaming")
    assert not library.has("SetS2LogLevel")


def test_the_log_is_quiet_unless_the_daemon_s_is_not(standin: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    load(standin.folder)
    with caplog.at_level(logging.DEBUG):
        load(standin.folder)
    assert standin.calls == ["log level 0", "log level 3"]


def test_ggml_s_threads_do_not_spin_unless_the_owner_wants_it(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GGML_NO_BACKTRACE", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    load(standin.folder)
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GGML_NO_BACKTRACE"]) == ("active", "1")


def test_a_library_with_a_version_in_its_name_is_found_and_the_plain_one_goes_first(standin: StandIn) -> None:
    standin.library.rename(standin.folder / "libs2.so.1.2")
    assert load(standin.folder).path.name == "libs2.so.1.2"
    shutil.copy(standin.folder / "libs2.so.1.2", standin.library)
    assert load(standin.folder).path.name == "libs2.so"


def test_the_file_that_is_named_goes_before_the_folder(standin: StandIn, tmp_path: Path) -> None:
    other = tmp_path / "mine.so"
    shutil.copy(standin.library, other)
    (standin.folder / "libggml-vulkan.so").write_bytes(standin.library.read_bytes())
    library = load(standin.folder, other)
    assert (library.path, library.backends) == (other, {"vulkan"}), "what it needs may still lie there"
    assert load(tmp_path / "no such folder", other).path == other


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert refusal(nowhere).startswith(f"FISHS2_RUNTIME_DIR={nowhere}: there is no such folder; it holds libs2.so")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").endswith("empty: there is no libs2.so in this folder")
    named = tmp_path / "libs2.so"
    assert refusal(nowhere, named).startswith(f"FISHS2_S2_DLL_PATH={named}: there is no such file")
    assert "not a folder" in refusal(nowhere, tmp_path)


def test_the_bundle_of_another_system_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "s2.dll").write_bytes(b"MZ")
    assert refusal(tmp_path).endswith("no libs2.so in this folder; s2.dll in it is for Windows, and this is linux")
    assert refusal(tmp_path, tmp_path / "s2.dll") == f"{tmp_path / 's2.dll'} is no library for Linux"


def test_a_library_for_another_processor_is_recognised(standin: StandIn) -> None:
    data = bytearray(standin.library.read_bytes())
    ours = data[18]
    data[18:20] = (183 if ours != 183 else 62).to_bytes(2, "little")
    standin.library.write_bytes(data)
    assert re.search(r"libs2\.so was built for \w+, and this Python for \w+: take the build", refusal(standin.folder))
    data[18:20] = (12345).to_bytes(2, "little")
    standin.library.write_bytes(data)
    assert "built for machine 12345" in refusal(standin.folder)


def test_a_library_that_is_cut_off_is_an_error_of_the_linker(standin: StandIn) -> None:
    standin.library.write_bytes(standin.library.read_bytes()[:200])
    assert re.search(r"libs2\.so cannot be loaded: .*(too short|invalid|cannot)", refusal(standin.folder))


def test_functions_that_are_missing_are_named(install: Install, make: Callable[..., None]) -> None:
    assert refusal(install("-DNO_SYNTHESIZE", "-Wno-unused-function").folder).endswith(
        "is no libs2 that can be used: it lacks S2Synthesize"
    )
    other = install().folder / "libs2.so"
    other.unlink()
    make(other, "something_else")
    text = refusal(other.parent)
    assert "it lacks AllocS2Pipeline, ReleaseS2Pipeline, InitializeS2Pipeline and 20 more" in text


def test_ggml_beside_it_is_loaded_first(install: Install, make: Callable[..., None]) -> None:
    folder = install("-DNEEDS_GGML").folder
    assert "ggml_stand_in" in refusal(folder), "a library that nobody names as needed"
    make(folder / "libggml-base.so", "ggml_stand_in")
    library = load(folder)
    library.ffi.cdef("int standin_ggml(void);")
    assert library.calls.standin_ggml() == 7
    assert library.backends == frozenset()


def test_what_it_needs_is_found_in_the_folders_that_are_set(
    standin: StandIn, make: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    extra = tmp_path / "cuda"
    deep = extra / "libstandindeep.so.3"
    rt = extra / "libstandinrt.so.12"
    make(deep, "stand_in_deep")
    make(rt, "stand_in_rt", needs=deep, calls="stand_in_deep")
    make(standin.folder / "libggml-cuda.so", "stand_in_cuda", needs=rt, calls="stand_in_rt")
    assert load(standin.folder).backends == frozenset(), "libs2 works without it"
    assert re.search(
        r"libggml-cuda\.so cannot be loaded: libstandinrt\.so\.12: .*; FISHS2_RUNTIME_EXTRA_DLL_DIRS takes the folder "
        r"that holds libstandinrt\.so\.12",
        caplog.text,
    )
    missing = tmp_path / "no such folder"
    assert load(standin.folder, None, missing, extra).backends == {"cuda"}
    assert f"FISHS2_RUNTIME_EXTRA_DLL_DIRS: there is no folder {missing}" in caplog.text


def test_libs2_that_needs_what_is_nowhere_says_which_setting_helps(
    standin: StandIn, make: Callable[..., None], tmp_path: Path
) -> None:
    needed = tmp_path / "away" / "libstandinneeded.so.5"
    make(needed, "stand_in_needed")
    standin.library.unlink()
    make(standin.library, "stand_in", needs=needed, calls="stand_in_needed")
    text = refusal(standin.folder)
    assert text.startswith(f"{standin.library} cannot be loaded: libstandinneeded.so.5: cannot open shared object file")
    assert text.endswith("FISHS2_RUNTIME_EXTRA_DLL_DIRS takes the folder that holds libstandinneeded.so.5")
    assert "ctypes" not in text
    assert "it lacks" in refusal(standin.folder, None, needed.parent), "found, and loaded"


def test_two_libraries_that_need_each_other_are_not_tried_for_ever(standin: StandIn, make: Callable[..., None]) -> None:
    one, other = standin.folder / "libstandinone.so.1", standin.folder / "libstandinother.so.1"
    make(one, "stand_in_one")
    make(other, "stand_in_other", needs=one, calls="stand_in_one")
    make(one, "stand_in_one", needs=other, calls="stand_in_other")
    standin.library.unlink()
    make(standin.library, "stand_in", needs=one, calls="stand_in_one")
    assert refusal(standin.folder).startswith(f"{other} cannot be loaded: {one.name}: cannot open shared object file")


def test_a_file_that_is_another_library_than_its_name_says_is_not_tried_for_ever(
    standin: StandIn, make: Callable[..., None]
) -> None:
    needed = standin.folder / "libstandinalias.so.1"
    make(needed, "stand_in_alias")
    standin.library.unlink()
    make(standin.library, "stand_in", needs=needed, calls="stand_in_alias")
    make(needed, "stand_in_alias", soname="libsomethingelse.so.1")
    assert "libstandinalias.so.1: cannot open shared object file" in refusal(standin.folder)


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("libggml.so.0: cannot open shared object file: No such file or directory", "libggml.so.0"),
        ("Error loading shared library libcublas.so.12: No such file (needed by /x/libs2.so)", "libcublas.so.12"),
        ("dlopen(/x/libs2.dylib, 0x6): Library not loaded: @rpath/libggml.dylib\n  Referenced", "libggml.dylib"),
        ("undefined symbol: ggml_init", None),
    ],
)
def test_the_linkers_of_each_system_name_what_they_miss(reason: str, name: str | None) -> None:
    assert linking.missing(reason) == name


def beside(standin: StandIn, make: Callable[..., None], *backends: str) -> S2Library:
    for backend in backends:
        make(standin.folder / f"libggml-{backend}.so", f"stand_in_{backend}")
    return load(standin.folder)


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ((), ["cpu"]),
        (("vulkan",), ["vulkan:1", "cpu"]),
        (("vulkan", "cuda"), ["cuda:1", "vulkan:1", "cpu"]),
    ],
)
def test_auto_takes_the_backends_that_lie_beside_it(
    standin: StandIn, make: Callable[..., None], backends: tuple[str, ...], expected: list[str]
) -> None:
    library = beside(standin, make, *backends)
    options = EngineOptions(gpu_device=1, n_gpu_layers=20)
    assert [str(device) for device in devices(options, library)] == expected


@pytest.mark.parametrize(("backend", "number"), [("cuda", 1), ("vulkan", 0), ("metal", 2), ("cpu", -1)])
def test_a_backend_that_is_set_is_the_only_one(
    standin: StandIn, backend: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    (device,) = devices(EngineOptions(backend=backend, gpu_device=3, n_gpu_layers=5), load(standin.folder))
    assert (device.backend_type, device.gpu_device) == (number, -1 if backend == "cpu" else 3)
    assert device == (Device("cpu") if backend == "cpu" else Device(backend, 3, 5))
    assert (f"there is no ggml-{backend} to load" in caplog.text) == (backend != "cpu")


def test_another_backend_is_refused(standin: StandIn) -> None:
    with pytest.raises(EngineError, match="FISHS2_BACKEND=sycl; allowed: auto, cpu, vulkan, cuda, metal"):
        devices(EngineOptions(backend="sycl"), load(standin.folder))
