"""The body of a request that a handler reads by itself."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from sanic import Request

from adapters.openai.context import context_of, max_text_body_bytes


@asynccontextmanager
async def body_of(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The whole body in memory. Only a few that are larger than a text's are there at a time: while the context lasts,
    this is one of them. Raises `HttpError` (413)."""
    context = context_of(request)
    own_share = max_text_body_bytes(context.settings)
    blocks: list[bytes] = []
    received = 0
    async with AsyncExitStack() as stack:
        async for data in body_blocks(request, max_bytes):
            if received <= own_share < received + len(data):
                await stack.enter_async_context(context.large_bodies)
            received += len(data)
            blocks.append(data)
        body = b"".join(blocks)
        blocks.clear()
        yield body


async def body_blocks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body as it comes. Raises `HttpError` (413)."""
    stream = request.stream
    if stream is None:
        return
    # Sanic lifts the bound for a handler that reads by itself.
    stream.request_max_size = max_bytes
    async for data in stream:  # type: ignore[attr-defined]
        yield data
