"""The daemon as a process of its own, as systemd and a user start it."""

import asyncio
import json
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from openai import AsyncOpenAI
from wyoming.client import AsyncUnixClient
from wyoming.event import Event, async_read_event, async_write_event

from tests.daemons import PROGRAM, WAIT_S, Launch, free_port, speaks
from tests.wyoming_server.peer import LONG_TEXT


async def test_both_doors_speak_and_sigterm_ends_it_with_status_zero(launch: Launch) -> None:
    process = launch()
    await process.says("ready")
    assert await speaks(process)
    async with AsyncOpenAI(api_key="any", base_url=f"{process.url}/v1", max_retries=0) as client:
        answer = await client.audio.speech.create(
            model="tts-1", voice="alloy", input="Here I am.", response_format="pcm"
        )
        assert len(answer.content) > 24_000
    process.process.terminate()
    assert await process.exit_status() == 0
    assert "Traceback" not in process.log.read_text()


async def test_describe_and_health_are_answered_before_the_engine_is_ready(launch: Launch) -> None:
    process = launch()
    await process.says("listening", 2)
    client = await process.connect()
    await client.send("describe")
    event = await client.receive()
    assert event
    assert event.data["tts"][0]["installed"]
    assert event.data["tts"][0]["voices"]
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{process.url}/health")
    assert answer.json()["status"] == "ok"


async def test_a_killed_worker_is_replaced_and_both_doors_go_on(launch: Launch) -> None:
    process = launch()
    await process.says("ready")
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL):
        process.worker.send_signal(number)
        assert await speaks(process)
        async with httpx.AsyncClient() as http:
            answer = await http.post(
                f"{process.url}/v1/audio/speech", json={"model": "tts-1", "input": "Me too.", "voice": "alloy"}
            )
        assert answer.status_code == 200
        assert answer.content[:4] == b"RIFF"
    assert process.process.poll() is None
    async with httpx.AsyncClient() as http:
        metrics = (await http.get(f"{process.url}/metrics")).text
    assert "fishs2_worker_restarts_total 3.0" in metrics


async def test_sigterm_lets_a_running_answer_finish(launch: Launch) -> None:
    process = launch()
    await process.says("ready")
    client = await process.half_heard(LONG_TEXT[: len(LONG_TEXT) // 10])
    idle = await process.connect()
    process.process.terminate()
    await process.says("stopping")
    with suppress(ConnectionRefusedError):
        late = await process.connect()
        assert (await late.answer()).kinds == []
    answer = await client.answer()
    assert answer.error is None
    assert answer.kinds[-1] == "audio-stop"
    await client.close()
    assert (await idle.answer()).is_closed
    assert await process.exit_status() == 0


async def test_sigterm_breaks_off_what_does_not_finish_in_time(launch: Launch) -> None:
    process = launch(FISHS2_DRAIN_TIMEOUT_S="0.5")
    await process.says("ready")
    client = await process.half_heard()
    async with httpx.AsyncClient() as http:
        body = {"model": "tts-1", "voice": "alloy", "input": LONG_TEXT, "response_format": "pcm"}
        async with http.stream("POST", f"{process.url}/v1/audio/speech", json=body) as answer:
            assert answer.status_code == 200
            chunks = answer.aiter_bytes()
            await anext(chunks)
            process.process.terminate()
            await asyncio.sleep(1.5)
            wyoming = await client.answer()
            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in chunks:
                    pass
    assert wyoming.error is not None
    assert wyoming.error["code"] == "shutting-down"
    assert wyoming.is_broken_off
    assert await process.exit_status() == 0


async def test_ctrl_c_ends_at_once_and_still_tells_the_listener(launch: Launch) -> None:
    process = launch()
    await process.says("ready")
    client = await process.half_heard()
    began = time.monotonic()
    process.process.send_signal(signal.SIGINT)
    answer = await client.answer()
    assert answer.error is not None
    assert answer.is_broken_off
    await client.close()
    assert await process.exit_status() == 0
    assert time.monotonic() - began < 5
    assert "Traceback" not in process.log.read_text()


async def test_a_second_signal_ends_the_waiting(launch: Launch) -> None:
    process = launch(FISHS2_DRAIN_TIMEOUT_S="600")
    await process.says("ready")
    client = await process.half_heard()
    process.process.terminate()
    await process.says("stopping")
    process.process.terminate()
    answer = await client.answer()
    assert answer.is_broken_off
    await client.close()
    assert await process.exit_status() == 0


async def test_a_signal_while_it_starts_ends_it(launch: Launch) -> None:
    process = launch()
    await process.says("listening")
    process.process.terminate()
    assert await process.exit_status() == 0


async def test_the_worker_dies_with_a_killed_daemon(launch: Launch) -> None:
    process = launch()
    await process.says("ready")
    worker = process.worker
    process.process.kill()
    async with asyncio.timeout(5):
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_answer_of_a_killed_daemon_does_not_look_whole(launch: Launch, is_streamed: bool) -> None:
    """The kernel would end the connection as cleanly as after an answer."""
    process = launch()
    await process.says("ready")
    client = await process.connect()
    if is_streamed:
        await client.send("synthesize-start")
        await client.send("synthesize-chunk", text=LONG_TEXT)
    else:
        await client.send("synthesize", text=LONG_TEXT)
    event = await client.receive()
    assert event
    assert event.type == "audio-start"
    process.process.kill()
    with pytest.raises(ConnectionResetError):
        await client.answer()


async def test_a_killed_daemon_does_not_end_a_stream_that_waits_for_its_text(launch: Launch) -> None:
    """Home Assistant would keep an answer without a sound."""
    process = launch()
    await process.says("ready")
    client = await process.connect()
    await client.send("synthesize-start")
    await client.send("ping")
    event = await client.receive()
    assert event
    assert event.type == "pong"
    process.process.kill()
    with pytest.raises(ConnectionResetError):
        await client.receive()


async def test_a_killed_daemon_ends_connections_that_hear_nothing_cleanly(launch: Launch) -> None:
    """Also one that was spoken to before, or was told of an error."""
    process = launch()
    await process.says("ready")
    clients = [await process.connect() for _ in range(2)]
    for client in clients:
        await client.send("synthesize", text="Hello.")
        assert (await client.answer()).audio
    await clients[1].send("synthesize", text="Hello.", voice={"name": "nobody"})
    answer = await clients[1].answer()
    assert answer.error
    assert answer.is_closed
    process.process.kill()
    assert await clients[0].receive() is None


async def test_sighup_takes_over_what_may_change(launch: Launch, tmp_path: Path) -> None:
    env = tmp_path / ".env"
    env.write_text("FISHS2_LANGUAGES=en\n")
    process = launch()
    await process.says("ready")

    async def languages() -> set[str]:
        client = await process.connect()
        await client.send("describe")
        event = await client.receive()
        await client.close()
        assert event
        return {tag for voice in event.data["tts"][0]["voices"] for tag in voice["languages"]}

    assert "de" not in await languages()
    env.write_text("FISHS2_LANGUAGES=en,de\nFISHS2_VOICES_DIR=elsewhere\n")
    process.process.send_signal(signal.SIGHUP)
    await process.says("only a restart changes voices_dir")
    assert "de" in await languages()
    env.write_text("FISHS2_MAX_QUEUE=many\n")
    process.process.send_signal(signal.SIGHUP)
    await process.says("nothing was reloaded: FISHS2_MAX_QUEUE")
    assert "de" in await languages()
    assert await speaks(process)


async def test_a_wrong_setting_is_one_line_and_status_78(launch: Launch) -> None:
    process = launch("--http-port", "http")
    assert await process.exit_status() == 78
    (line,) = process.log.read_text().splitlines()
    assert "FISHS2_PORT (--http-port)" in line
    assert "'http'" in line
    assert "65535" in line


@pytest.mark.parametrize("uri", ["tcp://nowhere", "udp://127.0.0.1:1", "unix://", "tcp://127.0.0.1:99999", "x"])
async def test_a_wrong_address_is_one_line_and_status_78(launch: Launch, uri: str) -> None:
    process = launch("--uri", uri)
    assert await process.exit_status() == 78
    assert uri in process.log.read_text().splitlines()[-1]


async def test_a_taken_port_is_one_line_and_status_1(launch: Launch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = launch("--http-port", str(taken.getsockname()[1]))
        assert await process.exit_status() == 1
    assert "Address already in use" in process.log.read_text().splitlines()[-1]
    assert "Traceback" not in process.log.read_text()


async def test_secrets_are_not_printed(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# mine\nkey-of-the-file\n")
    process = launch(FISHS2_API_KEYS="key-of-the-environment", FISHS2_API_KEYS_FILE=str(tmp_path / "keys"))
    await process.says("ready")
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{process.url}/v1/models")).status_code == 401
        for key in ("key-of-the-environment", "key-of-the-file"):
            answer = await http.get(f"{process.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200
    log = process.log.read_text()
    assert "FISHS2_API_KEYS=" in log
    assert "key-of-the" not in log


async def test_several_addresses_and_a_unix_socket(launch: Launch, tmp_path: Path) -> None:
    path, other = tmp_path / "wyoming.sock", free_port()
    process = launch("--uri", f"unix://{path}", "--uri", f"tcp://127.0.0.1:{other}", "--no-http")
    await process.says("ready")
    async with AsyncUnixClient(path) as client:
        await client.write_event(Event("describe"))
        event = await client.read_event()
        assert event
        assert event.type == "info"
    process.wyoming = other
    assert await speaks(process)
    process.process.terminate()
    assert await process.exit_status() == 0
    assert not path.exists()


@asynccontextmanager
async def stdio_daemon() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "serve", "--uri", "stdio://", "--no-http", "--log-level", "ERROR",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    yield process
    assert await asyncio.wait_for(process.wait(), WAIT_S) == 0


async def test_stdio_answers_and_ends_with_its_input() -> None:
    async with stdio_daemon() as process:
        assert process.stdin
        assert process.stdout
        await async_write_event(Event("describe"), process.stdin)
        event = await async_read_event(process.stdout)
        assert event
        assert event.type == "info"
        await async_write_event(Event("synthesize", {"text": "Spoken after the end of input."}), process.stdin)
        process.stdin.close()
        kinds = []
        while event := await async_read_event(process.stdout):
            kinds.append(event.type)
        assert kinds[0] == "audio-start"
        assert kinds[-1] == "audio-stop"


async def test_stdio_on_files_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b'{"type":"describe"}\n')
    with (tmp_path / "in").open() as stdin, (tmp_path / "out").open("w") as stdout:
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "serve", "--uri", "stdio://", "--no-http", "--log-level", "ERROR",
            stdin=stdin, stdout=stdout, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, log = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 1
    assert b"needs a pipe" in log
    assert b"Traceback" not in log


class Notifications:
    """A NOTIFY_SOCKET that keeps what it is told."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.lines: list[str] = []

    def read(self) -> list[str]:
        with suppress(BlockingIOError):
            while True:
                self.lines += self.socket.recv(65536).decode().splitlines()
        return self.lines

    async def has(self, line: str, count: int = 1) -> None:
        async with asyncio.timeout(WAIT_S):
            while sum(entry.startswith(line) for entry in self.read()) < count:
                await asyncio.sleep(0.02)


@pytest.fixture
def notifications(tmp_path: Path) -> Iterator[Notifications]:
    notifications = Notifications(tmp_path / "notify")
    yield notifications
    notifications.socket.close()


async def test_systemd_is_told_of_start_reload_life_and_stop(
    launch: Launch, notifications: Notifications, tmp_path: Path
) -> None:
    process = launch(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
    await notifications.has("READY=1")
    assert await speaks(process)
    await notifications.has("WATCHDOG=1", 3)
    await notifications.has("STATUS=espeak is ready")
    process.process.send_signal(signal.SIGHUP)
    await notifications.has("RELOADING=1")
    await notifications.has("MONOTONIC_USEC=")
    await notifications.has("READY=1", 2)
    process.worker.kill()
    await notifications.has("STATUS=the engine crashed and is being restarted")
    process.process.terminate()
    await notifications.has("STOPPING=1")
    assert await process.exit_status() == 0
    assert notifications.lines.count("READY=1") == 2


async def test_an_engine_that_cannot_start_is_never_ready_and_not_kept_alive(
    launch: Launch, notifications: Notifications, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "espeakng_loader.py").write_text(
        "def get_library_path(): return '/nonexistent/libespeak-ng.so'\ndef get_data_path(): return '/nonexistent'\n"
    )
    process = launch(
        NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000", PYTHONPATH=str(tmp_path / "broken")
    )
    await process.says("does not start (2 in a row)")
    client = await process.connect()
    await client.send("describe")
    event = await client.receive()
    assert event
    assert event.data["tts"][0]["voices"], "Home Assistant must still be able to add the service"
    await client.send("synthesize", text="Hello.")
    answer = await client.answer()
    assert answer.error is not None
    assert answer.error["code"] == "engine-unavailable"
    assert "espeakng-loader" in answer.error["text"]
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{process.url}/health")).json()["status"] == "ok"
        assert (await http.get(f"{process.url}/ready")).status_code == 503
    notifications.read()
    notifications.lines.clear()
    await asyncio.sleep(0.6)
    assert "WATCHDOG=1" not in notifications.read()
    assert "READY=1" not in notifications.lines


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
async def test_sockets_of_systemd_are_adopted(launch: Launch) -> None:
    wyoming, http = free_port(), free_port()
    activate = ["systemd-socket-activate", "-l", f"127.0.0.1:{wyoming}", "-l", f"127.0.0.1:{http}"]
    process = launch(command=[*activate, "--fdname=wyoming:http", "-E", "FISHS2_ZEROCONF=false"])
    process.wyoming, process.http = wyoming, http
    await process.says("Listening")
    # The first connection starts the daemon and waits in the backlog until it answers.
    assert await speaks(process)
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{process.url}/ready")).json()["status"] == "ready"
    process.process.terminate()
    assert await process.exit_status() == 0


async def test_log_lines_of_the_journal_carry_their_severity(launch: Launch) -> None:
    process = launch(JOURNAL_STREAM="{stderr}", FISHS2_LOGS_DIR="logs", FISHS2_PROT="1")
    await process.says("ready")
    lines = process.log.read_text().splitlines()
    assert all(line[0] == "<" and line[2] == ">" for line in lines)
    assert any(line.startswith("<4>") and "FISHS2_PROT means nothing here" in line for line in lines)
    written = (process.log.parent / "logs" / "app.log").read_text()
    assert "ready" in written


def test_settings_are_printed_once_and_readable_by_a_machine(launch: Launch) -> None:
    process = launch()
    deadline = time.monotonic() + WAIT_S
    while "ready" not in process.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.log.read_text().count("FISHS2_PORT=") == 1
    assert json.dumps(process.http) in process.log.read_text()
