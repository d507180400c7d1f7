"""The daemon answers while its model is on the way, and speaks with it once it is there."""

import asyncio
import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import threading
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info

from fishs2_daemon.artifacts.standing import State, look
from tests.artifacts.conftest import MODEL
from tests.artifacts.hub import Hub
from tests.artifacts.zips import zipped

SCRIPT = str(Path(sysconfig.get_path("scripts"), "fishs2-daemon"))
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
STAND_IN = Path(__file__).resolve().parents[1] / "engines" / "s2cpp" / "standin.c"
WAIT_S = 40


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def daemon(wyoming_port: int = 0, environment: dict[str, str] | None = None, **settings: str) -> Iterator[httpx.Client]:
    port = free_port()
    environment = {f"FISHS2_{name.upper()}": value for name, value in settings.items()} | (environment or {})
    environment |= {"FISHS2_ZEROCONF": "false", "FISHS2_MAX_NEW_TOKENS": "8"}
    command = [SCRIPT, "serve", "--uri", f"tcp://127.0.0.1:{wyoming_port or free_port()}", "--http-host", "127.0.0.1"]
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


async def described(port: int) -> Info:
    """What Home Assistant hears of it."""
    async with asyncio.timeout(10), AsyncTcpClient("127.0.0.1", port) as client:
        await client.write_event(Describe().event())
        while (event := await client.read_event()) is not None:
            if Info.is_type(event.type):
                return Info.from_event(event)
    raise AssertionError("the connection was closed")


@contextmanager
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A service manager's end of NOTIFY_SOCKET: the lines that come, which the kernel would not keep for long."""
    lines: list[str] = []

    def listen() -> None:
        while data := receiver.recv(4096):
            lines.extend(data.decode().splitlines())

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("notify")
        monkeypatch.setenv("NOTIFY_SOCKET", os.path.abspath("notify"))
        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield lines
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"", "notify")
            thread.join()


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
def test_from_an_empty_box_to_speech_by_one_command(tiny: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Until its model is there the engine that was set is loading: requests wait, Home Assistant and the service
    manager hear of it. Nothing is written into the user's home."""
    tiny.piece_pause_s = 0.02
    home, box = tmp_path / "home", tmp_path / "box"
    home.mkdir()
    box.mkdir()
    monkeypatch.chdir(box)
    for name in ("HF_HOME", "XDG_CACHE_HOME", "JOURNAL_STREAM", "CACHE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    with (
        manager(monkeypatch) as lines,
        daemon(port, {"HOME": str(home)}, engine="s2", accept_license="true") as client,
    ):
        health(client, lambda said: f"fetching {MODEL} (" in str(said))
        assert asyncio.run(described(port)).tts
        assert "READY=1" not in lines
        assert speech(client)[0] == 44100  # it waited
        health(client, lambda _: "READY=1" in lines)
    assert any(re.match(rf"STATUS=fetching {MODEL} \(\d.*\) \d+%; ", line) for line in lines)
    for name, data in tiny.files.items():
        assert (Path("models") / name).read_bytes() == data
        assert look(Path("models") / name).state is State.WHOLE
    assert list(home.iterdir()) == []
    assert {path.name for path in box.iterdir()} == {"models", "daemon.log", "notify"}
    assert "espeak" not in Path("daemon.log").read_text().partition("listening")[2]


@pytest.mark.timeout(180)
def test_the_s2cpp_engine_from_an_empty_box(hub: Hub, tmp_path: Path) -> None:
    """Its runtime is a stand-in, which says nothing of what it would say, but is a library like the real one."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler (cc), and the stand-in for libs2 is written in C")
    library = tmp_path / "built.so"
    subprocess.run([compiler, "-std=gnu11", "-shared", "-fPIC", "-o", library, STAND_IN, "-lpthread"], check=True)
    hub.files = {MODEL: b"GGUF" + bytes(9000), "tokenizer.json": b"{}"}
    hub.files["runtime.zip"] = zipped({"runtime/libs2.so": library.read_bytes(), "runtime/libggml.so": b"not needed"})
    sha256 = hashlib.sha256(hub.files["runtime.zip"]).hexdigest()
    address = hub.url("runtime.zip")
    with daemon(engine="s2cpp", accept_license="true", runtime_zip_url=address, runtime_zip_sha256=sha256) as client:
        health(client, lambda said: "s2cpp is ready" in str(said))
        assert speech(client)[1] > 0
    assert (Path("runtime/fishs2sharp/libs2.so")).read_bytes() == library.read_bytes()


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
