"""Changing a daemon that runs: the settings are read again, and where they ask for it another engine takes over."""

import asyncio
import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from fishs2_daemon import configuration, logs
from fishs2_daemon.artifacts.fetch import is_wanted
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.errors import Busy, ConfigError, ShuttingDown
from fishs2_daemon.prerequisites import check_gpu, fetch_files
from fishs2_daemon.service import SpeechService
from fishs2_daemon.settings import ENGINE_SETTINGS, ENV_PREFIX, SWITCHABLE, Settings
from fishs2_daemon.worker.pool import WorkerPool

_log = logging.getLogger(__name__)

#: Reloads at a time: the one that runs and those that wait for it.
_MOST = 4

#: Where one of these differs, files that are missing are fetched.
_OF_FILES = frozenset(
    {"engine", "model_quant", "model_path", "tokenizer_path", "models_dir", "hf_repo_id", "model_url", "model_sha256"}
    | {"tokenizer_url", "tokenizer_sha256", "accept_license", "skip_downloads", "force_downloads"}
    | {"runtime_dir", "runtime_zip_url", "runtime_zip_sha256"}
)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """`engine` speaks now; the settings `stale` differ and need a restart."""

    engine: str
    stale: tuple[str, ...]


class Reload:
    """One at a time; the next ones wait. `overrides` are the flags, which stay on top of the environment."""

    def __init__(
        self, settings: Settings, overrides: Mapping[str, Any], service: SpeechService, workers: WorkerPool
    ) -> None:
        self._settings = settings
        self._overrides = dict(overrides)
        self._service = service
        self._workers = workers
        self._running: set[asyncio.Task[Reloaded]] = set()

    async def __call__(self, **changes: str) -> Reloaded:
        """Read the environment file again, with `changes` on top of it from now on. Goes on when its caller leaves.

        Raises `ConfigError`, `ArtifactError`, `Loading`, `EngineUnavailable`, `Busy` or `ShuttingDown`; then nothing
        has changed.
        """
        if len(self._running) >= _MOST:
            raise Busy(f"{_MOST} reloads run or wait; try again", retry_after_s=5)
        task = asyncio.create_task(self._change(changes))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        # Somebody has looked at its error, even where the caller is gone.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ShuttingDown("the daemon is shutting down") from None
            raise

    def close(self) -> None:
        """End what runs; the engine of now goes on."""
        for task in self._running:
            task.cancel()

    async def _change(self, changes: Mapping[str, str]) -> Reloaded:
        async with self._workers.turn:
            fresh = await asyncio.to_thread(configuration.load_again, self._settings, **{**self._overrides, **changes})
            self._check(fresh, changes)
            differ = configuration.differing(self._settings, fresh)
            if _OF_FILES.intersection(differ) and is_wanted(fresh):
                await check_gpu(fresh)
                await fetch_files(fresh, self._workers)
            await self._switch(fresh, SWITCHABLE.intersection(differ))
            stale = configuration.take_over(self._settings, fresh)
            self._overrides |= changes
            logs.set_level(self._settings)
            await self._workers.refresh()
            return Reloaded(self._workers.chosen, tuple(stale))

    def _check(self, fresh: Settings, changes: Mapping[str, str]) -> None:
        now = self._settings
        if changes.get("model_quant", "").strip().lower() == "auto":
            raise ConfigError(
                f"{ENV_PREFIX}MODEL_QUANT: 'auto' is not allowed while the daemon runs; allowed: its name"
            )
        if "model_quant" in changes and now.model_quant != fresh.model_quant and now.model_path == fresh.model_path:
            raise ConfigError(
                f"{ENV_PREFIX}MODEL_QUANT: another one is not allowed while {ENV_PREFIX}MODEL_PATH names the file; "
                f"allowed: {now.model_quant}"
            )

    async def _switch(self, fresh: Settings, differ: Set[str]) -> None:
        """To other workers, where those of now would not be what `fresh` asks for, or are not any more what `auto`
        takes."""
        choice, chosen = choose_engine(fresh), self._workers.chosen
        if choice.missing and choice.name != chosen:
            if differ:
                raise ConfigError(f"{choice.missing}; {chosen} goes on speaking")
            return
        if choice.name != chosen or ENGINE_SETTINGS[chosen].intersection(differ):
            await check_gpu(fresh)
            await self._workers.switch(choice.name, fresh, self._service.warm)
            _log.info("%s", self._workers.detail)
