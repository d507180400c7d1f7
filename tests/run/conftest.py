import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run.project import Box, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.fixture
def ready(project: Project) -> Project:
    project.stamp("preview", "s2", "test")
    return project


@pytest.fixture
def processes() -> Iterator[Callable[[subprocess.Popen[str]], subprocess.Popen[str]]]:
    """Ends what a test started and did not end itself."""
    started: list[subprocess.Popen[str]] = []

    def watch(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        started.append(process)
        return process

    yield watch
    for process in started:
        process.kill()
        process.communicate()
