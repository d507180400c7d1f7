"""The worker process: it owns the engine and speaks the wire format on the socket it was started with.

A crash in here is the supervisor's business; an error of one utterance ends that utterance alone.
"""

import asyncio
import importlib
import logging
import os
import signal
import socket
import sys
from contextlib import aclosing
from functools import partial
from typing import Any, Self

import cffi

from fishs2_daemon.engines.base import Engine, EngineOptions, Utterance
from fishs2_daemon.errors import Busy, EngineError
from fishs2_daemon.speech import Pcm
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.worker import wire
from fishs2_daemon.worker.wire import Frame, Kind

_log = logging.getLogger(__name__)

#: Where each engine lives; imported only when it is the chosen one.
ENGINES = {
    "espeak": "fishs2_daemon.engines.espeak:EspeakEngine",
    "remote": "fishs2_daemon.engines.remote.engine:RemoteEngine",
    "s2": "fishs2_daemon.engines.s2.engine:S2Engine",
    "s2cpp": "fishs2_daemon.engines.s2cpp.engine:S2CppEngine",
}

#: A block is cut to this before it is sent, so that credit flows in small steps.
_PIECE_BYTES = 32 * 1024


class _Job:
    """One running utterance, and the iterator of its phrases. Its audio goes out as far as the credit reaches."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Phrase | None] = asyncio.Queue()
        self.task: asyncio.Task[Frame] | None = None
        self._credit = wire.WINDOW_BYTES
        self._credit_came = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Phrase:
        if (phrase := await self.inbox.get()) is None:
            raise StopAsyncIteration
        return phrase

    def give_credit(self, consumed: int) -> None:
        self._credit += consumed
        self._credit_came.set()

    async def spend(self, wanted: int) -> None:
        while self._credit < wanted:
            self._credit_came.clear()
            await self._credit_came.wait()
        self._credit -= wanted


class Child:
    """Serves one engine on one connection until the daemon closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._engine: Engine | None = None
        self._jobs: dict[int, _Job] = {}
        self._loading: asyncio.Task[None] | None = None

    async def run(self) -> None:
        while (frame := await wire.read_frame(self._reader)) is not None:
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.PING:
                self._send(Frame(Kind.PONG))
            case Kind.LOAD:
                fields = wire.fields_of(frame)
                logging.getLogger().setLevel(fields["log_level"])
                self._loading = asyncio.create_task(self._load(fields["engine"], EngineOptions(**fields["options"])))
            case Kind.REFRESH if self._engine:
                self._send(wire.ready_frame(self._engine.info()))
            case Kind.START if self._engine:
                job = self._jobs[frame.utterance] = _Job()
                utterance = wire.utterance_of(frame, job)
                job.task = asyncio.create_task(self._speak(frame.utterance, job, utterance, self._engine))
                job.task.add_done_callback(partial(self._end, frame.utterance))
            case Kind.PHRASE | Kind.FINISH | Kind.CREDIT | Kind.CANCEL:
                # An utterance that is over may still be spoken to: the frames crossed.
                if frame.utterance in self._jobs:
                    self._steer(self._jobs[frame.utterance], frame)
            case _:
                _log.error("frame %s came at the wrong time", frame.kind.name)

    def _steer(self, job: _Job, frame: Frame) -> None:
        match frame.kind:
            case Kind.PHRASE:
                job.inbox.put_nowait(wire.phrase_of(frame))
            case Kind.FINISH:
                job.inbox.put_nowait(None)
            case Kind.CREDIT:
                job.give_credit(wire.credit_of(frame))
            case Kind.CANCEL if job.task:
                job.task.cancel()

    async def _load(self, name: str, options: EngineOptions) -> None:
        try:
            if (replaced := self._engine) is not None:
                self._engine = None
                await replaced.close()
            module, _, attribute = ENGINES[name].partition(":")
            engine: Engine = getattr(importlib.import_module(module), attribute)(options)
            info = await engine.load(self._progress)
        except EngineError as error:
            self._send(wire.text_frame(Kind.FAILED, 0, str(error)))
        except Exception as error:  # noqa: BLE001 - an edge: the daemon hears of it and goes on
            self._send(wire.text_frame(Kind.FAILED, 0, f"{type(error).__name__}: {error}"))
            _log.exception("loading the engine %s", name)
        else:
            self._engine = engine
            self._send(wire.ready_frame(info))

    def _progress(self, what: str, fraction: float) -> None:
        self._send(wire.json_frame(Kind.PROGRESS, what=what, fraction=fraction))

    async def _speak(self, number: int, job: _Job, utterance: Utterance, engine: Engine) -> Frame:
        """What to say at the end."""
        try:
            async with aclosing(engine.speak(utterance)) as blocks:
                async for block in blocks:
                    await self._send_audio(number, job, block)
        except Busy as busy:
            return wire.busy_frame(number, busy)
        except EngineError as error:
            return wire.text_frame(Kind.ERROR, number, str(error))
        except Exception as error:  # noqa: BLE001 - an edge: one utterance ends, the worker lives
            _log.exception("utterance %d", number)
            return wire.text_frame(Kind.ERROR, number, f"the engine failed: {type(error).__name__}")
        return Frame(Kind.END, number)

    def _end(self, number: int, task: asyncio.Task[Frame]) -> None:
        """Also of a task that was cancelled before its first step, of which nothing ever ran."""
        del self._jobs[number]
        self._send(Frame(Kind.END, number) if task.cancelled() else task.result())

    async def _send_audio(self, utterance: int, job: _Job, block: Pcm) -> None:
        for start in range(0, len(block.samples), _PIECE_BYTES):
            piece = block.samples[start : start + _PIECE_BYTES]
            await job.spend(len(piece))
            self._send(wire.audio_frame(utterance, Pcm(piece, block.sample_rate)))

    def _send(self, frame: Frame) -> None:
        # No drain: what is in flight is bounded by the credit of the running utterances.
        self._writer.write(frame.encode())


async def _serve(fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    await Child(reader, writer).run()


def _die_with_the_daemon() -> None:
    """Ask Linux to kill this process when the daemon's thread that started it ends, however it ends."""
    ffi = cffi.FFI()
    ffi.cdef("int prctl(int option, unsigned long argument);")
    pr_set_pdeathsig = 1
    libc: Any = ffi.dlopen(None)
    libc.prctl(pr_set_pdeathsig, int(signal.SIGKILL))


def main() -> None:
    """`python -m fishs2_daemon.worker.child FD`"""
    # Ctrl-C and a service manager's SIGTERM reach the whole group; the daemon decides when the worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        _die_with_the_daemon()
    logging.basicConfig(format="worker: %(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(int(sys.argv[1])))
    # The daemon is gone or done with us. A thread that is stuck in native code must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
