"""The runtime of the s2cpp engine: fetched, checked, unpacked and put in place; whole or not there, nothing is lost."""

import collections
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fishs2_daemon.artifacts.bundle import Bundle, install
from fishs2_daemon.artifacts.errors import ArtifactError, CorruptArtifact, DownloadFailed
from fishs2_daemon.artifacts.part import SPARE_BYTES
from fishs2_daemon.artifacts.progress import Progress, Tell
from fishs2_daemon.artifacts.runtime import MANIFEST, look
from tests.artifacts.forks import installing
from tests.artifacts.hub import Hub
from tests.artifacts.runtimes import FILES, contents, digest
from tests.artifacts.zips import zipped

WINDOWS = {
    name: name.encode() * 50 for name in ("s2.dll", "GGML-Base.dll", "ggml.dll", "ggml-cpu.dll", "ggml-cuda.dll")
}
KILLS = 40


def nothing(_: Progress) -> None:
    pass


def get(bundle: Bundle, *, force: bool = False, tell: Tell = nothing, platform: str = "linux") -> None:
    install(bundle, tell, lambda: None, force=force, platform=platform)


def beside(bundle: Bundle) -> set[str]:
    """What lies beside the runtime, but for the lock."""
    return {path.name for path in bundle.folder.parent.iterdir()} - {".fishs2sharp.lock", bundle.folder.name}


@pytest.mark.parametrize("is_empty_folder_there", [False, True])
def test_a_bundle_becomes_the_folder(hub: Hub, bundle: Bundle, is_empty_folder_there: bool) -> None:
    if is_empty_folder_there:
        bundle.folder.mkdir(parents=True)
    assert look(bundle.folder).is_free
    told: list[Progress] = []
    get(replace(bundle, sha256=digest(hub)), tell=told.append)
    assert contents(bundle.folder) == FILES
    assert beside(bundle) == set()
    there = look(bundle.folder)
    assert there.is_usable
    assert there.is_bundle
    assert str(there) == f"whole, from {hub.url('runtime.zip')}"
    assert there.size_bytes == sum(map(len, FILES.values()))
    assert "secret" not in (bundle.folder / MANIFEST).read_text()
    assert {progress.doing for progress in told} == {"fetching", "unpacking"}
    assert told[-1].fraction == 1.0
    assert {progress.file for progress in told} == {"fishs2sharp.zip"}

    hub.seen.clear()
    get(bundle)
    assert hub.seen == []


def test_a_wrong_hash_leaves_nothing(hub: Hub, bundle: Bundle) -> None:
    with pytest.raises(CorruptArtifact, match=r"^fishs2sharp\.zip came with the SHA-256 .*, expected is 111"):
        get(replace(bundle, sha256="1" * 64))
    assert not bundle.folder.exists()
    assert beside(bundle) == set()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (zipped({**FILES, "../evil.so": b"x"}), r"^fishs2sharp\.zip: its entry '\.\./evil\.so' may lead out"),
        (zipped(FILES)[:-100], r"^fishs2sharp\.zip: it is damaged, or no zip file"),
        (b"<html>Sign in</html>", r"^fishs2sharp\.zip: it is damaged, or no zip file"),
        (
            zipped({"libs2.so": b"x"}),
            r"^http.*/runtime\.zip is no runtime for this system \(linux\): there is no libgg",
        ),
        (zipped({"lib/libs2.so": b"x", "lib/libggml.so": b"x", "README": b"x"}), r"there is no libs2\.so\*, libggml\*"),
        (zipped({"libs2.so.d/x": b"x", "libggml.so": b"x"}), r"there is no libs2\.so\* in it"),
        (zipped(WINDOWS), r"there is no libs2\.so\*, libggml\*\.so\* in it"),
    ],
)
def test_a_zip_file_that_is_no_runtime_leaves_nothing(hub: Hub, bundle: Bundle, data: bytes, words: str) -> None:
    hub.files["runtime.zip"] = data
    with pytest.raises(CorruptArtifact, match=words) as caught:
        get(bundle)
    assert "secret" not in str(caught.value)
    assert not bundle.folder.exists()
    assert beside(bundle) == set()
    assert {path.name for path in bundle.folder.parent.parent.iterdir()} == {"runtime"}


def test_each_system_has_its_own_files(hub: Hub, bundle: Bundle) -> None:
    hub.files["runtime.zip"] = zipped(WINDOWS)
    get(bundle, platform="win32")
    assert contents(bundle.folder) == WINDOWS
    assert look(bundle.folder, "win32").is_usable
    assert look(bundle.folder, "darwin").lacks == ("libs2*.dylib", "libggml*.dylib")
    (bundle.folder / "ggml-cpu.dll").unlink()
    there = look(bundle.folder, "win32")
    assert (there.has_library, there.is_usable, there.lacks) == (True, False, ("ggml-cpu.dll",))
    mac = {"libs2.dylib": b"1", "libggml-metal.dylib": b"2"}
    hub.files["runtime.zip"] = zipped(mac)
    get(bundle, platform="darwin", force=True)
    assert contents(bundle.folder) == mac


def test_what_somebody_put_there_is_never_mixed_or_lost(hub: Hub, bundle: Bundle) -> None:
    bundle.folder.mkdir(parents=True)
    (bundle.folder / "notes.txt").write_text("mine")
    with pytest.raises(
        CorruptArtifact, match=r"is not a whole runtime \(put there by hand, lacks libs2\.so\*, libggml"
    ):
        get(bundle)
    assert contents(bundle.folder) == {"notes.txt": b"mine"}
    assert hub.seen == []
    get(bundle, force=True)
    assert contents(bundle.folder) == FILES
    assert beside(bundle) == {"fishs2sharp.old"}
    (bundle.folder / "libcudart.so.12").write_bytes(b"mine, too")
    get(bundle, force=True)
    assert contents(bundle.folder) == FILES
    assert beside(bundle) == {"fishs2sharp.old", "fishs2sharp.old1"}
    assert contents(bundle.folder.with_name("fishs2sharp.old")) == {"notes.txt": b"mine"}
    assert contents(bundle.folder.with_name("fishs2sharp.old1")) == {**FILES, "libcudart.so.12": b"mine, too"}


def test_a_runtime_that_was_put_there_is_used_as_it_is(hub: Hub, bundle: Bundle) -> None:
    bundle.folder.mkdir(parents=True)
    (bundle.folder / "libs2.so.1").write_bytes(b"x")
    (bundle.folder / "libs2.so").symlink_to("libs2.so.1")
    get(bundle)
    assert hub.seen == []
    there = look(bundle.folder, "linux")
    assert str(there) == "put there by hand, lacks libggml*.so*"
    assert (there.is_usable, there.is_bundle, there.is_free) == (True, False, False)


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "library that is a dangling link"])
def test_what_is_no_folder_or_no_library_is_not_taken_for_one(bundle: Bundle, kind: str) -> None:
    bundle.folder.parent.mkdir()
    if kind == "file":
        bundle.folder.write_text("mine")
    elif kind == "library that is a dangling link":
        bundle.folder.mkdir()
        (bundle.folder / "libs2.so").symlink_to("nowhere")
    else:
        (bundle.folder.parent / "elsewhere").mkdir()
        bundle.folder.symlink_to("elsewhere" if kind == "link" else "nowhere")
    there = look(bundle.folder)
    assert not there.is_free
    assert not there.is_usable
    with pytest.raises(CorruptArtifact, match="is not a whole runtime"):
        get(bundle)
    get(bundle, force=True)
    assert contents(bundle.folder) == FILES
    assert os.path.lexists(bundle.folder.with_name("fishs2sharp.old"))


def test_a_changed_bundle_is_named_and_only_fetched_again_when_asked(hub: Hub, bundle: Bundle) -> None:
    get(bundle)
    (bundle.folder / "more" / "3").unlink()
    (bundle.folder / "libggml.so").write_bytes(b"short")
    there = look(bundle.folder)
    assert there.lacks == ("libggml.so", "more/3")
    assert not there.is_usable
    with pytest.raises(CorruptArtifact, match=r"lacks libggml\.so, more/3\); `fishs2-daemon models runtime --force`"):
        get(bundle)
    get(bundle, force=True)
    assert contents(bundle.folder) == FILES
    assert contents(bundle.folder.with_name("fishs2sharp.old"))["libggml.so"] == b"short"


def test_force_replaces_a_bundle_as_it_came(hub: Hub, bundle: Bundle) -> None:
    get(bundle)
    newer = {"libs2.so": b"newer", "libggml.so": b"newer"}
    hub.files["runtime.zip"] = zipped(newer)
    get(bundle, force=True)
    assert contents(bundle.folder) == newer
    assert beside(bundle) == set()
    hub.files["runtime.zip"] = b"broken"
    with pytest.raises(CorruptArtifact):
        get(bundle, force=True)
    assert contents(bundle.folder) == newer


def test_an_interrupted_fetch_goes_on_where_it_stopped(hub: Hub, bundle: Bundle) -> None:
    def stop(progress: Progress) -> None:
        if progress.fraction > 0.4:
            raise KeyboardInterrupt

    hub.piece_bytes = 10_000
    with pytest.raises(KeyboardInterrupt):
        get(bundle, tell=stop)
    assert not bundle.folder.exists()
    get(bundle)
    assert contents(bundle.folder) == FILES
    assert int(hub.gets("runtime.zip?signature=secret")[-1].headers["range"][6:-1]) > 0.4 * len(
        hub.files["runtime.zip"]
    )


def test_interrupted_while_it_is_unpacked_it_is_not_fetched_again(hub: Hub, bundle: Bundle) -> None:
    def stop(progress: Progress) -> None:
        if progress.doing == "unpacking" and progress.fraction > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(bundle, tell=stop)
    assert not bundle.folder.exists()
    assert not (bundle.folder.parent / ".fishs2sharp.bundle" / "new").exists()
    hub.seen.clear()
    get(bundle)
    assert contents(bundle.folder) == FILES
    assert hub.seen == []
    assert beside(bundle) == set()


@pytest.mark.parametrize("change", ["address", "hash", "bytes"])
def test_a_zip_file_of_something_else_is_not_unpacked(hub: Hub, bundle: Bundle, change: str) -> None:
    """It was left by a process that was killed before it had unpacked it."""

    def stop(progress: Progress) -> None:
        if progress.doing == "unpacking":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(bundle, tell=stop)
    newer = {"libs2.so": b"newer", "libggml.so": b"newer"}
    hub.files["runtime.zip"] = hub.files["other.zip"] = zipped(newer)
    if change == "address":
        bundle = replace(bundle, url=hub.url("other.zip"))
    elif change == "hash":
        bundle = replace(bundle, sha256=digest(hub))
    else:
        (bundle.folder.parent / ".fishs2sharp.bundle" / "fishs2sharp.zip").write_bytes(b"damaged")
    get(bundle)
    assert contents(bundle.folder) == newer


@pytest.mark.parametrize("is_mine", [False, True])
def test_killed_between_the_two_names_nothing_is_lost(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, is_mine: bool
) -> None:
    if is_mine:
        bundle.folder.mkdir(parents=True)
        (bundle.folder / "libs2.so").write_text("mine")
    else:
        get(bundle)
    real = Path.rename

    def die(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        get(bundle, force=True)
    monkeypatch.setattr(Path, "rename", real)
    assert not bundle.folder.exists()
    hub.seen.clear()
    get(bundle)
    assert hub.seen == []
    assert contents(bundle.folder) == FILES
    assert beside(bundle) == ({"fishs2sharp.old"} if is_mine else set())
    if is_mine:
        assert contents(bundle.folder.with_name("fishs2sharp.old")) == {"libs2.so": b"mine"}


@pytest.mark.parametrize("force", [False, True])
def test_what_a_killed_process_left_behind_a_whole_folder_goes(hub: Hub, bundle: Bundle, force: bool) -> None:
    get(bundle)
    left = bundle.folder.parent / ".fishs2sharp.bundle" / "replaced"
    left.mkdir(parents=True)
    (left / "libs2.so").touch()
    get(bundle, force=force)
    assert contents(bundle.folder) == FILES
    assert beside(bundle) == set()


def test_kill_at_any_moment(hub: Hub, bundle: Bundle) -> None:
    chance = random.Random(9)
    hub.piece_bytes, hub.piece_pause_s = 8_000, 0.001
    work = bundle.folder.parent / ".fishs2sharp.bundle"
    kills = fetching = unpacking = completed = 0
    while kills < KILLS:
        if chance.random() < 0.4:
            shutil.rmtree(bundle.folder.parent, ignore_errors=True)
        was_there = bundle.folder.exists()
        child = installing(bundle, force=was_there)
        time.sleep(chance.uniform(0.0, 0.15))
        child.kill()
        child.join()
        kills += child.exitcode != 0
        fetching += (work / "fishs2sharp.zip.part").exists()
        unpacking += (work / "new").exists()
        completed += child.exitcode == 0
        if bundle.folder.exists():
            assert contents(bundle.folder) == FILES
            assert look(bundle.folder).is_bundle
        assert not bundle.folder.parent.exists() or beside(bundle) <= {work.name}
    print(f"{kills} kills, {fetching} while fetching, {unpacking} while unpacking; {completed} finished")
    last = installing(bundle)
    last.join()
    assert last.exitcode == 0
    assert contents(bundle.folder) == FILES
    assert min(fetching, unpacking) > 1


@pytest.mark.parametrize("force", [False, True])
def test_processes_at_once_fetch_it_once(hub: Hub, bundle: Bundle, force: bool) -> None:
    hub.piece_bytes, hub.piece_pause_s = 20_000, 0.005
    children = [installing(bundle, force=force) for _ in range(3)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert contents(bundle.folder) == FILES
    assert len([seen for seen in hub.seen if "runtime.zip" in seen.path]) == 1


@contextmanager
def free(monkeypatch: pytest.MonkeyPatch, size: int) -> Iterator[None]:
    """Only so many bytes, beside what is always to be left."""
    usage = collections.namedtuple("usage", "total used free")
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, SPARE_BYTES + size))
        yield


def test_no_room_for_both_is_said_at_the_first_byte(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(hub.files["runtime.zip"])
    words = r"^fishs2sharp\.zip needs .* to be fetched and unpacked, .* are free at .*/runtime: .* FISHS2_RUNTIME_DIR"
    with free(monkeypatch, size * 3 // 2), pytest.raises(DownloadFailed, match=words):
        get(bundle)
    assert not bundle.folder.exists()
    part = bundle.folder.parent / ".fishs2sharp.bundle" / "fishs2sharp.zip.part"
    assert part.stat().st_size < size
    get(bundle)
    assert contents(bundle.folder) == FILES


def test_no_room_to_unpack_it_keeps_the_zip_file(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["runtime.zip"] = zipped({**FILES, "zeros": bytes(2_000_000)})
    words = r"^fishs2sharp\.zip needs 69\.3 MB to be unpacked, 68\.1 MB are free at .*/runtime: free some"
    with free(monkeypatch, 1_000_000), pytest.raises(DownloadFailed, match=words):
        get(bundle)
    assert not bundle.folder.exists()
    hub.seen.clear()
    get(bundle)
    assert hub.seen == []
    assert look(bundle.folder).is_bundle


@pytest.mark.parametrize(
    ("folder", "words"),
    [("/", "^/: a runtime cannot lie there"), ("/proc/fishs2/x", "^/proc/fishs2: .* FISHS2_RUNTIME_DIR$")],
)
def test_a_folder_that_cannot_be_one(bundle: Bundle, folder: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        get(replace(bundle, folder=Path(folder)))
