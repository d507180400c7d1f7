"""How a runtime folder stands, and that the daemon fetches what is missing of it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fishs2_daemon import configuration
from fishs2_daemon.artifacts.bundle import Bundle, bundle_of, wanted
from fishs2_daemon.artifacts.errors import ArtifactError, CorruptArtifact
from fishs2_daemon.artifacts.fetch import fetch, is_wanted
from fishs2_daemon.artifacts.runtime import MANIFEST, look
from tests.artifacts.conftest import MODEL
from tests.artifacts.hub import Hub
from tests.artifacts.runtimes import FILES, contents, digest
from tests.artifacts.zips import zipped


def test_a_folder_that_is_no_bundle_is_not_searched(tmp_path: Path) -> None:
    """Whoever names `/` does not wait for a walk through the disk."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libs2.so").write_bytes(b"x")
    (tmp_path / "libggml.so").write_bytes(b"xy")
    there = look(tmp_path, "linux")
    assert (there.has_library, there.size_bytes, there.lacks) == (False, 2, ("libs2.so*",))


@pytest.mark.parametrize(
    "manifest", ["", "[]", '{"source": 1, "files": {}}', '{"source": "x", "files": []}', '{"source": "x"}']
)
def test_a_broken_manifest_is_none(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "libs2.so").touch()
    (tmp_path / MANIFEST).write_text(manifest)
    there = look(tmp_path, "linux")
    assert (there.source, there.is_usable, there.is_bundle) == ("", True, False)


def test_a_manifest_that_lies_is_told(tmp_path: Path) -> None:
    (tmp_path / "libs2.so").touch()
    (tmp_path / MANIFEST).write_text(json.dumps({"source": "x", "files": {"../../etc/passwd": 1, "libs2.so": "0"}}))
    assert look(tmp_path, "linux").lacks == ("libggml*.so*", "../../etc/passwd", "libs2.so")


def test_a_bundle_goes_through_json(bundle: Bundle) -> None:
    assert Bundle.from_json(json.loads(json.dumps(bundle.to_json()))) == bundle


ADDRESS = "https://files.example/runtime.zip"


@pytest.mark.parametrize(
    ("given", "is_named", "is_to_be_fetched"),
    [
        ({"engine": "s2cpp"}, False, False),
        ({"engine": "s2cpp", "runtime_zip_url": ADDRESS}, True, True),
        ({"engine": "s2cpp", "runtime_zip_url": ADDRESS, "skip_downloads": True}, True, False),
        ({"engine": "s2cpp", "runtime_zip_url": ADDRESS, "s2_dll_path": "libs2.so"}, False, False),
        ({"engine": "s2", "runtime_zip_url": ADDRESS}, True, False),
        ({"engine": "auto", "model_quant": "q8_0", "runtime_zip_url": ADDRESS}, True, False),
    ],
)
def test_only_what_was_asked_for_is_fetched(given: dict[str, str], is_named: bool, is_to_be_fetched: bool) -> None:
    settings = configuration.load(**given)
    assert bool(bundle_of(settings)) is is_named
    assert bool(wanted(settings)) is is_to_be_fetched
    for file in (settings.model_path, settings.tokenizer_path):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert is_wanted(settings) is is_to_be_fetched
    settings.runtime_dir.mkdir(parents=True)
    (settings.runtime_dir / "libs2.so").touch()
    (settings.runtime_dir / "s2.dll").touch()
    (settings.runtime_dir / "libs2.dylib").touch()
    assert wanted(settings) is None
    assert not is_wanted(settings)
    settings.force_downloads = True
    assert bool(wanted(settings)) is is_to_be_fetched


async def test_the_daemon_fetches_the_runtime_and_the_model(hub: Hub, bundle: Bundle) -> None:
    settings = configuration.load(engine="s2cpp", runtime_zip_url=bundle.url, runtime_zip_sha256=digest(hub))
    assert settings.runtime_dir == Path("runtime/fishs2sharp")
    settings.accept_license = True
    told: list[str] = []
    assert is_wanted(settings)
    files = await fetch(settings, lambda what, _: told.append(what))
    assert files.model.read_bytes() == hub.files[MODEL]
    assert contents(settings.runtime_dir) == FILES
    assert any(what.startswith("fetching fishs2sharp.zip (") for what in told)
    assert any(what.startswith("unpacking fishs2sharp.zip (") for what in told)
    assert set(os.listdir("runtime")) == {"fishs2sharp", ".fishs2sharp.lock"}
    assert not is_wanted(settings)


async def test_a_runtime_alone_needs_no_licence_of_the_model(hub: Hub, bundle: Bundle) -> None:
    settings = configuration.load(engine="s2cpp", runtime_zip_url=bundle.url)
    for file in (settings.model_path, settings.tokenizer_path):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    await fetch(settings, lambda *_: None)
    assert contents(settings.runtime_dir) == FILES


async def test_what_is_wrong_with_a_runtime_comes_through(hub: Hub, bundle: Bundle) -> None:
    settings = configuration.load(engine="s2cpp", runtime_zip_url=bundle.url, accept_license=True)
    hub.files["runtime.zip"] = zipped({**FILES, "/etc/x": b""})
    with pytest.raises(CorruptArtifact, match="its entry '/etc/x' may lead out of the folder"):
        await fetch(settings, lambda *_: None)
    os.makedirs("runtime/fishs2sharp/mine")
    with pytest.raises(CorruptArtifact, match=r"^runtime/fishs2sharp is not a whole runtime"):
        await fetch(settings, lambda *_: None)


@pytest.fixture
def unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As a folder of another user is; root reads even those."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    real = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path == folder:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    return folder


def test_a_folder_that_may_not_be_read(unreadable: Path) -> None:
    with pytest.raises(ArtifactError, match=r"theirs: cannot be read \(Permission denied\)"):
        look(unreadable)
    settings = configuration.load(engine="s2cpp", runtime_zip_url=ADDRESS, runtime_dir=unreadable)
    assert wanted(settings) == Bundle(unreadable, ADDRESS)
