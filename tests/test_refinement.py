"""Newton refinement: it may only improve, and rescues may only help."""

import pytest
import torch

import convexlayers as cl
from convexlayers.derivatives.refine import refine
from convexlayers.engines import Clarabel
from convexlayers.solution import measure
from convexlayers.testing import cone_cases, random_program


def feasible_qp(seed: int, batch: int = 32):
    """A strictly convex QP over a polytope that many bounds cut: guesses of its active set are often wrong."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.rand(40, 64, generator=generator, dtype=torch.float64)
    point = torch.exp(torch.randn(64, generator=generator, dtype=torch.float64) * 0.2 - 1.3)
    q = -(torch.rand(batch, 64, generator=generator) < 0.1).double()
    return {"P": 0.1 * torch.eye(64, dtype=torch.float64), "q": q, "A": A, "b": A @ point, "lb": 0.0}


@pytest.mark.parametrize("seed", range(6))
def test_wrong_guesses_of_the_active_set_do_no_harm(seed):
    """Complementarity must not be bought with residual."""
    solution = cl.solve_qp(**feasible_qp(seed), on_failure="nan")
    assert bool(solution.solved.all()), solution.describe()
    assert float(solution.cone_solution.residuals.largest.max()) < 1e-7


@pytest.mark.parametrize("name", ["nonnegative", "second_order", "psd", "exponential", "power", "all"])
@pytest.mark.parametrize("noise", [1e-9, 1e-4, 1e-1])
def test_residuals_never_grow(name, noise):
    problem = random_program(cone_cases()[name], batch=(4,), seed=3)
    program = problem.program.evaluate(problem.theta)
    generator = torch.Generator().manual_seed(0)
    start = [
        v + noise * torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in (problem.x, problem.s, problem.z)
    ]
    before, after = measure(program, *start).largest, measure(program, *refine(program, *start)).largest
    assert bool((after <= before).all())
    if noise < 1e-3:
        assert float(after.max()) < 1e-12


@pytest.mark.parametrize("seed", [102, 104, 111])
def test_breakdowns_of_the_solver_are_tried_again(seed):
    problem = random_program(cone_cases()["all"], seed=seed, batch=(4,), activity="mixed", rank=1)
    solution = Clarabel().setup(problem.program).solve(problem.theta)
    assert bool(solution.solved.all())
    torch.testing.assert_close(solution.x, problem.x, rtol=1e-6, atol=1e-6)
