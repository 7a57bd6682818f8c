"""What cvxpylayers' own tests and examples exercise, written anew, on its face: docs/migration.md has the list."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import convexlayers as cl
from convexlayers.compat.cvxpylayers import CvxpyLayer
from convexlayers.compat.moreau import Moreau
from convexlayers.testing import check_engine

SYMMETRIC = ("symmetric", "PSD", "NSD")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# Each case: a problem, what is returned of it, and values of its parameters.


def quick_start():
    x, A, b = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(0.5 * cp.norm1(A @ x - b)), [x >= 0])
    return problem, [x], {A: normal(0, 3, 2), b: normal(1, 3).abs()}


def batch_of_socps():
    x, q, F, A, b = (cp.Variable((4, 1)), *map(cp.Parameter, [(4, 1), (4, 4), (1, 4), (1, 1)]))
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(F @ x) + q.T @ x), [A @ x == b, cp.norm(x) <= 1])
    return problem, [x], {q: normal(0, 4, 1), F: normal(1, 4, 4), A: normal(2, 1, 4), b: 0.1 * normal(3, 1, 1)}


def logistic_regression():
    a, X, penalty = cp.Variable((2, 1)), cp.Parameter((5, 2)), cp.Parameter(1, nonneg=True)
    scores = X @ a
    labels = np.array([[1.0], [0.0], [1.0], [1.0], [0.0]])
    likelihood = cp.sum(cp.multiply(labels, scores) - cp.logistic(scores))
    return (
        cp.Problem(cp.Minimize(-likelihood + penalty * cp.sum_squares(a))),
        [a],
        {X: normal(0, 5, 2), penalty: tensor([0.1])},
    )


def entropy_maximization():
    n, x, A, b, F, g = (5, cp.Variable(5), *map(cp.Parameter, [(3, 5), 3, (2, 5), 2]))
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x)) - 0.01 * cp.sum_squares(x)), [A @ x == b, F @ x <= g])
    point, A_t, F_t = normal(0, n).abs(), normal(1, 3, n), normal(2, 2, n)
    return problem, [x], {A: A_t, b: A_t @ point, F: F_t, g: F_t @ point + 0.5}


def limited_multi_label():
    y, x = cp.Variable(4), cp.Parameter(4)
    objective = -x @ y - cp.sum(cp.entr(y)) - cp.sum(cp.entr(1 - y))
    return cp.Problem(cp.Minimize(objective), [cp.sum(y) == 2]), [y], {x: tensor([1.0, -1.0, -0.5, -1.0])}


def semidefinite():
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    As, bs = [cp.Parameter((3, 3)) for _ in range(2)], [cp.Parameter((1, 1)) for _ in range(2)]
    constraints = [X >> 0, *(cp.trace(A @ X) == b for A, b in zip(As, bs, strict=True))]
    values = {C: normal(0, 3, 3)}
    values |= {A: normal(1 + i, 3, 3) + 2 * torch.eye(3).double() for i, A in enumerate(As)}
    values |= {b: tensor([[1.0 + i]]) for i, b in enumerate(bs)}
    return cp.Problem(cp.Minimize(cp.trace(C @ X) + cp.sum_squares(X)), constraints), [X], values


def symmetric_cost():
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), [X >> 0, cp.trace(X) == 1])
    return (
        problem,
        [X, problem.constraints[0].dual_variables[0]],
        {C: tensor([[2, 0.5, 0.1], [0.5, 3, 0.2], [0.1, 0.2, 1.5]])},
    )


def equality():
    x, b = cp.Variable(4), cp.Parameter(4)
    return cp.Problem(cp.Minimize(cp.sum_squares(x)), [np.eye(4) @ x == b]), [x], {b: normal(0, 4)}


def matrix_variable():
    x, A, b = cp.Variable((3, 2)), cp.Parameter((5, 3)), cp.Parameter((5, 2))
    objective = cp.sum_squares(A @ x - b) + 0.01 * cp.sum_squares(x)
    return cp.Problem(cp.Minimize(objective)), [x], {A: normal(0, 5, 3), b: normal(1, 5, 2)}


def parametric_quadratic():
    x, Q, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, Q) + q @ x), [x >= -0.5, x <= 0.5])
    return problem, [x], {Q: 2 * torch.eye(3).double(), q: tensor([3.0, -0.3, 0.1])}


def sum_of_quadratics():
    x, P, Q, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter((3, 3), NSD=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + cp.quad_form(x, -Q) + q @ x))
    return problem, [x], {P: torch.eye(3).double(), Q: -2 * torch.eye(3).double(), q: normal(0, 3)}


def duals_of_linear_constraints():
    x, c, b, r = cp.Variable(3), cp.Parameter(3), cp.Parameter(), cp.Parameter(2)
    A = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
    constraints = [cp.sum(x) == b, x >= 0, A @ x <= r]
    problem = cp.Problem(cp.Minimize(c @ x + 0.5 * cp.sum_squares(x)), constraints)
    values = {c: tensor([0.5, -0.3, 2.0]), b: tensor(1.0), r: tensor([1.2, 3.0])}
    return problem, [x, *(constraint.dual_variables[0] for constraint in constraints)], values


def dual_of_a_vector_equality():
    x, A, b = cp.Variable(3), cp.Parameter((2, 3)), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x)), [A @ x == b])
    return problem, [problem.constraints[0].dual_variables[0]], {A: normal(0, 2, 3), b: normal(1, 2)}


def dual_of_a_norm():
    x, c, t = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(c @ x + 0.1 * cp.sum_squares(x)), [cp.norm(x) <= t])
    return problem, [x, problem.constraints[0].dual_variables[0]], {c: tensor([1.0, 0.5, -0.5]), t: tensor(2.0)}


def duals_of_a_second_order_cone():
    x, c = cp.Variable(2), cp.Parameter(2)
    cone = cp.SOC(cp.sum(x) + 2, x)
    problem = cp.Problem(cp.Minimize(c @ x), [cone])
    return problem, [x, *cone.dual_variables], {c: tensor([3.0, 2.0])}


def duals_of_an_exponential_cone():
    x, y, z, t = cp.Variable(), cp.Variable(), cp.Variable(), cp.Parameter(nonneg=True)
    cone = cp.constraints.ExpCone(x, y, z)
    objective = -x - y + 0.1 * (x**2 + y**2 + z**2)
    return (
        cp.Problem(cp.Minimize(objective), [cone, y >= 0.1, z <= t]),
        [x, y, z, *cone.dual_variables],
        {t: tensor(2.0)},
    )


def duals_of_a_power_cone():
    x, y, z, t = cp.Variable(), cp.Variable(), cp.Variable(), cp.Parameter(nonneg=True)
    cone = cp.PowCone3D(x, y, z, 0.4)
    problem = cp.Problem(cp.Minimize(-z + 0.1 * (x**2 + y**2)), [cone, x >= 0.1, y >= 0.1, x + y <= t])
    return problem, [x, y, z, *cone.dual_variables], {t: tensor(2.0)}


def relu():
    """The example of layers for deep learning: the projection onto x >= 0."""
    x, t = cp.Variable(4), cp.Parameter(4)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0]), [x], {t: tensor([1.0, -2.0, 0.5, -0.1])}


def monotone_regression():
    x, y = cp.Variable(5), cp.Parameter(5)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.diff(x) >= 0]), [x], {y: normal(0, 5)}


def optimal_transport():
    X, C, a, b = cp.Variable((3, 2)), cp.Parameter((3, 2)), cp.Parameter(3, nonneg=True), cp.Parameter(2, nonneg=True)
    constraints = [cp.sum(X, axis=1) == a, cp.sum(X[:, 0]) == b[0], X >= 0]
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(C, X)) - 0.3 * cp.sum(cp.entr(X)) + 0 * cp.sum(b)), constraints)
    return problem, [X], {C: normal(0, 3, 2), a: tensor([0.2, 0.3, 0.5]), b: tensor([0.4, 0.6])}


def portfolio():
    w, mu, F = cp.Variable(4), cp.Parameter(4), cp.Parameter((4, 4))
    problem = cp.Problem(cp.Maximize(mu @ w - cp.sum_squares(F @ w)), [cp.sum(w) == 1, cp.norm1(w) <= 1.5])
    return problem, [w], {mu: tensor([0.1, 0.9, -0.4, 0.3]), F: normal(0, 4, 4)}


def control_step():
    """Convex approximate dynamic programming: one step of a controller with a learned value function."""
    u, x, S, q = cp.Variable(2), cp.Parameter(3), cp.Parameter((3, 3)), cp.Parameter(3)
    A, B, after = np.eye(3) + 0.1, np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), cp.Variable(3)
    objective = cp.sum_squares(u) + cp.sum_squares(S @ after) + q @ after
    problem = cp.Problem(cp.Minimize(objective), [after == A @ x + B @ u, cp.norm(u) <= 0.5])
    return problem, [u], {x: normal(0, 3), S: normal(1, 3, 3), q: normal(2, 3)}


CASES = [
    quick_start, batch_of_socps, logistic_regression, entropy_maximization, limited_multi_label, semidefinite,
    symmetric_cost, equality, matrix_variable, parametric_quadratic, sum_of_quadratics, duals_of_linear_constraints,
    dual_of_a_vector_equality, dual_of_a_norm, duals_of_a_second_order_cone, duals_of_an_exponential_cone,
    duals_of_a_power_cone, relu, monotone_regression, optimal_transport, portfolio, control_step,
]  # fmt: skip
EPS = {"eps": 1e-10, "max_iters": 10000}


def symmetrized(parameters, values):
    """Values of symmetric parameters that stay symmetric where gradcheck moves one entry."""
    return [
        0.5 * (value + value.mT) if any(parameter.attributes[name] for name in SYMMETRIC) else value
        for parameter, value in zip(parameters, values, strict=True)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_solutions_and_duals_are_those_of_cvxpy(case):
    problem, variables, values = case()
    found = CvxpyLayer(problem, list(values), variables)(*values.values(), solver_args=EPS)
    for parameter, value in values.items():
        parameter.value = value.numpy()
    problem.solve(cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    for part, variable in zip(found, variables, strict=True):
        assert part.shape == variable.shape
        # CVXPY gives the dual of a second-order cone as a column.
        value = np.reshape(variable.value, variable.shape)
        np.testing.assert_allclose(part.numpy(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_gradients_are_those_of_differences(case):
    problem, variables, values = case()
    layer, parameters = CvxpyLayer(problem, list(values), variables), list(values)

    def solve(*given):
        return layer(*symmetrized(parameters, given), solver_args=EPS)

    assert gradcheck(
        solve, [value.clone().requires_grad_() for value in values.values()], eps=1e-5, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_batches_are_their_elements(case):
    problem, variables, values = case()
    layer = CvxpyLayer(problem, list(values), variables)
    moved = [value + 1e-3 * value.abs() for value in values.values()]
    batch = [torch.stack([value, other]) for value, other in zip(values.values(), moved, strict=True)]
    together, alone = layer(*batch), layer(*moved)
    for part, one in zip(together, alone, strict=True):
        torch.testing.assert_close(part[1], one, rtol=1e-7, atol=1e-8)


def ridge(rows=10, columns=4):
    x, A, b = cp.Variable(columns), cp.Parameter((rows, columns)), cp.Parameter(rows)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(x)))
    return CvxpyLayer(problem, [A, b], [x]), normal(0, rows, columns).requires_grad_(), normal(1, rows).requires_grad_()


def closed_form(A, b):
    return torch.linalg.solve(A.mT @ A + torch.eye(A.shape[-1], dtype=A.dtype), A.mT @ b)


def test_least_squares_has_the_gradients_of_its_closed_form():
    layer, A, b = ridge(30, 6)
    (x,) = layer(A, b, solver_args={"eps": 1e-10})
    found, expected = (torch.autograd.grad(y.sum(), [A, b]) for y in (x, closed_form(A, b)))
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-8, atol=1e-9)


def test_broadcast_parameters_get_the_sum():
    layer, A, b = ridge()
    batch = b.detach().expand(3, -1).clone().requires_grad_()
    (x,) = layer(A, batch)
    grad_A, grad_b = torch.autograd.grad(x.sum(), [A, batch])
    expected_A, expected_b = torch.autograd.grad(closed_form(A, b).sum(), [A, b])
    torch.testing.assert_close(grad_A, 3 * expected_A, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(grad_b, expected_b.expand(3, -1), rtol=1e-8, atol=1e-9)


def test_one_parameter_in_two_layers():
    x, A = cp.Variable(3), cp.Parameter((5, 3))
    layers = [
        CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(A @ x - normal(i, 5).numpy()))), [A], [x]) for i in (1, 2)
    ]
    with pytest.warns(UserWarning, match="'acceleration_lookback'"):
        assert gradcheck(
            lambda value: torch.cat(
                [layer(value, solver_args={**EPS, "acceleration_lookback": 0})[0] for layer in layers]
            ),
            normal(0, 5, 3).requires_grad_(),
        )


def test_a_batch_of_one_and_of_none():
    layer, A, b = ridge()
    one = b.detach()[None].clone().requires_grad_()
    (x,) = layer(A, one)
    assert x.shape == (1, 4)
    assert torch.autograd.grad(x.sum(), one)[0].shape == (1, 10)
    none = torch.zeros(0, 10, dtype=torch.float64, requires_grad=True)
    (x,) = layer(A, none)
    assert x.shape == (0, 4)
    assert torch.autograd.grad(x.sum(), [A, none])[0].abs().max() == 0


def test_nothing_requires_gradients_where_nothing_asks_for_them():
    layer, A, b = ridge()
    with torch.no_grad():
        assert not layer(A, b)[0].requires_grad
    assert not layer(A.detach(), b.detach())[0].requires_grad


@pytest.mark.parametrize("with_values", [True, False])
def test_geometric_programs(with_values):
    """min 1 / (xyz) under a (xy + xz + yz) <= b, x >= y^c: with and without values of the parameters, in a batch."""
    x, y, z = (cp.Variable(pos=True) for _ in range(3))
    a, b, c = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    values = [tensor([2.0, 1.5]), tensor([1.0, 1.2]), tensor([0.5, 0.6])]
    if with_values:
        a.value, b.value, c.value = (float(value[0]) for value in values)
    problem = cp.Problem(cp.Minimize(1 / (x * y * z)), [a * (x * y + x * z + y * z) <= b, x >= y**c])
    layer = CvxpyLayer(problem, parameters=[a, b, c], variables=[x, y, z], gp=True)
    found = layer(*values)
    for i in range(2):
        a.value, b.value, c.value = (float(value[i]) for value in values)
        problem.solve(cp.CLARABEL, gp=True, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
        for part, variable in zip(found, (x, y, z), strict=True):
            assert float(part[i]) == pytest.approx(float(variable.value), rel=1e-5)
    assert gradcheck(lambda *given: layer(*given), [value.requires_grad_() for value in values], atol=1e-5)


def lasso():
    x, first, second = cp.Variable(1), cp.Parameter(1, nonneg=True), cp.Parameter(1, nonneg=True)
    return cp.Problem(cp.Minimize(first * cp.norm1(x) + second * cp.sum_squares(x))), x, first, second


def test_parameters_and_variables_are_those_of_the_problem():
    problem, x, first, second = lasso()
    for parameters, variables in (
        ([first], [x]),
        ([first, second, cp.Parameter()], [x]),
        ({first, second}, [x]),
        ([first, second], [x, cp.Variable(1)]),
        ([first, second], {x}),
    ):
        with pytest.raises(ValueError, match=r"param|variable|Variable"):
            CvxpyLayer(problem, parameters, variables)


def test_calls_with_too_little():
    problem, x, first, second = lasso()
    layer = CvxpyLayer(problem, [first, second], [x])
    with pytest.raises(ValueError, match="1 value given, expected 2"):
        layer(torch.ones(1))
    with pytest.raises(ValueError, match="NoneType"):
        layer(torch.ones(1), None)


def test_shapes():
    layer, A, _ = ridge()
    wide = A.detach().expand(32, -1, -1)
    for first, second in (
        (wide, normal(0, 20, 10)),
        (wide, normal(0, 32, 20)),
        (A, normal(0, 20)),
        (A[0], normal(0, 10)),
    ):
        with pytest.raises(ValueError, match=r"batch|shape"):
            layer(first, second)
    # Where cvxpylayers takes one dimension of a batch, any number of them broadcasts.
    assert layer(wide[:2], normal(0, 3, 2, 10))[0].shape == (3, 2, 4)


def test_a_quotient_is_not_dpp():
    x, p = cp.Variable(2), cp.Parameter(2, nonneg=True)
    with pytest.raises(ValueError, match="DPP"):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.sum(x / p)), [x >= 0]), [p], [x])


@pytest.mark.parametrize("unbounded", [False, True])
def test_no_solution_is_an_error_of_diffcp(unbounded):
    diffcp = pytest.importorskip("diffcp")
    x, t = cp.Variable(1), cp.Parameter(1)
    problem = cp.Problem(cp.Minimize(x if unbounded else t), [x <= t] if unbounded else [x >= 1, x <= -1])
    with pytest.raises(diffcp.SolverError, match="DUAL_INFEASIBLE" if unbounded else "PRIMAL_INFEASIBLE"):
        CvxpyLayer(problem, [t], [x])(torch.ones(1))


def test_too_few_iterations_are_an_error_where_cvxpylayers_warns():
    problem, variables, values = portfolio()
    with pytest.raises(cl.SolverError, match="MAX_ITERATIONS"):
        CvxpyLayer(problem, list(values), variables)(*values.values(), solver_args={"max_iters": 1})


def test_custom_solvers_are_named():
    problem, x, first, second = lasso()
    with pytest.raises(ValueError, match="Write an Engine"):
        CvxpyLayer(problem, [first, second], [x], solver=object())


def test_the_context_of_a_layer():
    layer, A, b = ridge()
    assert layer.ctx.validate_params([A, b]) == ()
    assert layer.ctx.validate_params([A, b.expand(3, -1)]) == (3,)
    with pytest.raises(ValueError, match="1 values given"):
        layer.ctx.validate_params([A])
    with pytest.raises(ValueError, match="shape"):
        layer.ctx.validate_params([A, b[:2]])
    assert layer.ctx.cone_dims["l"] == layer.layer.program.structure.cones.nonnegative
    for name, hint in (
        ("info", r"layer\.layer\.solve"),
        ("A", r"layer\.layer\.program"),
        ("cp_problem", r"layer\.ctx"),
    ):
        with pytest.raises(AttributeError, match=hint):
            getattr(layer, name)


def test_graphs_are_compiled_whole():
    layer, A, b = ridge()
    compiled = torch.compile(lambda *values: layer(*values)[0].sum(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(A, b), layer(A, b)[0].sum())


def test_moreau_is_an_engine_where_it_is_installed():
    pytest.importorskip("moreau")
    for case in (batch_of_socps, symmetric_cost, duals_of_a_power_cone, entropy_maximization):
        problem, variables, values = case()
        layer = CvxpyLayer(
            problem, list(values), variables, solver="MOREAU", solver_args={"tol": 1e-9, "max_iter": 300}
        )
        assert layer.ctx.solver == "moreau"
        expected = CvxpyLayer(problem, list(values), variables)(*values.values())
        for part, other in zip(layer(*values.values()), expected, strict=True):
            torch.testing.assert_close(part, other, rtol=1e-6, atol=1e-6)
    x, t = cp.Variable(1), cp.Parameter(1)
    with pytest.raises(cl.SolverError, match="DUAL_INFEASIBLE"):
        CvxpyLayer(cp.Problem(cp.Minimize(x), [x <= t]), [t], [x], solver="MOREAU")(torch.ones(1))


def test_moreau_keeps_the_contract_of_engines():
    pytest.importorskip("moreau")
    check_engine(Moreau())


def test_moreau_refuses_what_it_is_not_known_to_take():
    pytest.importorskip("moreau")
    X, t = cp.Variable((2, 2), symmetric=True), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.trace(X) + cp.exp(t * X[0, 0])), [X >> 0])
    with pytest.raises(cl.errors.UnsupportedProblemError, match="PSD"):
        CvxpyLayer(problem, [t], [X], solver="MOREAU")
