"""A model of random weights to measure with, made once and kept."""

import importlib.util
import os
import shutil
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from fishs2_daemon.errors import InvalidRequest, StorageError

MODEL = "model.gguf"
TOKENIZER = "tokenizer.json"

#: What the disk keeps free beside the model: its tokenizer, and what others write meanwhile.
_SPARE_BYTES = 256 << 20

_LOOK_S = 0.2


def model(shape: str, quant: str, folder: Path | None, console: Console) -> Path:
    """The model file of one of the shapes of `engines.s2.tiny`, below `folder` or else the platform's cache; its
    tokenizer is beside it. It is made where it is not there, with a bar on a terminal.

    Raises `InvalidRequest` for a shape or a quantisation that is none, `StorageError` where there is no room.
    """
    if missing := [name for name in ("ggml", "numpy", "tokenizers") if importlib.util.find_spec(name) is None]:
        raise InvalidRequest(f"--synthetic: {', '.join(missing)} is missing: pip install 'fishs2-daemon[s2]'")
    from fishs2_daemon.engines.s2 import tiny

    if shape not in tiny.SHAPES:
        raise InvalidRequest(f"--synthetic: {shape!r} is not allowed; allowed: {', '.join(tiny.SHAPES)}")
    if quant not in tiny.QUANTISATIONS:
        raise InvalidRequest(f"--quant: {quant!r} is not allowed; allowed: {', '.join(tiny.QUANTISATIONS)}")
    geometry, dtype = tiny.SHAPES[shape], tiny.QUANTISATIONS[quant]
    try:
        last = tiny.plan(geometry.config(), dtype)[-1]
    except ValueError as error:
        raise InvalidRequest(f"--synthetic {shape} --quant {quant}: {error}") from None
    # Another version's sizes are another model.
    home = (folder or _cache()) / f"{shape}-{quant}-{zlib.crc32(repr(geometry).encode()):08x}"
    file = home / MODEL
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (file.is_file() and (home / TOKENIZER).is_file()):
            _check_room(home, last.offset + last.nbytes)
            with _bar(f"making {shape}-{quant}", file, last.offset + last.nbytes, console):
                tiny.make_model(file, geometry, dtype=dtype)
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {error.strerror or error}") from None
    return file


def _cache() -> Path:
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fishs2-daemon" / "bench"


def _check_room(home: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(home).free
    if free_bytes < size_bytes + _SPARE_BYTES:
        raise StorageError(
            f"{home}: the model takes {(size_bytes + _SPARE_BYTES) >> 20} MB, and {free_bytes >> 20} MB are free; "
            "name another folder with --folder"
        )


@contextmanager
def _bar(what: str, file: Path, size_bytes: int, console: Console) -> Iterator[None]:
    """Watches the unfinished file grow; nothing where `console` is no terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    over = threading.Event()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=size_bytes)

        def watch() -> None:
            while not over.wait(_LOOK_S):
                unfinished = file.with_name(f"{file.name}.part")
                progress.update(task, completed=unfinished.stat().st_size if unfinished.exists() else 0)

        watching = threading.Thread(target=watch, name="bench-bar", daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()
