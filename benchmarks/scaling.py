"""How time and memory grow: with the batch, with the size of the problem, with the number of cores.

Usage: python benchmarks/scaling.py [--experiments batch size threads memory] [--repeats N] [--output FILE]

    batch    qp10 with 1 to 4096 elements, qp50 with 1 to 1024
    size     dense QPs of n = m = 5 to 100, 64 elements
    threads  qp10 and qp50 at their usual batch, on 1 core, 2 cores, and so on; every number in processes of its own
    memory   qp100 with 64 elements: peak of forward and backward over the size of the parameters; see memory.py

This library and `moreau.torch` take part, see run.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from contenders import Contender
from families import FAMILIES, Family, dense_qp
from harness import Row, race
from report import RESULTS, environment, read, show, write
from run import CONTENDERS
from tqdm import tqdm

FIELDS = [
    "experiment", "problem", "n", "batch", "threads", "contender", "forward_ms", "backward_ms", "per_element_us",
    "kkt_residual", "peak_mib", "inputs_mib", "peak_over_inputs", "repeats", "failure",
]  # fmt: skip
BATCHES = {"qp10": [1, 4, 16, 64, 256, 1024, 4096], "qp50": [1, 4, 16, 64, 256, 1024]}
SIZES, SIZE_BATCH = [5, 10, 20, 50, 100], 64
WIDTHS = {"qp10": 10, "qp50": 50, "qp100": 100}
MIB = 1024**2
FOLDER = Path(__file__).parent


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timed(contenders: list[Contender], family: Family, batch: int, repeats: int) -> list[Row]:
    """One row per contender, with the time per element."""
    rows = race(contenders, family, family[3](batch), repeats=repeats, budget=5.0)
    return [_per_element(row | {"batch": batch, "threads": cores()}) for row in rows]


def _per_element(row: Row) -> Row:
    if row.get("forward_ms", "") == "":
        return row
    total = float(row["forward_ms"]) + float(row["backward_ms"])
    return row | {"per_element_us": f"{1e3 * total / int(row['batch']):.4g}"}


def over_batch(contenders: list[Contender], repeats: int) -> list[Row]:
    """Time against the number of elements."""
    rows = []
    for problem, batches in BATCHES.items():
        family = FAMILIES[problem][0]()
        for batch in tqdm(batches, problem, file=sys.stderr):
            found = timed(contenders, family, batch, repeats)
            rows += [{"problem": problem, "n": WIDTHS[problem]} | row for row in found]
    return rows


def over_size(contenders: list[Contender], repeats: int) -> list[Row]:
    """Time against the number of variables."""
    rows = []
    for n in tqdm(SIZES, "size", file=sys.stderr):
        found = timed(contenders, dense_qp(n, n), SIZE_BATCH, repeats)
        rows += [{"problem": f"dense QP, m = {n}", "n": n} | row for row in found]
    return rows


def over_threads(contenders: list[Contender], repeats: int) -> list[Row]:
    """Time against the number of cores: run.py in a fresh process for each number."""
    rows, names = [], [contender.name for contender in contenders]
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= cores()]
    for threads in tqdm(counts, "threads", file=sys.stderr):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "out.csv"
            command = ["run.py", "--families", *("qp10", "qp50"), "--threads", str(threads), "--repeats", str(repeats)]
            _python(*command, "--contenders", *names, "--output", str(path))
            found = read(path)[1]
        for row in found:
            problem = {"problem": row["family"], "n": WIDTHS[row["family"]], "threads": threads}
            rows.append(_per_element({key: value for key, value in row.items() if key in FIELDS} | problem))
    return rows


def peak_memory(contenders: list[Contender], repeats: int) -> list[Row]:
    """Median peak of a call of each, over a few processes."""
    rows = []
    for contender in contenders:
        row = {"problem": "qp100", "n": 100, "batch": 64, "threads": cores(), "contender": contender.name}
        try:
            found = [_measure_memory(contender.name) for _ in range(min(repeats, 3))]
        except subprocess.CalledProcessError as error:
            rows.append(row | {"failure": error.stderr.strip().splitlines()[-1][:80]})
            continue
        peak, inputs = statistics.median(one["peak"] for one in found), found[0]["inputs"]
        row |= {"peak_mib": f"{peak / MIB:.1f}", "inputs_mib": f"{inputs / MIB:.2f}", "repeats": len(found)}
        rows.append(row | {"peak_over_inputs": f"{peak / inputs:.1f}"})
    return rows


def _measure_memory(contender: str) -> dict[str, int]:
    return json.loads(_python("memory.py", contender, "--family", "qp100", "--batch", "64"))


def _python(script: str, *arguments: str) -> str:
    """Output of one of the scripts beside this one, run by the same interpreter."""
    command = [sys.executable, str(FOLDER / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


EXPERIMENTS: dict[str, Callable[[list[Contender], int], list[Row]]] = {
    "batch": over_batch,
    "size": over_size,
    "threads": over_threads,
    "memory": peak_memory,
}


def main() -> None:
    """Run, print a table, write a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["convexlayers", "moreau"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.csv")
    options = parser.parse_args()
    contenders = [CONTENDERS[name] for name in options.contenders if CONTENDERS[name].installed]
    rows: list[Row] = []
    for name in options.experiments:
        rows += [{"experiment": name} | row for row in EXPERIMENTS[name](contenders, options.repeats)]
        write(options.output, environment(contenders), FIELDS, rows)
    show(FIELDS, rows)


if __name__ == "__main__":
    main()
