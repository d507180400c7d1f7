"""Measures a daemon with the preview engine on this machine.

The clients run in this process, on the same cores as the daemon, and count against it. TTFA is the time from the last
byte of a request to the first audio that is not silence. Absolute figures of a busy machine mean little: compare two
runs that were made side by side.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from wyoming.event import Event, async_read_event, async_write_event

PROGRAM = Path(sys.executable).with_name("fishs2-daemon")

#: What an assistant says: about 3 s of speech.
TEXT = "The washing machine has finished. It will rain this evening, so bring the laundry in."


@dataclass
class Spoken:
    """One request: seconds to its first audio or refusal, and to its end."""

    first_s: float
    total_s: float
    audio_s: float
    refused: str = ""


@dataclass
class Daemon:
    port: int
    process: psutil.Process
    describes_s: list[float] = field(default_factory=list)

    async def speak(self, text: str = TEXT) -> Spoken:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            await async_write_event(Event("synthesize", {"text": text}), writer)
            began = time.perf_counter()
            first_s, audio_bytes, rate = 0.0, 0, 0
            while event := await async_read_event(reader):
                if event.type == "audio-chunk" and event.payload:
                    audio_bytes += len(event.payload)
                    if not first_s and any(event.payload):
                        first_s = time.perf_counter() - began
                elif event.type == "audio-start":
                    rate = event.data["rate"]
                elif event.type == "error":
                    refused_s = time.perf_counter() - began
                    return Spoken(refused_s, refused_s, 0.0, event.data["code"])
                elif event.type == "audio-stop":
                    return Spoken(first_s, time.perf_counter() - began, audio_bytes / 2 / rate)
            raise ConnectionError("the daemon closed the connection")
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def describe_for_ever(self) -> None:
        """What Home Assistant does, only more often."""
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            began = time.perf_counter()
            await async_write_event(Event("describe"), writer)
            await async_read_event(reader)
            self.describes_s.append(time.perf_counter() - began)
            writer.close()
            await asyncio.sleep(0.02)

    def memory(self) -> dict[str, float]:
        return {"rss_mb": round(self.process.memory_info().rss / 1e6, 1), "open_files": self.process.num_fds()}


def launch() -> Daemon:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    environment = {
        "FISHS2_URI": f"tcp://127.0.0.1:{port}", "FISHS2_PORT": "0", "FISHS2_HOST": "127.0.0.1",
        "FISHS2_ZEROCONF": "false", "FISHS2_LOG_LEVEL": "ERROR",
    }  # fmt: skip
    process = subprocess.Popen([PROGRAM, "serve"], env=os.environ | environment)
    return Daemon(port, psutil.Process(process.pid))


async def ready(daemon: Daemon) -> None:
    async with asyncio.timeout(60):
        while True:
            with suppress(OSError):
                await daemon.speak("Ready.")
                return
            await asyncio.sleep(0.05)


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_ms": round(statistics.median(ordered) * 1000, 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1000, 2),
        "max_ms": round(ordered[-1] * 1000, 2),
    }


async def one_client(daemon: Daemon, requests: int) -> dict[str, Any]:
    spoken = [await daemon.speak() for _ in range(requests)]
    return {
        "requests": requests,
        "ttfa": quantiles_ms([entry.first_s for entry in spoken]),
        "rtf_p50": round(statistics.median(entry.total_s / entry.audio_s for entry in spoken), 4),
    }


async def many_clients(daemon: Daemon, clients: int, rounds: int) -> dict[str, Any]:
    """All clients ask at the same moment, `rounds` times, while `describe` is asked fifty times a second."""
    daemon.describes_s.clear()
    describing = asyncio.create_task(daemon.describe_for_ever())
    spoken: list[Spoken] = []
    for _ in range(rounds):
        spoken += await asyncio.gather(*(daemon.speak() for _ in range(clients)))
    describing.cancel()
    served = [entry for entry in spoken if not entry.refused]
    refused = [entry for entry in spoken if entry.refused]
    return {
        "clients": clients,
        "rounds": rounds,
        "served": len(served),
        "refused": len(refused),
        "ttfa": quantiles_ms([entry.first_s for entry in served]),
        "refusal": quantiles_ms([entry.first_s for entry in refused]) if refused else None,
        "describe": quantiles_ms(daemon.describes_s),
    }


async def soak(daemon: Daemon, requests: int) -> list[dict[str, Any]]:
    """Memory and open files after each tenth of the requests, eight at a time."""
    samples = [{"requests": 0, **daemon.memory()}]
    done = 0
    for _ in range(10):
        for _ in range(requests // 80):
            await asyncio.gather(*(daemon.speak("One of very many short requests.") for _ in range(8)))
            done += 8
        samples.append({"requests": done, **daemon.memory()})
    return samples


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    daemon = launch()
    try:
        await ready(daemon)
        await asyncio.sleep(1)
        report: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
            "idle": daemon.memory(),
            "one client": await one_client(daemon, arguments.requests),
            "20 clients": await many_clients(daemon, 20, arguments.rounds),
            "64 clients": await many_clients(daemon, 64, arguments.rounds),
        }
        if arguments.soak:
            report["soak"] = await soak(daemon, arguments.soak)
        return report
    finally:
        daemon.process.terminate()
        daemon.process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="requests of the single client")
    parser.add_argument("--rounds", type=int, default=10, help="times that many clients ask at once")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="then N requests, watching memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_args()
    report = asyncio.run(measure(arguments))
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for name, figures in report.items():
        for line in figures if isinstance(figures, list) else [figures]:
            print(f"{name:<12}", json.dumps(line).replace('"', ""))


if __name__ == "__main__":
    main()
