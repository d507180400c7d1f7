"""The Wyoming door: accepts connections on any number of sockets, or serves one on stdin and stdout."""

import asyncio
import logging
import socket
import sys
from collections.abc import Iterable

from fishs2_daemon.errors import Busy, ListenError, PeerRefused
from fishs2_daemon.peers import is_allowed
from fishs2_daemon.service import SpeechService
from fishs2_daemon.wyoming_server import framing
from fishs2_daemon.wyoming_server.connection import Connection

_log = logging.getLogger(__name__)

#: Refused connections that may take their time to read why; further ones are dropped without a word.
MAX_REFUSED = 64


class WyomingServer:
    """`start` with listening sockets; to end, `stop_accepting`, then `drain`."""

    def __init__(self, service: SpeechService) -> None:
        self._service = service
        self._settings = service.settings
        self._servers: list[asyncio.Server] = []
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._refused: set[asyncio.Task[None]] = set()
        self._gauge = service.metrics.connections.labels(door="wyoming")

    async def start(self, sockets: Iterable[socket.socket]) -> None:
        for sock in sockets:
            server = await asyncio.start_server(self._accept, sock=sock, limit=framing.MAX_HEADER_BYTES)
            self._servers.append(server)

    async def serve_stdio(self) -> None:
        """Answers what comes on stdin until its end; what was asked for before the end is still spoken.

        Raises `ListenError` where stdin or stdout is a file.
        """
        reader, writer = await _standard_streams()
        # Shielded: when the daemon stops, `drain` decides how a running answer ends.
        await asyncio.shield(self._serve(Connection(reader, writer, self._service, speaks_after_eof=True)))

    def stop_accepting(self) -> None:
        for server in self._servers:
            server.close()

    async def drain(self, timeout_s: float) -> None:
        """Running answers may finish in `timeout_s`; those that do not are told so and fail. Then all is closed."""
        for connection in list(self._connections):
            connection.finish()
        tasks = list(self._connections.values())
        if tasks and (await asyncio.wait(tasks, timeout=timeout_s))[1]:
            for connection in list(self._connections):
                connection.abort()
            await asyncio.wait(tasks, timeout=self._settings.cancel_timeout_s)
        tasks += self._refused
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        connection = Connection(reader, writer, self._service)
        if not is_allowed(peer, self._settings.allowed_networks, writer.get_extra_info("sockname")):
            _log.warning("refused %s: not in FISHS2_ALLOWED_NETWORKS", peer)
            connection.refuse(PeerRefused("your address is not in FISHS2_ALLOWED_NETWORKS of this server"))
        elif len(self._connections) < self._settings.max_connections:
            self._serve(connection)
            return
        else:
            connection.refuse(Busy(f"more than {self._settings.max_connections} connections; try again"))
        if len(self._refused) >= MAX_REFUSED:
            writer.transport.abort()
            return
        task = asyncio.create_task(connection.run())
        self._refused.add(task)
        task.add_done_callback(self._refused.discard)

    def _serve(self, connection: Connection) -> asyncio.Task[None]:
        task = self._connections[connection] = asyncio.create_task(connection.run())
        self._gauge.inc()

        def ended(_: object) -> None:
            del self._connections[connection]
            self._gauge.dec()

        task.add_done_callback(ended)
        return task


async def _standard_streams() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=framing.MAX_HEADER_BYTES)
    try:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), sys.stdout
        )
    except ValueError:
        raise ListenError("stdio:// needs a pipe, a socket or a terminal on both ends, not a file") from None
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)
