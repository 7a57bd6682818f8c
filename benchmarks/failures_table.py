"""The tables of docs/failures.md, made from the CSV files that failures.py and million.py wrote.

Usage: python benchmarks/failures_table.py [--write docs/failures.md]

Without --write the tables are printed; with it, they replace what stands between their markers in the file.
"""

import argparse
from pathlib import Path

from report import RESULTS, read

Row = dict[str, str]


def make_table(path: Path = RESULTS / "failures.csv") -> str:
    """Markdown: one line per question, one column per library."""
    comment, rows = read(path)
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    questions: dict[str, dict[str, Row]] = {}
    for row in rows:
        questions.setdefault(row["row"], {})[row["library"]] = row
    lines = [f"| asked | truth | {' | '.join(libraries)} |", "|---|---" + "|---" * len(libraries) + "|"]
    for answers in questions.values():
        first = next(iter(answers.values()))
        cells = [first["asked"], first["truth"], *(cell(answers.get(library)) for library in libraries)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{comment}."])


def make_million_table(path: Path = RESULTS / "million.csv") -> str:
    """Markdown: the lines of the file."""
    comment, rows = read(path)
    columns = list(rows[0])
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    return "\n".join([*lines, "", f"{comment}."])


def replace(text: str, name: str, table: str) -> str:
    """The text with this between the two markers of that name."""
    start, end = (f"<!-- {name}: {edge} -->" for edge in ("start", "end"))
    before, after = text[: text.index(start) + len(start)], text[text.index(end) :]
    return f"{before}\n{table}\n{after}"


def cell(row: Row | None) -> str:
    """What became of one question to one library."""
    if row is None:
        return ""
    if row["error"] == "":
        name = row["answer"].split(":")[0]
        return f"{name}" if row["verdict"] == "right" else f"**{name}**"
    if row["verdict"] == "right":
        return row["answer"] if "nan" in row["answer"] else f"off by {row['error']}"
    return f"**{row['answer']}**" if row["error"] == "inf" else f"**{row['answer']}**, off by {row['error']}"


def main() -> None:
    """Print the tables, or write them into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    tables = {"failures": make_table(), "million": make_million_table()}
    if options.write is None:
        print("\n\n".join(tables.values()))
        return
    text = options.write.read_text()
    for name, table in tables.items():
        text = replace(text, name, table)
    options.write.write_text(text)


if __name__ == "__main__":
    main()
