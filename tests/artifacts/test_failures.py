"""Every way to fail is one line that names the file and the way out, and leaves no file that is not whole."""

import collections
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from fishs2_daemon.artifacts import transfer
from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.download import download
from fishs2_daemon.artifacts.errors import ArtifactError, DownloadFailed
from fishs2_daemon.artifacts.standing import State, look
from tests.artifacts.conftest import MODEL
from tests.artifacts.forks import failing
from tests.artifacts.hub import REPOSITORY, Hub


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(tmp_path / "models" / MODEL, MODEL, REPOSITORY)


def failure(artifact: Artifact, kind: type[ArtifactError] = DownloadFailed) -> str:
    with pytest.raises(kind) as caught:
        download(artifact, lambda _: None, lambda: None)
    assert caught.type is kind
    assert not artifact.path.exists()
    text = str(caught.value)
    assert "\n" not in text
    assert artifact.file in text or str(artifact.path.parent) in text
    return text


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(
    ("refuses", "words"),
    [
        ((403, "GatedRepo"), f"{REPOSITORY} on .* is gated .403.: ask for access .* set HF_TOKEN"),
        ((401, "GatedRepo"), f"{REPOSITORY} on .* is gated .401.: ask for access .* set HF_TOKEN"),
        ((401, "RepoNotFound"), f"{REPOSITORY} on .* is closed, or does not exist .401.: .* set HF_TOKEN"),
        ((403, ""), f"{REPOSITORY} on .* is closed, or does not exist .403.: .* set HF_TOKEN"),
        ((404, "RepoNotFound"), f"no repository {REPOSITORY} .*404.*FISHS2_HF_REPO_ID"),
        ((404, "EntryNotFound"), f"{REPOSITORY} on .* has no such file .404.*FISHS2_HF_REPO_ID"),
        ((429, ""), "busy or broken .429.; try again later"),
        ((503, ""), "busy or broken .503.; try again later"),
        ((400, ""), "refuses http://.*400"),
    ],
)
def test_a_hub_that_refuses(hub: Hub, artifact: Artifact, refuses: tuple[int, str], words: str) -> None:
    hub.refuses = refuses
    with pytest.raises(DownloadFailed, match=words):
        download(artifact, lambda _: None, lambda: None)
    failure(artifact)


def test_a_file_that_is_not_in_the_repository(hub: Hub, artifact: Artifact) -> None:
    assert "has no such file (404)" in failure(replace(artifact, file="s2-pro-q2_k.gguf"))


@pytest.mark.parametrize(("status", "words"), [(403, "to everybody (403)"), (404, "nothing at"), (410, "(410)")])
def test_a_plain_address_that_refuses(hub: Hub, artifact: Artifact, status: int, words: str) -> None:
    hub.storage_refuses = [status]
    text = failure(replace(artifact, url=f"{hub.url(MODEL)}?secret"))
    assert words in text
    assert "secret" not in text


def test_a_storage_that_stays_broken(hub: Hub, artifact: Artifact) -> None:
    hub.storage_refuses = [503] * 20
    assert "busy or broken (503); try again later" in failure(artifact)
    assert len(hub.gets(MODEL)) == 1 + len(transfer.PAUSES_S)


def test_a_body_that_always_ends_early(hub: Hub, artifact: Artifact) -> None:
    hub.always_cut = 0.3
    text = failure(artifact)
    assert "the connection to" in text
    assert "210.0 kB are kept, the same command goes on from there" in text
    assert look(artifact.path).state is State.PARTIAL


def test_nobody_there(hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert f"127.0.0.1:{port} is not reached (" in failure(artifact)
    assert "is not reached (" in failure(replace(artifact, url=f"http://127.0.0.1:{port}/x"))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert "the name hub.invalid is not known here" in failure(artifact)


def test_a_peer_that_does_not_speak_tls(hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.address.replace("http", "https"))
    text = failure(artifact)
    assert "is not trusted: TLS fails" in text
    assert "SSL_CERT_FILE" in text


def test_a_hub_that_does_not_answer_in_time(hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    from fishs2_daemon.artifacts import remote

    monkeypatch.setattr(remote, "ASK_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "fell silent; try again later" in failure(artifact)


@pytest.mark.parametrize("address", ["http://user:secret@127.0.0.1:{port}", "nonsense://127.0.0.1:{port}"])
def test_a_proxy_that_cannot_be_used(
    hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", address.format(port=closed_port()))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    text = failure(artifact)
    assert "HTTPS_PROXY" in text
    assert "secret" not in text


def test_an_address_that_is_none(hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "ftp://hub.invalid")
    assert "HF_ENDPOINT" in failure(artifact)


def test_no_room_is_said_before_a_byte_comes(hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 12_000_000, 12_000_000))
    text = failure(artifact)
    assert f"{MODEL} needs 67.8 MB more, 12.0 MB are free at {artifact.path.parent}" in text
    assert look(artifact.path).size == 0


def test_a_disk_that_fills_up_keeps_what_came(hub: Hub, artifact: Artifact) -> None:
    kind, text = failing(artifact, 300_000)
    assert kind == "DownloadFailed"
    assert text == (
        f"{MODEL}: the disk at {artifact.path.parent} is full; 300.0 kB are kept, the same command goes on from there"
    )
    assert look(artifact.path).size == 300_000
    hub.seen.clear()
    download(artifact, lambda _: None, lambda: None)
    assert [seen.headers["range"] for seen in hub.gets(MODEL)] == ["bytes=300000-"]
    assert artifact.path.read_bytes() == hub.files[MODEL]


@pytest.mark.parametrize("where", ["a file", "/proc/fishs2"])
def test_a_folder_that_cannot_be_written(hub: Hub, artifact: Artifact, tmp_path: Path, where: str) -> None:
    folder = Path(where) if where.startswith("/") else tmp_path / "file"
    if not where.startswith("/"):
        folder.write_text("")
    text = failure(replace(artifact, path=folder / MODEL), ArtifactError)
    assert f"{folder}: cannot be written (" in text
    assert "FISHS2_MODELS_DIR" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(hub: Hub, artifact: Artifact) -> None:
    artifact.path.parent.mkdir(mode=0o555)
    assert "cannot be written (Permission denied)" in failure(artifact, ArtifactError)


def test_offline_mode_is_named(hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids it" in failure(artifact)
