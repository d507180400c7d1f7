"""A URL of the door, and what may come with it."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from sanic import HTTPResponse

from adapters.openai.context import max_text_body_bytes
from adapters.openai.errors import HttpError
from fishs2_daemon.settings import Settings

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


@dataclass(frozen=True, slots=True)
class Route:
    """`handler` answers `methods` at every one of `paths`.

    A handler that `reads_body` is called before the body has come, and takes it with `bodies.body_of` or
    `uploads.receive`. A body of more than `max_body_bytes` is refused by its length; one that takes longer than
    `body_timeout_s` (or what is set, where that is longer) is cut. `error_response` puts errors into the API's own
    shape, those from before the handler too.
    """

    handler: Handler
    methods: tuple[str, ...]
    paths: tuple[str, ...]
    reads_body: bool = False
    max_body_bytes: Callable[[Settings], int] = max_text_body_bytes
    body_timeout_s: float = 0.0
    error_response: Callable[[HttpError], HTTPResponse] = HttpError.response


def everywhere(*paths: str) -> tuple[str, ...]:
    """Each path under /v1, and without: some clients are given a base URL that ends in /v1, some one that does not."""
    return tuple(prefix + path for path in paths for prefix in ("/v1", ""))
