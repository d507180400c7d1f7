"""The composition root: what starts and stops, in which order."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from adapters.fishaudio import routes as fishaudio
from adapters.openai import admin
from adapters.openai.server import HttpDoor
from fishs2_daemon import configuration
from fishs2_daemon.artifacts.errors import ArtifactError
from fishs2_daemon.artifacts.fetch import is_wanted
from fishs2_daemon.catalogue import VoiceCatalogue
from fishs2_daemon.discovery import Discovery, listening_addresses
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.errors import Fishs2Error, Unavailable
from fishs2_daemon.metrics import Metrics
from fishs2_daemon.notify import Notifier
from fishs2_daemon.prerequisites import check_gpu, fetch_files
from fishs2_daemon.reload import Reload
from fishs2_daemon.service import SpeechService
from fishs2_daemon.settings import Settings
from fishs2_daemon.sockets import DoorSockets, name_of, open_doors, parse_uri
from fishs2_daemon.speech import EngineState
from fishs2_daemon.voices.store import VoiceStore
from fishs2_daemon.worker.pool import WorkerPool
from fishs2_daemon.wyoming_server.server import WyomingServer

_log = logging.getLogger(__name__)

#: How often systemd hears of the counts, at the most; a change of the engine's state is told at once.
_STATUS_INTERVAL_S = 2.0

#: While the engine loads, systemd is asked again and again for this much more time.
_EXTENSION_S = 30.0


@asynccontextmanager
async def running_service(
    settings: Settings, *, may_fetch: bool = False
) -> AsyncIterator[tuple[SpeechService, WorkerPool]]:
    """The service and its worker without any door, for as long as the context lasts.

    With `may_fetch` the model's files are fetched where the settings ask for it: with `auto` the preview voice speaks
    until they are there, else the engine counts as loading.
    """
    metrics = Metrics()
    choice = choose_engine(settings)
    if choice.missing:
        _log.info("the preview voice (espeak-ng) speaks instead of S2 Pro: %s", choice.missing)
    workers = WorkerPool(choice.name, settings, metrics)
    catalogue = VoiceCatalogue(settings, await asyncio.to_thread(VoiceStore, settings.voices_dir))
    with suppress(OSError, Fishs2Error):
        await catalogue.refresh()
    service = SpeechService(settings, workers, catalogue, metrics)
    working = _fetch_and_work(settings, workers) if may_fetch and is_wanted(settings) else workers.run()
    running = [asyncio.create_task(work) for work in (working, service.keep_warm(), service.keep_admitting())]
    try:
        yield service, workers
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _fetch_and_work(settings: Settings, workers: WorkerPool) -> None:
    if settings.engine != "auto":
        await workers.run(lambda: _fetch(settings, workers))
        return
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(workers.run())
        await _fetch(settings, workers)
        async with workers.turn:
            await _take_over(settings, workers)


async def _fetch(settings: Settings, workers: WorkerPool) -> None:
    try:
        await fetch_files(settings, workers)
    except ArtifactError as error:
        _log.error("%s", error)
    except Exception:  # noqa: BLE001 - an edge: the daemon goes on with what is there
        _log.exception("the model was not fetched")


async def _take_over(settings: Settings, workers: WorkerPool) -> None:
    """By the settings of now: a reload may have changed them, and who speaks, since the fetching began."""
    choice = choose_engine(settings)
    if choice.missing:
        _log.info("the preview voice (espeak-ng) goes on speaking: %s", choice.missing)
    elif choice.name != workers.chosen:
        try:
            await workers.switch(choice.name, settings)
        except Unavailable as error:
            _log.error("%s goes on speaking: %s", workers.chosen, error)


class Daemon:
    """`run` serves until `stop`. `overrides` are the flags, which a reload applies again on top of the environment."""

    def __init__(self, settings: Settings, overrides: Mapping[str, Any]) -> None:
        self.settings = settings
        self._overrides = overrides
        self._notifier = Notifier.from_environment()
        self._sockets = DoorSockets()
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._reload_requested = asyncio.Event()
        self._drain_s = 0.0
        self._is_announced = False

    async def run(self) -> None:
        """Raises `ConfigError` or `ListenError` before anything is served."""
        self._handle_signals()
        await check_gpu(self.settings)
        self._sockets = open_doors(self.settings)
        async with running_service(self.settings, may_fetch=True) as (service, workers):
            self._service, self._workers = service, workers
            self._reload = Reload(self.settings, self._overrides, service, workers)
            self._wyoming = WyomingServer(service)
            routes = (admin.route(self._reload), *fishaudio.ROUTES)
            self._http = [HttpDoor(service, self.settings, routes) for _ in self._sockets.http]
            try:
                await self._serve()
            except ExceptionGroup as group:
                # The task group wraps even a single error; one of ours has words for the user.
                raise next((error for error in group.exceptions if isinstance(error, Fishs2Error)), group) from None
            finally:
                for door in self._http:
                    await door.close()
                self._sockets.close()
        self._notifier.close()
        _log.info("stopped")

    def stop(self, drain_s: float) -> None:
        """End after running answers, or after `drain_s`; a second call ends at once."""
        if self._stopping.is_set():
            self._hurrying.set()
        self._drain_s = drain_s
        self._stopping.set()

    async def _serve(self) -> None:
        await self._wyoming.start(self._sockets.wyoming)
        for door, sock in zip(self._http, self._sockets.http, strict=True):
            await door.start(sock)
        for sock in (*self._sockets.wyoming, *self._sockets.http):
            _log.info("listening on %s (%s)", name_of(sock), "HTTP" if sock in self._sockets.http else "Wyoming")
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._notify()), tasks.create_task(self._reload_on_request())]
            if self._sockets.stdio:
                running.append(tasks.create_task(self._serve_stdio()))
            if discovery := self._discovery():
                running.append(tasks.create_task(discovery.run()))
            await self._stopping.wait()
            _log.info("stopping: running answers may finish within %.0f s", self._drain_s)
            self._notifier.stopping()
            self._service.close()
            self._reload.close()
            self._wyoming.stop_accepting()
            for door in self._http:
                await door.stop_accepting()
            for task in running:
                task.cancel()  # discovery says goodbye while the answers finish
            await self._drain()

    def _handle_signals(self) -> None:
        """SIGTERM drains and ends, Ctrl-C ends at once, SIGHUP reloads."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: self.stop(self.settings.drain_timeout_s))
        loop.add_signal_handler(signal.SIGINT, lambda: self.stop(0.0))
        loop.add_signal_handler(signal.SIGHUP, lambda: self._reload_requested.set())

    async def _drain(self) -> None:
        doors: list[Callable[[float], Awaitable[None]]] = [self._wyoming.drain, *(door.drain for door in self._http)]
        draining = [asyncio.ensure_future(drain(self._drain_s)) for drain in doors]
        hurrying = asyncio.ensure_future(self._hurrying.wait())
        hurrying.add_done_callback(lambda _: [task.cancel() for task in draining])
        await asyncio.gather(*draining, return_exceptions=True)
        if self._hurrying.is_set():
            await asyncio.gather(*(drain(0.0) for drain in doors))
        hurrying.cancel()

    async def _serve_stdio(self) -> None:
        await self._wyoming.serve_stdio()
        if not self._sockets.wyoming:
            self.stop(0.0)  # a program that speaks over a pipe ends with the pipe

    def _discovery(self) -> Discovery | None:
        tcp = [sock for sock in self._sockets.wyoming if sock.family != socket.AF_UNIX]
        if not self.settings.zeroconf or not tcp:
            return None
        return Discovery(
            tcp[0].getsockname()[1],
            listening_addresses(tcp),
            self.settings.zeroconf_name,
            self.settings.zeroconf_interface,
        )

    async def _notify(self) -> None:
        """Keeps systemd informed. The watchdog is fed only while this loop runs and the worker lives."""
        interval_s = min(self._notifier.watchdog_interval_s or _STATUS_INTERVAL_S, _STATUS_INTERVAL_S)
        while True:
            service = self._service
            if service.state is EngineState.READY:
                if not self._is_announced:
                    self._is_announced = True
                    _log.info("ready: %s", service.detail)
                    self._notifier.ready()
            elif not self._is_announced and self._workers.is_live:
                self._notifier.extend_timeout(_EXTENSION_S)
            self._notifier.status(f"{service.detail}; {service.running} speaking, {service.waiting} waiting")
            if self._workers.is_live:
                self._notifier.watchdog()
            await self._workers.wait_for_change(interval_s)

    async def _reload_on_request(self) -> None:
        while True:
            await self._reload_requested.wait()
            self._reload_requested.clear()
            self._notifier.reloading()
            try:
                reloaded = await self._reload()
            except Fishs2Error as error:
                _log.error("nothing was reloaded: %s", error)
            except Exception:  # noqa: BLE001 - an edge: the daemon goes on as it was
                _log.exception("nothing was reloaded")
            else:
                stale = ", ".join(reloaded.stale)
                _log.info("reloaded%s", f"; only a restart changes {stale}" if stale else "")
            if self._is_announced:
                self._notifier.ready()


async def serve(settings: Settings, overrides: Mapping[str, Any]) -> None:
    """Print the settings once, then serve until a signal ends it. Raises `ConfigError` or `ListenError`."""
    for uri in settings.uri:
        parse_uri(uri)  # a wrong one is told before anything else is
    for line in configuration.describe(settings):
        _log.info("%s", line)
    if settings.quant_reason:
        level = logging.INFO if settings.quant_fits else logging.WARNING
        _log.log(level, "FISHS2_MODEL_QUANT=auto: %s", settings.quant_reason)
    names = configuration.given_names()
    for name in configuration.unknown_names(names):
        _log.warning("%s means nothing here; is it spelled right?", name)
    if idle := configuration.without_effect(settings, names):
        _log.warning("without effect in this version: %s", ", ".join(idle))
    await Daemon(settings, overrides).run()
