"""The test of a backend: the real child, children that fail in every way, and kernels that compute wrongly."""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from fishs2_daemon.engines.s2 import proof_graph
from fishs2_daemon.engines.s2.ggml import Backend, GraphBuilder, Tensor
from fishs2_daemon.engines.s2.kv import KvCache
from fishs2_daemon.engines.s2.proof import Proof, _compute, prove

_spec = importlib.util.find_spec("ggml")
# The folder of the binding's own tests is found as a namespace package of that name.
needs_ggml = pytest.mark.skipif(_spec is None or _spec.origin is None, reason="ggml-python is not installed")

GOOD = Proof(
    backend="cuda", device="cuda:1", device_name="A GPU", free_bytes=5, total_bytes=7, features=("USE_GRAPHS",)
)

Child = Callable[[str], None]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """Puts a shell script in the child's place."""

    def become(script: str) -> None:
        path = tmp_path / "child"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return become


@needs_ggml
async def test_the_processor_computes() -> None:
    proof = await prove("cpu", 0, 60)
    assert proof.ok, proof.reason
    assert (proof.backend, proof.device, proof.ggml_version) == ("cpu", "cpu", "0.15.3")
    assert proof.device_name
    assert 2**28 < proof.total_bytes >= proof.free_bytes > 0
    assert 0 < proof.max_error < proof_graph.TOLERANCE
    assert "OPENMP" in proof.features


@needs_ggml
async def test_a_backend_that_there_is_not_has_a_reason() -> None:
    proof = await prove("tpu", 0, 60)
    assert not proof.ok
    assert proof.reason.startswith("there is no backend 'tpu'")


@needs_ggml
async def test_a_gpu_that_there_is_not_has_a_reason() -> None:
    proof = await prove("cuda", 63, 60)
    assert not proof.ok
    assert proof.reason.startswith(("CUDA cannot be used: ", "there is no GPU cuda:63"))


async def test_what_the_child_found_is_the_answer(child: Child) -> None:
    child(f"echo '{json.dumps(asdict(GOOD))}'")
    assert await prove("cuda", 1, 30) == GOOD


async def test_the_child_is_told_what_to_test(child: Child, tmp_path: Path) -> None:
    child(f'echo "$@" > {tmp_path}/arguments')
    await prove("vulkan", 3, 30)
    assert (tmp_path / "arguments").read_text() == "-m fishs2_daemon.engines.s2.proof vulkan 3\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'GGML_ASSERT(x) failed' >&2; kill -ABRT $$", "the test was ended by SIGABRT: GGML_ASSERT(x) failed"),
        ("kill -SEGV $$", "the test was ended by SIGSEGV"),
        ("kill -KILL $$", "the test was ended by SIGKILL"),
        ("echo first >&2; echo ' second  ' >&2; exit 3", "the test failed: second"),
        ("exit 1", "the test failed"),
        ("exit 0", "the test gave no answer"),
        ("echo '{'; echo why >&2", "the test gave no answer: why"),
        ("echo '[]'", "the test gave no answer"),
        ('echo \'{"backend": "cpu"}\'', "the test gave no answer"),
        ('echo \'{"backend": "cpu", "features": [], "max_error": "0"}\'', "the test gave no answer"),
        ('echo \'{"backend": "cpu", "features": [], "colour": 1}\'', "the test gave no answer"),
        ("head -c 100000 /dev/zero | tr '\\0' '['", "the test gave no answer"),
        ("head -c 3000000 /dev/urandom; head -c 3000000 /dev/urandom >&2; exit 1", "the test failed"),
        ("exec sleep 60", "the test did not end within 0.5 s"),
        ("yes", "the test did not end within 0.5 s"),
    ],
)
async def test_a_child_that_fails_has_a_reason(child: Child, script: str, reason: str) -> None:
    child(script)
    proof = await prove("cuda", 0, 0.5 if "0.5" in reason else 30)
    assert proof.backend == "cuda"
    assert not proof.ok
    assert proof.reason.startswith(reason)
    assert len(proof.reason) < 400


async def test_a_program_that_is_not_there_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "cannot be started" in (await prove("cpu", 0, 30)).reason


async def test_a_test_that_is_broken_off_leaves_no_child(child: Child, tmp_path: Path) -> None:
    child(f"echo $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; exec sleep 60")
    task = asyncio.create_task(prove("cpu", 0, 30))
    while not (tmp_path / "pid").exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


async def test_what_cannot_be_ended_is_not_waited_for(child: Child, tmp_path: Path) -> None:
    # In a session of its own, with the child's pipes open: for those who wait, as good as a child that cannot die.
    child(f"setsid sleep 60 & echo $! > {tmp_path}/pid; exec sleep 60")
    began_s = time.monotonic()
    proof = await prove("cuda", 0, 0.5)
    took_s = time.monotonic() - began_s
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert proof.reason == "the test did not end within 0.5 s"
    assert took_s < 10


def test_the_parent_loads_nothing_native() -> None:
    code = "import sys, fishs2_daemon.engines.s2.proof; print({'numpy', 'cffi', '_cffi_backend'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_wrong_arguments_are_said() -> None:
    command = [sys.executable, "-m", "fishs2_daemon.engines.s2.proof"]
    for arguments in ([], ["cpu", "first"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: ")


def _scaled(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(g: GraphBuilder, *rest: Any, **options: Any) -> Tensor:
        return g.scale(operation(g, *rest, **options), 1.1)

    return wrong


def _nan(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(g: GraphBuilder, *rest: Any, **options: Any) -> Tensor:
        result = operation(g, *rest, **options)
        return g.log(g.scale(result, 0.0, -1.0))

    return wrong


def _of_negative(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(g: GraphBuilder, a: Tensor, *rest: Any) -> Tensor:
        return operation(g, g.neg(a), *rest)

    return wrong


@needs_ggml
@pytest.mark.parametrize(
    ("operation", "spoil", "where"),
    [
        # A processor's attention is products and a softmax.
        ("mul_mat", _scaled, ("product of ", "attention")),
        ("mul_mat", _nan, "product of "),
        ("soft_max", _scaled, ("softmax of ", "attention")),
        ("argmax", _of_negative, "argmax of "),
        ("top_k", _of_negative, "order of "),
    ],
)
def test_what_computes_wrongly_is_seen(
    monkeypatch: pytest.MonkeyPatch, operation: str, spoil: Callable[..., Any], where: str | tuple[str, ...]
) -> None:
    monkeypatch.setattr(GraphBuilder, operation, spoil(getattr(GraphBuilder, operation)))
    with Backend.open("cpu", threads=1) as backend:
        error, what = proof_graph.largest_error(backend)
    assert error > proof_graph.TOLERANCE
    assert what.startswith(where)
    proof = _compute("cpu", 0)
    assert proof.reason.startswith(f"it computes wrongly: {what} is off by ")
    assert proof.device == "cpu"


@needs_ggml
def test_attention_that_sees_too_much_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = KvCache.attend
    monkeypatch.setattr(
        KvCache, "attend", lambda cache, g, layer, q, mask, **where: attend(cache, g, layer, q, None, **where)
    )
    with Backend.open("cpu", threads=1) as backend:
        error, what = proof_graph.largest_error(backend)
    assert (error > proof_graph.TOLERANCE, what) == (True, "attention")
