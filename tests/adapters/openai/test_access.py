import re
import socket

import pytest

from adapters.openai import access
from tests.adapters.openai.harness import Answer, Running, Start

PAGE = "http://ui.example:3000"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8020",
        "[::1]:8020",
        "192.168.1.4",
        "localhost",
        "LOCALHOST:80",
        "localhost.",
        "a.localhost",
        "fishbox",
        "fishbox.local",
        "host.docker.internal",
        "box.lan",
        "box.home.arpa:80",
        "speech.example.org",
        socket.gethostname(),
    ],
)
async def test_own_hosts(start: Start, host: str) -> None:
    running = await start(allowed_hosts=["Speech.example.org"])
    assert (await running.request("GET", "/v1/models", headers={"Host": host})).status == 200


async def test_own_full_name(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    access._full_name.cache_clear()
    monkeypatch.setattr(socket, "gethostname", lambda: "fishbox")
    monkeypatch.setattr(socket, "getfqdn", lambda: "fishbox.example.org")
    try:
        assert (await running.request("GET", "/health", headers={"Host": "fishbox.example.org"})).status == 200
        assert (await running.request("GET", "/health", headers={"Host": "fishbox.evil.org"})).status == 403
    finally:
        access._full_name.cache_clear()


@pytest.mark.parametrize(
    "host", ["evil.org", "127.0.0.1.evil.org", "local.evil.org", "evillocalhost.org", "x.local.co"]
)
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere"])
async def test_foreign_hosts(running: Running, host: str, path: str) -> None:
    answer = await running.request("GET", path, headers={"Host": host})
    assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")
    assert "FISHS2_ALLOWED_HOSTS" in answer.error["message"]


@pytest.mark.parametrize(
    "lines", [b"", b"Host:\r\n", b"Host: a b\r\n", b"Host: u@localhost\r\n", b"Host: a\r\nHost: a\r\n"]
)
async def test_missing_or_broken_host(running: Running, lines: bytes) -> None:
    raw = await running.exchange(b"GET /health HTTP/1.1\r\nConnection: close\r\n" + lines + b"\r\n")
    assert (Answer.parse(raw).status, Answer.parse(raw).error["code"]) == (400, "bad_host")


@pytest.mark.parametrize(
    "origin", ["http://evil.org", "null", "https://localhost:9", "file://", "chrome-extension://x"]
)
async def test_foreign_origins(running: Running, origin: str) -> None:
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    answer = await running.request("POST", "/v1/audio/speech", b"{}", headers)
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://fishbox.local:8020", "fishbox.local:8020"),
        ("http://fishbox.local", "Fishbox.local:80"),
        ("https://fishbox.local", "fishbox.local"),
        ("http://[::1]:8020", "[::1]:8020"),
    ],
)
async def test_same_origin(running: Running, origin: str, host: str) -> None:
    answer = await running.request("GET", "/v1/models", headers={"Origin": origin, "Host": host})
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


async def test_listed_origin_may_read(start: Start) -> None:
    running = await start(cors_origins=[PAGE])
    for path, status in (("/v1/models", 200), ("/v1/models/x", 404)):
        answer = await running.request("GET", path, headers={"Origin": PAGE})
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "Origin"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]


async def test_preflight(start: Start) -> None:
    running = await start(cors_origins=[PAGE], api_keys=["k"])
    wanted = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-os",
    }
    answer = await running.request("OPTIONS", "/v1/audio/speech", headers={"Origin": PAGE} | wanted)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "POST" in answer.headers["access-control-allow-methods"]
    foreign = await running.request("OPTIONS", "/v1/audio/speech", headers={"Origin": "http://evil.org"} | wanted)
    assert foreign.status == 403


async def test_keys(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    running = await start(api_keys=["first-secret", "zweiter-schlüssel"])
    caplog.set_level("DEBUG")
    for token in ("Bearer first-secret", "bearer  first-secret", "Bearer zweiter-schl\xc3\xbcssel"):
        assert (await running.request("GET", "/models", headers={"Authorization": token})).status == 200
    for token in ("Bearer wrong-secret", "Basic first-secret", "first-secret", "Bearer", "Bearer \xff\xfe", ""):
        answer = await running.request("GET", "/models", headers={"Authorization": token})
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    for method, path in (("POST", "/v1/audio/speech"), ("GET", "/metrics"), ("GET", "/nowhere"), ("PUT", "/models")):
        assert (await running.request(method, path)).status == 401
    for path in ("/health", "/ready"):
        assert (await running.request("GET", path)).status == 200
    assert "secret" not in caplog.text


async def test_keys_change_on_reload(running: Running) -> None:
    assert (await running.request("GET", "/models", headers={"Authorization": "Bearer bogus"})).status == 200
    running.settings.api_keys = type(running.settings)(_env_file=None, api_keys=["k"]).api_keys
    assert (await running.request("GET", "/models", headers={"Authorization": "Bearer bogus"})).status == 401


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("abc-DEF_1.2", "abc-DEF_1.2"),
        ("a b;c", "abc"),
        ("é٣²x", "x"),
        ("x" * 300, "x" * 128),
        ("", "[0-9a-f]{32}"),
        ("; /", "[0-9a-f]{32}"),
    ],
)
async def test_request_ids(start: Start, given: str, expected: str) -> None:
    running = await start(request_id_header="X-Trace")
    for path in ("/health", "/nowhere"):
        head = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Trace: {given}\r\n\r\n"
        answer = Answer.parse(await running.exchange(head.encode()))
        assert re.fullmatch(expected, answer.headers["x-trace"])
