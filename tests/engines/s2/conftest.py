import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.gguf import GgufFile

GOLDEN = Path(__file__).parents[2] / "golden"

#: Tests that compute: they need ggml's libraries, which are built from source where a compiler is.
_COMPUTING = (
    "ggml", "codec", "slow", "fast", "sampling", "frames", "parity", "batching", "prefixes", "clips", "memory",
    "quantisations", "worker_fuzz", "split",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    spec = importlib.util.find_spec("ggml")
    # The folder of the binding's own tests is found as a namespace package of that name.
    if spec is not None and spec.origin is not None:
        return
    for item in items:
        if any(word in Path(item.path).name for word in _COMPUTING):
            item.add_marker(pytest.mark.skip(reason="ggml-python is not installed"))


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """One thread: several stall each other on a machine that is busy."""
    with Backend.open("cpu", threads=1) as backend:
        yield backend


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends: its end token's embedding is a little more of the token that prompt A's frame 5 has."""
    im_end = json.loads((GOLDEN / "golden_meta.json").read_text())["im_end"]
    token = np.load(GOLDEN / "golden_ar.npz")["A_frames"][0, 5]
    path = tmp_path_factory.mktemp("ending") / "model.gguf"
    shutil.copy(GOLDEN / "tiny-f32.gguf", path)
    with GgufFile.open(path) as file:
        info = file.tensors["embeddings.weight"]
        rows = file.data("embeddings.weight").view(np.float32).reshape(-1, info.shape[0]).copy()
    rows[im_end] = 1.05 * rows[token]
    with path.open("r+b") as raw:
        raw.seek(info.offset)
        raw.write(rows.tobytes())
    return path
