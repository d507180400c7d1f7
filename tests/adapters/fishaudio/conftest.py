import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from adapters.fishaudio.routes import ROUTES
from adapters.openai import server
from adapters.openai.server import HttpDoor
from fishs2_daemon.settings import Settings
from tests.adapters.openai.harness import FakeService, Running, Start
from tests.conftest import Speech


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a door with Fish Audio's routes over a fake service, or over `service`; keyword arguments are settings."""
    doors: list[Running] = []
    more = () if set(ROUTES) <= set(server.ROUTES) else ROUTES

    async def begin(service: Any = None, **values: Any) -> Running:
        settings = service.settings if service else Settings(_env_file=None, **values)
        service = service or FakeService(settings)
        door = HttpDoor(service, settings, more)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.setblocking(False)
        await door.start(sock)
        doors.append(Running(door, service, settings, sock.getsockname()[1]))
        return doors[-1]

    yield begin
    for running in doors:
        await running.door.close()
        assert running.service.running == 0


@pytest.fixture
async def running(start: Start) -> Running:
    return await start()


@pytest.fixture
async def speaking(start: Start, speech: Speech) -> Running:
    """Over the real service with its worker."""
    return await start(speech.service)
