"""What the tests of `bench` share: the command as a process, and what its report must be."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.find_spec("ggml")

#: The folder of the binding's own tests is found as a namespace package of that name.
NEEDS_GGML = pytest.mark.skipif(_SPEC is None or _SPEC.origin is None, reason="ggml-python is not installed")

COMMAND = (sys.executable, "-m", "fishs2_daemon", "bench")


def run(*arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip


def report_of(*arguments: str, **environment: Any) -> tuple[dict[str, Any], str]:
    """The JSON and the tables of a run that says nothing else."""
    result = run(*arguments, "--json", "bench.json", **environment)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    report: dict[str, Any] = json.loads(Path("bench.json").read_text())
    assert set(report) >= {"schema", "date", "software", "hardware", "engine", "asked", "notes"}
    return report, result.stdout


def check_level(level: dict[str, Any], streams: int, repeat: int) -> None:
    """The figures follow from the raw times below them."""
    requests = level["requests"]
    assert (level["streams"], level["answers"], len(requests)) == (streams, streams * repeat, streams * repeat)
    assert len({request["text"] for request in requests}) == len(requests)
    for request in requests:
        assert 0 < request["ttfa_s"] <= request["total_s"]
        assert request["audio_s"] == pytest.approx(sum(audio for _, audio in request["blocks"]), abs=0.01)
    assert level["audio_s"] == pytest.approx(sum(request["audio_s"] for request in requests), abs=0.01)
    assert level["audio_s_per_s"] == pytest.approx(level["audio_s"] / level["wall_s"])
    worst = max(request["ttfa_s"] for request in requests)
    assert 0 < level["ttfa_ms"]["p50"] <= level["ttfa_ms"]["p95"] <= level["ttfa_ms"]["p99"] <= 1000 * worst + 0.1
    assert level["underrun_s"] == pytest.approx(sum(request["underrun_s"] for request in requests), abs=0.01)
    assert 0 <= level["continuity"]["c50"] <= level["continuity"]["c100"] <= level["continuity"]["c200"] <= 1
