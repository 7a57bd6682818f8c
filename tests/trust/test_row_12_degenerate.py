"""Where the derivative says nothing or is not unique: right where it exists, else finite, deterministic, flagged."""

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from trust.families import assert_same, leaves, randn

pytestmark = pytest.mark.filterwarnings("ignore::convexlayers.errors.DerivativeWarning")

n = 3


def differentiate(solver, constraints, objective, x, parameters, values, **options):
    """Solution, values, gradients for a fixed weight, and the report; everything twice, to see that it repeats."""
    layer = cl.ConvexLayer(cp.Problem(objective, constraints), parameters, [x], solver=solver, **options)
    runs = []
    for _ in range(2):
        inputs = leaves(values)
        solution = layer.solve(*inputs)
        grads = torch.autograd.grad(solution.values[0], inputs, weight_of(solution.values[0]))
        runs.append((solution, grads))
    (solution, grads), (again, grads_again) = runs
    assert torch.equal(solution.values[0], again.values[0])
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
    assert all(grad.isfinite().all() for grad in (*grads, *solution.values))
    return solution, grads


def weight_of(value):
    return randn(*value.shape, seed=5)


def centre(weight):
    """(I - 11'/n) w."""
    return weight - weight.mean(-1, keepdim=True)


def test_vertex_of_a_linear_program_is_locally_constant(solver):
    x, q, b = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    values = [torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    solution, (grad_q, grad_b) = differentiate(solver, [x >= 0, cp.sum(x) == b], cp.Minimize(q @ x), x, [q, b], values)
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert_same(solution.values[0], expected, 1e-6)
    assert_same(grad_q, torch.zeros(2, n, dtype=torch.float64), 1e-6)
    assert_same(grad_b, (weight_of(expected) * expected).sum(-1), 1e-6)
    assert not solution.derivative_report.rank_deficient.any()


def test_tie_of_a_linear_program_is_flagged(solver):
    x, q = cp.Variable(n), cp.Parameter(n)
    values = [torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, 3.0]], dtype=torch.float64)]
    solution, _ = differentiate(solver, [x >= 0, cp.sum(x) == 1], cp.Minimize(q @ x), x, [q], values)
    assert solution.derivative_report.rank_deficient.tolist() == [True, False]
    assert_same(solution.objective, torch.ones(2, dtype=torch.float64), 1e-6)


def test_duplicated_equalities_do_not_matter_to_x(solver):
    x, t, total = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    constraints = [cp.sum(x) == total, cp.sum(x) == total, 3 * cp.sum(x) == 3 * total]
    values = [randn(4, n, seed=1), randn(4, seed=2)]
    objective = cp.Minimize(cp.sum_squares(x - t))
    solution, (grad_t, grad_total) = differentiate(solver, constraints, objective, x, [t, total], values)
    t_value, total_value = values
    expected = t_value + ((total_value - t_value.sum(-1)) / n)[:, None]
    assert_same(solution.values[0], expected, 1e-7)
    assert_same(grad_t, centre(weight_of(expected)), 1e-7)
    assert_same(grad_total, weight_of(expected).mean(-1), 1e-7)
    assert solution.derivative_report.rank_deficient.all()


@pytest.mark.parametrize("copies", [2, 4])
def test_duplicated_inequalities_do_not_matter_to_x(solver, copies):
    """Projection onto sum(x) <= 1, said several times, active in one element and not in the other."""
    x, t = cp.Variable(n), cp.Parameter(n)
    values = [torch.tensor([[1.0, 1.5, 2.0], [-1.0, 0.1, 0.2]], dtype=torch.float64)]
    objective = cp.Minimize(cp.sum_squares(x - t))
    solution, (grad,) = differentiate(solver, [cp.sum(x) <= 1] * copies, objective, x, [t], values)
    weight = weight_of(solution.values[0])
    assert_same(grad, torch.stack([centre(weight[0]), weight[1]]), 1e-6)


def test_more_active_rows_than_variables(solver):
    """Six half-planes through one point, which is the solution and does not move with the target."""
    x, t, tip = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    angles = torch.linspace(0.2, 1.3, 6, dtype=torch.float64)
    normals = torch.stack([angles.cos(), angles.sin()], -1).numpy()
    values = [torch.tensor([2.0, 2.0], dtype=torch.float64), torch.tensor([0.5, 0.25], dtype=torch.float64)]
    constraints = [normals @ (x - tip) <= 0]
    objective = cp.Minimize(cp.sum_squares(x - t))
    solution, (grad_t, grad_tip) = differentiate(solver, constraints, objective, x, [t, tip], values)
    assert_same(solution.values[0], values[1], 1e-5)
    assert_same(grad_t, torch.zeros(2, dtype=torch.float64), 1e-4)
    assert_same(grad_tip, weight_of(values[1]), 1e-4)


def test_empty_interior(solver):
    """x <= a and x >= a in the first coordinate: x_0 = a, the others are free."""
    x, t, a = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    values = [randn(4, n, seed=1), randn(4, seed=2)]
    objective = cp.Minimize(cp.sum_squares(x - t))
    solution, (grad_t, grad_a) = differentiate(solver, [x[0] <= a, x[0] >= a], objective, x, [t, a], values)
    expected = torch.cat([values[1][:, None], values[0][:, 1:]], -1)
    assert_same(solution.values[0], expected, 1e-6)
    weight = weight_of(expected)
    assert_same(grad_t, torch.cat([torch.zeros_like(weight[:, :1]), weight[:, 1:]], -1), 1e-5)
    assert_same(grad_a, weight[:, 0], 1e-5)


def test_weakly_active_constraint_gives_a_one_sided_derivative(solver):
    """Projection of a point that lies on the boundary: dx_0/dt_0 is 1 on one side, 0 on the other.

    There x_0 z_0 <= tolerance says no more than x_0 <= root of it, so the tolerance is small.
    """
    x, t = cp.Variable(n), cp.Parameter(n)
    values = [torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)]
    objective = cp.Minimize(cp.sum_squares(x - t))
    solution, (grad,) = differentiate(solver, [x >= 0], objective, x, [t], values, tolerance=1e-12)
    assert_same(solution.values[0], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), 1e-4)
    share = grad / weight_of(grad)
    assert -1e-6 <= share[0] <= 1 + 1e-6
    assert_same(share[1:], torch.tensor([1.0, 0.0], dtype=torch.float64), 1e-5)


def test_all_coordinates_tied_in_a_norm(solver):
    """min |x - t|_inf + |x|^2 / 2 at t = (a, a, a): the maximum is attained everywhere."""
    x, t = cp.Variable(n), cp.Parameter(n)
    objective = cp.Minimize(cp.norm(x - t, "inf") + 0.5 * cp.sum_squares(x))
    solution, _ = differentiate(solver, [], objective, x, [t], [torch.full((2, n), 2.0, dtype=torch.float64)])
    # By symmetry x = (c, c, c) with |x - t|_inf = 2 - c: the derivative of 2 - c + 3/2 c^2 vanishes at c = 1/3.
    assert_same(solution.values[0], torch.full((2, n), 1 / 3, dtype=torch.float64), 1e-6)


def test_solution_set_is_a_face(solver):
    """No objective in the second half of the variables: flagged, and zero for what nothing depends on."""
    x, t = cp.Variable(4), cp.Parameter(2)
    objective = cp.Minimize(cp.sum_squares(x[:2] - t))
    solution, (grad,) = differentiate(solver, [x >= -1, x <= 1], objective, x, [t], [0.1 * randn(3, 2, seed=1)])
    assert_same(solution.values[0][:, :2], 0.1 * randn(3, 2, seed=1), 1e-6)
    assert_same(grad, weight_of(solution.values[0])[:, :2], 1e-5)
    assert solution.derivative_report.rank_deficient.all()


def test_a_derivative_that_does_not_exist_is_announced(solver):
    """x is not unique, so the sum over its free direction is no function of q; the report and a warning say so."""
    x, q = cp.Variable(n), cp.Parameter(n)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(q @ x), [x >= 0, cp.sum(x) == 1]), [q], [x], solver=solver)
    q_value = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    solution = layer.solve(q_value)
    with pytest.warns(cl.errors.DerivativeWarning, match=r"1 element of 2 is not exact \(first index 1"):
        solution.values[0][:, 0].sum().backward()
    residual = solution.derivative_report.residual
    assert residual[0] < 1e-8
    assert residual[1] > 1e-3
    assert q_value.grad.isfinite().all()
