"""The process that fetches for the daemon. It reads its plan from standard input and writes a JSON object a line.

The plan is `{"bundle", "artifacts", "force"}`, with null where there is no bundle. `{"doing", "file", "done", "total"}`
is progress, `{"wait"}` names what another process writes, `{"error", "text"}` and `{"finished"}` are the last.
"""

import json
import os
import sys
import threading
import time
from functools import partial
from typing import Any

from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.bundle import Bundle, install
from fishs2_daemon.artifacts.download import download
from fishs2_daemon.artifacts.errors import ArtifactError
from fishs2_daemon.artifacts.progress import Progress

#: How often progress is told, at the most.
_TELL_S = 0.2


def main() -> None:
    plan = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    telling = _Telling()
    try:
        if plan["bundle"]:
            bundle = Bundle.from_json(plan["bundle"])
            install(bundle, telling, partial(_say, wait=bundle.folder.name), force=plan["force"])
        for artifact in map(Artifact.from_json, plan["artifacts"]):
            download(artifact, telling, partial(_say, wait=artifact.file), force=plan["force"])
    except ArtifactError as error:
        _say(error=type(error).__name__, text=str(error))
    else:
        _say(finished=True)


class _Telling:
    """Every file's first and last word are told, of what comes between only so much."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._last = ("", "")

    def __call__(self, progress: Progress) -> None:
        now_s, now = time.monotonic(), (progress.doing, progress.file)
        if now != self._last or progress.done == progress.total or now_s - self._last_s >= _TELL_S:
            self._last_s, self._last = now_s, now
            _say(doing=progress.doing, file=progress.file, done=progress.done, total=progress.total)


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _end_with_input() -> None:
    """The daemon holds the other end and never writes again: it is gone when this returns."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
