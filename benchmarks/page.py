"""The tables of docs/benchmarks.md, performance.md and migration.md, made from the CSV files in benchmarks/results.

Usage: python benchmarks/page.py [--check] [PAGE ...]

In a page, what stands between <!-- NAME: start --> and <!-- NAME: end --> is replaced by the table of that name. With
--check nothing is written, and a page that is not what it should be is an error. Every row of every file counts:
"losses" lists those in which a peer that solved the problem is faster than this library, in one pass or in both.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import migration
from report import RESULTS, read
from table import OURS, WRONG, make_table

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / name for name in ("benchmarks.md", "performance.md", "migration.md")]
MARKED = re.compile(r"(<!-- (?P<name>[a-z_]+): start -->\n).*?(<!-- (?P=name): end -->)", re.DOTALL)
# Files whose rows are contenders side by side, and the columns that say on what.
RACES = {
    "families": ["family", "batch"],
    "qp_layers": ["family", "batch"],
    "literature": ["family", "batch"],
    "single": ["family", "batch"],
    "large": ["problem", "n", "batch"],
    "mpc": ["steps", "batch"],
    "torch_engine": ["family", "batch"],
    "scaling": ["experiment", "problem", "batch", "threads"],
}

Row = dict[str, str]


def markdown(head: list[str], rows: Iterable[list[str]], comment: str = "") -> str:
    """A table and the line on what was measured on what."""
    lines = [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]]
    return "\n".join([*lines, "", f"{comment}."] if comment else lines)


def races(name: str) -> tuple[str, dict[str, list[Row]]]:
    """The comment, and the rows that belong together, by what they are about."""
    comment, rows = read(RESULTS / f"{name}.csv")
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(", ".join(_label(column, row[column]) for column in RACES[name]), []).append(row)
    return comment, found


def _label(column: str, value: str) -> str:
    return value if column in ("family", "problem", "experiment") else f"{column} {value}"


def valid(row: Row) -> bool:
    """Whether it solved the problem."""
    return bool(row["forward_ms"]) and not row["failure"] and float(row.get("solution_error") or 0) <= WRONG


def total(row: Row) -> float:
    """Forward and backward, ms; forward alone where there is no backward pass."""
    return float(row["forward_ms"]) + float(row["backward_ms"] or 0)


def race_table(name: str) -> str:
    """One line per problem: this library beside all valid peers, fastest first."""
    comment, found = races(name)
    rows = []
    for label, group in found.items():
        ours = next((row for row in group if row["contender"] == OURS and valid(row)), None)
        if ours is None:
            continue
        peers = sorted((row for row in group if row["contender"] != OURS and valid(row)), key=total)
        out = [row["contender"] for row in group if not valid(row)]
        rows.append(
            [label, _times(ours), "; ".join(f"{row['contender']} {_times(row)}" for row in peers), ", ".join(out)]
        )
    return markdown(["problem", "convexlayers, ms", "others, ms", "failed or wrong"], rows, comment)


def _times(row: Row) -> str:
    parts = [f"{float(row[name]):.3g}" for name in ("forward_ms", "backward_ms") if row[name]]
    return " + ".join(parts)


def losses() -> str:
    """Rows in which a valid peer is faster, in a pass or in both; layers, nodes and warm starts that do not pay."""
    rows = []
    for name in RACES:
        for label, group in races(name)[1].items():
            ours = next((row for row in group if row["contender"] == OURS and valid(row)), None)
            peers = [row for row in group if not _is_ours(row) and valid(row)]
            rows += [_loss(name, label, ours, peer) for peer in peers if ours is not None and _faster(peer, ours)]
    return markdown(["file", "problem", "convexlayers, ms", "peer, ms", "faster in"], [*rows, *_other_losses()])


def _is_ours(row: Row) -> bool:
    """Other engines and the zoo's layers are no peers."""
    return row["contender"].startswith((OURS, "zoo."))


def _faster(peer: Row, ours: Row) -> list[str]:
    """Passes in which the peer is faster."""
    pairs = {name: (peer[f"{name}_ms"], ours[f"{name}_ms"]) for name in ("forward", "backward")}
    found = [name for name, (theirs, own) in pairs.items() if theirs and own and float(theirs) < float(own)]
    both = peer["backward_ms"] and ours["backward_ms"] and total(peer) < total(ours)
    return [*found, "both together"] if both else found


def _loss(name: str, label: str, ours: Row, peer: Row) -> list[str]:
    return [name, label, _times(ours), f"{peer['contender']} {_times(peer)}", ", ".join(_faster(peer, ours))]


def _other_losses() -> list[list[str]]:
    rows = []
    for name in ("zoo", "nodes"):
        for row in read(RESULTS / f"{name}.csv")[1]:
            if row["times_torch"] and float(row["times_torch"]) < 1:
                label = f"{row['case']}, batch {row['batch']}"
                rows.append([name, label, row["ours_ms"], f"plain torch {row['torch_ms']}", "both together"])
    for row in read(RESULTS / "warm_start.csv")[1]:
        if row["engine"] == "native" and float(row["ratio"]) < 1:
            label = f"{row['family']}, parameters changed by {row['change']}"
            rows.append(["warm_start", label, row["warm_ms"], f"cold start {row['cold_ms']}", "forward"])
    return rows


def threads() -> str:
    """Microseconds per element on one and two cores."""
    comment, rows = read(RESULTS / "scaling.csv")
    found = [row for row in rows if row["experiment"] == "threads" and row["contender"] == OURS]
    lines = [[row["problem"], row["batch"], row["threads"], row["per_element_us"]] for row in found]
    return markdown(["problem", "batch", "threads", "us per element"], lines, comment)


def batches() -> str:
    """Microseconds per element against the size of the batch."""
    comment, rows = read(RESULTS / "scaling.csv")
    found = [row for row in rows if row["experiment"] == "batch" and row["contender"] == OURS]
    sizes = list(dict.fromkeys(row["batch"] for row in found))
    by_problem = {row["problem"]: {} for row in found}
    for row in found:
        by_problem[row["problem"]][row["batch"]] = row["per_element_us"]
    lines = [[problem, *(values.get(size, "") for size in sizes)] for problem, values in by_problem.items()]
    return markdown(["us per element, batch of", *sizes], lines, comment)


def memory() -> str:
    """Peak of a forward and backward pass."""
    comment, rows = read(RESULTS / "scaling.csv")
    found = [row for row in rows if row["experiment"] == "memory"]
    lines = [
        [row["problem"], row["batch"], row["contender"], row["inputs_mib"], row["peak_mib"], row["peak_over_inputs"]]
        for row in found
    ]
    return markdown(["problem", "batch", "library", "inputs, MiB", "peak, MiB", "ratio"], lines, comment)


def overhead() -> str:
    """What a call costs besides the solver, of a batch of one."""
    comment, rows = read(RESULTS / "overhead.csv")
    lines = [[row["family"], row["layer_us"], row["native_us"], row["empty_function_us"], row["ratio"]] for row in rows]
    return markdown(
        ["family", "layer around the kernels, us", "kernels, us", "empty function, us", "ratio"], lines, comment
    )


def first_call() -> str:
    """Seconds and milliseconds before everything is prepared."""
    comment, rows = read(RESULTS / "first_call.csv")
    names = ["what", "batch", "compile_s", "first_ms", "later_ms"]
    head = ["", "batch", "compile or import, s", "first pass, ms", "later passes, ms"]
    return markdown(head, [[row[name] for name in names] for row in rows], comment)


def zoo() -> str:
    """The zoo's layers beside plain torch and the compiled CVXPY problem."""
    comment, rows = read(RESULTS / "zoo.csv")
    names = ["case", "batch", "ours_ms", "torch_ms", "twin_ms", "times_torch", "times_twin"]
    head = ["layer", "batch", "zoo, ms", "plain torch, ms", "compiled problem, ms", "torch / zoo", "compiled / zoo"]
    return markdown(head, [[row[name] for name in names] for row in rows], comment)


TABLES: dict[str, Callable[[], str]] = {
    "families": make_table,
    "qp_layers": lambda: race_table("qp_layers"),
    "literature": lambda: race_table("literature"),
    "large": lambda: race_table("large"),
    "single": lambda: race_table("single"),
    "mpc": lambda: race_table("mpc"),
    "torch_engine": lambda: race_table("torch_engine"),
    "losses": losses,
    "threads": threads,
    "batches": batches,
    "memory": memory,
    "overhead": overhead,
    "first_call": first_call,
    "zoo": zoo,
    "migration": migration.make_table,
}


def fill(text: str) -> str:
    """The page with its tables made anew."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match['name']]()}\n{match[3]}", text)


def main() -> None:
    """Write the pages, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for path in options.pages:
        text = path.read_text()
        filled = fill(text)
        if options.check and text != filled:
            raise SystemExit(f"{path} is not what the results say: python benchmarks/page.py")
        if not options.check:
            path.write_text(filled)


if __name__ == "__main__":
    main()
