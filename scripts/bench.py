"""Measures a daemon on this machine: its doors with the preview engine, or with `--engine s2` and a tiny random model.

`--ratios` measures the S2 engine instead, as `fishs2-daemon bench --ratios` does.

The clients run in this process, on the same cores as the daemon, and count against it. TTFA is the time from the last
byte of a request to the first audio that is not silence. Absolute figures of a busy machine mean little: compare two
runs that were made side by side.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import wave
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
    http_port: int
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

    async def post(self, text: str, voice: str) -> int:
        """The bytes that came back over HTTP for a text."""
        body = json.dumps({"model": "tts-1", "input": text, "voice": voice, "response_format": "pcm"}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(answer[:200].decode(errors="replace"))
        return len(answer)

    def memory(self) -> dict[str, Any]:
        """Of the daemon, then of its worker."""
        processes = [self.process, *self.process.children()]
        return {
            "rss_mb": [round(each.memory_info().rss / 1e6, 1) for each in processes],
            "open_files": [each.num_fds() for each in processes],
            "threads": [each.num_threads() for each in processes],
        }


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def launch(engine: str, folder: Path) -> Daemon:
    port, http_port = free_port(), free_port()
    environment = {
        "FISHS2_URI": f"tcp://127.0.0.1:{port}", "FISHS2_PORT": str(http_port), "FISHS2_HOST": "127.0.0.1",
        "FISHS2_ZEROCONF": "false", "FISHS2_LOG_LEVEL": "ERROR", "FISHS2_ENGINE": engine,
        "FISHS2_VOICES_DIR": str(folder / "voices"),
    }  # fmt: skip
    if engine == "s2":
        make = [sys.executable, "-m", "fishs2_daemon.engines.s2.tiny", str(folder)]
        model = subprocess.run(make, check=True, capture_output=True, text=True).stdout.strip()
        environment |= {"FISHS2_MODEL_PATH": model, "FISHS2_TOKENIZER_PATH": str(folder / "tokenizer.json")}
        environment |= {"FISHS2_SLOTS": "8", "FISHS2_CONTEXT": "1024"}
        make_voice(folder / "voices" / "anna")
    process = subprocess.Popen([PROGRAM, "serve"], env=os.environ | environment)
    return Daemon(port, http_port, psutil.Process(process.pid))


def make_voice(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "anna.txt").write_text("This is what I sound like.")
    with wave.open(str(folder / "anna.wav"), "wb") as file:
        file.setparams((1, 2, 44100, 0, "NONE", ""))
        file.writeframes(random.Random(1).randbytes(2 * 44100))


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


async def soak(daemon: Daemon, requests: int, voices: Sequence[str]) -> list[dict[str, Any]]:
    """Memory, files and threads after each tenth of the requests: texts of one to sixty words, eight at a time, through
    both doors, every tenth of them abandoned."""
    samples = [{"requests": 0, **daemon.memory()}]
    dice = random.Random(0)
    for done in range(0, requests, 8):
        texts = [" ".join(dice.choices(TEXT.split(), k=dice.randint(1, 60))) for _ in range(8)]
        asking = [
            asyncio.ensure_future(daemon.post(text, dice.choice(voices)) if number % 2 else daemon.speak(text))
            for number, text in enumerate(texts)
        ]
        if dice.random() < 0.8:
            await asyncio.sleep(0.02)
            asking[0].cancel()
        for outcome in await asyncio.gather(*asking, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        if done + 8 >= len(samples) * requests / 10:
            samples.append({"requests": done + 8, **daemon.memory()})
    return samples


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        daemon = launch(arguments.engine, Path(folder))
        try:
            await ready(daemon)
            await asyncio.sleep(1)
            report: dict[str, Any] = {
                "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
                "idle": daemon.memory(),
            }
            if arguments.engine == "espeak":
                report["one client"] = await one_client(daemon, arguments.requests)
                report["20 clients"] = await many_clients(daemon, 20, arguments.rounds)
                report["64 clients"] = await many_clients(daemon, 64, arguments.rounds)
            if arguments.soak:
                voices = ["alloy", "anna"] if arguments.engine == "s2" else ["alloy"]
                report["soak"] = await soak(daemon, arguments.soak, voices)
            return report
        finally:
            daemon.process.terminate()
            daemon.process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="requests of the single client")
    parser.add_argument("--rounds", type=int, default=10, help="times that many clients ask at once")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="then N requests, watching memory")
    parser.add_argument("--engine", choices=("espeak", "s2"), default="espeak", help="who speaks; s2 only soaks")
    parser.add_argument("--ratios", action="store_true", help="measure the S2 engine: fishs2-daemon bench --ratios")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_args()
    if arguments.ratios:
        os.execv(PROGRAM, [str(PROGRAM), "bench", "--ratios"])
    report = asyncio.run(measure(arguments))
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for name, figures in report.items():
        for line in figures if isinstance(figures, list) else [figures]:
            print(f"{name:<12}", json.dumps(line).replace('"', ""))


if __name__ == "__main__":
    main()
