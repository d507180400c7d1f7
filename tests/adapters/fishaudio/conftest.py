from collections.abc import AsyncIterator

import pytest

from adapters.fishaudio.routes import ROUTES
from tests.adapters.openai.harness import Running, Start, doors_with
from tests.conftest import Speech


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """With Fish Audio's routes, as the daemon has them."""
    async with doors_with(ROUTES) as start:
        yield start


@pytest.fixture
async def running(start: Start) -> Running:
    return await start()


@pytest.fixture
async def speaking(start: Start, speech: Speech) -> Running:
    """Over the real service with its worker."""
    return await start(speech.service)
