"""Changing a daemon that runs: the settings are read again, and where they ask for it another engine takes over."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fishs2_daemon import configuration, logs
from fishs2_daemon.artifacts.fetch import fetch, is_wanted
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.errors import ConfigError
from fishs2_daemon.hardware import look
from fishs2_daemon.service import SpeechService
from fishs2_daemon.settings import ENGINE_SETTINGS, ENV_PREFIX, Settings
from fishs2_daemon.sizing.check import needs_gpu, require_gpu
from fishs2_daemon.worker.pool import WorkerPool

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """`engine` speaks now; the settings `stale` differ and need a restart."""

    engine: str
    stale: tuple[str, ...]


class Reload:
    """One at a time; the next one waits. `overrides` are the flags, which stay on top of the environment."""

    def __init__(
        self, settings: Settings, overrides: Mapping[str, Any], service: SpeechService, workers: WorkerPool
    ) -> None:
        self._settings = settings
        self._overrides = dict(overrides)
        self._service = service
        self._workers = workers
        self._turn = asyncio.Lock()

    async def __call__(self, **changes: str) -> Reloaded:
        """Read the environment file again, with `changes` on top of it from now on.

        Raises `ConfigError`, `ArtifactError`, `Loading` or `EngineUnavailable`; then nothing has changed.
        """
        async with self._turn:
            fresh = await asyncio.to_thread(configuration.load_again, self._settings, **{**self._overrides, **changes})
            self._check(fresh, changes)
            if differ := configuration.switched(self._settings, fresh):
                await self._switch(fresh, differ)
            stale = configuration.take_over(self._settings, fresh)
            self._overrides |= changes
            logs.set_level(self._settings)
            await self._workers.refresh()
            return Reloaded(self._workers.chosen, tuple(stale))

    def _check(self, fresh: Settings, changes: Mapping[str, str]) -> None:
        now = self._settings
        if "model_quant" in changes and now.model_quant != fresh.model_quant and now.model_path == fresh.model_path:
            raise ConfigError(
                f"{ENV_PREFIX}MODEL_QUANT: another one is not allowed while {ENV_PREFIX}MODEL_PATH names the file; "
                f"allowed: {now.model_quant}"
            )

    async def _switch(self, fresh: Settings, differ: Sequence[str]) -> None:
        """To other workers, where those of now would not be what `fresh` asks for."""
        await check_gpu(fresh)
        if is_wanted(fresh):
            await fetch_files(fresh, self._workers)
        choice, chosen = choose_engine(fresh), self._workers.chosen
        if choice.missing and choice.name != chosen:
            raise ConfigError(f"{choice.missing}; {chosen} goes on speaking")
        if choice.name != chosen or ENGINE_SETTINGS[chosen].intersection(differ):
            await self._workers.switch(choice.name, fresh, self._service.warm)
            _log.info("%s", self._workers.detail)


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
