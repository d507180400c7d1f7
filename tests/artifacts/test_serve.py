"""The daemon answers while its model is on the way, and speaks with it once it is there."""

import io
import os
import socket
import subprocess
import sysconfig
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.artifacts.conftest import MODEL
from tests.artifacts.hub import Hub

SCRIPT = str(Path(sysconfig.get_path("scripts"), "fishs2-daemon"))
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WAIT_S = 40


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def daemon(**settings: str) -> Iterator[httpx.Client]:
    port = free_port()
    environment = {f"FISHS2_{name.upper()}": value for name, value in settings.items()}
    environment |= {"FISHS2_ZEROCONF": "false", "FISHS2_MAX_NEW_TOKENS": "8"}
    command = [SCRIPT, "serve", "--uri", f"tcp://127.0.0.1:{free_port()}", "--http-host", "127.0.0.1"]
    with open("daemon.log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--http-port", str(port)], env={**os.environ, **environment}, stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        process.terminate()
        process.wait(WAIT_S)


def health(client: httpx.Client, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What `/health` says once it is as it should be."""
    deadline = time.monotonic() + WAIT_S
    said: Any = None
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            said = client.get("/health").json()
            assert said["status"] == "ok"  # a manager would restart it otherwise
            if condition(said):
                return dict(said)
        time.sleep(0.05)
    raise AssertionError(f"{said}\n{Path('daemon.log').read_text()}")


def speech(client: httpx.Client) -> tuple[int, int]:
    """Sample rate and count of samples of an answer."""
    answer = client.post("/v1/audio/speech", json={"model": "s2-pro", "input": "Hello.", "response_format": "wav"})
    assert answer.status_code == 200, answer.text
    with wave.open(io.BytesIO(answer.content), "rb") as sound:
        return sound.getframerate(), len(sound.readframes(10**7)) // 2


@pytest.fixture
def tiny(hub: Hub) -> Hub:
    pytest.importorskip("ggml", reason="the S2 engine's libraries are not installed")
    hub.files = {MODEL: (GOLDEN / "tiny-f16.gguf").read_bytes()}
    hub.files["tokenizer.json"] = (GOLDEN / "tokenizer.json").read_bytes()
    hub.piece_bytes = len(hub.files[MODEL]) // 50
    hub.piece_pause_s = 0.06
    return hub


@pytest.mark.timeout(180)
def test_the_preview_voice_speaks_until_the_model_is_there(tiny: Hub) -> None:
    with daemon(model_quant="q8_0", accept_license="true") as client:
        said = health(client, lambda said: MODEL in str(said) and "espeak is ready" in str(said))
        assert f"fetching {MODEL} (" in str(said)
        rate, count = speech(client)
        assert rate == 22050
        assert count > 0
        assert not (Path("models") / MODEL).exists()
        health(client, lambda said: "s2 is ready" in str(said))
        assert speech(client)[0] == 44100
    assert (Path("models") / MODEL).read_bytes() == tiny.files[MODEL]
    assert f"fetching {MODEL}: " in Path("daemon.log").read_text()


@pytest.mark.timeout(180)
def test_an_engine_that_was_set_is_loading_until_its_model_is_there(tiny: Hub) -> None:
    tiny.piece_pause_s = 0.02
    with daemon(engine="s2", accept_license="true") as client:
        health(client, lambda said: f"fetching {MODEL} (" in str(said))
        assert speech(client)[0] == 44100  # it waited
    assert "espeak" not in Path("daemon.log").read_text().partition("listening")[2]


@pytest.mark.timeout(180)
def test_a_refused_fetch_leaves_the_preview_voice(hub: Hub) -> None:
    hub.refuses = (403, "GatedRepo")
    with daemon(model_quant="q8_0", accept_license="true") as client:
        health(client, lambda said: "espeak is ready" in str(said) and "fetching" not in str(said))
        assert speech(client)[0] == 22050
    assert "set HF_TOKEN" in Path("daemon.log").read_text()


@pytest.mark.timeout(180)
def test_without_the_licence_nothing_is_fetched(hub: Hub) -> None:
    with daemon(model_quant="q8_0") as client:
        health(client, lambda said: "espeak is ready" in str(said) and "fetching" not in str(said))
    assert "fishs2-daemon models get --accept-license" in Path("daemon.log").read_text()
    assert hub.seen == []
