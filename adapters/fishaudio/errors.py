"""Errors in the shapes of Fish Audio's APIs: an object, never a list."""

from sanic import HTTPResponse

from adapters.openai.errors import HttpError, json_response


def hosted_error(error: HttpError) -> HTTPResponse:
    """As the hosted service writes it. Its older client takes these two keys and no others."""
    return json_response({"status": error.status, "message": message_of(error)}, error.status, error.headers)


def local_error(error: HttpError) -> HTTPResponse:
    """As fish-speech's own server writes it, and with the `success` of its answers about references."""
    body = {"success": False, "statusCode": error.status, "message": message_of(error), "error": error.code}
    return json_response(body, error.status, error.headers)


def message_of(error: HttpError) -> str:
    """Cut to a length that is still an explanation."""
    return str(error.body()["error"]["message"])
