"""`/health`, `/ready`, `/metrics`: answered from memory, whatever the engine does."""

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sanic import HTTPResponse, Request

from adapters.openai.answers import is_preview
from adapters.openai.context import DoorContext, context_of
from adapters.openai.errors import HttpError, json_response
from adapters.openai.models import model_names
from fishs2_daemon import __version__
from fishs2_daemon.errors import without_paths
from fishs2_daemon.speech import EngineState

_RETRY_AFTER_S = 2


async def health(request: Request) -> HTTPResponse:
    """The daemon lives. Supervisors restart it when this is not 200 with `status: ok`, so nothing may change that."""
    context = context_of(request)
    service, settings = context.service, context.settings
    body = {
        "status": "ok",
        "version": __version__,
        **_engine(context),
        "model_count": len(model_names(settings)),
        "voice_count": len(service.voices()),
        "backend": settings.backend,
        "gpu_device": settings.gpu_device[0],
        "running": service.running,
        "waiting": service.waiting,
    }
    return json_response(body)


async def ready(request: Request) -> HTTPResponse:
    """Whether a request would be spoken now, or wakes the engine that speaks it."""
    context = context_of(request)
    engine = _engine(context)
    if context.draining:
        engine |= {"state": "stopping", "detail": "the daemon is shutting down"}
    elif context.service.state in (EngineState.READY, EngineState.UNLOADED):
        return json_response({"status": "ready", **engine})
    error = HttpError(503, "not_ready", f"Not ready: {engine['detail'] or engine['state']}")
    return json_response({"status": "not_ready", **engine, **error.body()}, 503, {"Retry-After": str(_RETRY_AFTER_S)})


async def metrics(request: Request) -> HTTPResponse:
    context = context_of(request)
    return HTTPResponse(generate_latest(context.service.metrics.registry), content_type=CONTENT_TYPE_LATEST)


def _engine(context: DoorContext) -> dict[str, Any]:
    service = context.service
    return {
        "engine": service.engine.name if service.engine else None,
        "preview": service.engine is not None and is_preview(service.engine.name),
        "state": service.state.value,
        "detail": without_paths(service.detail),
    }
