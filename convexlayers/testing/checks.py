"""Conformance checks of engines, for their authors. They raise AssertionError with figures.

engine = MyEngine()
check_engine(engine)                                                              # everything
check_solution(engine, random_program(Cones(nonnegative=4, psd=(3,)), batch=(8,)))
check_derivative(engine, random_program(Cones(nonnegative=4, psd=(3,)), batch=(8,)))
check_statuses(engine, random_program(Cones(nonnegative=4)))
"""

from collections.abc import Sequence

import torch

from convexlayers.cones import Cones
from convexlayers.engines import Engine
from convexlayers.status import Status
from convexlayers.testing.derivative_checks import check_derivative, solve_all
from convexlayers.testing.problems import SolvedProgram, infeasible_program, random_program, unbounded_program


def check_solution(engine: Engine, problem: SolvedProgram, tolerance: float = 1e-6) -> float:
    """Solve a program with a known solution.

    Args:
        engine: to be checked.
        problem: from `random_program`.
        tolerance: allowed error of x, s, z, relative to their norm (at least 1).

    Returns:
        the largest error.

    Raises:
        AssertionError: an element is not solved, or an error is above the tolerance.
    """
    solution = solve_all(engine.setup(problem.program), problem.theta)
    worst = 0.0
    for name in ("x", "s", "z"):
        expected = getattr(problem, name)
        expected = expected.reshape(-1, expected.shape[-1])
        errors = (getattr(solution, name) - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1)
        error = float(errors.amax())
        assert error <= tolerance, f"{engine.name}: {name} is off by {error:.1e}, more than {tolerance:.1e}."
        worst = max(worst, error)
    return worst


def check_statuses(engine: Engine, problem: SolvedProgram, seed: int = 0) -> None:
    """Infeasible, unbounded and invalid elements get their status, and leave their neighbours alone.

    The batch holds, with the cones of `problem`: its own numbers, an infeasible and an unbounded program, and its own
    numbers with a NaN and with an Inf. The first must come out as it does alone, bit for bit.

    Args:
        engine: to be checked.
        problem: a program without batch dimensions, with at least one row and two variables.
        seed: of the infeasible and the unbounded program.

    Raises:
        AssertionError: a status is wrong, or the solvable element differs.
    """
    n, cones = problem.q.shape[-1], problem.cones
    others = (infeasible_program(cones, n=n, seed=seed), unbounded_program(cones, n=n, seed=seed))
    rows = [problem.theta, *(other.theta for other in others), problem.theta, problem.theta]
    theta = [torch.cat(values) for values in zip(*rows, strict=True)]
    theta[1][3, 0], theta[3][4, -1] = float("nan"), float("inf")
    plan = engine.setup(problem.program)
    together, alone = plan.solve(theta), plan.solve(problem.theta)
    expected = ["SOLVED", "PRIMAL_INFEASIBLE", "DUAL_INFEASIBLE", "INVALID_DATA", "INVALID_DATA"]
    got = [Status(code).name for code in together.status.tolist()]
    assert got == expected, f"{engine.name}, {cones.describe()}: statuses {got}, expected {expected}."
    for name in ("x", "s", "z"):
        same = torch.equal(getattr(together, name)[:1], getattr(alone, name))
        assert same, f"{engine.name}: {name} of a solved element depends on its neighbours."


def check_engine(engine: Engine, problems: Sequence[SolvedProgram] | None = None, tolerance: float = 1e-6) -> None:
    """Solutions, derivatives and statuses.

    Args:
        engine: to be checked.
        problems: with known, unique solutions; by default some over zero, nonnegative, second-order and PSD cones.
        tolerance: of solutions. Derivatives are checked to the tolerances of `check_derivative`.

    Raises:
        AssertionError: the engine fails one of the checks.
    """
    if problems is None:
        sizes = (Cones(zero=2, nonnegative=4), Cones(nonnegative=2, second_order=(3, 4)), Cones(zero=1, psd=(2, 3)))
        problems = [random_program(cones, batch=(4,)) for cones in sizes]
    for problem in problems:
        check_solution(engine, problem, tolerance)
        check_derivative(engine, problem)
        check_statuses(engine, random_program(problem.cones, n=problem.q.shape[-1], seed=1))
