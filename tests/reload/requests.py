"""What a test asks of a daemon that it changes, and the models that it lays before it."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.daemons import Process

GOLDEN = Path(__file__).parents[1] / "golden"


def lay_models(folder: Path) -> None:
    """A tiny model as the files of two quantisations, where a daemon in `folder` looks for them."""
    (folder / "models").mkdir()
    for quant, file in {"q8_0": "tiny-f16.gguf", "f16": "tiny-f32.gguf"}.items():
        shutil.copy(GOLDEN / file, folder / "models" / f"s2-pro-{quant}.gguf")
    shutil.copy(GOLDEN / "tokenizer.json", folder / "models")


async def reload(process: Process, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=process.url, timeout=60, headers=headers) as client:
        return await client.post("/admin/reload", json=body)


async def health(process: Process) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=process.url) as client:
        return dict((await client.get("/health")).json())


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)
