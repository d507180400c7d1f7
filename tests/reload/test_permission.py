"""`POST /admin/reload`: who may ask, and for what."""

import socket
from pathlib import Path

import httpx
import psutil
import pytest

from tests.daemons import Launch
from tests.reload.requests import reload


def own_addresses() -> list[str]:
    """Addresses of this machine that others see, too."""
    addresses = [each for interface in psutil.net_if_addrs().values() for each in interface]
    return [each.address for each in addresses if each.family == socket.AF_INET and each.address[:4] != "127."]


async def test_without_a_key_nobody_may_ask_from_another_address(launch: Launch) -> None:
    addresses = own_addresses()
    if not addresses:
        pytest.skip("this machine has no address but its loopback ones")
    process = launch(FISHS2_HOST="0.0.0.0", FISHS2_ALLOWED_NETWORKS="0.0.0.0/0")
    await process.says("ready")
    async with httpx.AsyncClient(base_url=f"http://{addresses[0]}:{process.http}") as client:
        assert (await client.get("/health")).status_code == 200
        answer = await client.post("/admin/reload")
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "not_from_here"
    assert "FISHS2_API_KEYS" in answer.json()["error"]["message"]
    assert (await reload(process)).status_code == 200


async def test_a_proxy_on_this_machine_does_not_count_as_this_machine(launch: Launch) -> None:
    process = launch()
    await process.says("ready")
    for headers in ({"X-Forwarded-For": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}, {"X-Real-IP": "::1"}):
        answer = await reload(process, headers)
        assert answer.status_code == 403, headers
        assert answer.json()["error"]["code"] == "not_from_here"
    assert (await reload(process)).status_code == 200


async def test_a_key_opens_it_and_the_answer_names_what_needs_a_restart(launch: Launch, tmp_path: Path) -> None:
    process = launch(FISHS2_API_KEYS="sesame")
    await process.says("ready")
    assert (await reload(process)).status_code == 401
    (tmp_path / ".env").write_text("FISHS2_MAX_QUEUE=3\nFISHS2_PORT=1\nFISHS2_VOICES_DIR=elsewhere\n")
    answer = await reload(process, {"Authorization": "Bearer sesame", "X-Forwarded-For": "203.0.113.9"})
    assert answer.json() == {"status": "reloaded", "engine": "espeak", "needs_restart": ["voices_dir"]}


async def test_a_quantisation_has_a_name(launch: Launch) -> None:
    process = launch()
    await process.says("ready")
    for quant in ("auto", " AUTO "):
        answer = await reload(process, model_quant=quant)
        assert answer.status_code == 422, quant
        assert answer.json()["error"]["code"] == "invalid_value"
        assert "FISHS2_MODEL_QUANT" in answer.json()["error"]["message"]


async def test_a_file_that_was_named_stays_the_one(launch: Launch) -> None:
    process = launch(FISHS2_MODEL_PATH="my.gguf")
    await process.says("ready")
    answer = await reload(process, model_quant="q4_k_m")
    assert answer.status_code == 422
    assert "FISHS2_MODEL_PATH names the file" in answer.json()["error"]["message"]
