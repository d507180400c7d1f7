"""The hub, and a folder of its own for every test."""

import random
from collections.abc import Iterator

import pytest

from fishs2_daemon.artifacts import transfer
from tests.artifacts.hub import Hub, running

MODEL = "s2-pro-q8_0.gguf"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import close_session

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("all_proxy", raising=False)
    monkeypatch.setattr(transfer, "PAUSES_S", (0.01,) * 5)
    files = {MODEL: random.Random(1).randbytes(700_001), "tokenizer.json": random.Random(2).randbytes(9_001)}
    with running(Hub(files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        close_session()  # it remembers the proxies of its time
        yield hub
    close_session()
