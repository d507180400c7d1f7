"""multipart/form-data (RFC 7578) as it arrives, in bounded memory."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote

from adapters.openai.errors import HttpError

#: Of one part; a file's name and type take a tenth of it.
HEAD_BYTES = 8192

#: Before the first boundary, where nothing belongs.
_PREAMBLE_BYTES = 1024

#: Spaces that a gateway may put behind a boundary.
_PADDING_BYTES = 64

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,199}[0-9A-Za-z'()+_,\-./:=?]")
_PARAMETER = re.compile(r';\s*([\w!#$&+.^`|~*-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;"\s]*)')


@dataclass(frozen=True, slots=True)
class Part:
    """The head of a part; `filename` is None for a plain field."""

    name: str
    filename: str | None


class PartEnd:
    """What is behind the last bytes of a part."""


END_OF_PART = PartEnd()


class _State(Enum):
    PREAMBLE = auto()
    BOUNDARY = auto()
    HEAD = auto()
    DATA = auto()
    EPILOGUE = auto()


class MultipartParser:
    """`feed` yields a `Part`, its bytes in pieces, `END_OF_PART`, and so on; `finish` when the body is over.

    Raises `HttpError` (422) for what is not well formed.
    """

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("latin-1")
        self._state = _State.PREAMBLE
        # The first boundary may stand at the very start, without a line end in front.
        self._buffer = bytearray(b"\r\n")

    def feed(self, data: bytes) -> Iterator[Part | bytes | PartEnd]:
        self._buffer += data
        while True:
            before = self._state, len(self._buffer)
            match self._state:
                case _State.PREAMBLE:
                    self._skip_preamble()
                case _State.BOUNDARY:
                    self._read_boundary()
                case _State.HEAD:
                    yield from self._read_head()
                case _State.DATA:
                    yield from self._read_data()
                case _State.EPILOGUE:
                    self._buffer.clear()
            if before == (self._state, len(self._buffer)):
                return

    def finish(self) -> None:
        if self._state is not _State.EPILOGUE:
            raise malformed("it ends before its last boundary")

    def _skip_preamble(self) -> None:
        at = self._buffer.find(self._delimiter)
        if at > _PREAMBLE_BYTES or (at < 0 and len(self._buffer) > _PREAMBLE_BYTES + len(self._delimiter)):
            raise malformed("its boundary is not there")
        if at >= 0:
            del self._buffer[: at + len(self._delimiter)]
            self._state = _State.BOUNDARY

    def _read_boundary(self) -> None:
        if self._buffer.startswith(b"--"):
            self._state = _State.EPILOGUE
            return
        at = self._buffer.find(b"\r\n", 0, _PADDING_BYTES)
        if at < 0 and len(self._buffer) < _PADDING_BYTES:
            return
        if at < 0 or self._buffer[:at].strip(b" \t"):
            raise malformed("a boundary goes on")
        # The line end stays: a part without any head begins with an empty line.
        del self._buffer[:at]
        self._state = _State.HEAD

    def _read_head(self) -> Iterator[Part]:
        at = self._buffer.find(b"\r\n\r\n", 0, HEAD_BYTES)
        if at >= 0:
            lines = self._buffer[:at].decode("utf-8", "replace").split("\r\n")[1:]
            del self._buffer[: at + 4]
            self._state = _State.DATA
            yield _part(lines)
        elif len(self._buffer) >= HEAD_BYTES:
            raise malformed(f"the head of a part has more than {HEAD_BYTES} bytes")

    def _read_data(self) -> Iterator[bytes | PartEnd]:
        at = self._buffer.find(self._delimiter)
        usable = at if at >= 0 else len(self._buffer) - len(self._delimiter) + 1
        if usable > 0:
            piece = bytes(self._buffer[:usable])
            del self._buffer[:usable]
            yield piece
        if at >= 0:
            del self._buffer[: len(self._delimiter)]
            self._state = _State.BOUNDARY
            yield END_OF_PART


def boundary_of(content_type: str) -> str:
    """Raises `HttpError` (422) where it is none of multipart/form-data."""
    kind, _, rest = content_type.partition(";")
    boundary = _parameters(";" + rest).get("boundary", "")
    if kind.strip().lower() != "multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
        raise HttpError(422, "invalid_multipart", "Send the files as multipart/form-data, with a boundary.")
    return boundary


def malformed(what: str) -> HttpError:
    return HttpError(422, "invalid_multipart", f"The multipart body is not well formed: {what}.")


def _part(lines: list[str]) -> Part:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise malformed("a line of a part's head has no colon")
        headers[name.strip().lower()] = value.strip()
    if headers.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise malformed("a part has a transfer encoding")
    kind, _, rest = headers.get("content-disposition", "").partition(";")
    parameters = _parameters(";" + rest)
    if kind.strip().lower() != "form-data" or "name" not in parameters:
        raise malformed("a part has no name")
    filename = parameters.get("filename")
    charset, _, encoded = parameters.get("filename*", "").partition("''")
    if charset.lower() == "utf-8":
        filename = unquote(encoded)
    return Part(parameters["name"], filename)


def _parameters(text: str) -> dict[str, str]:
    """Of a header's value. Browsers write a quote as %22, older programs as a backslash and a quote."""
    found = {}
    for name, value in _PARAMETER.findall(text):
        quoted = value.startswith('"')
        found[name.lower()] = value[1:-1].replace('\\"', '"').replace("%22", '"') if quoted else value
    return found
