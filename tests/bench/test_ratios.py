"""The ratios of a tiny model: what they are made of, not how fast this machine is."""

import asyncio
import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from fishs2_daemon import configuration
from fishs2_daemon.bench import ratios, report, synthetic
from fishs2_daemon.bench.inside import Going, aside
from fishs2_daemon.bench.ratios import Ratio
from tests.bench.harness import NEEDS_GGML


@pytest.mark.parametrize(
    ("value", "at_most", "is_met"),
    [(0.3, True, True), (0.31, True, False), (0.3, False, True), (0.29, False, False)],
)
def test_a_goal_is_a_bound_on_one_side(value: float, at_most: bool, is_met: bool) -> None:
    assert Ratio("it", value, 0.3, at_most, "").is_met is is_met


@NEEDS_GGML
async def test_every_ratio_is_measured_and_shown_with_its_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratios, "_STREAMS", 2)
    monkeypatch.setattr(ratios, "_ANSWER_S", 0.5)
    monkeypatch.setattr(ratios, "_CODEC_FRAMES", 140)
    monkeypatch.setattr(ratios, "_CODEC_SAMPLE", 5)
    quiet = Console(file=io.StringIO())
    model = synthetic.model("tiny", "f16", tmp_path, quiet)
    settings = configuration.load(
        engine="s2", model_path=model, tokenizer_path=model.with_name(synthetic.TOKENIZER), backend="cpu", n_threads=1
    )
    figures = await ratios.measure(settings, settings, 1, quiet)
    assert [(ratio["goal"], ratio["at_most"]) for ratio in figures["ratios"]] == [
        (0.3, True), (0.1, True), (2.5, False), (0.2, True), (1.1, True),
    ]  # fmt: skip
    host, first_sound, together, warm, codec = (ratio["value"] for ratio in figures["ratios"])
    assert 0 < host < 1000
    assert 0 < first_sound < 1
    assert together > 0
    assert warm > 0
    assert codec > 0
    page = io.StringIO()
    report.show(figures, Console(file=page, width=200))
    for ratio in figures["ratios"]:
        assert ratio["name"] in page.getvalue()
    assert ("MISSED" in page.getvalue()) == (not all(ratio["is_met"] for ratio in figures["ratios"]))


async def test_long_work_ends_between_two_steps_when_nobody_waits_for_it() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(going: Going) -> None:
        begun.set()
        try:
            while True:
                going()
        finally:
            ended.set()

    task = asyncio.create_task(aside(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
