"""Backends and the threads that use them."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from fishs2_daemon.engines.s2.ggml import Backend, DType, GraphBuilder


@pytest.mark.usefixtures("kit")
def test_every_thread_chooses_its_gpu_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that says that it is the second GPU. ggml chooses one for its thread when it is asked for memory."""
    asked = []
    memory = Backend.memory
    monkeypatch.setattr(Backend, "memory", lambda backend: asked.append(backend.device) or memory(backend))
    with Backend.open("cpu", threads=1) as backend:
        backend.device, backend.threads = "cuda:1", 0
        g = GraphBuilder(backend, "double")
        x = g.input("x", DType.F32, 4)
        g.output("y", g.add(x, x))
        with closing(g.build()) as graph:
            for _ in range(3):
                with ThreadPoolExecutor(1) as thread:
                    asked.clear()
                    thread.submit(graph.start).result()
                    assert asked == ["cuda:1"]
                    thread.submit(graph.compute).result()
                    thread.submit(backend.synchronize).result()
                    assert asked == ["cuda:1"]


def test_a_processor_is_never_chosen(kit, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(Backend, "memory", lambda backend: pytest.fail("there is no choice"))
    kit.backend.synchronize()
