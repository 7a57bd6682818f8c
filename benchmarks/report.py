"""CSV files with one comment line that says what was measured with what on what."""

import csv
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from contenders import Contender

RESULTS = Path(__file__).parent / "results"
# What this library stands on, whoever else takes part.
OURS = ("convexlayers", "torch", "cvxpy", "clarabel")


def environment(contenders: Iterable[Contender]) -> str:
    """Versions, processor, number of threads."""
    packages = dict.fromkeys([*OURS, *(package for contender in contenders for package in contender.packages)])
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    return f"{versions}; {platform.machine()}, {processor()}, {torch.get_num_threads()} threads"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def write(path: Path, comment: str, fields: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(f"# {comment}\n")
        writer = csv.DictWriter(file, fields, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> tuple[str, list[dict[str, str]]]:
    """The comment and the rows."""
    comment, *lines = path.read_text().splitlines()
    return comment.removeprefix("# "), list(csv.DictReader(lines))


def show(fields: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows in columns."""
    table = [list(fields), *([str(row.get(name, "")) for name in fields] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(fields))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
