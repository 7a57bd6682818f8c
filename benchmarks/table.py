"""The README's table of measured figures, made from the CSV file that run.py wrote.

Usage: python benchmarks/table.py [--write README.md]

Without --write the table is printed; with it, it replaces what stands between the two markers in the file. Times are
forward + backward; a ratio is the peer's sum over ours. A peer that failed, says that it did not solve, or whose
solution is off by more than 1e-2 cannot be the fastest.
"""

import argparse
import csv
import math
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "families.csv"
START, END = "<!-- families: start -->", "<!-- families: end -->"
OURS, DEFAULT_PEER = "convexlayers", "cvxpylayers"
# Beyond this relative error of the solution it is the solution of another problem.
WRONG = 1e-2

Row = dict[str, str]


def make_table(path: Path = RESULTS) -> str:
    """Markdown: one line per family, this library beside its fastest valid peer and cvxpylayers' defaults."""
    comment, *lines = path.read_text().splitlines()
    families: dict[str, dict[str, Row]] = {}
    for row in csv.DictReader(lines):
        families.setdefault(row["family"], {})[row["contender"]] = row
    out = [
        "| family | batch | convexlayers, ms | error of x / gradient | fastest peer, ms | error of x / gradient "
        "| ratio | cvxpylayers, ms | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(name, rows) for name, rows in families.items()),
        _means(list(families.values())),
    ]
    return "\n".join([*out, "", *_excluded(families), f"{comment.removeprefix('# ')}."])


def _line(name: str, rows: dict[str, Row]) -> str:
    own, best, default = rows[OURS], _fastest(rows), rows.get(DEFAULT_PEER)
    cells = [name, own["batch"], _times(own) + _mark(own), _errors(own)]
    cells += (
        ["none", "", ""] if best is None else [f"{best['contender']} {_times(best)}", _errors(best), _ratio(best, own)]
    )
    cells += ["", ""] if default is None else [_times(default) + _mark(default), _ratio(default, own)]
    return f"| {' | '.join(cells)} |"


def _means(families: list[dict[str, Row]]) -> str:
    """Geometric means of the ratios, over the families that have one."""
    best = [(_fastest(rows), rows[OURS]) for rows in families]
    default = [(rows.get(DEFAULT_PEER), rows[OURS]) for rows in families]
    cells = ["**geometric mean**", "", "", "", "", "", _mean(best), "", _mean(default)]
    return f"| {' | '.join(cells)} |"


def _mean(pairs: list[tuple[Row | None, Row]]) -> str:
    logs = [math.log(_total(peer) / _total(own)) for peer, own in pairs if peer and _timed(peer) and _timed(own)]
    return f"**{math.exp(sum(logs) / len(logs)):.2f}**" if logs else ""


def _excluded(families: dict[str, dict[str, Row]]) -> list[str]:
    """Who could not be the fastest, and why; where they stand in the table all the same, they are marked."""
    notes: dict[str, list[str]] = {}
    for name, rows in families.items():
        for contender, row in rows.items():
            if not _valid(row):
                why = row["failure"].split(":")[0] or f"off by {row['solution_error']}"
                notes.setdefault(contender, []).append(f"{name} ({why})")
    if not notes:
        return []
    listed = "; ".join(f"{contender} on {', '.join(where)}" for contender, where in notes.items())
    return [f"\\* or not counted, for an error of x above {WRONG:g} or a failure: {listed}.", ""]


def _fastest(rows: dict[str, Row]) -> Row | None:
    """Of the valid peers; our own other engines are no peers."""
    peers = [row for name, row in rows.items() if not name.startswith(OURS) and _valid(row)]
    return min(peers, key=_total, default=None)


def _timed(row: Row) -> bool:
    return row["forward_ms"] != ""


def _valid(row: Row) -> bool:
    return _timed(row) and not row["failure"] and float(row["solution_error"]) <= WRONG


def _mark(row: Row) -> str:
    return "" if _valid(row) else r" \*"


def _total(row: Row) -> float:
    return float(row["forward_ms"]) + float(row["backward_ms"])


def _ratio(peer: Row, own: Row) -> str:
    return f"{_total(peer) / _total(own):.2f}" if _timed(peer) and _timed(own) else ""


def _times(row: Row) -> str:
    if not _timed(row):
        return "failed"
    return f"{_digits(float(row['forward_ms']))} + {_digits(float(row['backward_ms']))}"


def _digits(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.1f}"


def _errors(row: Row) -> str:
    return f"{row['solution_error']} / {row['gradient_error']}" if _timed(row) else ""


def main() -> None:
    """Print the table, or write it into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    table = make_table()
    if options.write is None:
        print(table)
        return
    text = options.write.read_text()
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    options.write.write_text(f"{before}\n{table}\n{after}")


if __name__ == "__main__":
    main()
