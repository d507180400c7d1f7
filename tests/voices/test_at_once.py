"""Threads and processes on one folder: nobody ever sees half a voice."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fishs2_daemon.audio.decode import AudioInfo
from fishs2_daemon.errors import Busy, UnknownVoice
from fishs2_daemon.voices import clips, lock
from fishs2_daemon.voices.clips import UploadedClip
from fishs2_daemon.voices.content import NewVoice
from fishs2_daemon.voices.staging import Staging
from fishs2_daemon.voices.store import VoiceStore

#: Makes and deletes voices for as long as it lives, over the shoulder of this process.
OTHER = """
import sys
from pathlib import Path
from fishs2_daemon.audio.decode import AudioInfo
from fishs2_daemon.errors import UnknownVoice
from fishs2_daemon.voices import clips, staging
from fishs2_daemon.voices.content import NewVoice
from fishs2_daemon.voices.store import VoiceStore

clips.check = lambda copies, **limits: dict.fromkeys(copies, AudioInfo(8000, 1, 1.0, ".wav"))
if sys.argv[2] == "steps":
    staging.exchange = lambda one, other: False
store = VoiceStore(Path(sys.argv[1]))
version = 0
while True:
    version += 2
    for name in ("kept", "gone"):
        data = f"{version} {name} ".encode() * 20_000
        store.create(NewVoice(name, transcript=str(version)), [clips.UploadedClip("a.wav", data)])
    try:
        store.delete("gone")
    except UnknownVoice:
        pass
    print(version, flush=True)
"""


def recording(version: int, name: str) -> bytes:
    return f"{version} {name} ".encode() * 20_000


@pytest.fixture
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "check", lambda copies, **_: dict.fromkeys(copies, AudioInfo(8000, 1, 1.0, ".wav")))


@pytest.mark.parametrize("way", ["exchange", "steps"])
@pytest.mark.usefixtures("_unchecked")
def test_a_resolved_voice_is_of_one_version(tmp_path: Path, way: str) -> None:
    root = tmp_path / "voices"
    stores = [VoiceStore(root), VoiceStore(root)]
    seen: dict[str, set[int]] = {"kept": set(), "gone": set()}
    wrong: list[str] = []
    until = time.monotonic() + 2.5

    def resolve(store: VoiceStore) -> None:
        for name in ("kept", "gone"):
            try:
                voice = store.resolve(name)
            except UnknownVoice:
                if name == "kept":
                    wrong.append("a voice was missing while it was replaced")
                continue
            [clip] = voice.clips
            version = int(clip.transcript or -1)
            seen[name].add(version)
            if clip.sha256 != hashlib.sha256(recording(version, name)).hexdigest():
                wrong.append(f"{name}: the transcript of version {version} with other bytes")

    def write(store: VoiceStore) -> None:
        version = len(seen["kept"]) * 2 + 1
        store.create(NewVoice("kept", transcript=str(version)), [UploadedClip("a.wav", recording(version, "kept"))])
        if [voice.id for voice in store.list()] not in (["gone", "kept"], ["kept"]):
            wrong.append("the listing was not whole")

    def repeat(action: Callable[[VoiceStore], None], store: VoiceStore) -> None:
        try:
            while time.monotonic() < until:
                action(store)
        except Exception as error:  # noqa: BLE001 - a thread's end is otherwise not seen
            wrong.append(repr(error))

    with subprocess.Popen([sys.executable, "-c", OTHER, root, way], stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        actions = [
            (resolve, stores[0]),
            (resolve, stores[0]),
            (resolve, stores[1]),
            (write, stores[0]),
            (write, stores[1]),
        ]
        threads = [threading.Thread(target=repeat, args=each) for each in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other.kill()
        rounds = len(other.stdout.readlines())
    assert not wrong, wrong[:3]
    assert rounds > 5  # readers that never pause do not keep a writer out
    assert any(version % 2 for version in seen["kept"])  # by us
    assert any(version % 2 == 0 for version in seen["kept"])  # by the other process


@pytest.mark.usefixtures("_unchecked")
def test_a_voice_in_the_making_survives_that_others_clean_up(tmp_path: Path) -> None:
    root = tmp_path / "voices"
    with Staging(root).new_voice("anna") as folder:
        (folder / "a.wav").write_bytes(b"x")
        (root / ".store" / "work-of-a-dead-process").mkdir()
        (root / ".store" / "work-of-a-dead-process" / "owner").touch()
        (root / ".store" / "gone-1").mkdir()
        (root / ".store" / "meta-1").touch()
        VoiceStore(root)
        left = [name for name in os.listdir(root / ".store") if name not in ("gate", "lock")]
        assert left == [folder.parent.parent.name]
        assert folder.exists()
    assert sorted(os.listdir(root / ".store")) == ["gate", "lock"]


def test_a_voice_that_was_between_two_places_is_found_by_an_open_store(root: Path) -> None:
    store = VoiceStore(root)
    (root / ".store" / "work-1" / "old").mkdir(parents=True)
    for name in ("gate", "lock"):
        (root / ".store" / name).touch()
    (root / "anna").rename(root / ".store" / "work-1" / "old" / "anna")
    assert store.resolve("anna").clips[0].sha256
    assert sorted(os.listdir(root / ".store")) == ["gate", "lock"]


def test_a_lock_that_is_never_opened_is_waited_for_so_long(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.1)
    program = (
        "import sys, signal, os; from pathlib import Path; from fishs2_daemon.voices.staging import Staging\n"
        "with Staging(Path(sys.argv[1])).writing():\n    print(flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    store = VoiceStore(root)
    with subprocess.Popen([sys.executable, "-c", program, root], stdout=subprocess.PIPE) as stopped:
        try:
            assert stopped.stdout
            stopped.stdout.readline()
            for action in (store.list, lambda: store.delete("anna")):
                with pytest.raises(Busy, match=r"locked for 0\.1 s"):
                    action()
            assert VoiceStore(root)
        finally:
            stopped.send_signal(signal.SIGKILL)
    assert [voice.id for voice in store.list()] == ["anna"]
