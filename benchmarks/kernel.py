"""The factorization of the KKT matrix, in operations per second of one core, beside what the core's registers allow.

Usage: python benchmarks/kernel.py [--repeats N] [--families qp10 ...] [--output FILE]

Operations are those of the symbolic analysis, one multiplication and one addition per updated entry; the peak is a loop
of independent fused multiply-adds on registers, with the same instruction set, in the same run.
"""

import argparse
from pathlib import Path

from families import FAMILIES
from report import RESULTS, environment, show, write

import convexlayers as cl
from convexlayers.engines.native import core_plan
from convexlayers.native import info

FIELDS = ["family", "nodes", "nnz_L", "flops", "gflops", "peak_gflops", "share"]
CHOSEN = ["qp10", "qp50", "qp100", "mpc", "socp", "ot15"]


def measure(name: str, repeats: int) -> dict[str, object]:
    """One row."""
    problem, parameters, variables, _ = FAMILIES[name][0]()
    plan = core_plan(cl.compile_problem(problem, parameters, variables))
    reached, peak = plan.factorization_speed(repeats)
    sizes = plan.describe()
    return {
        "family": name,
        **{field: sizes[field] for field in ("nodes", "nnz_L", "flops")},
        "gflops": f"{1e-9 * reached:.3g}",
        "peak_gflops": f"{1e-9 * peak:.3g}",
        "share": f"{reached / peak:.2f}",
    }


def main() -> None:
    """Run, print a table, write a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=CHOSEN, metavar="NAME")
    parser.add_argument("--output", type=Path, default=RESULTS / "kernel.csv")
    options = parser.parse_args()
    rows = [measure(name, options.repeats) for name in options.families]
    write(options.output, f"{environment([])}; {info()['instruction_set']}, one core", FIELDS, rows)
    show(FIELDS, rows)


if __name__ == "__main__":
    main()
