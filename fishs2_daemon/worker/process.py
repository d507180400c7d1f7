"""One worker process as the daemon sees it: started, spoken to, watched, ended."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from fishs2_daemon.engines.base import EngineOptions, Utterance
from fishs2_daemon.errors import EngineError, EngineUnavailable, Fishs2Error
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import EngineInfo, Pcm
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.worker import wire
from fishs2_daemon.worker.wire import Frame, Kind

_log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "fishs2_daemon.worker.child")

#: The worker is asked for a sign of life this often; a tick without one counts towards `worker_hang_timeout_s`.
HEARTBEAT_S = 1.0

#: What the service manager tells the daemon, and what only the daemon may know, stays out of the worker.
_PRIVATE_ENVIRONMENT = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "CREDENTIALS_DIRECTORY", "FISHS2_API_KEYS")

#: Seconds that a process may take to be gone after it closed its socket, and after it was killed.
_DYING_S = 0.5
_REAP_S = 5.0

#: `EngineOptions` that are settings of the same name.
_OPTIONS = [field.name for field in fields(EngineOptions) if field.name in Settings.model_fields]


def engine_options(settings: Settings, gpu_device: int, instance: str = "") -> dict[str, Any]:
    """The settings of now that an engine acts on, as JSON has them, for the worker of that GPU."""
    options = {name: _plain(getattr(settings, name)) for name in _OPTIONS}
    return options | {"gpu_device": gpu_device, "instance": instance}


class WorkerGone(Fishs2Error):
    """The process ended, or was ended because it hung, while an utterance ran. `Supervisor` decides what that means."""


class _Answer:
    """What has come back for one utterance and was not taken yet; bounded by the credit given to the worker."""

    def __init__(self) -> None:
        self.outcome: Exception | None = None
        self.over = False
        self._blocks: deque[Pcm] = deque()
        self._came = asyncio.Event()

    def add(self, block: Pcm) -> None:
        self._blocks.append(block)
        self._came.set()

    def end(self, outcome: Exception | None = None) -> None:
        if not self.over:
            self.over, self.outcome = True, outcome
            self._came.set()

    async def take(self) -> Pcm | None:
        """The next block, or None after the last. Raises the error that ended the utterance."""
        while not self._blocks and not self.over:
            self._came.clear()
            await self._came.wait()
        if self._blocks:
            return self._blocks.popleft()
        if self.outcome:
            raise self.outcome
        return None


class WorkerProcess:
    """Use `spawn`, run `serve` as a task, then `load` and `speak`; `end` in any case."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        settings: Settings,
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer
        self._settings = settings
        self._answers: dict[int, _Answer] = {}
        self._cancelled: dict[int, float] = {}
        self._last_utterance = 0
        self._info: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._progress: Callable[[str, float], None] = lambda what, fraction: None
        self._heard = True
        self._killed_because = ""

    @classmethod
    async def spawn(cls, settings: Settings, command: Sequence[str] = COMMAND) -> Self:
        """Raises OSError where the process cannot be started."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            # Before the process: nothing is to be waited for between its start and its owner.
            reader, writer = await asyncio.open_connection(sock=ours, limit=2 * wire.WINDOW_BYTES)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        try:
            environment = {
                name: value for name, value in os.environ.items() if not name.upper().startswith(_PRIVATE_ENVIRONMENT)
            }
            # stdout may be a client's (stdio://); what native code prints belongs to the log.
            process = await asyncio.create_subprocess_exec(
                *command, str(theirs.fileno()), pass_fds=[theirs.fileno()], env=environment,
                stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr.fileno() if sys.stderr else None,
            )  # fmt: skip
        except BaseException:
            writer.close()
            raise
        finally:
            theirs.close()
        return cls(process, reader, writer, settings)

    async def load(self, engine: str, options: Mapping[str, Any], progress: Callable[[str, float], None]) -> EngineInfo:
        """`options` as of `engine_options`. Raises `EngineUnavailable` with the engine's own words, or with how the
        process ended."""
        self._progress = progress
        self._send(wire.json_frame(Kind.LOAD, engine=engine, options=options, log_level=self._settings.log_level))
        return await self._info

    async def refresh(self) -> EngineInfo:
        """The engine's voices as they are now."""
        self._info = asyncio.get_running_loop().create_future()
        self._send(Frame(Kind.REFRESH))
        return await self._info

    async def serve(self) -> None:
        """Runs until the process is gone; everything it held fails with `WorkerGone`."""
        heartbeat = asyncio.create_task(self._heartbeat())
        try:
            while (frame := await wire.read_frame(self._reader)) is not None:
                self._heard = True
                self._handle(frame)
        except Exception as error:  # noqa: BLE001 - an edge: whatever a broken worker sends, the daemon lives
            _log.exception("reading from the worker")
            self.kill(f"it sent what cannot be read ({error})")
        finally:
            heartbeat.cancel()
            await self.end()

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        """Raises `WorkerGone`, `EngineError`, `Busy`, or what the phrases raised. Closing it cancels the utterance."""
        self._last_utterance = number = self._last_utterance % 0xFFFFFFFF + 1
        answer = self._answers[number] = _Answer()
        if self._process.returncode is not None or self._reader.at_eof():
            answer.end(WorkerGone(self._how_it_ended()))
        self._send(wire.start_frame(number, utterance))
        feeding = asyncio.create_task(self._feed(number, answer, utterance.phrases))
        try:
            while (block := await answer.take()) is not None:
                yield block
                self._send(wire.credit_frame(number, len(block.samples)))
        finally:
            feeding.cancel()
            # Until the worker has confirmed the end, the utterance still occupies it.
            if not answer.over or answer.outcome:
                self._cancel(number)
            else:
                self._answers.pop(number, None)

    def kill(self, reason: str) -> None:
        if self._process.returncode is None:
            self._killed_because = self._killed_because or reason
            _log.error("killing the worker (pid %d): %s", self.pid, reason)
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Kill the process where it still runs, and fail what it held."""
        self._writer.close()
        if self._reader.at_eof():
            # It is dying by itself; its own status says more than that of our kill.
            await self._gone_within(_DYING_S)
        if self._process.returncode is None:
            # Not `Process.kill`, which reaps: asyncio's watcher would then know no status before Python 3.12.
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        await self._gone_within(_REAP_S)
        gone = self._how_it_ended()
        if not self._info.done():
            self._info.set_exception(EngineUnavailable(gone))
            self._info.exception()  # nobody may be waiting for it
        for answer in self._answers.values():
            answer.end(WorkerGone(gone))
        self._answers.clear()

    async def _gone_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), seconds)

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        if self._killed_because:
            return f"the speech engine was ended: {self._killed_because}"
        if code is not None and code < 0:
            return f"the speech engine crashed (signal {-code})"
        return f"the speech engine ended (status {code})"

    def _handle(self, frame: Frame) -> None:
        answer = self._answers.get(frame.utterance)
        match frame.kind:
            case Kind.AUDIO if answer:
                answer.add(wire.pcm_of(frame))
            case Kind.END | Kind.ERROR | Kind.BUSY:
                self._cancelled.pop(frame.utterance, None)
                if answer:
                    answer.end(_outcome_of(frame))
                    del self._answers[frame.utterance]
            case Kind.READY if not self._info.done():
                self._info.set_result(wire.engine_info_of(frame))
            case Kind.FAILED if not self._info.done():
                self._info.set_exception(EngineUnavailable(frame.body.decode(), retry_after_s=30))
            case Kind.PROGRESS:
                fields = wire.fields_of(frame)
                self._progress(str(fields["what"]), float(fields["fraction"]))
            case _:
                pass  # PONG, and audio that crossed our CANCEL

    async def _feed(self, number: int, answer: _Answer, phrases: AsyncIterator[Phrase]) -> None:
        try:
            async for phrase in phrases:
                self._send(wire.phrase_frame(number, phrase))
                await self._drain()
            self._send(Frame(Kind.FINISH, number))
        except Exception as error:  # noqa: BLE001 - it ends the answer, and is raised to whoever listens
            answer.end(error)

    def _cancel(self, number: int) -> None:
        if self._answers.pop(number, None) is not None:
            self._cancelled[number] = asyncio.get_running_loop().time()
            self._send(Frame(Kind.CANCEL, number))

    async def _heartbeat(self) -> None:
        silent_s = 0.0
        while True:
            self._heard = False
            self._send(Frame(Kind.PING))
            await asyncio.sleep(HEARTBEAT_S)
            # Counted in ticks, not by the clock: a daemon that was itself held up must not blame the worker.
            silent_s = 0.0 if self._heard else silent_s + HEARTBEAT_S
            if silent_s >= self._settings.worker_hang_timeout_s:
                self.kill(f"no sign of life for {silent_s:.0f} s")
            overdue = asyncio.get_running_loop().time() - self._settings.cancel_timeout_s
            if any(since < overdue for since in self._cancelled.values()):
                self.kill(f"an answer did not stop within {self._settings.cancel_timeout_s:.0f} s")

    def _send(self, frame: Frame) -> None:
        if not self._writer.is_closing():
            self._writer.write(frame.encode())

    async def _drain(self) -> None:
        with suppress(ConnectionError):
            await self._writer.drain()


def _outcome_of(frame: Frame) -> Exception | None:
    match frame.kind:
        case Kind.ERROR:
            return EngineError(frame.body.decode())
        case Kind.BUSY:
            return wire.busy_of(frame)
    return None


def _plain(value: Any) -> Any:
    """As JSON has it. A path is made whole: the worker may not share the daemon's working folder."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value.absolute()) if isinstance(value, Path) else value
