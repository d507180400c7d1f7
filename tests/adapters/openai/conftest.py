from collections.abc import AsyncIterator

import pytest

from tests.adapters.openai.harness import Running, Start, doors_with


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with doors_with() as start:
        yield start


@pytest.fixture
async def running(start: Start) -> Running:
    return await start()
