"""The door's URLs as an OpenAPI 3.1 document."""

import functools
from typing import Any

from adapters.openai.schemas import ReloadBody, SpeechBody
from fishs2_daemon import __version__
from fishs2_daemon.audio.formats import FORMATS
from fishs2_daemon.voices.meta import TRANSCRIPT_CHARS

_SCHEMAS = "#/components/schemas/"


@functools.cache
def document() -> dict[str, Any]:
    """Of the URLs under /v1; each is there without the prefix, too."""
    speech = SpeechBody.model_json_schema(ref_template=_SCHEMAS + "{model}")
    schemas = {**speech.pop("$defs"), "Speech": speech, "Error": _ERROR, "Voice": _VOICE, "Upload": _UPLOAD}
    schemas["Reload"] = ReloadBody.model_json_schema()
    return {
        "openapi": "3.1.0",
        "info": {"title": "fishs2-daemon", "version": __version__, "description": _ABOUT},
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/audio/speech": {"post": _operation("Speak a text", _audio(), _body("application/json", "Speech"))},
            "/v1/audio/voices": {
                "get": _operation("List the voices; also at /v1/voices and /v1/files", _json()),
                "post": _operation("Store a voice", _json("Voice"), _body("multipart/form-data", "Upload")),
            },
            "/v1/audio/voices/{voice_id}": {
                "parameters": [_parameter("voice_id")],
                "get": _operation("Show a voice", _json("Voice")),
                "delete": _operation("Delete a stored voice", _json()),
            },
            "/v1/models": {"get": _operation("List the names that the model goes by", _json())},
            "/v1/models/{model_id}": {
                "parameters": [_parameter("model_id")],
                "get": _operation("Show one of them", _json()),
            },
            "/health": {"get": _operation("Whether the daemon lives, and what its engine does", _json())},
            "/ready": {"get": _operation("Whether a request would be spoken now", _json())},
            "/admin/reload": {
                "post": _operation(
                    "Read the settings again; another engine or quantisation takes over once it is ready",
                    _json(),
                    _body("application/json", "Reload", required=False),
                )
            },
            "/metrics": {"get": _operation("Figures for Prometheus", {"text/plain": {"schema": _TEXT}})},
        },
    }


_ABOUT = (
    "Speech by Fish Audio S2 Pro, or by a preview voice, which the header X-Fishs2-Engine tells. Errors are OpenAI's "
    "error object. Every URL under /v1 is there without /v1, too."
)

_TEXT: dict[str, Any] = {"type": "string"}

_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": _TEXT,
                "type": {"enum": ["invalid_request_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": _TEXT,
            },
        }
    },
}

_VOICE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "voice_id": _TEXT,
        "name": _TEXT,
        "object": {"const": "voice"},
        "type": {"enum": ["audio_sample", "engine"]},
        "created_at": {"type": "integer"},
        "language": {"type": ["string", "null"]},
        "languages": {"type": "array", "items": _TEXT},
        "prompt_text": {"type": ["string", "null"]},
    },
}

_UPLOAD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "recordings"},
        "audio_sample": {"type": "string", "format": "binary", "description": "OpenAI's name for a recording"},
        "voice_id": {"type": "string", "description": "the id; otherwise it comes from the name, or the file's name"},
        "name": _TEXT,
        "prompt_text": {"type": "string", "maxLength": TRANSCRIPT_CHARS, "description": "what the recording says"},
        "language": _TEXT,
        "model": _TEXT,
        "description": _TEXT,
    },
}


def _operation(summary: str, answer: dict[str, Any], body: dict[str, Any] | None = None) -> dict[str, Any]:
    responses = {
        "200": {"description": "It is done", "content": answer},
        "default": {"description": "It is not", "content": _json("Error")},
    }
    return {"summary": summary, "responses": responses, **({"requestBody": body} if body else {})}


def _body(content_type: str, schema: str, *, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {content_type: {"schema": {"$ref": _SCHEMAS + schema}}}}


def _json(schema: str | None = None) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMAS + schema} if schema else {"type": "object"}}}


def _audio() -> dict[str, Any]:
    types = [audio.content_type for audio in FORMATS.values()] + ["text/event-stream"]
    return {content_type: {"schema": _TEXT} for content_type in types}


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}
