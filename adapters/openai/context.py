"""What the handlers, the protocol and the door share: Sanic's `app.ctx`."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from sanic import Request

from fishs2_daemon.settings import Settings

if TYPE_CHECKING:
    from fishs2_daemon.service import SpeechService

#: Room around the text of a request body, for its other fields.
_FIELDS_BYTES = 256 * 1024

#: The longest way to write one character in JSON: two \uXXXX escapes.
_JSON_CHAR_BYTES = 12


@dataclass(slots=True)
class DoorContext:
    """One per door. `settings` change in place on a reload, so they are read where they are used.

    `refused` are connections on their way out, `empty` is set whenever the last of the others is gone.
    """

    service: "SpeechService"
    settings: Settings
    draining: bool = False
    refused: set[asyncio.BaseTransport] = field(default_factory=set)
    empty: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def max_body_bytes(self) -> int:
        """Every permitted text fits, however it is written."""
        return _FIELDS_BYTES + _JSON_CHAR_BYTES * self.settings.max_text_chars


def context_of(request: Request) -> DoorContext:
    return cast(DoorContext, request.app.ctx)
