"""What the hosted service has and a box at home has not: a purse, and speech recognition."""

from sanic import HTTPResponse, Request

from adapters.fishaudio.voice_entries import AUTHOR_ID
from adapters.openai.errors import HttpError, json_response

#: Nothing is counted here, and no client shall believe that it has run out.
_PLENTY = 1_000_000

_EVER = {
    "user_id": AUTHOR_ID,
    "created_at": "1970-01-01T00:00:00Z",
    "updated_at": "1970-01-01T00:00:00Z",
}


async def credit(request: Request) -> HTTPResponse:
    return json_response({"_id": "credit", "credit": str(_PLENTY), "has_free_credit": True, **_EVER})


async def package(request: Request) -> HTTPResponse:
    purse = {"_id": "package", "type": "local", "total": _PLENTY, "balance": _PLENTY}
    return json_response({**purse, **_EVER, "finished_at": "9999-12-31T00:00:00Z"})


async def not_here(request: Request) -> HTTPResponse:
    raise HttpError(501, "not_implemented", f"{request.path}: this server makes speech, and nothing else.")
