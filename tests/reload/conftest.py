"""Models on the disk, and a source of a model that takes its time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.artifacts.hub import Hub, running
from tests.reload.requests import GOLDEN, lay_models

#: Long enough for what a test does meanwhile; it ends as soon as the test opens the tap.
_PIECE_PAUSE_S = 0.5


@dataclass
class SlowSource:
    """A tiny model at an address of this machine. It comes in small pieces until `open` is called."""

    hub: Hub

    @property
    def environment(self) -> dict[str, str]:
        """What fetches it, but for the licence."""
        names = {"FISHS2_MODEL_URL": "model.gguf", "FISHS2_TOKENIZER_URL": "tokenizer.json"}
        return {name: self.hub.url(file) for name, file in names.items()} | {"FISHS2_MAX_NEW_TOKENS": "12"}

    @property
    def is_asked(self) -> bool:
        return bool(self.hub.gets("model.gguf"))

    def open(self) -> None:
        self.hub.piece_pause_s = 0.0


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowSource]:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    files = {"model.gguf": GOLDEN / "tiny-f16.gguf", "tokenizer.json": GOLDEN / "tokenizer.json"}
    hub = Hub({name: file.read_bytes() for name, file in files.items()}, piece_pause_s=_PIECE_PAUSE_S)
    with running(hub):
        yield SlowSource(hub)
        hub.piece_pause_s = 0.0  # its thread still sends


@pytest.fixture
def needs_s2() -> None:
    pytest.importorskip("ggml", reason="the S2 engine's libraries are not installed")


@pytest.fixture
def two_models(needs_s2: None, tmp_path: Path) -> None:
    lay_models(tmp_path)
