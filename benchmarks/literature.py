"""The workloads of the literature, as far as a small machine carries them: this library and its peers side by side.

Usage: python benchmarks/literature.py [--workloads NAME ...] [--contenders NAME ...] [--fast] [--output FILE]

    optnet_*          OptNet Fig. 2: dense QPs, 100 variables and inequalities, batch 128
    cvxpylayers_*     cvxpylayers Fig. 3: dense, 128, batch 128; sparse, 1024 variables, inequalities and equalities,
                      1 %, batch 32, as published (no derivative exists) and with slack in the inequalities
    dqp_*             dQP: random dense and sparse QPs. The recipes and the numbers of constraints are those of the
                      generators in its package; the batches are ours, for the paper solves one at a time
    bpqp_*            BPQP Table 1: QPs, LPs and SOCPs with 10 to 500 variables, as in its notebooks; the batches are
                      ours, for it solves one at a time
    dc3_*             DC3 and Pi-net: only b varies. 100 variables, batch 1024; 1000, batch 4 instead of 1024, and the
                      same recipe at half as many rows of each kind as variables
    mpc_*             batches of initial states for one plant

Peers take part if they are installed: `pip install cvxpylayers moreau proxsuite qpth libdqp daqp piqp qdldl`. Everybody
gets the same tensors and runs at its own defaults; times, errors and the columns are those of run.py. What is constant
in a workload gets no gradient, and everybody may prepare it beforehand. Whoever needs more than --limit seconds to
prepare and to call once is out, with the reason. A failure, or a wrong answer, is a row like any other.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import Contender, Cvxpylayers, Ours, Values
from harness import FIELDS, Row, limit_threads, race
from matrix_qps import (
    MatrixQP,
    bpqp,
    bpqp_ball,
    bpqp_linear,
    cvxpylayers_sparse,
    dc3,
    dqp_dense,
    dqp_sparse,
    mpc,
    optnet,
)
from moreau_contender import Moreau
from qp_contenders import DQP, CvxpylayersQP, MoreauLayer, MoreauQP, OursLayer, OursQP, Proxsuite, Qpth
from reference import TOLERANCE, Reference, cached, family_reference
from report import RESULTS, environment, show, write
from torch import Tensor
from tqdm import tqdm

import convexlayers as cl


@dataclass(frozen=True)
class Workload:
    """What to run.

    Attributes:
        make: of the problem, given its size.
        size: arguments of `make`.
        batch: elements.
        fast: the size with --fast.
    """

    make: Callable[..., Any]
    size: tuple[int | float, ...]
    batch: int
    fast: tuple[int | float, ...]


WORKLOADS: dict[str, Workload] = {
    "optnet_100": Workload(optnet, (100,), 128, (6,)),
    "cvxpylayers_dense_128": Workload(optnet, (128,), 128, (5,)),
    "cvxpylayers_sparse_1024": Workload(cvxpylayers_sparse, (1024,), 32, (12,)),
    "cvxpylayers_sparse_1024_slack": Workload(cvxpylayers_sparse, (1024, 1.0), 32, (12, 1.0)),
    **{
        f"dqp_dense_{n}": Workload(dqp_dense, (n,), batch, (8,))
        for n, batch in {10: 128, 50: 64, 100: 32, 220: 8, 450: 4}.items()
    },
    **{
        f"dqp_sparse_{n}": Workload(dqp_sparse, (n,), batch, (8,))
        for n, batch in {10: 128, 50: 64, 100: 32, 220: 8, 450: 4}.items()
    },
    **{
        f"bpqp_{kind}_{n}": Workload(make, (n, p), batch, (10, 5))
        for kind, make in {"qp": bpqp, "lp": bpqp_linear}.items()
        for n, p, batch in ((10, 5, 128), (50, 10, 64), (100, 20, 32), (500, 100, 4))
    },
    **{f"bpqp_socp_{n}": Workload(bpqp_ball, (n,), 64, (5,)) for n in (10, 50, 100, 500)},
    "dc3_100": Workload(dc3, (100,), 1024, (6,)),
    "dc3_1000": Workload(dc3, (1000,), 4, (10,)),
    "mpc_20": Workload(mpc, (), 256, (3, 2, 1)),
}
FAST_BATCH = 2


def contenders_for(problem: Any) -> list[Contender]:
    """Who takes part, by what is constant: matrices that are make a layer, matrices that vary make a call."""
    if not isinstance(problem, MatrixQP):
        return [Ours(), Moreau(), Moreau("ipm"), Cvxpylayers()]
    others = [Qpth(), Proxsuite(), DQP(), CvxpylayersQP()]
    if set("PGA") & set(problem.varying):
        return [OursQP(), MoreauQP(), MoreauQP("ipm"), *others]
    return [OursLayer(), MoreauLayer(), MoreauLayer("ipm"), *others]


def reference_of(name: str, problem: Any, values: Values) -> Reference:
    """Of the variables and the gradients, at tolerance 1e-11."""
    if not isinstance(problem, MatrixQP):
        return family_reference(name, problem, values)
    if not set("PGA") & set(problem.varying):
        return family_reference(name, problem.family(), values)

    def solve(leaves: list[Tensor]) -> tuple[Tensor, ...]:
        return (cl.solve_qp(*problem.complete(leaves), solver="clarabel", tolerance=TOLERANCE).x,)

    return cached(name, values, solve)


def run(name: str, options: argparse.Namespace) -> tuple[list[Contender], list[Row]]:
    """All contenders on one workload."""
    workload = WORKLOADS[name]
    problem = workload.make(*(workload.fast if options.fast else workload.size))
    batch = FAST_BATCH if options.fast else (options.batch or workload.batch)
    values = problem.draw(batch) if isinstance(problem, MatrixQP) else problem[3](batch)
    contenders = [one for one in contenders_for(problem) if one.installed]
    if options.contenders:
        contenders = [one for one in contenders if one.name in options.contenders]
    reference = reference_of(f"{name}_fast" if options.fast else name, problem, values)
    # Some peers talk on the standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        rows = race(contenders, problem, values, reference, options.repeats, options.budget, options.limit)
    return contenders, [{"family": name, "batch": batch} | row for row in rows]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--batch", type=int, help="instead of each workload's own")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds per workload and contender, for repeats")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds to prepare and for the first call")
    parser.add_argument("--threads", type=int, help="cores to use, all by default")
    parser.add_argument("--fast", action="store_true", help="tiny sizes and batches: does it run?")
    parser.add_argument("--output", type=Path, default=RESULTS / "literature.csv")
    return parser.parse_args()


def main() -> None:
    """Run, print a table, write a CSV file."""
    options = parse()
    limit_threads(options.threads)
    fields, rows, seen = ["family", "batch", "contender", *FIELDS], list[Row](), dict[str, Contender]()
    for name in tqdm(options.workloads, file=sys.stderr):
        contenders, found = run(name, options)
        rows += found
        seen |= {one.name: one for one in contenders}
        # After every workload, so that an interrupted run leaves what it has.
        write(options.output, environment(seen.values()), fields, rows)
    show(fields, rows)


if __name__ == "__main__":
    main()
