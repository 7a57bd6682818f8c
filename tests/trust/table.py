"""How every promise did on every engine, as a page of the documentation."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from trust.measured import worse
from trust.rows import ROWS, WITHOUT_ENGINE, engines_of

INTRODUCTION = """\
# What you can rely on

Each line below is a promise to users, and the tests that hold the engines to it. The promises come from what goes wrong
in practice with differentiable optimization: one infeasible sample that takes a batch down, a gradient that is off by
forty percent because a linear solver stopped early, a dual variable with the wrong sign, a zero where a second
derivative should be, a problem that is silently not the one that was written.

Expected values are closed forms where there are any, otherwise differences of solutions that are accurate to rounding,
or CVXPY's own results at a tight tolerance. An engine is held to a promise if it claims what the promise is about: all
of them solve and differentiate; `diffcp` does so by its own derivative, to its own accuracy, and has no power cone; the
promises that take hundreds of solves are for the engines that are made for batches. Lines with the engine `any` are
decided before an engine is called.

The figures are the worst that any test of the line measured, relative to the size of what was expected where that
exceeds one. They are what was measured, not what is asked for: tests on degenerate problems compare with values that no
solver can know better than to the square root of its tolerance.

`make trust` runs the tests of these promises and writes this page.
"""

HEADER = """
| row | promise | engine | tests | passed | worst figures |
|---:|---|---|---:|---:|---|
"""


class Outcome(Enum):
    """Of one test."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass
class Table:
    """Counts and figures by row and engine."""

    counts: dict[tuple[int, str], Counter] = field(default_factory=dict)
    figures: dict[tuple[int, str], dict[str, float]] = field(default_factory=dict)

    def count(self, row: int, engine: str, outcome: Outcome) -> None:
        """One more test."""
        self.counts.setdefault((row, engine), Counter())[outcome] += 1

    def measure(self, row: int, engine: str, figures: dict[str, float]) -> None:
        """The figures of one test; the worst stay."""
        known = self.figures.setdefault((row, engine), {})
        for what, value in figures.items():
            known[what] = worse(value, known[what]) if what in known else value

    def page(self) -> str:
        """The page, in Markdown."""
        return INTRODUCTION + HEADER + "".join(self._line(*key) for key in sorted(self.counts, key=_place))

    def _line(self, row: int, engine: str) -> str:
        counts = self.counts[row, engine]
        tests = counts[Outcome.PASSED] + counts[Outcome.FAILED]
        figures = "; ".join(
            f"{what} {value:.0e}" if value else f"{what} 0"
            for what, value in self.figures.get((row, engine), {}).items()
        )
        cells = (row, ROWS[row].promise, engine, tests, counts[Outcome.PASSED], figures)
        return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def _place(key: tuple[int, str]) -> tuple[int, int]:
    row, engine = key
    return row, ([*engines_of(row), WITHOUT_ENGINE]).index(engine)


def lines_of(page: str) -> list[tuple[int, str, int, int]]:
    """Row, engine, number of tests and of those that passed, of each line of a page."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    return [(int(c[0]), c[2], int(c[3]), int(c[4])) for c in lines if c[0].isdigit()]
