"""`python killed.py FOLDER WAY HOW SEED`: processes that change voices are killed, and the store is opened after each.

Every voice says its version in all that it has: transcripts, description, the bytes of two clips. Run by
`test_crashes`, in a process of its own that has loaded little, so that it can be forked quickly. Nothing is printed
but what is wrong, and at the end the number of kills.
"""

import hashlib
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fishs2_daemon.audio.decode import AudioInfo
from fishs2_daemon.voices import clips, staging
from fishs2_daemon.voices.clips import UploadedClip
from fishs2_daemon.voices.content import NewVoice
from fishs2_daemon.voices.store import VoiceStore

Action = Callable[[VoiceStore, int], object]

#: What a kill may fall into. `anna` is always there, `bob` comes and goes, `carl` changes its name.
ACTIONS: tuple[Action, ...] = (
    lambda store, version: create(store, "anna", version),
    lambda store, version: store.update("anna", tags=(str(version),)),
    lambda store, version: create(store, "bob", version),
    lambda store, version: store.rename(*(("carl", "dora") if "carl" in ids(store) else ("dora", "carl"))),
    lambda store, version: store.delete("bob") if "bob" in ids(store) else None,
)


def recording(version: int, clip: str) -> bytes:
    return f"{version} {clip} ".encode() * 3000


def create(store: VoiceStore, voice_id: str, version: int) -> None:
    uploaded = [UploadedClip(f"{clip}.wav", recording(version, clip), f"{version} {clip}") for clip in "ab"]
    store.create(NewVoice(voice_id, description=str(version)), uploaded)


def ids(store: VoiceStore) -> list[str]:
    return [voice.id for voice in store.list()]


def faults(root: Path, at_least: int) -> Iterator[str]:
    """What is wrong with the folder now; `at_least` is the version of anna that was made last."""
    store = VoiceStore(root)
    found = ids(store)
    without_bob = [name for name in found if name != "bob"]
    if without_bob not in (["anna", "carl"], ["anna", "dora"]):
        yield f"voices are {found}"
    for name in found:
        voice = store.resolve(name)
        for clip, letter in zip(voice.clips, "ab", strict=True):
            expected = hashlib.sha256(recording(int(voice.description), letter)).hexdigest()
            if clip.transcript != f"{voice.description} {letter}" or clip.sha256 != expected:
                yield f"{voice} is of several versions"
        if name == "anna" and not at_least <= int(voice.description) <= at_least + 1:
            yield f"anna is version {voice.description}, not {at_least} or the next"
    if left := set(os.listdir(root / ".store")) - {"gate", "lock"}:
        yield f"left behind: {left}"
    if left := set(os.listdir(root)) - {".store", *found}:
        yield f"left behind: {left}"


def version_of(root: Path) -> int:
    return int(VoiceStore(root).get("anna").description)


def at_every_step(root: Path) -> Iterator[int]:
    """Kill before each call that touches files, of each action in turn, until it comes to its end."""
    for action in ACTIONS:
        for step in range(1, 1000):
            before = version_of(root)
            child = os.fork()
            if child == 0:
                store = VoiceStore(root)
                kill_before(step)
                action(store, before + 1)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            yield before
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
        else:
            raise AssertionError("an action does not end")


FSYNC = os.fsync

#: CPython's audit events of calls that change a folder; so does an `open` for writing.
STEPS = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"})


def kill_before(step: int) -> None:
    """This process, before the call of that number that changes a folder."""
    calls = itertools.count(1)
    sys.addaudithook(lambda event, args: is_step(event, args) and next(calls) == step and kill_myself())


def is_step(event: str, args: tuple[object, ...]) -> bool:
    return event in STEPS or (event == "open" and isinstance(args[2], int) and bool(args[2] & os.O_CREAT))


def without_sync(descriptor: int) -> None:
    """A kill is no power failure."""


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_any_moment(root: Path, kills: int) -> Iterator[int]:
    """Kill a process that changes voices all the time."""
    for number in range(kills):
        version = version_of(root)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            if number % 2:
                os.fsync = FSYNC  # most kills fall into the waits for the disk, else between them
            store = VoiceStore(root)
            os.write(writer, b".")
            for action in random.choices(ACTIONS, k=1_000_000):
                action(store, version + 1)
                if action is ACTIONS[0]:
                    version += 1
                    os.write(writer, f" {version}".encode())
        os.close(writer)
        os.read(reader, 1)
        time.sleep(random.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        made = os.read(reader, 100_000).split()
        os.close(reader)
        yield int(made[-1]) if made else version


def main() -> None:
    root, way, how, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    random.seed(seed)
    os.fsync = without_sync
    clips.check = lambda copies, **limits: dict.fromkeys(copies, AudioInfo(8000, 1, 1.0, ".wav"))
    if way == "steps":
        staging.exchange = lambda one, other: False
    store = VoiceStore(root)
    create(store, "anna", 0)
    create(store, "anna", 1)  # cffi is loaded before the fork
    create(store, "carl", 1)
    kills = 0
    for at_least in at_every_step(root) if how == "every" else at_any_moment(root, int(how)):
        kills += 1
        for fault in faults(root, at_least):
            print(f"{kills}: {fault}")
    print(kills)


if __name__ == "__main__":
    main()
