"""`fishs2-daemon voices ...`: what can be spoken with, and the stored voices."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from fishs2_daemon import configuration, logs
from fishs2_daemon.settings import Settings

app = typer.Typer(
    help="List the voices, and add, remove or rename stored ones.",
    add_completion=False,
    rich_markup_mode=None,
)

Engine = Annotated[str | None, typer.Option(metavar="NAME", help="auto, espeak, s2, s2cpp or remote.")]
LogLevel = Annotated[str | None, typer.Option(metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")]
VoicesDir = Annotated[str | None, typer.Option(metavar="DIR", help="Folder of stored voices.")]
VoiceId = Annotated[str, typer.Argument(metavar="ID")]


@app.callback(invoke_without_command=True)
def _voices(context: typer.Context, engine: Engine = None, log_level: LogLevel = "WARNING") -> None:
    if context.invoked_subcommand is None:
        _list(None, engine, log_level)


@app.command("list")
def list_voices(
    language: Annotated[str | None, typer.Argument(help="Only this language, such as `en` or `pt-BR`.")] = None,
    engine: Engine = None,
    log_level: LogLevel = "WARNING",
) -> None:
    """All voices: id, languages, description."""
    _list(language, engine, log_level)


@app.command()
def add(
    voice_id: VoiceId,
    clips: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="Recordings; the first by name is cloned."),
    ],
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="What is said in the first one. Cloning needs it.")],
    language: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Its language, such as `de`.")] = None,
    style: Annotated[str | None, typer.Option(metavar="STYLE", help="How it always speaks, such as `whisper`.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a voice with this id.")] = False,
    voices_dir: VoicesDir = None,
) -> None:
    """Store a voice. Ten seconds of clear speech are enough; ask whose voice it is."""
    from fishs2_daemon.voices.clips import UploadedClip
    from fishs2_daemon.voices.content import NewVoice
    from fishs2_daemon.voices.store import VoiceStore

    new = NewVoice(voice_id=voice_id, transcript=text, languages=tuple(language or ()), style=style)
    uploads = [UploadedClip(clip.name, clip) for clip in clips]
    voice = VoiceStore(_settings(voices_dir).voices_dir).create(new, uploads, replace=replace)
    typer.echo(f"{voice.id}: stored in {voice.clips[0].path.parent}")


@app.command()
def remove(voice_id: VoiceId, voices_dir: VoicesDir = None) -> None:
    """Delete a stored voice and its recordings."""
    from fishs2_daemon.voices.store import VoiceStore

    VoiceStore(_settings(voices_dir).voices_dir).delete(voice_id)
    typer.echo(f"{voice_id}: removed")


@app.command()
def rename(
    voice_id: VoiceId, new_id: Annotated[str, typer.Argument(metavar="NEW")], voices_dir: VoicesDir = None
) -> None:
    """Give a stored voice another id."""
    from fishs2_daemon.voices.store import VoiceStore

    voice = VoiceStore(_settings(voices_dir).voices_dir).rename(voice_id, new_id)
    typer.echo(f"{voice.id}: was {voice_id}")


def _list(language: str | None, engine: str | None, log_level: str | None) -> None:
    from fishs2_daemon import say as saying

    settings = configuration.load(engine=engine, log_level=log_level)
    logs.configure(settings)
    for entry in asyncio.run(saying.voices(settings, language)):
        typer.echo(f"{entry.id:<20} {', '.join(entry.languages):<16} {entry.description}")


def _settings(voices_dir: str | None) -> Settings:
    settings = configuration.load(voices_dir=voices_dir, log_level="WARNING")
    logs.configure(settings)
    return settings
