"""The HTTP door: Sanic in the daemon's own process and event loop."""

import asyncio
import itertools
import logging
import socket
from typing import Any, cast

from sanic import Sanic
from sanic.config import Config

from adapters.openai import access, models, speech, status
from adapters.openai.context import DoorContext
from adapters.openai.errors import ErrorObjects
from adapters.openai.protocol import DoorProtocol
from fishs2_daemon.service import SpeechService
from fishs2_daemon.settings import Settings

_READ = ("GET", "HEAD")
_ROUTES: tuple[tuple[Any, tuple[str, ...], tuple[str, ...]], ...] = (
    (status.health, _READ, ("/health",)),
    (status.ready, _READ, ("/ready",)),
    (status.metrics, _READ, ("/metrics",)),
    (models.list_models, _READ, ("/v1/models", "/models")),
    (models.retrieve_model, _READ, ("/v1/models/<model_id:path>", "/models/<model_id:path>")),
    (speech.speak, ("POST",), ("/v1/audio/speech", "/audio/speech")),
)

_BACKLOG = 256

#: Time for the last answers to reach their clients once the drain is over, and for cancelled handlers to end.
_LAST_WORDS_S = 1.0

_numbers = itertools.count(1)


class HttpDoor:
    """Serves one listening socket. Several doors may live in one process."""

    def __init__(self, service: SpeechService, settings: Settings) -> None:
        self._context = DoorContext(service, settings)
        self._app = _app(self._context)
        self._server: Any = None

    async def start(self, sock: socket.socket) -> None:
        """Answer on `sock`, which is bound, listening and non-blocking, and from now on the door's own."""
        self._server = await self._app.create_server(
            sock=sock,
            protocol=DoorProtocol,
            backlog=_BACKLOG,
            return_asyncio_server=True,
            asyncio_server_kwargs={"start_serving": False},
        )
        await self._server.startup()
        await self._server.start_serving()

    async def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.server.close()

    async def drain(self, timeout_s: float) -> None:
        """Let running answers end within the time. Idle connections close at once, and the rest is cut at its end."""
        self._context.draining = True
        for connection in self._connections():
            connection.close_if_idle()
        await self._all_gone(timeout_s)
        for connection in self._connections():
            connection.give_up()
        await self._all_gone(_LAST_WORDS_S)

    async def close(self) -> None:
        await self.stop_accepting()
        connections = self._connections()
        tasks = [connection.task for connection in connections if connection.task is not None]
        for connection in connections:
            connection.break_off()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORDS_S)
        for transport in list(self._context.refused):
            cast(asyncio.Transport, transport).abort()
        await self._all_gone(_LAST_WORDS_S)
        Sanic.unregister_app(self._app)

    def _connections(self) -> list[DoorProtocol]:
        return list(cast("set[DoorProtocol]", self._server.connections)) if self._server is not None else []

    async def _all_gone(self, timeout_s: float) -> None:
        if not self._connections():
            return
        try:
            await asyncio.wait_for(self._context.empty.wait(), timeout_s)
        except TimeoutError:
            return


def _app(context: DoorContext) -> Sanic[Config, DoorContext]:
    config = Config(env_prefix=None)
    config.update(
        ACCESS_LOG=False,
        AUTO_EXTEND=False,
        LOG_EXTRA=False,
        MOTD=False,
        # It rewrites methods of Sanic's classes, which works once in a process.
        TOUCHUP=False,
    )
    app = Sanic(f"fishs2-http-{next(_numbers)}", config, context, error_handler=ErrorObjects(), configure_logging=False)
    for logger in ("sanic.root", "sanic.error", "sanic.server"):
        # Below that Sanic only repeats what is logged here, and praises its own development mode on a terminal.
        logging.getLogger(logger).setLevel(logging.ERROR)
    app.register_middleware(access.check, "request")
    for handler, methods, paths in _ROUTES:
        for path in paths:
            app.add_route(handler, path, methods, name=f"{handler.__name__}{path.count('/v1')}")
    return app
