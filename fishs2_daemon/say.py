"""`say` and `voices`: the same road as a door's request, without a door."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import wave
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

from rich.console import Console

from fishs2_daemon.audio import wav
from fishs2_daemon.daemon import running_service
from fishs2_daemon.errors import Fishs2Error, InvalidRequest
from fishs2_daemon.service import SpeechService
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import Pcm, SpeechRequest, Voice

#: Programs that play a WAV file, with what keeps them quiet; the first one found is taken.
_PLAYERS = (
    ("pw-play",),
    ("paplay",),
    ("aplay", "-q"),
    ("afplay",),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
)

_STDOUT = "-"


async def say(settings: Settings, text: str, voice: str | None, output: str | None) -> None:
    """Speak into the file `output` (`-`: standard output), or play where it is None. Progress goes to a terminal.

    A file appears whole or not at all. Raises `InvalidRequest` where it cannot be written or nothing here can play.
    """
    request = SpeechRequest(text, voice=voice)
    if task := asyncio.current_task():
        # Ended by SIGTERM or by Ctrl-C, it cleans up.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if output == _STDOUT:
        async with running_service(settings) as (service, _):
            await _stream(service, request)
        return
    if output:
        target = Path(output)
        _check(target)
        async with running_service(settings) as (service, _):
            await _write(service, request, target)
        return
    player = _player()
    with tempfile.TemporaryDirectory(prefix="fishs2-") as folder:
        target = Path(folder, "speech.wav")
        async with running_service(settings) as (service, _):
            await _write(service, request, target)
        await _play(player, target)


async def voices(settings: Settings, language: str | None) -> list[Voice]:
    """All voices, or those that speak `language`."""
    async with running_service(settings) as (service, workers):
        await workers.ready(settings.worker_start_timeout_s)
        await service.refresh()
        known = service.voices()
    wanted = (language or "").replace("_", "-").lower()
    return [voice for voice in known if not wanted or wanted in (voice.id, *(tag.lower() for tag in voice.languages))]


def _check(target: Path) -> None:
    if target.suffix.lower() not in ("", ".wav"):
        raise InvalidRequest(f"-o {target}: allowed: a name that ends in .wav, the only format so far")
    # Only a regular file is replaced: never a device or a pipe.
    if not target.parent.is_dir() or (target.exists() and not target.is_file()):
        raise InvalidRequest(f"-o {target}: allowed: the path of a file in a folder that exists")


async def _write(service: SpeechService, request: SpeechRequest, target: Path) -> None:
    console = Console(stderr=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with console.status("loading the engine"):
            async with aclosing(service.speak(request)) as blocks:
                first = await anext(blocks)
                seconds = await _save(first, blocks, part)
        part.replace(target)
    except OSError as error:
        raise InvalidRequest(f"{target}: cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    if console.is_terminal:
        engine = service.engine.name if service.engine else ""
        console.print(f"{target}: {seconds:.1f} s of speech by {engine}", highlight=False)


async def _save(first: Pcm, rest: AsyncGenerator[Pcm, None], path: Path) -> float:
    """Seconds written."""
    seconds = first.duration_s
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(first.sample_rate)
        file.writeframesraw(first.samples)
        async for block in rest:
            file.writeframesraw(block.samples)
            seconds += block.duration_s
    return seconds


async def _stream(service: SpeechService, request: SpeechRequest) -> None:
    started = False
    with suppress(BrokenPipeError):  # who listens has heard enough
        async with aclosing(service.speak(request)) as blocks:
            async for block in blocks:
                if not started:
                    started = True
                    sys.stdout.buffer.write(wav.header(block.sample_rate, None))
                sys.stdout.buffer.write(block.samples)
                sys.stdout.buffer.flush()


def _player() -> tuple[str, ...]:
    for command in _PLAYERS:
        if path := shutil.which(command[0]):
            return (path, *command[1:])
    names = ", ".join(command[0] for command in _PLAYERS)
    raise InvalidRequest(f"nothing here can play sound ({names}); write a file: -o hello.wav")


async def _play(player: tuple[str, ...], file: Path) -> None:
    process = await asyncio.create_subprocess_exec(*player, str(file))
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    if status:
        raise Fishs2Error(f"{Path(player[0]).name} could not play it (status {status}); write a file: -o hello.wav")
