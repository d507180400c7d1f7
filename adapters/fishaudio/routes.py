"""The URLs of Fish Audio's APIs: the hosted service's, and those of fish-speech's own server."""

from adapters.fishaudio import account, references, tts, voices
from adapters.fishaudio.errors import hosted_error, local_error
from adapters.fishaudio.live import live
from adapters.openai import uploads
from adapters.openai.context import max_text_body_bytes
from adapters.openai.routes import Route
from adapters.openai.speech import max_body_bytes

_READ = ("GET", "HEAD")
_SPEECH = ("/v1/tts",)
_TIMED_SPEECH = ("/v1/tts/stream/with-timestamp",)
_VOICE = ("/model/<voice_id:path>",)
_NOT_HERE = ("/v1/asr", "/v1/vqgan/encode", "/v1/vqgan/decode")

#: A recording takes as long to come as one that is to be stored.
_UPLOAD_S = uploads.TIMEOUT_S

ROUTES: tuple[Route, ...] = (
    Route(tts.speak, ("POST",), _SPEECH, True, max_body_bytes, 0.0, hosted_error),
    Route(tts.speak_with_timestamps, ("POST",), _TIMED_SPEECH, True, max_body_bytes, 0.0, hosted_error),
    Route(live, ("GET",), ("/v1/tts/live",), error_response=hosted_error),
    Route(voices.list_voices, _READ, ("/model",), error_response=hosted_error),
    Route(voices.create_voice, ("POST",), ("/model",), True, uploads.max_body_bytes, _UPLOAD_S, hosted_error),
    Route(voices.retrieve_voice, _READ, _VOICE, error_response=hosted_error),
    Route(voices.update_voice, ("PATCH",), _VOICE, True, uploads.max_body_bytes, _UPLOAD_S, hosted_error),
    Route(voices.delete_voice, ("DELETE",), _VOICE, error_response=hosted_error),
    Route(account.credit, _READ, ("/wallet/self/api-credit",), error_response=hosted_error),
    Route(account.package, _READ, ("/wallet/self/package",), error_response=hosted_error),
    Route(account.not_here, ("POST",), _NOT_HERE, True, uploads.max_body_bytes, _UPLOAD_S, hosted_error),
    Route(references.health, ("GET", "HEAD", "POST"), ("/v1/health",), error_response=local_error),
    Route(references.list_references, _READ, ("/v1/references/list",), error_response=local_error),
    Route(
        references.add_reference,
        ("POST",),
        ("/v1/references/add",),
        True,
        uploads.max_body_bytes,
        _UPLOAD_S,
        local_error,
    ),
    Route(
        references.delete_reference,
        ("DELETE",),
        ("/v1/references/delete",),
        True,
        max_text_body_bytes,
        0.0,
        local_error,
    ),
    Route(
        references.rename_reference, ("POST",), ("/v1/references/update",), True, max_text_body_bytes, 0.0, local_error
    ),
)
