"""QP layers without CVXPY on OptNet's random problems: `solve_qp` beside moreau.torch, qpth and proxsuite's QPLayer.

Usage: python benchmarks/qp_layers.py [--sizes 10 20 ...] [--repeats N] [--threads N] [--output FILE]

Peers take part if they are installed: `pip install moreau proxsuite qpth`. Timing and errors are those of run.py; Q, p,
G and h all get gradients.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contenders import Contender
from harness import FIELDS, Row, limit_threads, race
from qp_contenders import MoreauQP, OursQP, Proxsuite, Qpth, ridged
from reference import TOLERANCE, cached
from report import RESULTS, environment, show, write
from torch import Tensor

import convexlayers as cl

# n = m -> batch.
SIZES = {10: 128, 20: 128, 50: 64, 100: 32}
CONTENDERS = [OursQP(), MoreauQP(), MoreauQP("ipm"), Qpth(), Proxsuite()]


def solve(leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """The reference."""
    return (cl.solve_qp(*leaves, solver="clarabel", tolerance=TOLERANCE).x,)


def benchmark(
    n: int, contenders: Sequence[Contender], batch: int | None = None, repeats: int = 10, budget: float = 20.0
) -> list[Row]:
    """One row per contender."""
    qp, size = ridged(n, n), batch or SIZES[n]
    values = qp.draw(size)
    rows = race(contenders, qp, values, cached(f"optnet{n}", values, solve), repeats, budget)
    return [{"family": f"optnet{n}", "batch": size} | row for row in rows]


def main() -> None:
    """Run, print a table, write a CSV file."""
    # Those who import this file do without it.
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES), metavar="N")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds per size and contender")
    parser.add_argument("--threads", type=int, help="cores to use, all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "qp_layers.csv")
    options = parser.parse_args()
    limit_threads(options.threads)
    contenders = [contender for contender in CONTENDERS if contender.installed]
    fields, rows = ["family", "batch", "contender", *FIELDS], list[Row]()
    for n in tqdm(options.sizes, file=sys.stderr):
        rows += benchmark(n, contenders, repeats=options.repeats, budget=options.budget)
        write(options.output, environment(contenders), fields, rows)
    show(fields, rows)


if __name__ == "__main__":
    main()
