"""The daemon as a process of its own, as systemd and a user start it."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.wyoming_server.peer import LONG_TEXT, Client

PROGRAM = Path(sys.executable).with_name("fishs2-daemon")
WAIT_S = 20


def is_worker(process: psutil.Process) -> bool:
    try:
        return "fishs2_daemon.worker.child" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Process:
    """A running daemon: its ports, its log, its notifications."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, wyoming: int, http: int) -> None:
        self.process, self.log, self.wyoming, self.http = process, log, wyoming, http
        self.clients: list[Client] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def worker(self) -> psutil.Process:
        (worker,) = self.workers
        return worker

    @property
    def workers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if is_worker(child)]

    async def connect(self, **options: Any) -> Client:
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.wyoming, **options)))
        return self.clients[-1]

    async def half_heard(self, text: str = LONG_TEXT) -> Client:
        client = await self.connect(limit=4096)
        await client.send("synthesize", text=text)
        for kind in ("audio-start", "audio-chunk"):
            event = await client.receive()
            assert event
            assert event.type == kind
        return client

    async def says(self, words: str, count: int = 1) -> None:
        """Until the log holds `words`."""
        async with asyncio.timeout(WAIT_S):
            while self.log.read_text().count(words) < count:
                assert self.process.poll() is None or words in self.log.read_text(), self.log.read_text()
                await asyncio.sleep(0.02)

    async def exit_status(self, timeout_s: float = WAIT_S) -> int:
        async with asyncio.timeout(timeout_s):
            while (status := self.process.poll()) is None:
                await asyncio.sleep(0.01)
        return status


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


Launch = Callable[..., Process]


@asynccontextmanager
async def launching(folder: Path) -> AsyncIterator[Launch]:
    """Starts daemons in `folder` on free ports; keyword arguments are their environment. At the end they are killed."""
    processes: list[Process] = []

    def start(*flags: str, command: list[str] | None = None, **environment: str) -> Process:
        wyoming, http = free_port(), free_port()
        log = folder / f"log{len(processes)}"
        values = {"FISHS2_URI": f"tcp://127.0.0.1:{wyoming}", "FISHS2_PORT": str(http), "FISHS2_HOST": "127.0.0.1"}
        values |= {"FISHS2_ZEROCONF": "false", **environment}
        with log.open("wb") as file:
            status = os.fstat(file.fileno())
            values = {name: value.format(stderr=f"{status.st_dev}:{status.st_ino}") for name, value in values.items()}
            process = subprocess.Popen(
                [*(command or []), str(PROGRAM), "serve", *flags],
                stderr=file,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=os.environ | values,
            )
        processes.append(Process(process, log, wyoming, http))
        return processes[-1]

    yield start
    for process in processes:
        for client in process.clients:
            await client.close()
        process.process.kill()
        process.process.wait()


async def speaks(process: Process) -> bool:
    client = await process.connect()
    await client.send("synthesize", text="Here I am.")
    answer = await client.answer()
    await client.close()
    return bool(answer.audio) and answer.error is None
