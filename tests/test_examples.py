"""Every example runs in its fast mode, from the command line, and reaches the figure that it asserts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Needs Ray and a cluster: it has a test of its own.
OTHERS = {"cluster_batch"}
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem not in OTHERS)


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_reaches_its_figure(path, tmp_path):
    command = [sys.executable, str(path), "--fast", "--output", str(tmp_path)]
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    figures = [line for line in run.stdout.splitlines() if line.startswith("figure: ")]
    assert any(letter.isdigit() for line in figures for letter in line), run.stdout[-2000:]
    assert list(tmp_path.glob("*.png"))


def test_a_cluster_that_loses_a_worker_loses_nothing(tmp_path):
    """The example compares with one process to the last bit, and asserts that one worker was lost."""
    pytest.importorskip("ray.exceptions", reason="ray is not installed: it is no part of [dev]")
    command = [sys.executable, str(ROOT / "examples" / "cluster_batch.py"), "--fast", "--kill", "--output", "."]
    # Ray keeps a token in the user's folder.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "workers lost: 1; results equal to one process, to the last bit" in run.stdout
    assert (tmp_path / "cluster_batch.pt").exists()
