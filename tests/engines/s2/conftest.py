import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from fishs2_daemon.engines.s2.ggml import Backend

#: Tests that compute: they need ggml's libraries, which are built from source where a compiler is.
_COMPUTING = ("ggml", "codec", "slow", "fast", "sampling", "frames", "parity")


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
