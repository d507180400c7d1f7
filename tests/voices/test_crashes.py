"""A killed process leaves the old or the new voice, whole, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("killed.py")


def killed(root: Path, way: str, how: str, seed: int = 0) -> int:
    """The number of kills, after none of which anything was wrong."""
    ended = subprocess.run(
        [sys.executable, PROGRAM, root, way, how, str(seed)], capture_output=True, text=True, check=False
    )
    *faults, kills = ended.stdout.splitlines() or [""]
    assert not faults, "\n".join(faults)
    assert ended.returncode == 0, ended.stderr
    return int(kills)


@pytest.mark.parametrize("way", ["exchange", "steps"])
def test_killed_before_every_step(tmp_path: Path, way: str) -> None:
    assert killed(tmp_path / "voices", way, "every") > 60


@pytest.mark.parametrize("way", ["exchange", "steps"])
def test_killed_at_any_moment(tmp_path: Path, way: str) -> None:
    assert killed(tmp_path / "voices", way, "150", seed=1) == 150
