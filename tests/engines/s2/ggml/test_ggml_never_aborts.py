"""A failed assertion in ggml ends the process. Random programs must end in a value or an `EngineError`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("examples", [150, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_random_programs_end_in_a_value_or_an_error(kit, examples):
    script = Path(__file__).with_name("ggml_fuzz.py")
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run(
        [sys.executable, str(script), str(examples), str(examples)], env=variables, capture_output=True, text=True
    )
    programs = done.stdout.splitlines()
    assert done.returncode == 0, f"status {done.returncode}\n{done.stderr[-3000:]}\n{programs[-1] if programs else ''}"
    ran = [line for line in programs if line.endswith("run")]
    assert len(ran) > examples // 2
    # Steps are not all refused, nor all taken.
    refused = done.stdout.count(" refused; ")
    assert examples < refused < done.stdout.count("; ") - 3 * examples
