"""A million random programs of all cones through the native engine: statuses, residuals, errors of x, rescues.

Usage: python benchmarks/million.py [--count N] [--seed N] [--batch N] [--output FILE]

Every batch has a structure of its own: cones, variables, rank of P, how the solution lies in the cones, or that there
is none, and units. Batch k is drawn from seed k alone, so `--seed K --count N` runs any part of the whole again:
`--seed 1234 --count 1` finds batch 1234 (and its elements; the batch is never smaller than --batch).

    wrong          SOLVED, infeasible or unbounded where the construction proves otherwise
    inaccurate     SOLVED although the residual, measured again from the numbers in normalized units, is above tolerance
    unsolved       every other status: an honest one
    rescued        elements on which the method stalled and that went to Clarabel, whatever became of them
    unexplained    solved, and x is farther from the known solution than the residual times the norm of the inverse of
                   the matrix of the optimality conditions, with a margin of 100
    singular       solved, x off by more than 1e-8, and that norm above 1e4: one random draw may be badly conditioned
    error_of_x     the largest of all others, relative to the norm of x, in normalized units
    residual       the largest of those that are solved

The exit code is 1 if anything is wrong, inaccurate or unexplained.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from contenders import Ours
from report import RESULTS, environment, show, write
from torch import Tensor
from tqdm import tqdm

from convexlayers import Status
from convexlayers.cones import Cones
from convexlayers.engines.native import Native
from convexlayers.errors import ArgumentError
from convexlayers.scaling import find_scaling
from convexlayers.solution import TOLERANCE_FACTOR, Solution, measure
from convexlayers.testing import Numbers, infeasible_program, random_program, unbounded_program
from convexlayers.testing.reference import newton_matrix

TOLERANCE = 1e-8
# Errors of x below the first are not looked into; above it, a norm above the second is bad condition.
SMALL_ERROR, LARGE_INVERSE = 1e-8, 1e4
# How far the bound may be off: it is that of a linear system, and residuals are relative to the terms.
MARGIN, ROUNDING = 100.0, 1e-15
KINDS = {
    "solvable": Status.SOLVED, "infeasible": Status.PRIMAL_INFEASIBLE, "unbounded": Status.DUAL_INFEASIBLE,
}  # fmt: skip
UNITS = ("as drawn", "three units", "rows")
FIELDS = [
    "cones", "kind", "programs", "solved", "infeasible", "unbounded", "wrong", "inaccurate", "unexplained", "unsolved",
    "rescued", "singular", "error_of_x", "residual",
]  # fmt: skip
OUTCOMES = {
    "solved": Status.SOLVED, "infeasible": Status.PRIMAL_INFEASIBLE, "unbounded": Status.DUAL_INFEASIBLE,
}  # fmt: skip

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Batch:
    """Programs of one structure.

    Attributes:
        seed: that it was drawn from.
        kind: a key of KINDS.
        numbers: P, q, A, b, as they are solved.
        x: the known solution, (B, n), None where there is none.
        units: a member of UNITS.
    """

    seed: int
    kind: str
    numbers: Numbers
    x: Tensor | None
    units: str

    @property
    def family(self) -> str:
        """Which cones it has besides the polyhedral ones, for the table."""
        cones = self.numbers.cones
        names = [name for name in ("second_order", "psd", "exponential", "power") if getattr(cones, name)]
        return "polyhedral" if not names else names[0] if len(names) == 1 else "several"

    @property
    def title(self) -> str:
        """Enough to find it again."""
        n = self.numbers.q.shape[-1]
        return f"seed {self.seed}, {self.kind}, n = {n}, {self.numbers.cones.describe()}, units: {self.units}"


def draw_cones(rng: random.Random) -> Cones:
    """Small, and of all kinds; two thirds without the cones that are not symmetric."""
    curved = rng.random() < 1 / 3
    return Cones(
        zero=rng.choice([0, 0, 1, 3]),
        nonnegative=rng.choice([0, 1, 4, 8]),
        second_order=tuple(rng.randint(1, 9) for _ in range(rng.choice([0, 0, 0, 1, 2]))),
        psd=tuple(rng.randint(1, 4) for _ in range(rng.choice([0, 0, 0, 0, 1, 2]))),
        exponential=rng.choice([0, 1, 2]) if curved else 0,
        power=tuple(rng.uniform(0.1, 0.9) for _ in range(rng.choice([0, 1, 2]))) if curved else (),
    )


def draw_batch(seed: int, size: int) -> Batch:
    """The batch of a seed."""
    rng = random.Random(seed)
    while True:
        try:
            kind, numbers = draw_numbers(rng, draw_cones(rng), size, seed)
            break
        except ArgumentError:  # no unique solution, or no certificate, for these sizes: draw others
            continue
    x = getattr(numbers, "x", None)
    units = rng.choice(UNITS)
    if units == "as drawn":
        return Batch(seed, kind, numbers, x, units)
    changed, tau = in_units(numbers, units, torch.Generator().manual_seed(seed))
    return Batch(seed, kind, changed, None if x is None else tau * x, units)


def draw_numbers(rng: random.Random, cones: Cones, size: int, seed: int) -> tuple[str, Numbers]:
    """What is solved, or proved to have no solution.

    Raises:
        ArgumentError: not for these cones.
    """
    kind = rng.choice(["solvable"] * 6 + ["infeasible", "unbounded"])
    batch, n = (size,), rng.choice([1, 2, 3, 5, 9])
    if kind == "solvable":
        rank, activity = rng.choice([None, 0, 2]), rng.choice(["boundary", "inside", "outside", "mixed"])
        return kind, random_program(cones, rank=rank, batch=batch, seed=seed, activity=activity, draws=1)
    # A certificate of one row needs A = 0, and an equality in one variable the coefficient 0: of both rounding leaves
    # dust, which turns them into another problem.
    if (kind == "infeasible" and cones.rows < 2) or (kind == "unbounded" and n == 1):
        raise ArgumentError("Too small for this kind.")
    if kind == "infeasible":
        return kind, infeasible_program(cones, n=n, batch=batch, seed=seed)
    return kind, unbounded_program(cones, n=n, rank=rng.choice([0, n // 2]), batch=batch, seed=seed)


def in_units(numbers: Numbers, units: str, generator: torch.Generator) -> tuple[Numbers, Tensor]:
    """The same programs in random units, and the factor of x.

    "three units" takes x, the rows and the objective times factors from 1e-4 to 1e4 each, one of each per element;
    "rows" takes every row of the polyhedral cones, and every other cone, times a factor from 1e-2 to 1e2 of its own.
    """
    size, m = len(numbers.q), numbers.cones.rows

    def factor(width: int, decades: float) -> Tensor:
        return 10.0 ** (decades * (2 * torch.rand(size, width, generator=generator, dtype=torch.float64) - 1))

    if units == "rows":
        sigma = factor(m, 2)
        for group in numbers.cones.groups:
            if group.cone.dim > 1 and group.start >= numbers.cones.zero + numbers.cones.nonnegative:
                blocks = sigma[:, group.start : group.stop].reshape(size, group.count, group.cone.dim)
                blocks.copy_(blocks[..., :1].clone().expand_as(blocks))
        tau, omega = torch.ones(size, 1, dtype=torch.float64), torch.ones(size, 1, dtype=torch.float64)
    else:
        tau, sigma, omega = factor(1, 4), factor(1, 4), factor(1, 4)
    P, A = numbers.P * (omega / tau**2).unsqueeze(-1), numbers.A * sigma.unsqueeze(-1) / tau.unsqueeze(-1)
    return Numbers(numbers.cones, P, numbers.q * omega / tau, A, numbers.b * sigma), tau


def judge_batch(batch: Batch, engine: Native) -> tuple[Row, list[str]]:
    """Solve, count, and name what should not be."""
    solution = engine.setup(batch.numbers.program).solve(batch.numbers.theta)
    residual, error, inverse = measured(batch, solution)
    expected, solved = int(KINDS[batch.kind]), solution.solved
    claims = torch.stack([solution.status == int(code) for code in OUTCOMES.values()]).any(0)
    known = solved & (expected == int(Status.SOLVED))
    found = {
        "wrong": claims & (solution.status != expected),
        "inaccurate": solved & ~(residual <= TOLERANCE_FACTOR * TOLERANCE),
        "unexplained": known & (error > SMALL_ERROR) & (error > MARGIN * inverse * residual.clamp(min=ROUNDING)),
        "unsolved": ~claims,
    }
    singular = known & (inverse > LARGE_INVERSE)
    row: Row = {"cones": batch.family, "kind": batch.kind, "programs": len(residual)}
    row |= {name: int((solution.status == int(code)).sum()) for name, code in OUTCOMES.items()}
    row |= {name: int(mask.sum()) for name, mask in found.items()}
    row |= {
        "rescued": 0 if solution.rescued is None else int(solution.rescued.sum()),
        "singular": int(singular.sum()),
        "error_of_x": float(error.where(known & ~singular, 0.0).amax()),
        "residual": float(residual.where(solved, 0.0).amax()),
    }
    return row, list(findings(batch, solution, residual, found))


def findings(batch: Batch, solution: Solution, residual: Tensor, found: dict[str, Tensor]) -> Iterator[str]:
    """One line per element that is not what it should be."""
    for name, mask in found.items():
        for i in mask.nonzero().squeeze(-1).tolist():
            status = Status(int(solution.status[i])).name
            yield f"{name}: {batch.title}, element {i}: {status}, residual {float(residual[i]):.1e}"


def measured(batch: Batch, solution: Solution) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals and errors of x, and the norm of the inverse where that error is not small (0 elsewhere), (B,) each.

    From the numbers and the point alone, in normalized units.
    """
    program = batch.numbers.program.evaluate(batch.numbers.theta)
    scaling = find_scaling(program)
    program, point = scaling.normalize(program), scaling.normalize_point(solution.x, solution.s, solution.z)
    residual = measure(program, *point).largest
    inverse = torch.zeros_like(residual)
    if batch.x is None:
        return residual, inverse, inverse
    known = batch.x / scaling.tau
    error = (point[0] - known).norm(dim=-1) / known.norm(dim=-1).clamp(min=1)
    large = (solution.solved & (error > SMALL_ERROR)).nonzero().squeeze(-1)
    if len(large):
        some, v = program.select(large), (point[1] - point[2])[large]
        matrix = newton_matrix(some.dense_P(), some.dense_A(), some.structure.cones.spectrum(v))
        inverse[large] = 1 / torch.linalg.svdvals(matrix)[:, -1]
    return residual, error, inverse


def merge(rows: list[Row]) -> list[Row]:
    """One line per cones and kind, and one for all."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row["cones"]), str(row["kind"])), []).append(row)
    return [*(total(*key, groups[key]) for key in sorted(groups)), total("all", "all", rows)]


def total(cones: str, kind: str, rows: list[Row]) -> Row:
    """Sums of the counts, maxima of the errors."""
    out: Row = {"cones": cones, "kind": kind}
    out |= {name: sum(int(row[name]) for row in rows) for name in FIELDS[2:-2]}
    return out | {name: f"{max(float(row[name]) for row in rows):.1e}" for name in FIELDS[-2:]}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="of programs")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    parser.add_argument("--batch", type=int, default=200, help="programs of one structure; part of what is drawn")
    parser.add_argument("--output", type=Path, default=RESULTS / "million.csv")
    return parser.parse_args()


def main() -> int:
    """Run, print a table, write a CSV file; 1 if anything is not as it must be."""
    options = parse()
    engine, rows, start, solving = Native(tolerance=TOLERANCE), list[Row](), time.perf_counter(), 0.0
    seeds = range(options.seed, options.seed - (-options.count // options.batch))
    bad = unsolved = 0
    for seed in (progress := tqdm(seeds, file=sys.stderr, unit="batch")):
        batch = draw_batch(seed, options.batch)
        began = time.perf_counter()
        row, found = judge_batch(batch, engine)
        solving += time.perf_counter() - began
        rows.append(row)
        bad += sum(int(row[name]) for name in ("wrong", "inaccurate", "unexplained"))
        unsolved += int(row["unsolved"])
        progress.set_postfix(bad=bad, unsolved=unsolved, refresh=False)
        for line in found:
            progress.write(line, file=sys.stderr)
    seconds = time.perf_counter() - start
    spent = f"{seconds:.0f} s, of which {solving:.0f} s to solve and to measure"
    comment = f"{environment([Ours()])}; seeds {seeds.start} to {seeds.stop - 1}, batches of {options.batch}; {spent}"
    table = merge(rows)
    write(options.output, comment, FIELDS, table)
    show(FIELDS, table)
    print(spent)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
