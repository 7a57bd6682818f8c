"""The README's figures are those of the committed results."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_table_in_the_readme_is_that_of_the_results():
    make_table = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))["make_table"]
    assert make_table() in (ROOT / "README.md").read_text()
