"""Uploaded clips are decoded once before they are stored, in a process of its own with little memory and time.

A hostile file can crash a decoder, or make it claim memory without end; the daemon, which holds everybody's
connections, then answers that this clip is not read.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fishs2_daemon.audio.decode import AudioInfo, DecodeLimits, probe
from fishs2_daemon.errors import InvalidReferenceAudio, ReferenceAudioTooLong, ReferenceAudioTooShort

#: Python and PyAV take 120 MB of addresses, the longest clip less than 10 MB more.
MEMORY_BYTES = 1024 * 1024 * 1024

#: 16 clips of two minutes take 3 s.
CPU_S = 30

#: Wall time: the same on a machine that is busy with something else.
WAIT_S = 120.0

_log = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-m", "fishs2_daemon.voices.check")

#: Nothing that a decoder in foreign hands should know.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")

#: Of all threads.
_running: set["subprocess.Popen[bytes]"] = set()

#: What Python says when it ends badly fits.
_LAST_WORDS_BYTES = 500

_ERRORS = {
    kind.code: kind for kind in (InvalidReferenceAudio, ReferenceAudioTooLong, ReferenceAudioTooShort)
}  # fmt: skip


def check(clips: Mapping[Path, str], *, shortest_s: float, longest_s: float) -> dict[Path, AudioInfo]:
    """What each file holds. `clips` gives the name that its sender knows it by. Takes 0.4 s and more.

    Raises `InvalidReferenceAudio`, `ReferenceAudioTooShort` or `ReferenceAudioTooLong` for the first that is wrong.
    """
    if not clips:
        return {}
    task = {
        "clips": [[str(path), name] for path, name in clips.items()], "shortest_s": shortest_s, "longest_s": longest_s
    }  # fmt: skip
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(_COMMAND, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            _running.add(process)
            try:
                stdout, stderr = process.communicate(json.dumps(task).encode(), timeout=WAIT_S)
            finally:
                _running.discard(process)
                process.kill()
        answer = json.loads(stdout) if process.returncode == 0 else {}
        last_words = f"status {process.returncode}: {stderr[-_LAST_WORDS_BYTES:].decode(errors='replace')}"
    except (subprocess.TimeoutExpired, ValueError) as error:
        answer, last_words = {}, str(error)
    if "error" in answer:
        raise _ERRORS[answer["error"]](answer["message"], param="files")
    if "clips" not in answer:
        names = ", ".join(clips.values())
        _log.warning("the check of %s failed with %s", names, last_words)
        raise InvalidReferenceAudio(f"{names}: decoding takes too much time or memory, or fails badly", param="files")
    return {path: AudioInfo(**info) for path, info in zip(clips, answer["clips"], strict=True)}


def end_all() -> None:
    """Kill what is still being checked, for a program that ends: a thread that waits for it cannot be cancelled."""
    for process in list(_running):
        process.kill()


def main() -> None:
    """`python -m fishs2_daemon.voices.check < task`"""
    _bound_this_process()
    task: dict[str, Any] = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        limits = DecodeLimits(longest_s=task["longest_s"])
        answer = {"clips": [asdict(_checked(Path(path), name, task, limits)) for path, name in task["clips"]]}
    except InvalidReferenceAudio as error:
        answer = {"error": error.code, "message": str(error)}
    json.dump(answer, sys.stdout)


def _checked(path: Path, name: str, task: Mapping[str, Any], limits: DecodeLimits) -> AudioInfo:
    info = probe(path, limits=limits, name=name)
    if info.duration_s < task["shortest_s"]:
        message = f"{name}: {info.duration_s:.2f} s of audio; at least {task['shortest_s']:g} s"
        raise ReferenceAudioTooShort(message)
    return info


def _bound_this_process() -> None:
    try:
        import resource
    except ImportError:  # Windows: only the time is bounded there
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
