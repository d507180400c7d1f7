"""What every test is held to, and the real service that most of them drive."""

import gc
import logging
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psutil
import pytest

from fishs2_daemon import configuration
from fishs2_daemon.daemon import running_service
from fishs2_daemon.service import SpeechService
from fishs2_daemon.settings import Settings
from fishs2_daemon.worker.pool import WorkerPool
from tests.daemons import Launch, is_worker, launching

# Examples are new in every run at a desk, where a find is welcome; a checkout that is judged sees the same ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking through it after every test would take most of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_raises_out_of_a_task(request: pytest.FixtureRequest) -> Iterator[None]:
    """asyncio reports an exception that nobody looked at, and a callback that raised, to its logger only."""
    reports: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reports.append(self.format(record))

    handler = Keep(logging.ERROR)
    logging.getLogger("asyncio").addHandler(handler)
    yield
    if request.node.get_closest_marker("asyncio"):
        gc.collect()  # a forgotten task reports when it is collected; too slow to do after every plain test
    logging.getLogger("asyncio").removeHandler(handler)
    assert not reports, "\n".join(reports)


@pytest.fixture(autouse=True)
def _no_worker_is_left_behind() -> Iterator[None]:
    yield
    left = [child for child in psutil.Process().children(recursive=True) if is_worker(child)]
    for child in left:
        child.kill()
    assert not left, f"worker processes left behind: {left}"


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # `.env` is read from the working folder
    for name in configuration.given_names():
        monkeypatch.delenv(name, raising=False)


@dataclass
class Speech:
    """A service with its real worker process."""

    settings: Settings
    service: SpeechService
    supervisor: WorkerPool

    @property
    def worker(self) -> psutil.Process:
        assert self.supervisor.pid is not None
        return psutil.Process(self.supervisor.pid)


@pytest.fixture
async def speech() -> AsyncIterator[Speech]:
    settings = configuration.load(languages="en,de")
    async with running_service(settings) as (service, supervisor):
        await supervisor.ready(20)
        yield Speech(settings, service, supervisor)


@pytest.fixture
async def launch(tmp_path: Path) -> AsyncIterator[Launch]:
    async with launching(tmp_path) as start:
        yield start
