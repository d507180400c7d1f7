"""URLs of another API in the same door."""

import json
import socket

from sanic import HTTPResponse, Request

from adapters.openai.bodies import body_of
from adapters.openai.errors import HttpError, json_response
from adapters.openai.routes import Route, everywhere
from adapters.openai.server import HttpDoor
from fishs2_daemon.errors import UnknownVoice
from fishs2_daemon.settings import Settings
from tests.adapters.openai.harness import FakeService, Running


async def echo(request: Request) -> HTTPResponse:
    async with body_of(request, 1000) as data:
        if not data:
            raise UnknownVoice("nobody")
        return json_response({"bytes": len(data)})


def in_its_own_shape(error: HttpError) -> HTTPResponse:
    return json_response({"status": error.status, "message": str(error)}, error.status, error.headers)


async def test_more_routes() -> None:
    settings = Settings(_env_file=None, api_keys=["k"])
    route = Route(echo, ("POST",), everywhere("/echo"), True, lambda _: 1000, error_response=in_its_own_shape)
    door = HttpDoor(FakeService(settings), settings, [route])
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    port = sock.getsockname()[1]
    await door.start(sock)
    running = Running(door, door._context.service, settings, port)
    key = {"Authorization": "Bearer k"}
    assert json.loads((await running.request("POST", "/v1/echo", b"abc", key)).body) == {"bytes": 3}
    for body, headers, status in ((b"", key, 404), (bytes(1001), key, 413), (b"abc", {}, 401)):
        answer = await running.request("POST", "/echo", body, headers)
        assert answer.status == json.loads(answer.body)["status"] == status
    raw = await running.exchange(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer k\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3e9\r\n" + bytes(1001) + b"\r\n0\r\n\r\n"
    )
    assert b" 413 " in raw
    assert b'"status": 413' in raw
    assert (await running.request("POST", "/nowhere", b"", key)).error["code"] == "unknown_url"
    await door.close()
