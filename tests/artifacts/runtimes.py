"""A runtime for the tests: what is in it, and what is in a folder."""

import hashlib
import random
from pathlib import Path

from fishs2_daemon.artifacts.runtime import MANIFEST
from tests.artifacts.hub import Hub

FILES = {
    "libs2.so": random.Random(5).randbytes(60_000),
    "libggml.so": random.Random(6).randbytes(30_000),
    "libggml-base.so.0": random.Random(7).randbytes(30_000),
    **{f"more/{number}": random.Random(number).randbytes(4_000) for number in range(20)},
}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def digest(hub: Hub) -> str:
    return hashlib.sha256(hub.files["runtime.zip"]).hexdigest()
