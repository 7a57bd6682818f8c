"""The README's table of measured figures, made from the CSV file that run.py wrote.

Usage: python benchmarks/table.py [--write README.md]

Without --write the table is printed; with it, it replaces what stands between the two markers in the file.
"""

import argparse
import csv
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "families.csv"
START, END = "<!-- families: start -->", "<!-- families: end -->"


def make_table(path: Path = RESULTS) -> str:
    """Markdown: one line per family, this library beside the peer."""
    comment, *lines = path.read_text().splitlines()
    rows = {(row["family"], row["contender"]): row for row in csv.DictReader(lines)}
    families = list(dict.fromkeys(family for family, _ in rows))
    out = [
        "| family | batch | convexlayers, ms | error of x / gradient | cvxpylayers, ms | error of x / gradient |",
        "|---|---|---|---|---|---|",
    ]
    for family in families:
        own, peer = rows[family, "convexlayers"], rows[family, "cvxpylayers"]
        out.append(f"| {family} | {own['batch']} | {_times(own)} | {_errors(own)} | {_times(peer)} | {_errors(peer)} |")
    return "\n".join([*out, "", f"{comment.removeprefix('# ')}."])


def _times(row: dict[str, str]) -> str:
    return row["failure"] or f"{float(row['forward_ms']):.0f} + {float(row['backward_ms']):.0f}"


def _errors(row: dict[str, str]) -> str:
    return "" if row["failure"] else f"{row['solution_error']} / {row['gradient_error']}"


def main() -> None:
    """Print the table, or write it into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
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
