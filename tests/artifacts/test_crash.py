"""A process that is killed at any moment leaves bytes to go on with, and never a file that is not whole."""

import hashlib
import random
import time
from pathlib import Path

import pytest

from fishs2_daemon.artifacts import record as records
from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.standing import State, look
from tests.artifacts.conftest import MODEL
from tests.artifacts.forks import fetching
from tests.artifacts.hub import REPOSITORY, Hub

KILLS = 50


def test_kill_at_any_moment(hub: Hub, tmp_path: Path) -> None:
    chance = random.Random(20)
    artifact = Artifact(tmp_path / "models" / MODEL, MODEL, REPOSITORY)
    hub.files[MODEL] = chance.randbytes(400_000)
    sha256 = hashlib.sha256(hub.files[MODEL]).hexdigest()
    hub.piece_bytes, hub.piece_pause_s = 4_000, 0.0015
    kills = resumed = completed = 0
    while kills < KILLS:
        before = look(artifact.path)
        asked = len(hub.gets(MODEL))
        child = fetching(artifact)
        time.sleep(chance.uniform(0.0, 0.2))
        child.kill()
        child.join()
        kills += child.exitcode != 0
        for seen in hub.gets(MODEL)[asked:]:
            resumed += int(seen.headers.get("range", "bytes=0-")[6:-1]) > 0
        if artifact.path.exists():
            assert artifact.path.read_bytes() == hub.files[MODEL]
            assert look(artifact.path).state is State.WHOLE
            completed += 1
            artifact.path.unlink()
            records.path_of(artifact.path).unlink()
        else:
            assert look(artifact.path).size >= before.size
            assert look(artifact.path).state in (State.ABSENT, State.PARTIAL)
    last = fetching(artifact)
    last.join()
    assert last.exitcode == 0
    assert artifact.path.read_bytes() == hub.files[MODEL]
    record = records.read(artifact.path)
    assert record is not None
    assert record.sha256 == sha256
    assert {path.name for path in artifact.path.parent.iterdir()} == {MODEL, f"{MODEL}.record.json", f".{MODEL}.lock"}
    print(f"{kills} kills, {resumed} resumed, {completed} had finished")
    assert resumed >= KILLS // 5


@pytest.mark.parametrize("count", [3])
def test_processes_at_once_fetch_it_once(hub: Hub, tmp_path: Path, count: int) -> None:
    artifact = Artifact(tmp_path / "models" / MODEL, MODEL, REPOSITORY)
    hub.piece_bytes, hub.piece_pause_s = 20_000, 0.005
    children = [fetching(artifact) for _ in range(count)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * count
    assert artifact.path.read_bytes() == hub.files[MODEL]
    assert hub.sent(MODEL) == len(hub.files[MODEL])
    assert len(hub.gets(MODEL)) == 1


def test_a_waiting_process_goes_on_when_the_first_is_killed(hub: Hub, tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "models" / MODEL, MODEL, REPOSITORY)
    hub.piece_bytes, hub.piece_pause_s = 10_000, 0.005
    first = fetching(artifact)
    while look(artifact.path).size < 200_000:
        time.sleep(0.005)
    second = fetching(artifact)
    time.sleep(0.05)
    first.kill()
    first.join()
    second.join()
    assert second.exitcode == 0
    assert artifact.path.read_bytes() == hub.files[MODEL]
    assert int(hub.gets(MODEL)[-1].headers["range"][6:-1]) >= 200_000
