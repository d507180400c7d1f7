"""`bench`, from its plan to its report."""

import asyncio
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from fishs2_daemon.bench import machine, report, synthetic, voice
from fishs2_daemon.bench.measure import Level, Own, Speaker, level
from fishs2_daemon.bench.plan import Plan
from fishs2_daemon.bench.playback import Heard, percentiles
from fishs2_daemon.bench.server import Server
from fishs2_daemon.bench.texts import FRAME_SAMPLES, Texts
from fishs2_daemon.catalogue import Casting
from fishs2_daemon.daemon import running_service
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.errors import EngineUnavailable, InvalidRequest
from fishs2_daemon.service import SpeechService
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineInfo, SamplingOverrides, SpeechRequest

#: Each of them takes two starts of the engine.
_MOST_COLD_ROUNDS = 3

#: Of an answer whose first sound is all that matters.
_SHORT_S = 1.0

#: Texts of different runs differ: another server may remember the last run's.
_TEXTS = 1 << 24


def bench(settings: Settings, plan: Plan) -> None:
    """Measure, print, and write the JSON where one is asked for; nothing is written of what was not finished.

    Raises `InvalidRequest`, `StorageError`, and what speaking raises.
    """
    progress = Console(stderr=True)
    if plan.shape:
        settings = _synthetic(settings, plan, plan.shape, plan.quant, progress)
    if plan.ratios:
        small = _synthetic(settings, plan, "tiny", "f16", progress)
        from fishs2_daemon.bench import ratios

        measuring = ratios.measure(settings, small, plan.repeat, progress)
    else:
        measuring = _Bench(settings, plan, progress).run()
    figures = asyncio.run(_until_signalled(measuring))
    if plan.json:
        report.write(plan.json, figures)
    report.show(figures, Console())


def _synthetic(settings: Settings, plan: Plan, shape: str, quant: str, console: Console) -> Settings:
    model = synthetic.model(shape, quant, plan.folder, console)
    files = {"model_path": model, "tokenizer_path": model.with_name(synthetic.TOKENIZER)}
    return settings.model_copy(update={"engine": "s2", **files})


async def _until_signalled(measuring: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    if task := asyncio.current_task():
        # Ended by SIGTERM or by Ctrl-C, it cleans up.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return {"schema": report.SCHEMA, "date": datetime.now(UTC).isoformat(timespec="seconds"), **await measuring}


@dataclass(frozen=True, slots=True)
class _Started:
    service: SpeechService
    engine: EngineInfo
    pid: int
    load_s: float


class _Bench:
    def __init__(self, settings: Settings, plan: Plan, console: Console) -> None:
        # A voice that is to be cold, and is the only one in its folder, is neither warmed nor replaced.
        given: dict[str, Any] = {"warm_voices": [], "default_voice": None, "unknown_voice": "error"}
        self._settings = settings.model_copy(update=given)
        self._plan = plan
        self._console = console
        self._rounds = 0
        self._first_text = random.randrange(_TEXTS)
        self._texts = Texts(plan.seconds, self._first_text)
        self._notes: list[str] = []

    async def run(self) -> dict[str, Any]:
        with self._console.status("starting") as self._status, tempfile.TemporaryDirectory(prefix="fishs2-") as folder:
            try:
                return await self._run(Path(folder))
            except asyncio.CancelledError:
                print(f"stopped after {self._rounds} rounds; nothing was written", file=sys.stderr)
                raise

    async def _run(self, folder: Path) -> dict[str, Any]:
        server = Server(self._plan.compared) if self._plan.compared else None
        if server:
            self._status.update(f"waiting for {server.name}")
            await server.speak(self._texts.take())
        heard: dict[str, list[Heard]] = {}
        chosen = await self._voice(folder)
        if chosen == voice.VOICE:
            heard = await self._unheard(folder)
        async with self._started() as started:
            own = self._own(started, chosen)
            speakers: list[Speaker] = [own] if server is None else [own, server]
            levels = [await self._level(speakers, n, started) for n in self._levels(started.engine)]
            if heard:
                heard["warm"] = await self._warm(started)
            described = await asyncio.to_thread(machine.engine, self._settings, started.engine)
        self._tell_skipped(started.engine)
        is_s2 = started.engine.name == "s2"
        frame_s = FRAME_SAMPLES / started.engine.sample_rate if is_s2 else None
        if not is_s2:
            self._notes.append(f"{started.engine.name} ends by itself: the length of an answer is that of its text")
        asked = {
            "streams": self._plan.streams, "repeat": self._plan.repeat, "seconds": self._plan.seconds,
            "voice": self._plan.voice, "reference_s": self._plan.reference_s, "first_text": self._first_text,
            "synthetic": self._plan.shape, "quant": self._plan.quant if self._plan.shape else None,
        }  # fmt: skip
        return {
            "software": await asyncio.to_thread(machine.software),
            "hardware": await asyncio.to_thread(machine.hardware),
            "engine": described | {"load_s": started.load_s},
            "asked": asked,
            "voice": {kind: _first_sounds(answers) for kind, answers in heard.items()} or None,
            "levels": [both[0].figures(frame_s) for both in levels],
            "compared": {
                "url": server.name, "model": self._plan.compared.model, "voice": self._plan.compared.voice,
                "sample_rate": self._plan.compared.rate, "levels": [both[1].figures(None) for both in levels],
            } if server and self._plan.compared else None,
            "notes": self._notes,
        }  # fmt: skip

    async def _voice(self, folder: Path) -> str | None:
        """Who speaks. One that is cloned is alone in a folder of its own from now on, and is `VOICE`."""
        if self._plan.reference_s:
            if (engine := choose_engine(self._settings).name) != "s2":
                raise InvalidRequest(f"--reference-seconds: {engine} does not clone voices; allowed: 0")
            await asyncio.to_thread(voice.made_up, self._plan.reference_s, folder)
        elif self._plan.voice:
            casting = await self._cast(self._plan.voice)
            if not casting.clips:
                if casting.is_stand_in:
                    self._notes.append(f"the engine does not clone: {casting.voice} speaks for {casting.name}")
                return self._plan.voice
            await asyncio.to_thread(voice.copied, casting.clips[0], folder)
        else:
            return None
        self._settings = self._settings.model_copy(update={"voices_dir": folder})
        return voice.VOICE

    async def _cast(self, name: str) -> Casting:
        async with self._started() as started:
            return await started.service.catalogue.cast(SpeechRequest("", voice=name), started.engine)

    async def _unheard(self, folder: Path) -> dict[str, list[Heard]]:
        """First answers of fresh workers, with the voice's codes on disk and without."""
        heard: dict[str, list[Heard]] = {"new": [], "cold": []}
        for _ in range(min(self._plan.repeat, _MOST_COLD_ROUNDS)):
            voice.forget_codes(folder)
            for answers in heard.values():  # the first leaves the codes that the second finds
                async with self._started() as started:
                    self._levels(started.engine)  # what cannot be measured is told before anything is loaded again
                    short = Texts(_SHORT_S, 0)
                    await self._own(started, None, short).speak(self._texts.take())
                    answers.append(await self._own(started, voice.VOICE, short).speak(self._texts.take()))
                    self._done()
        return heard

    async def _warm(self, started: _Started) -> list[Heard]:
        own = self._own(started, voice.VOICE, Texts(_SHORT_S, 0))
        answers = [await own.speak(self._texts.take()) for _ in range(self._plan.repeat + 1)]
        return answers[1:]

    async def _level(self, speakers: list[Speaker], streams: int, started: _Started) -> list[Level]:
        self._status.update(f"measuring {streams} streams")
        levels = await level(speakers, streams, self._plan.repeat, self._texts, self._done)
        levels[0].peak_ram_mb = machine.peak_ram_mb(started.pid)
        levels[0].vram_mb = await asyncio.to_thread(machine.vram_mb, started.pid)
        return levels

    def _levels(self, engine: EngineInfo) -> list[int]:
        """Those that there are slots for. Raises `InvalidRequest` where that is none."""
        levels = [streams for streams in self._plan.streams if streams <= engine.slots]
        if not levels:
            raise InvalidRequest(
                f"--streams: the engine speaks {engine.slots} at a time; allowed: a number up to that{_more(engine)}"
            )
        return levels

    def _tell_skipped(self, engine: EngineInfo) -> None:
        skipped = [str(streams) for streams in self._plan.streams if streams > engine.slots]
        if skipped:
            told = f"skipped: {', '.join(skipped)} streams; {engine.name} speaks {engine.slots} at a time"
            self._notes.append(f"{told}{_more(engine)}")

    @asynccontextmanager
    async def _started(self) -> AsyncIterator[_Started]:
        self._status.update("loading the engine")
        began = time.perf_counter()
        async with running_service(self._settings) as (service, supervisor):
            engine = await supervisor.ready(self._settings.worker_start_timeout_s)
            if supervisor.pid is None:
                raise EngineUnavailable("the engine ended as soon as it was ready")
            self._status.update("measuring")
            yield _Started(service, engine, supervisor.pid, time.perf_counter() - began)

    def _own(self, started: _Started, name: str | None, texts: Texts | None = None) -> Own:
        if started.engine.name != "s2":
            return Own(started.service, name)
        frames = (texts or self._texts).frames(started.engine.sample_rate)
        return Own(started.service, name, SamplingOverrides(min_tokens_before_end=frames, max_new_tokens=frames))

    def _done(self) -> None:
        self._rounds += 1


def _more(engine: EngineInfo) -> str:
    return " (--slots N sets it)" if engine.name == "s2" else ""


def _first_sounds(answers: list[Heard]) -> dict[str, Any]:
    return {"answers": len(answers), "ttfa_ms": percentiles([1000 * answer.ttfa_s for answer in answers])}
