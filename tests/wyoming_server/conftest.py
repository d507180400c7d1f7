import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from fishs2_daemon.sockets import listen_tcp
from fishs2_daemon.wyoming_server.server import WyomingServer
from tests.conftest import Speech
from tests.wyoming_server.peer import WAIT_S, Client


@dataclass
class Door:
    """A running Wyoming door on loopback."""

    speech: Speech
    server: WyomingServer
    port: int
    clients: list[Client] = field(default_factory=list)

    async def connect(self, **options: Any) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self.clients.append(Client(reader, writer))
        return self.clients[-1]

    async def idle(self) -> None:
        """Until nothing runs any more."""
        async with asyncio.timeout(WAIT_S):
            while self.speech.service.running or self.speech.service.waiting:
                await asyncio.sleep(0.01)


@pytest.fixture
async def door(speech: Speech) -> AsyncIterator[Door]:
    server = WyomingServer(speech.service)
    sockets = listen_tcp("127.0.0.1", 0)
    await server.start(sockets)
    door = Door(speech, server, sockets[0].getsockname()[1])
    yield door
    for client in door.clients:
        await client.close()
    server.stop_accepting()
    await server.drain(0)
