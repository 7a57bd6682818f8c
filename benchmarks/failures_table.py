"""The table of docs/failures.md, made from the CSV file that failures.py wrote.

Usage: python benchmarks/failures_table.py [--write docs/failures.md]

Without --write the table is printed; with it, it replaces what stands between the two markers in the file.
"""

import argparse
from pathlib import Path

from report import RESULTS, read

START, END = "<!-- failures: start -->", "<!-- failures: end -->"

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
