"""The id that a request carries through answer and log."""

import re
from uuid import uuid4

from sanic import Request

from adapters.openai.context import context_of

_MAX_CHARS = 128
_FOREIGN = re.compile(r"[^A-Za-z0-9\-_.]")


def request_id(request: Request) -> str:
    """The client's own id, cut down to what is safe in headers and logs, or 32 hex digits."""
    if not hasattr(request.ctx, "request_id"):
        header = context_of(request).settings.request_id_header
        given = request.headers.getone(header, "")
        request.ctx.request_id = _FOREIGN.sub("", given)[:_MAX_CHARS] or new_id()
    return str(request.ctx.request_id)


def new_id() -> str:
    return uuid4().hex
