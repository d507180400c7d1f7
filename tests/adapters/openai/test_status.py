import json
from dataclasses import replace

import pytest

from fishs2_daemon.speech import EngineState
from tests.adapters.openai.harness import Running, Start


@pytest.mark.parametrize("state", EngineState)
async def test_health_is_always_ok(running: Running, state: EngineState) -> None:
    running.service.state = state
    running.service.engine = None
    answer = await running.request("GET", "/health")
    body = json.loads(answer.body)
    assert (answer.status, body["status"], body["state"], body["engine"]) == (200, "ok", state.value, None)


async def test_health_fields(running: Running) -> None:
    body = json.loads((await running.request("GET", "/health")).body)
    assert isinstance(body["version"], str)
    assert (body["engine"], body["preview"], body["model_count"], body["voice_count"]) == ("fake", False, 7, 2)
    assert (body["backend"], body["gpu_device"]) == ("auto", 0)


async def test_health_tells_a_preview(running: Running) -> None:
    running.service.engine = replace(running.service.engine, name="espeak")
    body = json.loads((await running.request("GET", "/health")).body)
    assert (body["status"], body["engine"], body["preview"]) == ("ok", "espeak", True)


async def test_ready(running: Running) -> None:
    answer = await running.request("GET", "/ready")
    assert (answer.status, json.loads(answer.body)["status"]) == (200, "ready")
    running.service.state, running.service.detail = EngineState.FAILED, "cannot read /srv/models/s2.gguf"
    answer = await running.request("GET", "/ready")
    body = json.loads(answer.body)
    assert (answer.status, body["state"], body["detail"]) == (503, "failed", "cannot read s2.gguf")
    assert body["error"]["code"] == "not_ready"
    assert int(answer.headers["retry-after"]) > 0


async def test_metrics(running: Running) -> None:
    answer = await running.request("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert b'fishs2_connections{door="http"} 1.0' in answer.body


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/models/tts-1"])
async def test_head(running: Running, path: str) -> None:
    answer = await running.request("HEAD", path)
    assert answer.status == 200
    assert answer.body == b""
    if path != "/metrics":
        assert answer.headers["content-length"] == (await running.request("GET", path)).headers["content-length"]


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_model_list(start: Start, path: str) -> None:
    running = await start(default_model="me/mine", model_aliases=["MINE", "mine", "TTS-1"])
    body = json.loads((await running.request("GET", path)).body)
    assert body["object"] == "list"
    assert [entry["id"] for entry in body["data"]] == ["me/mine", "MINE", "TTS-1", "tts-1-hd", "gpt-4o-mini-tts"]
    assert body["data"][0] == {"id": "me/mine", "object": "model", "created": 0, "owned_by": "fishs2-daemon"}


@pytest.mark.parametrize("name", ["fishaudio%2Fs2-pro", "fishaudio/s2-pro", "FishAudio%2fS2-Pro", "%20s2-pro%20"])
@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_one_model(running: Running, prefix: str, name: str) -> None:
    body = json.loads((await running.request("GET", f"{prefix}/models/{name}")).body)
    assert body["id"] in ("fishaudio/s2-pro", "s2-pro")


@pytest.mark.parametrize("name", ["x", "fishaudio", "..%2f..%2fetc", "%00", "%ff", "a" * 5000])
async def test_unknown_model(running: Running, name: str) -> None:
    answer = await running.request("GET", f"/v1/models/{name}")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")


async def test_speech_with_an_unknown_model(running: Running) -> None:
    answer = await running.request("POST", "/v1/audio/speech", json.dumps({"model": "xtts", "input": "a"}).encode())
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    body = json.dumps({"model": " FISHS2 ", "input": "a"}).encode()
    assert (await running.request("POST", "/v1/audio/speech", body)).status == 200


@pytest.mark.parametrize("path", ["/v1", "/v1/audio", "/v2/models", "/health/x", "/%2e%2e/etc", "//health"])
async def test_unknown_urls(running: Running, path: str) -> None:
    answer = await running.request("GET", path)
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/audio/speech", {"POST"}),
        ("DELETE", "/health", {"GET", "HEAD"}),
        ("POST", "/v1/models/x", {"GET", "HEAD"}),
        ("OPTIONS", "/models", {"GET", "HEAD"}),
        ("BREW", "/models", {"GET", "HEAD"}),
        ("NONE", "/models", {"GET", "HEAD"}),
    ],
)
async def test_wrong_method(running: Running, method: str, path: str, allowed: set[str]) -> None:
    answer = await running.request(method, path)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed
