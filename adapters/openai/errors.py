"""Whatever goes wrong reaches an HTTP client as OpenAI's error object: `{"error": {message, type, param, code}}`."""

import json
import logging
from asyncio import CancelledError
from collections.abc import Mapping
from typing import Any, cast

from sanic import HTTPResponse, Request
from sanic.exceptions import MethodNotAllowed, SanicException
from sanic.handlers import ErrorHandler

from adapters.openai.identity import request_id
from fishs2_daemon import errors

_log = logging.getLogger(__name__)

#: A message may quote what the client sent; this keeps it an explanation.
_MESSAGE_CHARS = 400


class HttpError(Exception):
    """An answer other than the one asked for."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message = str(self)
        if len(message) > _MESSAGE_CHARS:
            message = message[:_MESSAGE_CHARS] + "..."
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> HTTPResponse:
        return json_response(self.body(), self.status, self.headers)


class ErrorObjects(ErrorHandler):
    """Sanic's last word on every exception that ends a request without an answer."""

    def response(self, request: Request, exception: BaseException) -> HTTPResponse:
        error = as_http_error(exception)
        if isinstance(exception, errors.Fishs2Error):
            if error.status >= 500:
                _log.warning("id=%s %s: %s", request_id(request), error.code, exception)
        elif not isinstance(exception, HttpError | SanicException | CancelledError):
            _log.error("id=%s unexpected error", request_id(request), exc_info=exception)
        # What the URL is for tells whose shape the error has, even where its handler was not reached.
        route = getattr(request.ctx, "door_route", None)
        return error.response() if route is None else cast(HTTPResponse, route.error_response(error))


def as_http_error(exception: BaseException) -> HttpError:
    """What a client is told of `exception`; an unexpected one tells nothing of itself."""
    match exception:
        case HttpError():
            return exception
        case errors.TextTooLong():
            return HttpError(413, "text_too_long", str(exception), param=exception.param or "input")
        case errors.UnknownVoice():
            return HttpError(404, "voice_not_found", str(exception), param=exception.param or "voice")
        case errors.MissingFiles():
            return HttpError(400, "missing_files", str(exception), param=exception.param or "files")
        case errors.UploadTooLarge():
            return HttpError(413, "upload_too_large", str(exception), param=exception.param)
        case errors.VoiceExists() | errors.TooManyVoices():
            code = exception.code.replace("-", "_")
            return HttpError(409, code, str(exception), param=exception.param, headers={"x-should-retry": "false"})
        case errors.MissingTranscript():
            return HttpError(422, "missing_prompt_text", str(exception), param=exception.param)
        case errors.InvalidReferenceAudio() | errors.BrokenVoice():
            return HttpError(422, exception.code.replace("-", "_"), str(exception), param=exception.param)
        case errors.RequestError():
            return HttpError(422, "invalid_value", str(exception), param=exception.param)
        case errors.Unavailable():
            return _unavailable(exception)
        case errors.DeadlineExceeded():
            return HttpError(504, "deadline_exceeded", errors.without_paths(str(exception)))
        case errors.WorkerCrashed():
            return HttpError(500, "engine_crashed", errors.without_paths(str(exception)))
        case errors.SynthesisError():
            return HttpError(500, "generation_failed", errors.without_paths(str(exception)))
        case errors.StorageError():
            no_retry = {"x-should-retry": "false"}
            return HttpError(507, "insufficient_storage", errors.without_paths(str(exception)), headers=no_retry)
        case CancelledError():
            return HttpError(503, "cancelled", "The request was cancelled.", headers={"Retry-After": "1"})
        case SanicException():
            return _sanic(exception)
    return HttpError(500, "internal_server_error", "Internal server error")


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    return HTTPResponse(json.dumps(body), status, dict(headers or {}), "application/json")


def _unavailable(error: errors.Unavailable) -> HttpError:
    headers = {"Retry-After": str(error.retry_after_s)}
    match error:
        case errors.Loading():
            code = "engine_loading"
        case errors.ShuttingDown():
            code = "shutting_down"
        case errors.EngineUnavailable():
            code = "engine_unavailable"
            # Somebody has to repair it first: OpenAI's clients would wait for nothing.
            headers["x-should-retry"] = "false"
        case _:
            code = "server_busy"
    return HttpError(503, code, errors.without_paths(str(error)), headers=headers)


def _sanic(error: SanicException) -> HttpError:
    match error.status_code:
        case 400:
            return HttpError(400, "bad_request", "This is not a well-formed HTTP/1.1 request.")
        case 404:
            return HttpError(404, "unknown_url", "There is nothing at this URL; speech is at POST /v1/audio/speech.")
        case 405:
            allowed = ", ".join(sorted(error.allowed_methods or ())) if isinstance(error, MethodNotAllowed) else ""
            message = f"This URL does not take that method; allowed: {allowed}."
            return HttpError(405, "method_not_allowed", message, headers={"Allow": allowed})
        case 413:
            return HttpError(413, "request_too_large", "The request's body is too large.")
        case 417:
            return HttpError(417, "expectation_failed", "Of Expect only 100-continue is understood.")
        case status if status < 500:
            return HttpError(status, "bad_request", "The request cannot be served.")
    _log.error("the HTTP server failed", exc_info=error)
    return HttpError(500, "internal_server_error", "Internal server error")
