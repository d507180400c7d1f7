"""Fetching for the daemon: in a process of its own, whose end at any moment does no harm."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from fishs2_daemon.artifacts import bundle as bundles
from fishs2_daemon.artifacts import licence
from fishs2_daemon.artifacts.artifact import ModelFiles, locate, model, tokenizer
from fishs2_daemon.artifacts.errors import ArtifactError, CorruptArtifact, DownloadFailed
from fishs2_daemon.artifacts.progress import Progress, Tenths, megabytes
from fishs2_daemon.settings import ENV_PREFIX, Settings

_log = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-m", "fishs2_daemon.artifacts.child")

#: A killed process is gone in a moment, but for one that waits for a dead disk.
_REAP_S = 5.0

#: The longest line of the child: an error with two long paths in it.
_LINE_BYTES = 1 << 20

#: What the service manager tells the daemon is not for the child, and its settings are in what it is told.
_PRIVATE_ENVIRONMENT = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "CREDENTIALS_DIRECTORY", ENV_PREFIX)

_ERRORS = {kind.__name__: kind for kind in (ArtifactError, CorruptArtifact, DownloadFailed)}


def is_wanted(settings: Settings) -> bool:
    """Whether a daemon with these settings is to fetch files before S2 Pro can speak.

    With `auto` only where a quantisation was named: nobody gets gigabytes that nobody asked for, or that do not fit.
    """
    is_named = settings.engine == "auto" and "model_quant" in settings.model_fields_set
    if settings.skip_downloads or not settings.quant_fits or not (settings.engine in ("s2", "s2cpp") or is_named):
        return False
    files = locate(settings)
    is_complete = _is_there(files.model) and _is_there(files.tokenizer) and not bundles.wanted(settings)
    return settings.force_downloads or not is_complete


async def fetch(settings: Settings, progress: Callable[[str, float], None]) -> ModelFiles:
    """Have both files, and the runtime of the s2cpp engine where its bundle is named. Cancel it at any time.

    `progress` hears what is being done and how far it is, from 0 to 1. Every tenth of a file is logged. Raises
    `LicenseNotAccepted`, `DownloadFailed`, `CorruptArtifact`, `ArtifactError`.
    """
    files = locate(settings)
    force = settings.force_downloads
    # The small ones first: where the source is closed or absent, that is known at once.
    artifacts = [each for each in (tokenizer(settings), model(settings)) if force or not _is_there(each.path)]
    bundle = bundles.wanted(settings)
    if artifacts:
        await asyncio.to_thread(licence.require, files.model.parent, given=settings.accept_license)
    plan = {
        "bundle": bundle and bundle.to_json(), "artifacts": [each.to_json() for each in artifacts], "force": force,
    }  # fmt: skip
    log = Tenths(lambda line: _log.info("%s", line))
    async with aclosing(_messages(plan)) as messages:
        async for message in messages:
            if "error" in message:
                raise _ERRORS.get(message["error"], ArtifactError)(message["text"])
            if "wait" in message:
                _log.info("another process is fetching %s; waiting for it", message["wait"])
                progress(f"waiting for another process that fetches {message['wait']}", 0.0)
            else:
                now = Progress(**message)
                log(now)
                size = f" ({megabytes(now.total)})" if now.total else ""
                progress(f"{now.doing} {now.file}{size}", now.fraction)
    return files


async def _messages(plan: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """What the child says, until it has all files. It ends with its standard input, and so with this process."""
    if not (plan["bundle"] or plan["artifacts"]):
        return
    environment = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(_PRIVATE_ENVIRONMENT)
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *_COMMAND, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise DownloadFailed(f"the model was not fetched: no process can be started ({error.strerror})") from None
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both were asked for
    try:
        process.stdin.write(json.dumps(plan).encode() + b"\n")
        finished = False
        while line := await process.stdout.readline():
            message = json.loads(line)
            if finished := "finished" in message:
                break
            yield message
        if not finished:
            raise DownloadFailed(f"the model was not fetched: its process ended ({await process.wait()}); try again")
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _REAP_S)


def _is_there(path: Path) -> bool:
    """What may not be looked at is not there: `Path.is_file` would raise."""
    return os.path.isfile(path)
