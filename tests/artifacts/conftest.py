"""The hub, and a folder of its own for every test."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fishs2_daemon.artifacts import transfer
from fishs2_daemon.artifacts.bundle import Bundle
from tests.artifacts.hub import Hub, running
from tests.artifacts.runtimes import FILES
from tests.artifacts.zips import zipped

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


@pytest.fixture
def bundle(hub: Hub, tmp_path: Path) -> Bundle:
    hub.files["runtime.zip"] = zipped({f"s2-runtime/{name}": data for name, data in FILES.items()})
    return Bundle(tmp_path / "runtime" / "fishs2sharp", f"{hub.url('runtime.zip')}?signature=secret")
