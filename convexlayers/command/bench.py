"""This library beside the peers that are installed: medians, ratios and errors, as a table and as a plot.

The problems, the peers and the way of timing are those of the repository's benchmarks/, of which a wheel holds a copy.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import convexlayers
from convexlayers.command.info import PEERS
from convexlayers.seeing.render import columns

Write = Callable[[str], object]
Row = dict[str, Any]

SMALL = ("qp10", "socp", "optnet10")
OURS = "convexlayers"
# Seconds for each family and contender; the slow get fewer repeats.
BUDGET = 10.0
# As in benchmarks/table.py: beyond this relative error it is the solution of another problem.
WRONG = 1e-2
NOTE = f"ratio: forward + backward over ours; in brackets where a solution is off by more than {WRONG:g} or failed"
HEAD = ("family", "batch", "contender", "forward, ms", "backward, ms", "ratio", "error of x", "of gradient", "failure")


def run(
    write: Write,
    families: Sequence[str] | None = None,
    batch: int | None = None,
    repeats: int = 5,
    output: Path | None = None,
) -> int:
    """Time everybody on the same tensors, in turn, and show a table.

    Args:
        write: takes the lines.
        families: names; None for three small ones, ("all",) for all.
        batch: elements, None for each family's own number.
        repeats: turns of each contender.
        output: folder for families.csv and, where matplotlib is installed, families.svg; None for neither.

    Returns:
        0, or 1 where the benchmarks or a family are not there.
    """
    folder = find_scripts()
    if folder is None:
        write("The benchmarks are not part of this installation: run from a clone of the repository.\n")
        return 1
    with importable(folder):
        known, contenders = _everybody()
        names = list(SMALL if families is None else known if "all" in families else families)
        unknown = [name for name in names if name not in known]
        if unknown:
            write(f"No family {', '.join(unknown)}; there are {', '.join(known)}.\n")
            return 1
        _say_who_is_there(write)
        rows: list[Row] = []
        for name in names:
            write(f"{name} ...\n")
            rows += known[name](batch, repeats)
        write("\n" + "\n".join(columns(table(rows))) + "\n")
        comment = import_module("report").environment(contenders)
        write(f"{NOTE}\n\n{comment}\n")
        if output is not None:
            _write_files(write, rows, comment, output)
    return 0


def find_scripts() -> Path | None:
    """The folder of the benchmarks: beside the package in a clone, inside it in a wheel."""
    package = Path(convexlayers.__file__).parent
    candidates = (package.parent / "benchmarks", package / "benchmarks")
    return next((path for path in candidates if (path / "run.py").exists() and (path / "harness.py").exists()), None)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let the scripts of a folder import each other."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Cells, the head first; a ratio is the time of a contender over ours for the same family."""
    own = {row["family"]: _total(row) for row in rows if row["contender"] == OURS}
    body = []
    for row in rows:
        total, ours = _total(row), own.get(row["family"])
        ratio = f"{total / ours:.2f}" if total is not None and ours else ""
        ratio = f"({ratio})" if ratio and _is_wrong(row) else ratio
        names = ("family", "batch", "contender", "forward_ms", "backward_ms")
        figures = (str(row.get(name, "")) for name in (*names, "solution_error", "gradient_error", "failure"))
        *first, error, gradient, failure = figures
        body.append((*first, ratio, error, gradient, failure))
    return [HEAD, *body]


def _is_wrong(row: Row) -> bool:
    return bool(row["failure"]) or float(row["solution_error"]) > WRONG


def _total(row: Row) -> float | None:
    return row["forward_ms"] + row["backward_ms"] if "forward_ms" in row else None


def _everybody() -> tuple[dict[str, Callable[[int | None, int], list[Row]]], list[Any]]:
    """Families by name, of problems written in CVXPY and of QP layers that take tensors; and who takes part."""
    problems, layers = import_module("run"), import_module("qp_layers")
    conic = [contender for name, contender in problems.CONTENDERS.items() if name in problems.DEFAULT]
    there = [contender for contender in conic if contender.installed]
    others = [contender for contender in layers.CONTENDERS if contender.installed]
    known: dict[str, Callable[[int | None, int], list[Row]]] = {}
    for name in problems.FAMILIES:
        known[name] = lambda batch, repeats, name=name: problems.benchmark(name, there, batch, repeats, BUDGET)
    for n in layers.SIZES:
        known[f"optnet{n}"] = lambda batch, repeats, n=n: layers.benchmark(n, others, batch, repeats, BUDGET)
    return known, [*there, *others]


def _say_who_is_there(write: Write) -> None:
    there = [name for name in PEERS if find_spec(name) is not None]
    missing = [name for name in PEERS if name not in there]
    write(f"peers: {', '.join(there) or 'none'}\n")
    if missing:
        write(f"not installed: pip install {' '.join(missing)}\n")


def _write_files(write: Write, rows: Sequence[Row], comment: str, folder: Path) -> None:
    report, path = import_module("report"), folder / "families.csv"
    fields = ["family", "batch", "contender", *import_module("harness").FIELDS]
    report.write(path, comment, fields, rows)
    write(f"{path}\n")
    if find_spec("matplotlib") is None:
        write("no plot without matplotlib: pip install matplotlib\n")
        return
    # It says itself what it has written.
    import_module("plots").bars(report.read(path)[1], comment, folder / "families.svg")
