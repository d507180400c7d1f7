"""What an engine needs before its worker starts: the GPU that was asked for, the files."""

import asyncio
import logging

from fishs2_daemon.artifacts.fetch import fetch
from fishs2_daemon.hardware import look
from fishs2_daemon.settings import Settings
from fishs2_daemon.sizing.check import needs_gpu, require_gpu
from fishs2_daemon.worker.pool import WorkerPool

_log = logging.getLogger(__name__)


async def check_gpu(settings: Settings) -> None:
    """Raises `ConfigError` where there is not the GPU that these settings ask for."""
    if needs_gpu(settings):
        require_gpu(settings, await asyncio.to_thread(look, settings))


async def fetch_files(settings: Settings, workers: WorkerPool) -> None:
    """Have the files that these settings ask for, as a part of the pool's detail. Raises `ArtifactError`."""
    workers.fetching("fetching the model")
    try:
        await fetch(settings, lambda what, fraction: workers.fetching(f"{what} {fraction:.0%}"))
    finally:
        workers.fetching("")
    _log.info("the model is there")
