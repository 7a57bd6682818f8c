"""Every benchmark in one go, and from their results the tables and plots of README.md and docs.

Usage: python benchmarks/suite.py [--only NAME ...] [--pages]

Peers take part where they are installed (`pip install cvxpylayers moreau proxsuite qpth libdqp`); nothing else should
run on the machine. One script after the other, each in a process of its own; one that fails is named at the end, and
the others still run. With --pages only the tables and plots are made. How long each took stands in results/suite.csv.
"""

import argparse
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from report import RESULTS, environment, write

ROOT = Path(__file__).parents[1]
ENGINES = ["convexlayers", "convexlayers(torch)", "moreau", "moreau(ipm)"]
DENSE = ["--families", "qp100", "qp50", "--contenders", *ENGINES, "--output", str(RESULTS / "torch_engine.csv")]
# All of the literature's take an hour.
WORKLOADS = ["optnet_100", "dqp_dense_50", "dqp_dense_450", "dqp_sparse_100", "dqp_sparse_450", "mpc_20", "bpqp_qp_100",
             "bpqp_socp_100", "bpqp_socp_500", "dc3_100", "cvxpylayers_dense_128"]  # fmt: skip
# Where threads are not the question, one: two cores are shared with whatever else the machine does.
STEPS: dict[str, list[str]] = {
    "families": ["run.py"],
    "torch_engine": ["run.py", *DENSE],
    "single": ["single.py"],
    "overhead": ["overhead.py"],
    "first_call": ["first_call.py"],
    "kernel": ["kernel.py"],
    "zoo": ["zoo.py", "--threads", "1"],
    "nodes": ["nodes.py", "--threads", "1"],
    "mpc": ["mpc.py", "--threads", "1"],
    "warm_start": ["warm_start.py"],
    "tolerance": ["tolerance.py", "--write", "docs/techniques.md"],
    "qp_layers": ["qp_layers.py"],
    "scaling": ["scaling.py"],
    "large": ["large.py"],
    "literature": ["literature.py", "--workloads", *WORKLOADS],
    "hard_qps": ["hard_qps.py"],
    "failures": ["failures.py"],
    "million": ["million.py"],
    "migration": ["migration.py", "--repeats", "5"],
}
# These print what the others write.
PRINTED = ("overhead", "warm_start")
PAGES = [
    ["table.py", "--write", "README.md"],
    ["failures_table.py", "--write", "docs/failures.md"],
    ["plots.py"],
    ["page.py"],
]


def run(command: list[str], output: Path | None = None) -> int:
    """One script, from the root of the repository, what it prints to a file if one is given; its exit status."""
    with output.open("w") if output else nullcontext() as file:
        line = [sys.executable, str(Path("benchmarks", command[0])), *command[1:]]
        return subprocess.run(line, cwd=ROOT, stdout=file).returncode


def main() -> int:
    """Run what was asked for; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="NAME")
    parser.add_argument("--pages", action="store_true", help="no benchmarks, only what is made from their results")
    options = parser.parse_args()
    failed, rows = [], []
    for name in [] if options.pages else options.only:
        start = time.perf_counter()
        status = run(STEPS[name], RESULTS / f"{name}.csv" if name in PRINTED else None)
        rows.append({"step": name, "seconds": round(time.perf_counter() - start), "status": status})
        failed += [name] if status else []
        write(RESULTS / "suite.csv", environment([]), ["step", "seconds", "status"], rows)
    failed += [command[0] for command in PAGES if run(command)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
