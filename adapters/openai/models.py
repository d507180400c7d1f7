"""`/v1/models`: the names under which the one model is asked for."""

from typing import Any
from urllib.parse import unquote

from sanic import HTTPResponse, Request

from adapters.openai.context import context_of
from adapters.openai.errors import HttpError, json_response
from fishs2_daemon.settings import Settings

#: What clients of OpenAI's service send unless told otherwise; some offer only names with "tts" in them.
_OPENAI_NAMES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")


async def list_models(request: Request) -> HTTPResponse:
    names = model_names(context_of(request).settings)
    return json_response({"object": "list", "data": [_entry(name) for name in names]})


async def retrieve_model(request: Request, model_id: str) -> HTTPResponse:
    """`model_id` may hold a slash, as %2F or plain."""
    return json_response(_entry(find_model(context_of(request).settings, unquote(model_id))))


def model_names(settings: Settings) -> list[str]:
    """In the order that clients see: the default, its aliases, OpenAI's names."""
    names = [settings.default_model, *settings.model_aliases, *_OPENAI_NAMES]
    return list({name.strip().lower(): name for name in reversed(names)}.values())[::-1]


def find_model(settings: Settings, asked: str) -> str:
    """The listed name that `asked` means, whatever its case. Raises `HttpError` (404)."""
    for name in model_names(settings):
        if name.strip().lower() == asked.strip().lower():
            return name
    allowed = ", ".join(model_names(settings))
    raise HttpError(
        404, "model_not_found", f"There is no model {asked[:100]!r} here; there are {allowed}.", param="model"
    )


def _entry(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "fishs2-daemon"}
