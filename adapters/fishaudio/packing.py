"""MessagePack, bounded: a few bytes of it may stand for much more memory."""

from typing import Any

import msgpack

from adapters.openai.errors import HttpError

#: Entries of one list or map; no request has uses for more.
_ENTRIES = 256

#: Lists and maps of one message.
_CONTAINERS = 4096


def packed(message: Any) -> bytes:
    return bytes(msgpack.packb(message))


def unpacked(data: bytes) -> Any:
    """Raises `HttpError` (422)."""
    bound = _Bound()
    try:
        return msgpack.unpackb(
            data, max_array_len=_ENTRIES, max_map_len=_ENTRIES, max_ext_len=0, object_hook=bound, list_hook=bound
        )
    # Of the last two, the first is raised by the package's form without native code.
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise HttpError(422, "invalid_msgpack", f"The body is no MessagePack: {error or 'it ends too early'}") from None


class _Bound:
    """A hook that counts."""

    def __init__(self) -> None:
        self._left = _CONTAINERS

    def __call__(self, container: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {_CONTAINERS} lists and maps")
        return container
