"""What the handlers, the protocol and the door share: Sanic's `app.ctx`."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sanic import Request

from fishs2_daemon.references import References
from fishs2_daemon.settings import Settings
from fishs2_daemon.voices import check

if TYPE_CHECKING:
    from fishs2_daemon.service import SpeechService

#: Room around the text of a request body, for its other fields.
_FIELDS_BYTES = 256 * 1024

#: The longest way to write one character in JSON: two \uXXXX escapes.
_JSON_CHAR_BYTES = 12

#: Bodies beyond that of a text that are held in memory at a time, each as text, as JSON and decoded; the next ones wait
#: on the wire.
LARGE_BODIES = 2

#: Uploads at a time; the next ones wait on the wire.
UPLOADS = 4

#: Uploads whose clips are being checked at a time: each takes a thread for seconds, and speech needs some too.
CHECKS = 2

#: At the end, for work that nobody waits for any more: the check of an upload takes half a second.
_FINISH_S = 5.0

_Result = TypeVar("_Result")


@dataclass(slots=True)
class DoorContext:
    """One per door. `settings` change in place on a reload, so they are read where they are used.

    `refused` are connections on their way out, `empty` is set whenever the last of the others is gone.
    """

    service: "SpeechService"
    settings: Settings
    references: References
    draining: bool = False
    refused: set[asyncio.BaseTransport] = field(default_factory=set)
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    large_bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_BODIES))
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS))
    checks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CHECKS))
    _finishing: set[asyncio.Task[Any]] = field(default_factory=set)

    async def finish(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """The result of `work`, which goes on to its end when the client leaves meanwhile."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        # Somebody has looked at its error, even where the client is gone.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def close(self) -> None:
        if self._finishing:
            _, late = await asyncio.wait(set(self._finishing), timeout=_FINISH_S)
            for task in late:
                task.cancel()
        check.end_all()
        await self.references.close()


def max_text_body_bytes(settings: Settings) -> int:
    """Every permitted text fits, however it is written."""
    return _FIELDS_BYTES + _JSON_CHAR_BYTES * settings.max_text_chars


def context_of(request: Request) -> DoorContext:
    return cast(DoorContext, request.app.ctx)
