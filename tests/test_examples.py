"""Every example runs in its fast mode, from the command line, and reaches the figure that it asserts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_reaches_its_figure(path, tmp_path):
    command = [sys.executable, str(path), "--fast", "--output", str(tmp_path)]
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "without the layer" in run.stdout
    assert "layer: held-out" in run.stdout
    assert list(tmp_path.glob("*.png"))
