"""The page with the table of promises: complete, and written from what was measured."""

import math
from pathlib import Path

import pytest

import convexlayers as cl
from trust import measured
from trust.conftest import row_of
from trust.rows import ROWS, WITHOUT_ENGINE, engines_of
from trust.table import INTRODUCTION, Outcome, Table, lines_of

PAGE = Path(cl.__file__).parent.parent / "docs" / "trust.md"
TESTS = Path(__file__).parent


def test_every_file_of_tests_is_a_row_and_every_row_has_one():
    assert {row_of(path) for path in TESTS.glob("test_row_*.py")} == set(ROWS)


@pytest.mark.skipif(not PAGE.exists(), reason="installed without its documentation")
def test_the_committed_page_is_complete():
    """Every row with every engine that is held to it; what the figures are is not asked."""
    page = PAGE.read_text(encoding="utf-8")
    assert page.startswith(INTRODUCTION)
    lines = lines_of(page)
    found = {(row, engine) for row, engine, _, _ in lines}
    # What needs no engine at all has a line too.
    assert {row for row, _ in found} == set(ROWS)
    assert {(row, engine) for row, engine in found if engine == WITHOUT_ENGINE} <= {(r, WITHOUT_ENGINE) for r in ROWS}
    with_engines = {row for row, engine in found if engine != WITHOUT_ENGINE}
    expected = {(row, engine) for row in with_engines for engine in engines_of(row)}
    assert {pair for pair in found if pair[1] != WITHOUT_ENGINE} == expected
    assert with_engines == set(ROWS) - {17}
    assert all(tests == passed > 0 for _, _, tests, passed in lines)
    for number, row in ROWS.items():
        assert f"| {number} | {row.promise} |" in page


def test_the_worst_figure_stays():
    with measured.recording() as figures:
        for value in (1e-9, 3e-9, 2e-9):
            assert measured.record(value, "x") == value
        for value in (1.0, float("nan"), 2.0):
            measured.record(value, "y")
    assert figures["x"] == 3e-9
    assert math.isnan(figures["y"])
    measured.record(1.0, "nobody listens")


def test_lines_are_in_order_and_count_what_failed():
    table = Table()
    for row, engine, outcome in (
        (9, "scs", Outcome.PASSED),
        (9, "native", Outcome.PASSED),
        (9, "native", Outcome.FAILED),
        (9, "native", Outcome.SKIPPED),
        (1, "native", Outcome.PASSED),
        (9, WITHOUT_ENGINE, Outcome.PASSED),
    ):
        table.count(row, engine, outcome)
    table.measure(9, "native", {"x": 1e-9})
    table.measure(9, "native", {"x": 2e-12})
    page = table.page()
    assert lines_of(page) == [(1, "native", 1, 1), (9, "native", 2, 1), (9, "scs", 1, 1), (9, WITHOUT_ENGINE, 1, 1)]
    assert "| x 1e-09 |" in page
