"""Forms with files: on their way to disk as they arrive, never whole in memory."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from sanic import Request

from adapters.openai.bodies import body_blocks
from adapters.openai.context import context_of
from adapters.openai.errors import HttpError
from adapters.openai.multipart import MultipartParser, Part, PartEnd, boundary_of
from fishs2_daemon.errors import StorageError, UploadTooLarge
from fishs2_daemon.settings import Settings
from fishs2_daemon.voices.clips import UploadedClip
from fishs2_daemon.voices.limits import VoiceLimits

#: Time for an upload: what clients wait for it themselves.
TIMEOUT_S = 120.0

#: A transcript of 4096 characters takes at most 16 KiB.
_FIELD_BYTES = 64 * 1024
_FIELDS_BYTES = 1024 * 1024

#: Fields and files; no client sends more than one form has uses for.
_PARTS = 128

#: What is written to the disk at once, in a thread.
_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file of a form, at `path` as long as the form is there. `filename` is the sender's word."""

    name: str
    filename: str
    path: Path
    size_bytes: int


@dataclass(slots=True)
class Form:
    fields: dict[str, list[str]] = field(default_factory=dict)
    files: list[FormFile] = field(default_factory=list)

    def text(self, *names: str) -> str | None:
        """The first field of these names that is not blank."""
        values = (value.strip() for name in names for value in self.fields.get(name, ()))
        return next((value for value in values if value), None)

    def clips(self, *names: str) -> list[UploadedClip]:
        """The files of these names that are not empty, in the order of the names."""
        return [
            UploadedClip(file.filename, file.path)
            for name in names
            for file in self.files
            if file.name == name and file.size_bytes
        ]


def max_body_bytes(_: Settings) -> int:
    """All clips of a voice, one of them twice, and the fields around them."""
    limits = VoiceLimits()
    return limits.voice_bytes + limits.clip_bytes + _FIELDS_BYTES


@asynccontextmanager
async def receive(request: Request, max_file_bytes: int = VoiceLimits().clip_bytes) -> AsyncIterator[Form]:
    """The form in a request's body, multipart or urlencoded. Its files are gone when the context ends.

    Raises `HttpError` (422, and 413 for the whole), and `UploadTooLarge` for one part of it.
    """
    content_type = request.headers.getone("content-type", "")
    if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded":
        yield await _urlencoded(request)
        return
    parser = MultipartParser(boundary_of(content_type))
    folder = Path(tempfile.mkdtemp(dir=context_of(request).references.folder))
    try:
        reader = _Reader(folder, max_file_bytes)
        settings = context_of(request).settings
        most = min(max_body_bytes(settings), request.ctx.door_route.max_body_bytes(settings))
        async for block in body_blocks(request, most):
            for item in parser.feed(block):
                match item:
                    case Part():
                        reader.begin(item)
                    case PartEnd():
                        await reader.end()
                    case _:
                        await reader.write(item)
        parser.finish()
        yield reader.form
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _urlencoded(request: Request) -> Form:
    body = bytearray()
    async for block in body_blocks(request, _FIELDS_BYTES):
        body += block
    form = Form()
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_PARTS)
    except ValueError:
        message = f"The body is no urlencoded form of at most {_PARTS} fields."
        raise HttpError(422, "invalid_multipart", message) from None
    for name, value in pairs:
        form.fields.setdefault(name, []).append(value)
    return form


class _Reader:
    """Sorts parts into fields and files."""

    def __init__(self, folder: Path, max_file_bytes: int) -> None:
        self.form = Form()
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._parts = 0
        self._fields_bytes = 0
        self._begin(Part("", None))

    def begin(self, part: Part) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise UploadTooLarge(f"a form has at most {_PARTS} parts")
        self._begin(part)

    async def write(self, data: bytes) -> None:
        name = self._part.name[:40]
        self._size_bytes += len(data)
        if self._part.filename is None:
            self._fields_bytes += len(data)
            if self._size_bytes > _FIELD_BYTES or self._fields_bytes > _FIELDS_BYTES:
                raise UploadTooLarge(f"{name}: a field has at most {_FIELD_BYTES} bytes", param=name)
        elif self._size_bytes > self._max_file_bytes:
            raise UploadTooLarge(f"{name}: a file has at most {self._max_file_bytes} bytes", param=name)
        self._held += data
        if self._part.filename is not None and len(self._held) >= _BLOCK_BYTES:
            await self._spill()

    async def end(self) -> None:
        part = self._part
        if part.filename is None:
            self.form.fields.setdefault(part.name, []).append(self._held.decode("utf-8", "replace"))
            return
        await self._spill()
        self.form.files.append(FormFile(part.name, part.filename, self._path, self._size_bytes))

    def _begin(self, part: Part) -> None:
        self._part = part
        self._path = self._folder / f"part-{self._parts}"
        self._held = bytearray()
        self._size_bytes = 0

    async def _spill(self) -> None:
        held, self._held = self._held, bytearray()
        await asyncio.to_thread(_append, self._path, held)


def _append(path: Path, data: bytearray) -> None:
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise StorageError(f"the upload was not kept: {error.strerror}") from None
