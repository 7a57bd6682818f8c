"""Plots of the CSV files in benchmarks/results, as SVG files beside them.

Usage: python benchmarks/plots.py [--results FOLDER]

Needs matplotlib. A CSV file that is not there is left out.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
# The same figures give the same file, and text stays text.
matplotlib.rcParams.update({"svg.hashsalt": "convexlayers", "svg.fonttype": "none", "font.size": 9})

import matplotlib.pyplot as plt  # noqa: E402
from report import RESULTS, read  # noqa: E402

Row = dict[str, str]
COLORS = {
    "convexlayers": "#0b6e99",
    "cvxpylayers": "#b5b5b5",
    "cvxpylayers+moreau": "#7f7f7f",
    "moreau": "#d95f02",
    "moreau(ipm)": "#f0a35e",
    "qpth": "#7570b3",
    "proxsuite": "#1b9e77",
}
# As in table.py: a bar of a wrong answer is drawn hollow.
WRONG = 1e-2


def color(contender: str) -> str:
    """Fixed for each contender, so that figures can be compared."""
    return COLORS.get(contender, "#444444")


def total(row: Row) -> float:
    """Forward and backward, ms."""
    return float(row["forward_ms"]) + float(row["backward_ms"])


def timed(rows: list[Row]) -> list[Row]:
    """Those with a time."""
    return [row for row in rows if row["forward_ms"]]


def bars(rows: list[Row], comment: str, path: Path) -> None:
    """Per problem one bar per contender: forward + backward on a logarithmic scale."""
    problems = list(dict.fromkeys(row["family"] for row in rows))
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    width = 0.8 / len(contenders)
    figure, axes = plt.subplots(figsize=(1.1 * len(problems) + 2, 3.6))
    for row in timed(rows):
        place = problems.index(row["family"]) + width * (contenders.index(row["contender"]) - (len(contenders) - 1) / 2)
        wrong = bool(row["failure"]) or float(row["solution_error"]) > WRONG
        face = "none" if wrong else color(row["contender"])
        axes.bar(place, total(row), 0.9 * width, facecolor=face, edgecolor=color(row["contender"]), linewidth=0.8)
    for contender in contenders:
        axes.bar(0, 0, color=color(contender), label=contender)
    batches = {row["family"]: row["batch"] for row in rows}
    axes.set_xticks(range(len(problems)), [f"{problem}\nB = {batches[problem]}" for problem in problems])
    axes.set_yscale("log")
    axes.set_ylabel("forward + backward, ms")
    axes.set_title("hollow: wrong or not solved", fontsize=8, loc="right")
    axes.legend(fontsize=7, ncols=2)
    save(figure, comment, path)


def curves(rows: list[Row], by: str, comment: str, path: Path) -> None:
    """Time per element against a column, one curve per contender and problem."""
    figure, axes = plt.subplots(figsize=(5.2, 3.6))
    styles = dict(zip(dict.fromkeys(row["problem"] for row in rows), ["-", "--", ":"] * len(rows), strict=False))
    if by == "n":  # one problem of many sizes
        styles = dict.fromkeys(styles, "-")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in timed(rows):
        groups.setdefault((row["contender"], "dense QP" if by == "n" else row["problem"]), []).append(row)
    for (contender, problem), group in groups.items():
        points = [float(row[by]) for row in group], [float(row["per_element_us"]) for row in group]
        style = styles.get(problem, "-")
        axes.plot(*points, style, marker="o", markersize=3, color=color(contender), label=f"{contender}, {problem}")
    axes.set_xscale("log", base=2 if by == "threads" else 10)
    axes.set_yscale("log")
    axes.set_xlabel({"batch": "elements in the batch", "n": "variables n = m", "threads": "cores"}[by])
    axes.set_ylabel("forward + backward per element, us")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    save(figure, comment, path)


def save(figure: Any, comment: str, path: Path) -> None:
    """Write the file, with what was measured on what below the plot."""
    figure.text(0.01, 0.005, comment, fontsize=4, color="#666666")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def plot_scaling(rows: list[Row], comment: str, folder: Path) -> None:
    """The three experiments of scaling.py that are curves."""
    for experiment, by in (("batch", "batch"), ("size", "n"), ("threads", "threads")):
        found = [row for row in rows if row["experiment"] == experiment]
        if found:
            curves(found, by, comment, folder / f"scaling_{experiment}.svg")


def main() -> None:
    """Plot what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    plots: dict[str, Callable[[list[Row], str], None]] = {
        "families": lambda rows, comment: bars(rows, comment, folder / "families.svg"),
        "qp_layers": lambda rows, comment: bars(rows, comment, folder / "qp_layers.svg"),
        "scaling": lambda rows, comment: plot_scaling(rows, comment, folder),
    }
    for name, plot in plots.items():
        if (folder / f"{name}.csv").exists():
            comment, rows = read(folder / f"{name}.csv")
            plot(rows, comment)


if __name__ == "__main__":
    main()
