"""From a hub to a whole file: redirects, resuming, checking, and what is there already."""

import hashlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fishs2_daemon.artifacts import record as records
from fishs2_daemon.artifacts import transfer
from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.download import download, verify
from fishs2_daemon.artifacts.errors import CorruptArtifact, DownloadFailed
from fishs2_daemon.artifacts.progress import Progress, Tell
from fishs2_daemon.artifacts.standing import State, look
from tests.artifacts.conftest import MODEL
from tests.artifacts.hub import COMMIT, REPOSITORY, Hub


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(tmp_path / "models" / MODEL, MODEL, REPOSITORY)


class Interrupt:
    """Ctrl-C once a file is that far."""

    def __init__(self, at: float) -> None:
        self._at = at

    def __call__(self, progress: Progress) -> None:
        if progress.doing == "fetching" and progress.fraction >= self._at:
            raise KeyboardInterrupt


def get(artifact: Artifact, *, force: bool = False, tell: Tell = lambda _: None) -> list[Progress]:
    told: list[Progress] = []

    def both(progress: Progress) -> None:
        told.append(progress)
        tell(progress)

    download(artifact, both, lambda: None, force=force)
    return told


def interrupted(artifact: Artifact, at: float) -> int:
    """Bytes kept."""
    with pytest.raises(KeyboardInterrupt):
        get(artifact, tell=Interrupt(at))
    assert not artifact.path.exists()
    assert look(artifact.path).state is State.PARTIAL
    return look(artifact.path).size


def is_whole(artifact: Artifact, hub: Hub) -> bool:
    """The right bytes, a record that fits, and nothing of the download left."""
    record = records.read(artifact.path)
    assert record is not None
    assert record.sha256 == hashlib.sha256(hub.files[artifact.file]).hexdigest()
    names = {path.name for path in artifact.path.parent.iterdir()}
    assert names == {artifact.file, f"{artifact.file}.record.json", f".{artifact.file}.lock"}
    return artifact.path.read_bytes() == hub.files[artifact.file] and look(artifact.path).state is State.WHOLE


def test_it_comes_from_the_storage_that_the_hub_names(
    hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.moved = True
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = get(artifact)
    assert is_whole(artifact, hub)
    assert told[-1] == Progress("fetching", MODEL, 700_001, 700_001)
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    at_hub = [seen for seen in hub.seen if "/resolve/" in seen.path]
    assert {seen.headers.get("authorization") for seen in at_hub} == {"Bearer hf_secret"}
    assert "authorization" not in hub.gets(MODEL)[0].headers
    assert any(f"/resolve/{COMMIT}/" in seen.path for seen in at_hub if seen.method == "GET")
    record = records.read(artifact.path)
    assert record is not None
    assert record.source == f"{hub.address}/{REPOSITORY}/resolve/{COMMIT}/{MODEL}"


def test_what_is_there_is_not_fetched_again(hub: Hub, artifact: Artifact) -> None:
    get(artifact)
    hub.seen.clear()
    assert get(artifact) == []
    assert hub.seen == []


def test_a_cut_connection_goes_on_by_itself(hub: Hub, artifact: Artifact) -> None:
    hub.cuts = [0.3, 0.3, 0.8]
    get(artifact)
    assert is_whole(artifact, hub)
    begins = [seen.headers.get("range") for seen in hub.gets(MODEL)]
    assert begins[0] is None
    assert begins[1:] == ["bytes=210000-", "bytes=210000-", "bytes=560000-"]
    assert hub.sent(MODEL) == 700_001


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, artifact: Artifact) -> None:
    kept = interrupted(artifact, 0.3)
    assert kept >= 0.3 * 700_001
    hub.seen.clear()
    told = get(artifact)
    assert is_whole(artifact, hub)
    assert [seen.headers.get("range") for seen in hub.gets(MODEL)] == [f"bytes={kept}-"]
    assert told[0] == Progress("checking", MODEL, kept, kept)
    assert told[1].done > kept


def test_bytes_of_a_file_that_changed_are_not_continued(hub: Hub, artifact: Artifact) -> None:
    interrupted(artifact, 0.3)
    hub.files[MODEL] = hub.files[MODEL][::-1]
    hub.seen.clear()
    get(artifact)
    assert is_whole(artifact, hub)
    assert [seen.headers.get("range") for seen in hub.gets(MODEL)] == [None]


def test_a_plain_address_says_itself_whether_the_file_is_still_the_same(hub: Hub, artifact: Artifact) -> None:
    artifact = replace(artifact, url=f"{hub.url(MODEL)}?signature=secret")
    kept = interrupted(artifact, 0.3)
    assert "secret" not in (artifact.path.parent / f"{MODEL}.part.json").read_text()
    hub.seen.clear()
    kept = max(kept, interrupted(artifact, 0.5))
    assert [seen.headers.get("if-range") for seen in hub.seen] == ['"1"']
    hub.files[MODEL], hub.etag = hub.files[MODEL][::-1], '"2"'
    hub.seen.clear()
    get(artifact)
    assert [(seen.headers.get("range"), seen.status) for seen in hub.seen] == [(f"bytes={kept}-", 200)]
    assert is_whole(artifact, hub)
    assert {seen.headers.get("authorization") for seen in hub.seen} == {None}


def test_without_an_etag_a_plain_address_starts_anew(hub: Hub, artifact: Artifact) -> None:
    artifact = replace(artifact, url=hub.url(MODEL))
    hub.etag = 'W/"weak"'
    interrupted(artifact, 0.3)
    hub.seen.clear()
    get(artifact)
    assert [seen.headers.get("range") for seen in hub.seen] == [None]
    assert is_whole(artifact, hub)


def test_a_server_without_ranges_starts_anew(hub: Hub, artifact: Artifact) -> None:
    hub.has_ranges = False
    hub.cuts = [0.3]
    get(artifact)
    assert is_whole(artifact, hub)
    assert hub.sent(MODEL) == 210_000 + 700_001


@pytest.mark.parametrize("wrong", ["lies", "416"])
def test_a_wrong_part_is_not_written(hub: Hub, artifact: Artifact, wrong: str) -> None:
    interrupted(artifact, 0.3)
    if wrong == "lies":
        hub.lies = True
    else:
        hub.storage_refuses = [416]
    get(artifact)
    assert is_whole(artifact, hub)


def test_a_busy_storage_is_asked_again(hub: Hub, artifact: Artifact) -> None:
    hub.storage_refuses = [503, 429, 500]
    get(artifact)
    assert is_whole(artifact, hub)


def test_a_part_that_was_complete_needs_no_request(hub: Hub, artifact: Artifact) -> None:
    """Killed between the last byte and the new name."""
    interrupted(artifact, 1.0)
    hub.seen.clear()
    get(artifact)
    assert is_whole(artifact, hub)
    assert hub.gets(MODEL) == []


def test_a_damaged_part_is_found_at_the_end_and_thrown_away(hub: Hub, artifact: Artifact) -> None:
    interrupted(artifact, 0.3)
    part = artifact.path.with_name(f"{MODEL}.part")
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(CorruptArtifact, match="thrown away; run the same command again"):
        get(artifact)
    assert look(artifact.path).state is State.ABSENT
    get(artifact)
    assert is_whole(artifact, hub)


def test_the_hubs_hash_is_checked(hub: Hub, artifact: Artifact) -> None:
    hub.hashes[MODEL] = "0" * 64
    with pytest.raises(CorruptArtifact, match=f"^{MODEL} came with the SHA-256 .*, expected is 000"):
        get(artifact)
    assert not artifact.path.exists()
    assert look(artifact.path).state is State.ABSENT


def test_the_hash_that_the_user_set_beats_the_hubs(hub: Hub, artifact: Artifact) -> None:
    with pytest.raises(CorruptArtifact, match="expected is 111"):
        get(replace(artifact, sha256="1" * 64))
    right = hashlib.sha256(hub.files[MODEL]).hexdigest()
    hub.hashes[MODEL] = "0" * 64
    get(replace(artifact, sha256=right))
    assert is_whole(artifact, hub)


def test_a_hash_that_the_user_sets_later_is_checked_too(hub: Hub, artifact: Artifact) -> None:
    get(artifact)
    with pytest.raises(CorruptArtifact, match="expected is 111"):
        get(replace(artifact, sha256="1" * 64))
    assert artifact.path.read_bytes() == hub.files[MODEL]
    hub.seen.clear()
    get(replace(artifact, sha256=hashlib.sha256(hub.files[MODEL]).hexdigest()))
    assert hub.seen == []
    hub.files[MODEL] = hub.files[MODEL][::-1]
    get(replace(artifact, sha256=hashlib.sha256(hub.files[MODEL]).hexdigest()), force=True)
    assert artifact.path.read_bytes() == hub.files[MODEL]


def test_a_small_file_outside_the_large_storage_is_checked_by_its_size(hub: Hub, tmp_path: Path) -> None:
    hub.is_large_storage = False
    artifact = Artifact(tmp_path / "models" / "tokenizer.json", "tokenizer.json", REPOSITORY)
    hub.cuts = [0.5]
    get(artifact)
    assert is_whole(artifact, hub)


def test_a_body_without_a_length_is_only_taken_where_the_hash_is_known(hub: Hub, artifact: Artifact) -> None:
    hub.has_length = False
    plain = replace(artifact, url=hub.url(MODEL))
    with pytest.raises(DownloadFailed, match="FISHS2_MODEL_SHA256"):
        get(plain)
    get(replace(plain, sha256=hashlib.sha256(hub.files[MODEL]).hexdigest()))
    assert is_whole(artifact, hub)


def test_a_file_that_was_put_there_is_compared_with_the_hub(hub: Hub, artifact: Artifact) -> None:
    artifact.path.parent.mkdir()
    artifact.path.write_bytes(hub.files[MODEL])
    assert look(artifact.path).state is State.UNCHECKED
    get(artifact)
    assert look(artifact.path).state is State.WHOLE
    assert hub.gets(MODEL) == []


@pytest.mark.parametrize("how", ["shorter", "other bytes"])
def test_a_corrupt_file_is_named_and_only_fetched_again_when_asked(hub: Hub, artifact: Artifact, how: str) -> None:
    artifact.path.parent.mkdir()
    bad = hub.files[MODEL][:1000] if how == "shorter" else bytes(700_001)
    artifact.path.write_bytes(bad)
    with pytest.raises(CorruptArtifact, match=r"models get --force` sets it aside as .*\.corrupt"):
        get(artifact)
    assert artifact.path.read_bytes() == bad
    get(artifact, force=True)
    aside = artifact.path.with_name(f"{MODEL}.corrupt")
    assert aside.read_bytes() == bad
    aside.unlink()
    assert is_whole(artifact, hub)


def test_a_touched_file_is_read_again_and_believed(hub: Hub, artifact: Artifact) -> None:
    get(artifact)
    os.utime(artifact.path, (1, 1))
    assert look(artifact.path).state is State.CHANGED
    hub.seen.clear()
    get(artifact)
    assert look(artifact.path).state is State.WHOLE
    assert hub.seen == []


def test_force_replaces_a_whole_file_when_the_new_one_is_complete(hub: Hub, artifact: Artifact) -> None:
    get(artifact)
    old = artifact.path.read_bytes()
    hub.files[MODEL] = hub.files[MODEL][::-1]
    with pytest.raises(KeyboardInterrupt):
        get(artifact, force=True, tell=Interrupt(0.5))
    assert artifact.path.read_bytes() == old
    get(artifact, force=True)
    assert is_whole(artifact, hub)


def test_verifying_reads_every_byte(hub: Hub, artifact: Artifact) -> None:
    get(artifact)
    assert verify(artifact.path, lambda _: None) is True
    status = artifact.path.stat()
    with artifact.path.open("r+b") as file:
        file.seek(350_000)
        file.write(b"\0")
    os.utime(artifact.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look(artifact.path).state is State.WHOLE  # a cheap look sees nothing
    assert verify(artifact.path, lambda _: None) is False
    assert look(artifact.path).state is State.CHANGED  # it is not trusted any more
    with pytest.raises(CorruptArtifact):
        get(artifact)


def test_nothing_is_known_of_a_file_without_a_record(tmp_path: Path) -> None:
    file = tmp_path / MODEL
    file.write_bytes(b"x")
    assert verify(file, lambda _: None) is None
    for text in ("", "[]", "{}", '{"size": "1", "sha256": "", "mtime_ns": 0, "source": ""}'):
        records.path_of(file).write_text(text)
        assert records.read(file) is None
        assert look(file).state is State.UNCHECKED


@pytest.mark.parametrize("text", ["", "[1]", '{"source": 1, "sha256": "", "total": 0, "validator": ""}', '{"x": 1}'])
def test_a_part_whose_notes_are_broken_starts_anew(hub: Hub, artifact: Artifact, text: str) -> None:
    interrupted(artifact, 0.3)
    artifact.path.with_name(f"{MODEL}.part.json").write_text(text)
    hub.seen.clear()
    get(artifact)
    assert [seen.headers.get("range") for seen in hub.gets(MODEL)] == [None]
    assert is_whole(artifact, hub)


@pytest.mark.parametrize("force", [False, True])
def test_of_two_at_once_the_second_waits_and_uses_what_the_first_got(hub: Hub, artifact: Artifact, force: bool) -> None:
    hub.piece_bytes, hub.piece_pause_s = 50_000, 0.02
    waited = threading.Event()
    started = threading.Event()

    def first() -> None:
        download(artifact, lambda _: started.set(), lambda: None, force=force)

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(10)
    download(artifact, lambda _: pytest.fail("the second fetched, too"), waited.set, force=force)
    thread.join()
    assert waited.is_set()
    assert len(hub.gets(MODEL)) == 1
    assert is_whole(artifact, hub)


def test_a_server_that_falls_silent_is_left(hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STALL_S", 0.1)
    hub.always_cut, hub.silent = 0.4, True
    with pytest.raises(DownloadFailed, match="fell silent") as failure:
        get(artifact)
    assert "280.0 kB are kept, the same command goes on from there" in str(failure.value)
    hub.silent, hub.always_cut = False, None
    get(artifact)
    assert is_whole(artifact, hub)


def test_the_notes_hold_no_token(hub: Hub, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    interrupted(artifact, 0.3)
    notes = artifact.path.with_name(f"{MODEL}.part.json")
    assert json.loads(notes.read_text())["total"] == 700_001
    assert "hf_secret" not in notes.read_text()
