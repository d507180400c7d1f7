"""Bodies as MessagePack, JSON or a form, into models."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sanic import Request

from adapters.fishaudio.packing import unpacked
from adapters.openai import uploads
from adapters.openai.bodies import body_of
from adapters.openai.context import context_of
from adapters.openai.errors import HttpError

MSGPACK = frozenset({"application/msgpack", "application/x-msgpack", "application/vnd.msgpack"})
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")

#: Fields of a form that are objects or lists, and so are written in JSON there.
_NESTED = ("references", "prosody")

#: A body that is parsed on the loop; a larger one holds nobody else up.
_SMALL_BODY_BYTES = 64 * 1024

#: An error names the place of a wrong value, which a client may have invented.
_PARAM_CHARS = 100

Model = TypeVar("Model", bound=BaseModel)


@asynccontextmanager
async def model_of(request: Request, model: type[Model], max_bytes: int) -> AsyncIterator[Model]:
    """The body as `model`. While the context lasts, a large one is one of the few that are in memory at a time.

    Raises `HttpError`: 413, 415 for a type that is not read, 422 that names the first wrong field.
    """
    kind = request.headers.getone("content-type", "application/json").partition(";")[0].strip().lower()
    if kind in _FORMS:
        async with context_of(request).uploads, uploads.receive(request) as form:
            fields = _fields(form)
        yield validated(model, fields)
        return
    if kind in MSGPACK:
        parse: Callable[[bytes], Model] = lambda data: validated(model, unpacked(data))  # noqa: E731
    elif kind == "application/json":
        parse = lambda data: _of_json(model, data)  # noqa: E731
    else:
        allowed = "application/msgpack, application/json, multipart/form-data"
        raise HttpError(415, "unsupported_media_type", f"The body's type is {kind[:100]!r}; allowed: {allowed}.")
    async with body_of(request, max_bytes) as data:
        body = parse(data) if len(data) <= _SMALL_BODY_BYTES else await asyncio.to_thread(parse, data)
        del data
        yield body


def validated(model: type[Model], value: Any) -> Model:
    """Raises `HttpError` (422)."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _explain(error) from None


def _of_json(model: type[Model], data: bytes) -> Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> HttpError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(map(str, first["loc"]))[:_PARAM_CHARS]
    if not param:
        return HttpError(422, "invalid_body", f"The body is no object: {first['msg']}")
    return HttpError(422, "invalid_value", f"{param}: {first['msg']}", param=param)


def _fields(form: uploads.Form) -> dict[str, Any]:
    if form.files:
        name = form.files[0].name[:_PARAM_CHARS]
        message = f"{name}: files are not read from a form here; send the body as application/msgpack"
        raise HttpError(422, "invalid_value", message, param=name)
    fields: dict[str, Any] = {}
    for name, values in form.fields.items():
        fields[name] = values[0] if len(values) == 1 else values
        if name in _NESTED:
            try:
                fields[name] = json.loads(values[0])
            except (ValueError, RecursionError):
                raise HttpError(422, "invalid_value", f"{name}: JSON, in a form", param=name) from None
    return fields
