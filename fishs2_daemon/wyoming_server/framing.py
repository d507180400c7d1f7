"""Wyoming's wire format with every bound that the protocol itself leaves open.

An event is one line of JSON, then `data_length` bytes of JSON that are merged over its `data`, then `payload_length`
bytes. Whatever a peer sends, `read_event` returns an event, returns None where the stream ended too early, or raises
an error with words for the peer.
"""

import asyncio
import json
from typing import Any

from wyoming.event import Event
from wyoming.version import __version__ as wyoming_version

from fishs2_daemon.errors import DeadlineExceeded, ProtocolError

#: Also the limit of the stream reader that a connection is opened with.
MAX_HEADER_BYTES = 64 * 1024

#: Room for a text of a million characters.
MAX_DATA_BYTES = 4 * 1024 * 1024

#: No client event has a use for a payload; a small one is read and forgotten.
MAX_PAYLOAD_BYTES = 1024 * 1024


async def read_event(reader: asyncio.StreamReader, first: bytes, timeout_s: float) -> Event | None:
    """The event whose first byte was read. Raises `ProtocolError`, or `DeadlineExceeded` when it takes too long."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_started(reader, first)
    except TimeoutError:
        raise DeadlineExceeded(f"an event was not complete after {timeout_s:.0f} s") from None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def encode(event: Event) -> bytes:
    """The whole event as one piece of bytes, so that it is written in one go."""
    header: dict[str, Any] = {"type": event.type, "version": wyoming_version}
    data = json.dumps(event.data, ensure_ascii=False).encode("utf-8", "replace") if event.data else b""
    if data:
        header["data_length"] = len(data)
    payload = event.payload or b""
    if payload:
        header["payload_length"] = len(payload)
    return json.dumps(header).encode() + b"\n" + data + payload


async def _read_started(reader: asyncio.StreamReader, first: bytes) -> Event:
    try:
        line = first + (b"" if first == b"\n" else await reader.readuntil(b"\n"))
    except asyncio.LimitOverrunError:
        raise ProtocolError(f"an event's first line is longer than {MAX_HEADER_BYTES} bytes") from None
    header = _json_object(line, "an event's first line")
    kind = header.get("type")
    if not isinstance(kind, str):
        raise ProtocolError("an event needs a `type`, a string")
    data_bytes = _length(header, "data_length", MAX_DATA_BYTES)
    payload_bytes = _length(header, "payload_length", MAX_PAYLOAD_BYTES)
    data = header.get("data")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ProtocolError("`data` of an event must be a JSON object")
    if data_bytes:
        data |= _json_object(await reader.readexactly(data_bytes), "the data section of an event")
    payload = await reader.readexactly(payload_bytes) if payload_bytes else None
    return Event(kind, data, payload)


def _json_object(text: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError(f"{what} must be a JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} must be a JSON object, not {type(value).__name__}")
    return value


def _length(header: dict[str, Any], name: str, most: int) -> int:
    value = header.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ProtocolError(f"`{name}` must be a whole number from 0 to {most}")
    return value
