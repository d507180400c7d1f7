"""A service before other servers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fishs2_daemon import configuration
from fishs2_daemon.daemon import running_service
from tests.conftest import Speech


@asynccontextmanager
async def front_of(*urls: str, **settings: Any) -> AsyncIterator[Speech]:
    """With the remote engine in its real worker."""
    loaded = configuration.load(engine="remote", remote_urls=list(urls), languages="en,de", **settings)
    async with running_service(loaded) as (service, workers):
        await workers.ready(20)
        yield Speech(loaded, service, workers)
