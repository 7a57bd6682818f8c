"""How reliable the native engine is: hard QPs with known outcome, random QPs, and the families of run.py.

Usage: python benchmarks/hard_qps.py [--each N] [--seed N] [--sizes N ...] [--elements N] [--output FILE]

One line per kind. The problems are those of convexlayers/testing/hard_problems.py, through `solve_qp`, and the families
of families.py, through `ConvexLayer`. No times: what is counted is the same on every machine of one instruction set.

    solved         of them, with residuals below 1e-6 in the original numbers
    infeasible     and unbounded: reported as such
    unsolved       every other status: an honest one
    wrong          SOLVED with a residual above 1e-6 or another objective, or a status that the construction contradicts
    rescued        elements on which the method stalled and that went to Clarabel, whatever became of them
    residual       the worst of those that are solved
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from contenders import Ours
from families import FAMILIES
from report import RESULTS, environment, show, write

import convexlayers as cl
from convexlayers import Status
from convexlayers.testing import HardQP, hard_qps, random_qp

TOLERANCE = 1e-6
SIZES = (10, 20, 50, 100, 220, 450)
ELEMENTS = 1000
OUTCOMES = {"solved": Status.SOLVED, "infeasible": Status.PRIMAL_INFEASIBLE, "unbounded": Status.DUAL_INFEASIBLE}
FIELDS = [
    "kind", "problems", "solved", "infeasible", "unbounded", "unsolved", "wrong", "rescued", "median_iterations",
    "max_iterations", "residual",
]  # fmt: skip

Row = dict[str, str | int]
# Outcome, or "unsolved" or "wrong"; whether it was rescued; iterations; residual.
Verdict = tuple[str, bool, int, float]


def judge_qp(qp: HardQP) -> Verdict:
    """Solve one problem and say what became of it."""
    solution = cl.solve_qp(**qp.arguments(), solver="native", on_failure="nan")
    status, residual = Status(int(solution.status)), 0.0
    names = {code: name for name, code in OUTCOMES.items()}
    verdict = names.get(status, "unsolved")
    if verdict not in (qp.outcome, "unsolved"):
        verdict = "wrong"
    if verdict == "solved":
        residual = qp.residual(solution.x, *qp.multipliers(solution.duals))
        verdict = verdict if residual <= TOLERANCE and _is_optimal(qp, solution.x) else "wrong"
    return verdict, bool(solution.rescued), int(solution.iterations), residual


def _is_optimal(qp: HardQP, x: torch.Tensor) -> bool:
    """Against the solution that the problem was made from, if it was made from one."""
    if qp.name.startswith("random"):
        return True
    found, optimum = qp.objective(x), qp.objective(qp.x)
    return abs(found - optimum) <= TOLERANCE * max(1.0, abs(optimum))


def judge_family(name: str, elements: int) -> list[Verdict]:
    """Solve so many elements of a family."""
    problem, parameters, variables, sample = FAMILIES[name][0]()
    program = cl.compile_problem(problem, parameters, variables)
    layer = cl.ConvexLayer.from_program(program, solver="native", on_failure="nan")
    with torch.no_grad():
        solution = layer.solve(*sample(elements))
    residuals = solution.cone_solution.residuals.largest
    columns = (part.tolist() for part in (solution.solved, solution.rescued, solution.iterations, residuals))
    return [
        (("solved" if residual <= TOLERANCE else "wrong") if solved else "unsolved", rescued, iterations, residual)
        for solved, rescued, iterations, residual in zip(*columns, strict=True)
    ]


def row_of(kind: str, verdicts: Sequence[Verdict]) -> Row:
    """Count."""
    outcomes = [verdict[0] for verdict in verdicts]
    iterations = [verdict[2] for verdict in verdicts]
    residual = max((verdict[3] for verdict in verdicts if verdict[0] == "solved"), default=None)
    return {
        "kind": kind,
        "problems": len(verdicts),
        **{name: outcomes.count(name) for name in (*OUTCOMES, "unsolved", "wrong")},
        "rescued": sum(verdict[1] for verdict in verdicts),
        "median_iterations": int(statistics.median(iterations)),
        "max_iterations": max(iterations),
        "residual": "" if residual is None else f"{residual:.1e}",
    }


def by_kind(problems: Iterable[HardQP]) -> list[Row]:
    """One row per kind, in order: the names without their numbers."""
    kinds: dict[str, list[Verdict]] = {}
    for qp in problems:
        kinds.setdefault(qp.name.rsplit(" ", 1)[0], []).append(judge_qp(qp))
    return [row_of(kind, verdicts) for kind, verdicts in kinds.items()]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=3, help="hard QPs of each of the 20 kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="of the random QPs")
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="of each family; 0 leaves them out")
    parser.add_argument("--output", type=Path, default=RESULTS / "hard_qps.csv")
    return parser.parse_args()


def main() -> None:
    """Run, print a table, write a CSV file."""
    options = parse()
    rows = by_kind(hard_qps(options.each, options.seed))
    rows += by_kind(random_qp(n, sparse=sparse, seed=options.seed) for sparse in (False, True) for n in options.sizes)
    for name in FAMILIES if options.elements else ():
        verdicts = judge_family(name, options.elements)
        rows.append(row_of(f"family {name}", verdicts))
    write(options.output, environment([Ours()]), FIELDS, rows)
    show(FIELDS, rows)


if __name__ == "__main__":
    main()
