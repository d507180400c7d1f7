"""The HTTP door: Sanic in the daemon's own process and event loop."""

import asyncio
import itertools
import logging
import socket
from collections.abc import Sequence
from typing import Any, cast

from sanic import Sanic
from sanic.config import Config

from adapters.openai import access, docs, models, speech, status, uploads, voices
from adapters.openai.context import DoorContext
from adapters.openai.errors import ErrorObjects
from adapters.openai.http1 import MAX_LEFTOVER_BYTES
from adapters.openai.protocol import DoorProtocol
from adapters.openai.routes import Route, everywhere
from fishs2_daemon.references import References
from fishs2_daemon.service import SpeechService
from fishs2_daemon.settings import Settings

_READ = ("GET", "HEAD")
_VOICES = everywhere("/audio/voices", "/voices", "/files")
_VOICE = tuple(f"{path}/<voice_id:path>" for path in _VOICES)

ROUTES: tuple[Route, ...] = (
    Route(status.health, _READ, ("/health",)),
    Route(status.ready, _READ, ("/ready",)),
    Route(status.metrics, _READ, ("/metrics",)),
    Route(docs.page, _READ, ("/docs",)),
    Route(docs.to_page, _READ, ("/",)),
    Route(docs.document, _READ, ("/openapi.json",)),
    Route(models.list_models, _READ, everywhere("/models")),
    Route(models.retrieve_model, _READ, everywhere("/models/<model_id:path>")),
    Route(speech.speak, ("POST",), everywhere("/audio/speech"), True, speech.max_body_bytes),
    Route(voices.list_voices, _READ, _VOICES),
    Route(voices.create_voice, ("POST",), _VOICES, True, uploads.max_body_bytes, uploads.TIMEOUT_S),
    Route(voices.retrieve_voice, _READ, _VOICE),
    Route(voices.delete_voice, ("DELETE",), _VOICE),
)

_BACKLOG = 256

#: Time for the last answers to reach their clients once the drain is over, and for cancelled handlers to end.
_LAST_WORDS_S = 1.0

_numbers = itertools.count(1)


class HttpDoor:
    """Serves one listening socket. Several doors may live in one process. `more_routes` are those of other APIs."""

    def __init__(self, service: SpeechService, settings: Settings, more_routes: Sequence[Route] = ()) -> None:
        self._context = DoorContext(service, settings, References(settings))
        self._app = _app(self._context, (*ROUTES, *more_routes))
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
        await self._context.close()
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


def _app(context: DoorContext, routes: Sequence[Route]) -> Sanic[Config, DoorContext]:
    config = Config(env_prefix=None)
    config.update(
        ACCESS_LOG=False,
        AUTO_EXTEND=False,
        LOG_EXTRA=False,
        MOTD=False,
        REQUEST_MAX_SIZE=MAX_LEFTOVER_BYTES,
        # It rewrites methods of Sanic's classes, which works once in a process.
        TOUCHUP=False,
    )
    app = Sanic(f"fishs2-http-{next(_numbers)}", config, context, error_handler=ErrorObjects(), configure_logging=False)
    for logger in ("sanic.root", "sanic.error", "sanic.server"):
        # Below that Sanic only repeats what is logged here, and praises its own development mode on a terminal.
        logging.getLogger(logger).setLevel(logging.ERROR)
    app.register_middleware(access.check, "request")
    for number, route in enumerate(routes):
        for variant, path in enumerate(route.paths):
            name = f"{route.handler.__name__}-{number}-{variant}"
            app.add_route(route.handler, path, route.methods, name=name, stream=route.reads_body, ctx_door=route)
    return app
