"""Who may ask: the Host and Origin of a request, CORS, API keys."""

import asyncio
import functools
import hashlib
import hmac
import re
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from sanic import HTTPResponse, Request

from adapters.openai.context import context_of
from adapters.openai.errors import HttpError
from fishs2_daemon.settings import ENV_PREFIX, Settings

#: Names that only a local resolver answers, so that no page from the internet can point one of its own at this box.
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")

#: Probes of supervisors and balancers, which hold no key.
_OPEN_PATHS = frozenset({"/health", "/ready"})

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[\w.~-]+)?\]|[^\[\]:@/\s]+)(?::(\d{1,5}))?")
_HEADER_LIST = re.compile(r"[A-Za-z0-9\-, ]{1,1024}")
_PREFLIGHT_AGE_S = 600

#: What pages may read of an answer's head beside what every page may.
_READABLE_HEADERS = "Retry-After, Content-Disposition, X-Fishs2-Engine, X-Fishs2-Voice"


async def check(request: Request) -> HTTPResponse | None:
    """Request middleware: None lets the request in, a CORS preflight is answered, anything else raises `HttpError`."""
    if not request.head:
        # Stands in for a request that could not be parsed; its own error goes out.
        return None
    settings = context_of(request).settings
    host = _host(request)
    if host is not None and not await _is_own_name(host[0], settings):
        raise HttpError(
            403, "host_not_allowed", f"This server does not answer to that Host; see {ENV_PREFIX}ALLOWED_HOSTS."
        )
    origin = request.headers.getone("origin", None)
    if origin is not None and not _is_own_origin(origin, host) and not _is_listed(origin, settings):
        raise HttpError(403, "origin_not_allowed", f"Pages of that origin may not ask; see {ENV_PREFIX}CORS_ORIGINS.")
    if origin is not None and request.method == "OPTIONS" and "access-control-request-method" in request.headers:
        return _preflight(request)
    if request.path.rstrip("/") not in _OPEN_PATHS:
        _check_key(request, settings)
    return None


def cors_headers(request: Request) -> dict[str, str]:
    """What lets a page of a listed origin read the answer; nothing for others."""
    settings = context_of(request).settings
    origin = request.headers.getone("origin", None)
    if not settings.cors_origins:
        return {}
    if origin is None or not _is_listed(origin, settings):
        return {"vary": "Origin"}
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": f"{settings.request_id_header}, {_READABLE_HEADERS}",
        "vary": "Origin",
    }


def _host(request: Request) -> tuple[str, str | None] | None:
    """Name and port that the request was sent to; None where HTTP/1.0 left them out."""
    values = [value.strip() for value in request.headers.getall("host", [])]
    if not values and request.version == "1.0":
        return None
    if len(values) != 1 or not (match := _HOST.fullmatch(values[0])):
        raise HttpError(400, "bad_host", "A request needs exactly one Host header with a name or an address.")
    return match[1].lower().rstrip("."), match[2]


async def _is_own_name(name: str, settings: Settings) -> bool:
    if name.startswith("["):
        return True
    if "." not in name or name.endswith(_LOCAL_SUFFIXES) or name in map(str.lower, settings.allowed_hosts):
        return True
    own = socket.gethostname().lower()
    if name == own or _is_address(name):
        return True
    # The full name takes a resolver, so it is asked for only where it can match.
    return name.partition(".")[0] == own.partition(".")[0] and name == await asyncio.to_thread(_full_name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


@functools.cache
def _full_name() -> str:
    return socket.getfqdn().lower()


def _is_own_origin(origin: str, host: tuple[str, str | None] | None) -> bool:
    if host is None:
        return False
    try:
        parts = urlsplit(origin.lower())
        name, port = parts.hostname, parts.port
    except ValueError:
        return False
    default = {"http": 80, "https": 443}.get(parts.scheme)
    if default is None or name is None:
        return False
    return (name.rstrip("."), port or default) == (host[0].strip("[]"), int(host[1] or default))


def _is_listed(origin: str, settings: Settings) -> bool:
    return origin.lower() in (listed.lower().rstrip("/") for listed in settings.cors_origins)


def _preflight(request: Request) -> HTTPResponse:
    headers = {
        "access-control-allow-methods": "GET, HEAD, POST, PATCH, DELETE",
        "access-control-max-age": str(_PREFLIGHT_AGE_S),
    }
    wanted = request.headers.getone("access-control-request-headers", "")
    if _HEADER_LIST.fullmatch(wanted):
        headers["access-control-allow-headers"] = wanted
    return HTTPResponse(status=204, headers=headers)


def _check_key(request: Request, settings: Settings) -> None:
    if not settings.api_keys:
        return
    scheme, _, token = request.headers.getone("authorization", "").partition(" ")
    digest = _digest(token.strip())
    # Every key is compared, whether or not an earlier one fitted: the time tells nothing.
    fits = [hmac.compare_digest(digest, _digest(key.get_secret_value())) for key in settings.api_keys]
    if scheme.lower() != "bearer" or not any(fits):
        raise HttpError(
            401,
            "invalid_api_key",
            "This server needs an API key, sent as `Authorization: Bearer KEY`, and this is not one of its keys.",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
