"""Attributes: variables keep them, values of parameters are checked for them, and gradients are of their kind."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from cvxpy_reference import Case, check_gradients, check_values

import convexlayers as cl
from convexlayers.errors import ArgumentError


def random(*shape, low=-1.5, high=1.5, seed=3):
    return np.random.default_rng(seed).uniform(low, high, shape)


def symmetric(order, lowest=-1.0, seed=3):
    """A symmetric matrix with eigenvalues from lowest to lowest + 2."""
    basis = np.linalg.qr(random(order, order, seed=seed))[0]
    return basis @ np.diag(np.linspace(lowest, lowest + 2, order)) @ basis.T


PATTERN = [(0, 0, 1, 2), (0, 2, 1, 0)]
VARIABLES = {
    "symmetric": ((3, 3), {"symmetric": True}),
    "PSD": ((3, 3), {"PSD": True}),
    "NSD": ((3, 3), {"NSD": True}),
    "diag": ((3, 3), {"diag": True}),
    "sparsity": ((3, 3), {"sparsity": PATTERN}),
    "nonneg": ((2, 3), {"nonneg": True}),
    "nonpos": ((2, 3), {"nonpos": True}),
    "pos": ((4,), {"pos": True}),
    "neg": ((4,), {"neg": True}),
    "bounds": ((2, 3), {"bounds": [-0.4, 0.7]}),
    "bounds_of_arrays": (
        (4,),
        {"bounds": [np.array([-0.4, -np.inf, 0.1, -1]), np.array([np.inf, 0.2, 0.1 + 1e-1, 1])]},
    ),
    "bounds_and_symmetric": ((3, 3), {"symmetric": True, "bounds": [-0.3, 0.4]}),
    "nonneg_and_PSD": ((3, 3), {"PSD": True, "nonneg": True}),
    "diag_and_nonneg": ((3, 3), {"diag": True, "nonneg": True}),
    "sparsity_and_bounds": ((3, 3), {"sparsity": PATTERN, "bounds": [-0.3, 0.4]}),
    "symmetric_of_order_one": ((1, 1), {"symmetric": True}),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_variable(name):
    """The projection of c onto the attribute's set, cut by a hyperplane that meets its interior."""
    shape, attributes = VARIABLES[name]
    x, c, t = cp.Variable(shape, **attributes), cp.Parameter(shape, name="c"), cp.Parameter(name="t")
    weights = np.ones(shape) + (np.eye(shape[0]) if len(shape) == 2 and shape[0] == shape[1] else 0)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), [cp.sum(cp.multiply(weights, x)) == t])
    level = -1.0 if attributes.keys() & {"nonpos", "neg", "NSD"} else 1.0
    case = Case(problem, {c: random(*shape), t: level})
    check_gradients(case, check_values(case))


def test_several_matrices_with_attributes():
    """The free entries of one must not be taken for those of another."""
    S, D = cp.Variable((3, 3), symmetric=True, name="S"), cp.Variable((2, 2), diag=True, name="D")
    K, P = cp.Variable((3, 3), sparsity=PATTERN, name="K"), cp.Variable((2, 2), PSD=True, name="P")
    x = cp.Variable(2, nonneg=True, name="x")
    parameters = [cp.Parameter(v.shape, name=f"c{v.name()}") for v in (x, P, K, D, S)]
    distance = sum(cp.sum_squares(v - c) for v, c in zip((x, P, K, D, S), parameters, strict=True))
    constraints = [cp.trace(S) + cp.trace(D) == cp.sum(K), P[0, 1] + x[1] <= 0.3, S[0, 2] == P[0, 1]]
    values = {c: random(*c.shape, seed=i) for i, c in enumerate(parameters)}
    case = Case(cp.Problem(cp.Minimize(distance), constraints), values)
    check_gradients(case, check_values(case))


def test_entries_outside_of_a_pattern_are_zero():
    K, c = cp.Variable((3, 3), sparsity=PATTERN), cp.Parameter((3, 3), name="c")
    D = cp.Variable((3, 3), diag=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(K - c) + cp.sum_squares(D - c)))
    value = random(3, 3)
    K_star, D_star = cl.ConvexLayer(problem, [c], [K, D])(torch.tensor(value))
    inside = np.zeros((3, 3), dtype=bool)
    inside[tuple(PATTERN)] = True
    np.testing.assert_allclose(K_star.numpy(), np.where(inside, value, 0), atol=1e-12)
    np.testing.assert_allclose(D_star.numpy(), np.diag(np.diag(value)), atol=1e-12)
    assert not K_star.numpy()[~inside].any()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_symmetric_variables_are_symmetric_to_the_last_bit(order):
    X, C = cp.Variable((order, order), symmetric=True), cp.Parameter((order, order), name="C")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0]), [C], [X])
    (X_star,) = layer(torch.tensor(random(5, order, order)))
    assert torch.equal(X_star, X_star.mT)


# Parameters: attributes, a value that has them, and one that has not with a word of what the message must say.
PARAMETERS = {
    "symmetric": ({"symmetric": True}, symmetric(3), random(3, 3)),
    "PSD": ({"PSD": True}, symmetric(3, 0.2), symmetric(3, -0.2)),
    "PSD_singular": ({"PSD": True}, symmetric(3, 0.0), symmetric(3, -1e-6)),
    "PSD_not_symmetric": ({"PSD": True}, symmetric(3, 0.2), 3 * np.eye(3) + np.triu(np.ones((3, 3)))),
    "NSD": ({"NSD": True}, symmetric(3, -2.2), symmetric(3, -1.8)),
    "diag": ({"diag": True}, np.diag([1.0, -2.0, 3.0]), np.diag([1.0, -2.0, 3.0]) + 1e-3 * np.eye(3)[::-1]),
    "sparsity": ({"sparsity": PATTERN}, np.array([[1.0, 0, 2], [0, 3, 0], [4, 0, 0]]), np.ones((3, 3))),
    "nonneg": ({"nonneg": True}, np.abs(random(3, 3)), np.abs(random(3, 3)) - 1.2),
    "nonpos": ({"nonpos": True}, -np.abs(random(3, 3)), 1.2 - np.abs(random(3, 3))),
    "pos": ({"pos": True}, np.abs(random(3, 3)) + 0.1, np.zeros((3, 3))),
    "neg": ({"neg": True}, -np.abs(random(3, 3)) - 0.1, np.zeros((3, 3))),
    "bounds": ({"bounds": [-1.6, 1.6]}, random(3, 3), random(3, 3) + 0.8),
    "bounds_of_arrays": ({"bounds": [random(3, 3) - 0.1, np.inf]}, random(3, 3), random(3, 3) - 0.3),
}


def problem_of(attributes):
    """Every entry of the parameter has its own effect on x, through the objective and a constraint."""
    x, p = cp.Variable((3, 3)), cp.Parameter((3, 3), name="p", **attributes)
    objective = cp.sum_squares(x - p) + cp.sum(cp.multiply(random(3, 3, seed=8), x))
    return cp.Problem(cp.Minimize(objective), [p @ x[0] <= 0.1, cp.sum(x) == cp.sum(p[:, 0])]), x, p


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter(name):
    attributes, good, _ = PARAMETERS[name]
    problem, _, p = problem_of(attributes)
    case = Case(problem, {p: good})
    check_values(case)
    # Differences in a singular matrix leave its set.
    check_gradients(case, case.layer(validate=name != "PSD_singular"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_values_without_the_attribute_are_refused(name):
    """The message names the parameter and, in a batch, the element; the order of the batch is that of the user."""
    attributes, good, bad = PARAMETERS[name]
    problem, x, p = problem_of(attributes)
    layer = cl.ConvexLayer(problem, [p], [x])
    with pytest.raises(ArgumentError, match=r"^p must be .* but its value is not"):
        layer(torch.tensor(bad.copy()))
    batch = np.stack([good, good, bad, good])
    with pytest.raises(ArgumentError, match=r"^p must be .*\(batch index 2\)"):
        layer(torch.tensor(batch))
    layer(torch.tensor(np.stack([good] * 4)))


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - {"PSD_not_symmetric", "symmetric", "diag", "sparsity"}))
def test_checks_can_be_switched_off(name):
    """Where the cone program makes sense for the value nevertheless, it is solved for it."""
    attributes, _, bad = PARAMETERS[name]
    problem, x, p = problem_of(attributes)
    plain_problem, plain_x, plain_p = problem_of({})
    (found,) = cl.ConvexLayer(problem, [p], [x], validate=False)(torch.tensor(bad.copy()))
    (expected,) = cl.ConvexLayer(plain_problem, [plain_p], [plain_x])(torch.tensor(bad.copy()))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-9)


@pytest.mark.parametrize("name", ["symmetric", "PSD_not_symmetric", "diag", "sparsity"])
def test_values_outside_the_structure_pass_unchecked_when_switched_off(name):
    attributes, _, bad = PARAMETERS[name]
    problem, x, p = problem_of(attributes)
    (found,) = cl.ConvexLayer(problem, [p], [x], validate=False)(torch.tensor(bad.copy()))
    assert bool(found.isfinite().all())


def test_several_attributes_are_all_checked():
    x, p = cp.Variable(3), cp.Parameter((3, 3), PSD=True, nonneg=True, name="p")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x) + cp.sum(p @ x))), [p], [x])
    layer(torch.eye(3))
    with pytest.raises(ArgumentError, match="p must be PSD"):
        layer(torch.ones(3, 3) - torch.eye(3))
    with pytest.raises(ArgumentError, match="p must be nonneg"):
        layer(2 * torch.eye(3) - 0.1 * torch.ones(3, 3))


def test_a_definite_matrix_has_to_be_symmetric_and_the_message_says_so():
    with pytest.raises(ArgumentError, match=r"^P must be PSD \(symmetric, no negative eigenvalue\).*off by 1\."):
        cl.solve_qp(torch.tensor([[2.0, 1.0], [0.0, 2.0]]), torch.ones(2))


def test_only_the_wrong_parameter_is_named():
    x, a, b = cp.Variable(2), cp.Parameter(2, nonneg=True, name="first"), cp.Parameter(2, nonneg=True, name="second")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - a) + cp.norm1(cp.multiply(b, x)))), [a, b], [x])
    with pytest.raises(ArgumentError, match="second must be nonneg") as error:
        layer(torch.ones(2), torch.tensor([1.0, -1e-3]))
    assert "first" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_in_the_users_dtype_is_no_offence(dtype):
    """R'R is symmetric and semidefinite up to rounding; with rank 2 of 6 its other eigenvalues have either sign."""
    x, P = cp.Variable(6), cp.Parameter((6, 6), PSD=True, name="P")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.quad_form(x, P) + cp.sum_squares(x - 1))), [P], [x])
    R = torch.tensor(random(40, 2, 6), dtype=dtype)
    S = torch.tensor(random(40, 6, 6, seed=4), dtype=dtype)
    values = R.mT @ R
    assert float(torch.linalg.eigvalsh(values.double()).min()) < 0
    (x_star,) = layer(values)
    assert bool(x_star.isfinite().all())
    assert x_star.dtype == dtype
    # Congruence by hand leaves an asymmetry of a rounding error.
    layer(S @ values @ S.mT)


@pytest.mark.parametrize("attribute", ["symmetric", "PSD"])
def test_gradient_of_a_symmetric_parameter(attribute):
    """It is the symmetric part of the gradient in the same parameter without the attribute."""
    x, P = cp.Variable(3), cp.Parameter((3, 3), name="P", **{attribute: True})
    plain_x, plain_P = cp.Variable(3), cp.Parameter((3, 3), name="P")
    q = np.array([1.0, -2.0, 0.5])
    layers = [
        cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(v - M @ q) + cp.norm1(v))), [M], [v])
        for v, M in ((x, P), (plain_x, plain_P))
    ]
    gradients = []
    for layer in layers:
        value = torch.tensor(symmetric(3, 0.3), requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(value)[0] @ torch.tensor(q), value)
        gradients.append(gradient)
    assert torch.equal(gradients[0], gradients[0].T)
    torch.testing.assert_close(gradients[0], 0.5 * (gradients[1] + gradients[1].T), atol=1e-10, rtol=0)
    assert not torch.allclose(gradients[1], gradients[1].T)


def test_gradient_of_quad_form():
    """x = -P^-1 q / 2 and dx = -P^-1 dP x, so the gradient of w'x in P is the symmetric part of -(P^-1 w) x'."""
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter(3, name="q")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x)), [P, q], [x])
    P_t = torch.tensor(np.stack([symmetric(3, 0.4, seed=s) for s in range(4)]), requires_grad=True)
    q_t, w = torch.tensor(random(4, 3)), torch.tensor(random(4, 3, seed=5))
    (x_star,) = layer(P_t, q_t)
    expected = -0.5 * torch.linalg.solve(P_t.detach(), q_t)
    torch.testing.assert_close(x_star.detach(), expected, atol=1e-10, rtol=0)
    (gradient,) = torch.autograd.grad((w * x_star).sum(), P_t)
    outer = -torch.linalg.solve(P_t.detach(), w).unsqueeze(2) * expected.unsqueeze(1)
    torch.testing.assert_close(gradient, 0.5 * (outer + outer.mT), atol=1e-10, rtol=0)
    assert torch.equal(gradient, gradient.mT)


def test_gradient_of_a_diagonal_parameter_is_diagonal():
    x, D = cp.Variable(3), cp.Parameter((3, 3), diag=True, name="D")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(D @ x - 1) + cp.sum_squares(x))), [D], [x])
    value = torch.tensor(np.diag([0.5, -1.0, 2.0]), requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(value)[0].sum(), value)
    d = np.array([0.5, -1.0, 2.0])
    # x = d / (1 + d^2)
    np.testing.assert_allclose(gradient.numpy(), np.diag((1 - d**2) / (1 + d**2) ** 2), atol=1e-10)


def test_gradient_of_a_sparse_parameter_stays_in_its_pattern():
    x, K = cp.Variable(3), cp.Parameter((3, 3), sparsity=PATTERN, name="K")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(K @ x - 1) + cp.sum_squares(x))), [K], [x])
    inside = np.zeros((3, 3), dtype=bool)
    inside[tuple(PATTERN)] = True
    value = torch.tensor(np.where(inside, random(3, 3), 0.0), requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(value)[0].sum(), value)
    assert not gradient.numpy()[~inside].any()
    # x = (I + K'K)^-1 K'1
    identity, ones = torch.eye(3).double(), torch.ones(3).double()
    expected = torch.linalg.solve(identity + value.T @ value, value.T @ ones).sum()
    (wanted,) = torch.autograd.grad(expected, value)
    np.testing.assert_allclose(gradient.numpy()[inside], wanted.numpy()[inside], atol=1e-10)


def test_bounds_that_are_parameters():
    lower = cp.Parameter(3, name="lower")
    x, c = cp.Variable(3, bounds=[lower, 1.5]), cp.Parameter(3, name="c")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) <= 2])
    case = Case(problem, {c: np.array([2.0, -1.0, 0.6]), lower: np.array([-1.0, 0.2, -0.5])})
    check_gradients(case, check_values(case))


def test_attributes_of_parameters_in_several_places():
    """In objective and constraint, beside one without attributes and one that is shared by the batch."""
    x = cp.Variable(3)
    P, A, t = cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter((2, 3), name="A"), cp.Parameter(pos=True, name="t")
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) - cp.sum(x)), [cp.norm(A @ x) <= t, cp.trace(P) * x[0] <= 0.2])
    case = Case(problem, {t: 0.3, P: symmetric(3, 0.4), A: random(2, 3)})
    check_gradients(case, check_values(case))
