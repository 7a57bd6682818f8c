"""A learned controller: `zoo.mpc` beside cvxpylayers with its default diffcp, and beside our layer of the same problem.

Usage: python benchmarks/mpc.py [--steps T] [--batch B] [--repeats N] [--threads N] [--output FILE]

    minimize    1/2 sum_t |L x_t+1|^2 + |M u_t|^2         t = 0..T-1
    subject to  x_t+1 = A x_t + B u_t,   -1 <= u_t <= 1

Parameters: the initial states, one per element, and the dynamics A, B and the roots L, M of the cost, which the batch
shares and which all get gradients. The loss is the sum of squares of all states and controls. What is done once per
problem, canonicalization too, is not timed. Errors are relative to Clarabel at tolerance 1e-11.
"""

import argparse
from pathlib import Path

import cvxpy as cp
import numpy as np
import torch
from contenders import Contender, Cvxpylayers, Ours, Values
from families import Family, randn
from harness import FIELDS, limit_threads, race
from reference import family_reference
from report import RESULTS, environment, show, write
from torch import Tensor

from convexlayers import zoo

STATES, CONTROLS = 12, 6


def controller(steps: int) -> Family:
    """The problem in CVXPY, and its values."""
    nx, nu = STATES, CONTROLS
    x0, A, B = cp.Parameter(nx), cp.Parameter((nx, nx)), cp.Parameter((nx, nu))
    L, M = cp.Parameter((nx, nx)), cp.Parameter((nu, nu))
    X, U = cp.Variable((steps + 1, nx)), cp.Variable((steps, nu))
    cost = (cp.sum_squares(X[1:] @ L.T) + cp.sum_squares(U @ M.T)) / 2
    problem = cp.Problem(cp.Minimize(cost), [X[0] == x0, X[1:] == X[:-1] @ A.T + U @ B.T, U <= 1, U >= -1])

    def sample(batch: int) -> list[Tensor]:
        # Slightly unstable, and states so far away that the bounds are reached.
        rotation = torch.linalg.qr(randn(nx, nx, seed=1)).Q
        diagonal = [torch.from_numpy(np.linspace(low, 1.0, n)) for low, n in ((0.5, nx), (0.3, nu))]
        roots = [torch.diag(d) + 0.05 * randn(len(d), len(d), seed=3) for d in diagonal]
        return [2 * randn(batch, nx, seed=4), 1.02 * rotation, 0.5 * randn(nx, nu, seed=2), *roots]

    return problem, [x0, A, B, L, M], [X, U], sample


class Mpc(Contender):
    """`zoo.mpc`."""

    name = "zoo.mpc"

    def prepare(self, family: Family, batch: int) -> None:
        self.steps = family[2][1].shape[0]

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        x0, A, B, L, M = inputs
        plan = zoo.mpc(A, B, L.T @ L, M.T @ M, x0, self.steps, lower=-1.0, upper=1.0)
        return torch.cat([x0.unsqueeze(-2), plan.states], dim=-2), plan.controls


def main() -> None:
    """Run, print a table and the ratio, write a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds per contender")
    parser.add_argument("--threads", type=int, help="cores to use, all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "mpc.csv")
    options = parser.parse_args()
    limit_threads(options.threads)
    contenders = [contender for contender in (Mpc(), Ours(), Cvxpylayers()) if contender.installed]
    family = controller(options.steps)
    values = family[3](options.batch)
    reference = family_reference(f"mpc{options.steps}", family, values)
    found = race(contenders, family, values, reference, options.repeats, options.budget)
    rows = [{"steps": options.steps, "batch": options.batch} | row for row in found]
    fields = ["steps", "batch", "contender", *FIELDS]
    write(options.output, environment(contenders), fields, rows)
    show(fields, rows)
    total = {row["contender"]: row["forward_ms"] + row["backward_ms"] for row in rows if "forward_ms" in row}
    for name, milliseconds in total.items():
        print(f"{name}: {milliseconds:.4g} ms, {milliseconds / total[Mpc.name]:.3g} times zoo.mpc")


if __name__ == "__main__":
    main()
