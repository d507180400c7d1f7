"""`models`: the model's files, listed, fetched, checked, removed, and the runtime of the s2cpp engine."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fishs2_daemon import configuration, logs
from fishs2_daemon.artifacts import licence, part, standing
from fishs2_daemon.artifacts import record as records
from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES, Artifact, locate, model, tokenizer
from fishs2_daemon.artifacts.errors import ArtifactError, CorruptArtifact
from fishs2_daemon.artifacts.lock import writing
from fishs2_daemon.artifacts.progress import Progress, Tell, Tenths, megabytes
from fishs2_daemon.artifacts.runtime import look
from fishs2_daemon.artifacts.standing import State
from fishs2_daemon.errors import InvalidRequest
from fishs2_daemon.settings import Settings

if TYPE_CHECKING:
    from rich.progress import TaskID

app = typer.Typer(
    help="The model's files: what there is, fetch, check, remove.", no_args_is_help=True, rich_markup_mode=None
)

#: The one that suits this machine.
_AUTO = "auto"

Quant = Annotated[str | None, typer.Argument(metavar="[QUANT]", help=f"{', '.join(PUBLISHED_BYTES)} or {_AUTO}.")]

_INTERRUPTED = 130


@app.command(name="list")
def list_files() -> None:
    """List the files: size, whether they are there and whole, where."""
    settings = _settings()
    used = locate(settings)
    for quant, artifact in [*((quant, model(settings, quant)) for quant in PUBLISHED_BYTES), ("", tokenizer(settings))]:
        seen = standing.look(artifact.path)
        state = seen.state.value
        if seen.state is State.PARTIAL:
            state = f"begun, {megabytes(seen.size)}"
        size = seen.size if seen.state in (State.WHOLE, State.UNCHECKED, State.CHANGED) else artifact.published_bytes
        mark = "*" if artifact.path in (used.model, used.tokenizer) else " "
        typer.echo(f"{mark} {quant or 'tokenizer':<10}{megabytes(size):>9}  {state:<28}{artifact.path}")
    _list_runtime(settings)
    typer.echo("* is what the settings name. Sizes of files that are not there are the published ones.")
    folder = used.model.parent.absolute()
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    typer.echo(f"{megabytes(shutil.disk_usage(there).free)} are free at {used.model.parent}.")


@app.command()
def get(
    quant: Quant = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again; a file that is not whole is set aside.")] = False,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You agree to the model's licence: non-commercial use only.")
    ] = False,
) -> None:
    """Fetch a model file and its tokenizer; an interrupted fetch goes on where it stopped."""
    quant = _known(quant, *PUBLISHED_BYTES, _AUTO)
    settings = _settings(model_quant=_AUTO) if quant == _AUTO else _settings()
    if quant == _AUTO:
        typer.echo(settings.quant_reason, err=True)
        if not settings.quant_fits and not force:
            raise ArtifactError("nothing was fetched, as nothing fits; with --force the smallest is")
    chosen = model(settings, None if quant == _AUTO else quant)
    _agree(settings, chosen.path.parent, accept_license)
    from fishs2_daemon.artifacts.download import download

    # The small one first: where the source is closed or absent, that is known at once.
    for artifact in (tokenizer(settings), chosen):
        try:
            with _shown() as tell:
                download(artifact, tell, partial(_wait, artifact.file), force=force)
        except KeyboardInterrupt:
            typer.echo(f"stopped{_kept(artifact)}", err=True)
            raise typer.Exit(_INTERRUPTED) from None
        typer.echo(f"{artifact.path}: whole, {megabytes(standing.look(artifact.path).size)}")


@app.command()
def verify() -> None:
    """Read every file that is there and compare it with what it should be."""
    settings = _settings()
    from fishs2_daemon.artifacts.download import verify as verified

    wrong: list[Path] = []
    for artifact in (*(model(settings, quant) for quant in PUBLISHED_BYTES), tokenizer(settings)):
        if not artifact.path.is_file():
            continue
        with _shown() as tell:
            is_whole = verified(artifact.path, tell, sha256=artifact.sha256)
        if is_whole is None:
            typer.echo(f"{artifact.path}: nobody said what it should be; `fishs2-daemon models get` asks its source")
        else:
            typer.echo(f"{artifact.path}: {'whole' if is_whole else 'CORRUPT'}")
            wrong += [] if is_whole else [artifact.path]
    if wrong:
        raise CorruptArtifact(
            f"{', '.join(map(str, wrong))}: not what it should be; `fishs2-daemon models get --force` fetches it again"
        )


@app.command()
def remove(quant: Annotated[str, typer.Argument(metavar="QUANT", help=f"{', '.join(PUBLISHED_BYTES)}.")]) -> None:
    """Remove a model file, what is there of it and what was set aside. The tokenizer stays."""
    path = model(_settings(), _known(quant, *PUBLISHED_BYTES)).path
    if not path.parent.is_dir():
        typer.echo(f"{path}: not there")
        return
    with writing(path, partial(_wait, path.name)):
        try:
            freed = part.remove(path)
            for file in (path, standing.corrupt_of(path), records.path_of(path)):
                freed += file.stat().st_size if file.is_file() else 0
                file.unlink(missing_ok=True)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be removed ({error.strerror})") from None
    typer.echo(f"{path}: removed, {megabytes(freed)} freed" if freed else f"{path}: not there")


@app.command()
def runtime(
    force: Annotated[
        bool, typer.Option("--force", help="Fetch again; what was put there by hand is set aside.")
    ] = False,
) -> None:
    """Fetch the s2cpp engine's libraries (FISHS2_RUNTIME_ZIP_URL), or say what is there."""
    settings = _settings()
    if path := settings.s2_dll_path:
        if not path.is_file():
            raise ArtifactError(f"{path}: not there, and FISHS2_S2_DLL_PATH names it")
        typer.echo(f"{path}: there, FISHS2_S2_DLL_PATH names it; nothing is fetched")
        return
    from fishs2_daemon.artifacts.bundle import bundle_of, install

    if bundle := bundle_of(settings):
        try:
            with _shown() as tell:
                install(bundle, tell, partial(_wait, bundle.folder.name), force=force)
        except KeyboardInterrupt:
            typer.echo("stopped: what came is kept, the same command goes on from there", err=True)
            raise typer.Exit(_INTERRUPTED) from None
    there = look(settings.runtime_dir)
    if not there.is_usable:
        raise ArtifactError(
            f"{there.folder}: {there}; name a zip file of {', '.join(there.lacks)} with FISHS2_RUNTIME_ZIP_URL, copy "
            "them into that folder, or name libs2 with FISHS2_S2_DLL_PATH"
        )
    typer.echo(f"{there.folder}: {there}, {megabytes(there.size_bytes)}")


def _list_runtime(settings: Settings) -> None:
    """Only where somebody has to do with it."""
    there = look(settings.runtime_dir)
    if not there.is_free or settings.engine == "s2cpp":
        mark = "*" if settings.engine == "s2cpp" and not settings.s2_dll_path else " "
        typer.echo(f"{mark} {'runtime':<10}{megabytes(there.size_bytes):>9}  {there!s:<26}  {there.folder}")


def _settings(**given: Any) -> Settings:
    settings = configuration.load(log_level="WARNING", **given)
    logs.configure(settings)
    return settings


def _known(quant: str | None, *allowed: str) -> str | None:
    if quant is None or quant.lower() in allowed:
        return quant and quant.lower()
    raise InvalidRequest(f"{quant!r} is not allowed; allowed: {', '.join(allowed)}")


def _agree(settings: Settings, folder: Path, is_given: bool) -> None:
    """Show the licence before the first download, and have it accepted. Raises `LicenseNotAccepted`."""
    if licence.is_accepted(folder):
        return
    typer.echo(f"{licence.NOTICE}\n", err=True)
    if is_given:
        licence.accept(folder, "--accept-license")
    elif not settings.accept_license and sys.stdin.isatty() and sys.stderr.isatty():
        typer.echo("Do you agree? Type yes: ", err=True, nl=False)
        if sys.stdin.readline().strip().lower() == "yes":
            licence.accept(folder, "yes on a terminal")
    licence.require(folder, given=settings.accept_license)


def _wait(file: str) -> None:
    typer.echo(f"another process is fetching {file}; waiting for it (Ctrl-C ends the waiting)", err=True)


def _kept(artifact: Artifact) -> str:
    seen = standing.look(artifact.path)
    if seen.state is not State.PARTIAL:
        return ""
    return f": {megabytes(seen.size)} of {artifact.file} are kept, the same command goes on from there"


@contextmanager
def _shown() -> Iterator[Tell]:
    """Progress on standard error: a bar on a terminal, else a line every tenth."""
    if not sys.stderr.isatty():
        yield Tenths(lambda line: typer.echo(line, err=True))
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def tell(progress: Progress) -> None:
            key = (progress.doing, progress.file)
            if key not in tasks:
                # What was there before is no speed.
                tasks[key] = bars.add_task(" ".join(key), total=progress.total, completed=progress.done)
            bars.update(tasks[key], completed=progress.done, total=progress.total)

        yield tell
