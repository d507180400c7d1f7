"""`POST /admin/reload`: what SIGHUP does, with an answer."""

from ipaddress import ip_network

from sanic import HTTPResponse, Request

from adapters.openai.bodies import body_of
from adapters.openai.context import context_of
from adapters.openai.errors import HttpError, json_response
from adapters.openai.routes import Route
from adapters.openai.schemas import ReloadBody
from fishs2_daemon.artifacts.errors import ArtifactError
from fishs2_daemon.errors import ConfigError, without_paths
from fishs2_daemon.peers import is_allowed
from fishs2_daemon.reload import Reload
from fishs2_daemon.settings import ENV_PREFIX

#: RFC 1122 and 4291.
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

#: A proxy on this machine asks for somebody else.
_FORWARDED = frozenset({"forwarded", "x-forwarded-for", "x-real-ip"})

_MAX_BODY_BYTES = 4096


def route(reload: Reload) -> Route:
    """The URL of a daemon that `reload` changes."""

    async def change(request: Request) -> HTTPResponse:
        """Answers once it is done, also where a model is fetched and loaded; goes on when the client leaves."""
        context = context_of(request)
        peer = request.transport.get_extra_info("peername") if request.transport else None
        is_local = is_allowed(peer, _LOOPBACK) and _FORWARDED.isdisjoint(request.headers)
        if not context.settings.api_keys and not is_local:
            words = f"Only this machine may ask that, or with {ENV_PREFIX}API_KEYS who has one of them."
            raise HttpError(403, "not_from_here", words)
        async with body_of(request, _MAX_BODY_BYTES) as body:
            changes = ReloadBody.parse(body).model_dump(exclude_none=True) if body.strip() else {}
        try:
            reloaded = await reload(**changes)
        except ConfigError as error:
            raise HttpError(422, "invalid_value", without_paths(str(error))) from None
        except ArtifactError as error:
            raise HttpError(503, "engine_unavailable", without_paths(str(error))) from None
        return json_response({"status": "reloaded", "engine": reloaded.engine, "needs_restart": list(reloaded.stale)})

    return Route(
        change, ("POST",), ("/admin/reload",), reads_body=True, max_body_bytes=lambda settings: _MAX_BODY_BYTES
    )
