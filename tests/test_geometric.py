"""Geometric programs: CVXPY's own examples, with parameters as coefficients and in exponents."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from cvxpy_reference import Case, check_gradients, check_values

import convexlayers as cl
from convexlayers.errors import ArgumentError, NotDCPError, NotDPPError, SolverError
from convexlayers.status import Status


def positive(name, shape=()):
    return cp.Parameter(shape, pos=True, name=name)


def variables(names):
    return [cp.Variable(pos=True, name=name) for name in names]


def tutorial():
    """Maximize a monomial under posynomial and monomial constraints."""
    x, y, z = variables("xyz")
    a, c = positive("a"), positive("c")
    constraints = [4 * x * y * z + c * x * z <= 10, x <= a * y, y <= 2 * x, z >= 1.0]
    return Case(cp.Problem(cp.Maximize(x * y * z), constraints), {a: 1.3, c: 2.1}, gp=True)


def box():
    """The largest box: walls and floor limited, sides in given proportions."""
    h, w, d = variables("hwd")
    wall, floor, ratio = positive("wall"), positive("floor"), positive("ratio", (4,))
    constraints = [
        2 * (h * w + h * d) <= wall,
        w * d <= floor,
        ratio[0] <= h / w,
        h / w <= ratio[1],
        ratio[2] <= d / w,
        d / w <= ratio[3],
    ]
    values = {wall: 100.0, floor: 10.0, ratio: np.array([0.5, 2.0, 0.5, 2.0])}
    return Case(cp.Problem(cp.Maximize(h * w * d), constraints), values, gp=True)


def exponents():
    """Exponents are parameters, as is a coefficient."""
    x, y = variables("xy")
    a, b, c = cp.Parameter(name="a"), cp.Parameter(name="b"), positive("c")
    objective = c * x**a * y**b + 1 / (x * y) + x + 0.5 * y**2
    return Case(cp.Problem(cp.Minimize(objective)), {c: 1.5, a: 0.7, b: -1.2}, gp=True)


def exponents_in_constraint():
    x, y = variables("xy")
    a, b, c = cp.Parameter(name="a"), cp.Parameter(name="b"), positive("c")
    constraints = [x**a + y**b <= c, x <= 4 * y]
    return Case(cp.Problem(cp.Maximize(x * y**0.5), constraints), {a: 1.7, b: 2.2, c: 3.0}, gp=True)


def coefficient_and_exponent():
    """One parameter enters both through its logarithm and as it is."""
    x, y = variables("xy")
    a = positive("a")
    objective = a * x * y + a / x + x**a / y
    return Case(cp.Problem(cp.Minimize(objective), [y <= 3 * a]), {a: 1.6}, gp=True)


def power_control():
    """Least total power with a signal above the interference of the others and noise."""
    power = cp.Variable(3, pos=True, name="power")
    gain, noise = positive("gain", (3, 3)), positive("noise", (3,))
    constraints = [
        noise[i] + sum(gain[i, j] * power[j] for j in range(3) if j != i) <= gain[i, i] * power[i] / 1.2
        for i in range(3)
    ]
    values = {gain: np.array([[2.0, 0.2, 0.1], [0.3, 1.5, 0.2], [0.1, 0.2, 2.5]]), noise: np.array([0.3, 0.5, 0.4])}
    return Case(cp.Problem(cp.Minimize(cp.sum(power)), constraints), values, gp=True)


def matrix_product():
    """Posynomials as products of matrices with parameters."""
    x, A, b = cp.Variable(2, pos=True, name="x"), positive("A", (3, 2)), positive("b", (3,))
    values = {A: np.array([[1.0, 0.5], [0.4, 1.2], [2.0, 0.3]]), b: np.array([2.0, 1.5, 4.0])}
    return Case(cp.Problem(cp.Maximize(x[0] ** 0.7 * x[1]), [A @ x <= b]), values, gp=True)


def monomials_by_exponent_matrix():
    x, A, c = cp.Variable(2, pos=True, name="x"), cp.Parameter((3, 2), name="A"), positive("c", (3,))
    values = {A: np.array([[1.0, -0.5], [-0.7, 1.1], [-0.4, -0.6]]), c: np.array([1.0, 1.5, 0.6])}
    objective = cp.sum(cp.multiply(c, cp.gmatmul(A, x)))
    return Case(cp.Problem(cp.Minimize(objective)), values, gp=True)


def completion():
    """Perron-Frobenius matrix completion."""
    X, known = cp.Variable((3, 3), pos=True, name="X"), positive("known", (5,))
    index = [(0, 0), (0, 2), (1, 1), (2, 0), (2, 1)]
    constraints = [X[i] == known[k] for k, i in enumerate(index)]
    constraints.append(X[0, 1] * X[1, 0] * X[1, 2] * X[2, 2] == 1.0)
    problem = cp.Problem(cp.Minimize(cp.pf_eigenvalue(X)), constraints)
    return Case(problem, {known: np.array([1.0, 1.9, 0.8, 3.2, 5.9])}, gp=True)


def atoms():
    """Functions that are log-log convex beyond posynomials."""
    x = cp.Variable(3, pos=True, name="x")
    a = positive("a", (3,))
    objective = cp.max(cp.multiply(a, x)) + cp.norm(x) + cp.exp(x[0]) + cp.sum(1 / x) + cp.sum_squares(x)
    constraints = [cp.geo_mean(x) >= a[0] * 0.7, cp.maximum(x[0], x[1] ** 2) <= 2.0]
    return Case(cp.Problem(cp.Minimize(objective), constraints), {a: np.array([1.2, 0.7, 0.9])}, gp=True)


def one_minus():
    x, y = variables("xy")
    a = positive("a")
    constraints = [x * y <= 0.6, x <= a * y]
    return Case(cp.Problem(cp.Maximize(cp.one_minus_pos(x * y) * x * y**0.5), constraints), {a: 0.8}, gp=True)


CASES = [
    tutorial,
    box,
    exponents,
    exponents_in_constraint,
    coefficient_and_exponent,
    power_control,
    matrix_product,
    monomials_by_exponent_matrix,
    completion,
    atoms,
    one_minus,
]


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_geometric_program(build):
    case = build()
    check_gradients(case, check_values(case))


def test_closed_form():
    """min c x + d / x: x = sqrt(d / c), value 2 sqrt(c d). With x^a <= t instead: max x = t^(1 / a)."""
    x, c, d = cp.Variable(pos=True), positive("c"), positive("d")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(c * x + d / x)), [c, d], [x], gp=True)
    c_t = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    d_t = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    solution = layer.solve(c_t, d_t)
    torch.testing.assert_close(solution.values[0], (d_t / c_t).sqrt(), atol=1e-9, rtol=0)
    torch.testing.assert_close(solution.objective, 2 * (c_t * d_t).sqrt(), atol=1e-9, rtol=0)
    gradients = torch.autograd.grad(solution.values[0].sum() + solution.objective.sum(), (c_t, d_t))
    expected = torch.autograd.grad(((d_t / c_t).sqrt() + 2 * (c_t * d_t).sqrt()).sum(), (c_t, d_t))
    torch.testing.assert_close(gradients, expected, atol=1e-8, rtol=0)


def test_closed_form_of_an_exponent():
    """max x subject to x^a <= t: x = t^(1 / a)."""
    x, a, t = cp.Variable(pos=True), cp.Parameter(name="a"), positive("t")
    layer = cl.ConvexLayer(cp.Problem(cp.Maximize(x), [x**a <= t]), [a, t], [x], gp=True)
    a_t = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    t_t = torch.tensor([2.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    (x_star,) = layer(a_t, t_t)
    expected = t_t ** (1 / a_t)
    torch.testing.assert_close(x_star, expected, atol=1e-8, rtol=0)
    gradients = torch.autograd.grad(x_star.sum(), (a_t, t_t))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), (a_t, t_t)), atol=1e-7, rtol=0)


def test_without_parameters():
    x, y = variables("xy")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(x * y + 1 / x + 1 / y)), [], [y, x], gp=True)
    y_star, x_star = layer()
    # Both partial derivatives vanish at x = y = 1.
    assert y_star.item() == pytest.approx(1, abs=1e-6)
    assert x_star.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_value_that_is_not_positive_is_refused(bad):
    x, c, d = cp.Variable(pos=True), positive("c"), positive("d")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(c * x + d / x)), [c, d], [x], gp=True)
    with pytest.raises(ArgumentError, match=r"d must be pos, .*\(batch index 1\)"):
        layer(1.0, torch.tensor([1.0, bad, 2.0]))
    with pytest.raises(ArgumentError, match=r"c must be pos"):
        layer(bad, 1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_value_without_a_logarithm_is_a_status_of_its_element(bad):
    """Where values are not checked (or are not finite, which is never an error)."""
    x, c, d = cp.Variable(pos=True), positive("c"), positive("d")
    problem = cp.Problem(cp.Minimize(c * x + d / x), [x <= 100 * d])
    layer = cl.ConvexLayer(problem, [c, d], [x], gp=True, validate=False, on_failure="nan")
    d_t = torch.tensor([1.0, bad, 2.0], dtype=torch.float64, requires_grad=True)
    c_t = torch.tensor([0.7, 0.7, 0.7], dtype=torch.float64, requires_grad=True)
    solution = layer.solve(c_t, d_t)
    assert solution.status.tolist() == [Status.SOLVED, Status.INVALID_DATA, Status.SOLVED]
    assert bool(solution.values[0][1].isnan())
    assert bool(solution.objective[1].isnan())
    # NaN upstream, as a loss computed from the outputs would have it.
    gradients = torch.autograd.grad(solution.values[0].square().sum() + solution.objective.sum(), (c_t, d_t))
    good = [value.detach()[[0, 2]].requires_grad_() for value in (c_t, d_t)]
    other = cl.ConvexLayer(problem, [c, d], [x], gp=True).solve(*good)
    expected = torch.autograd.grad(other.values[0].square().sum() + other.objective.sum(), good)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient[1] == 0
        assert torch.equal(gradient[[0, 2]], wanted)
    with pytest.raises(SolverError, match="1 of 3 elements"):
        cl.ConvexLayer(problem, [c, d], [x], gp=True, validate=False)(c_t, d_t)


def test_geometric_program_without_gp_is_pointed_out():
    x, y, c = *variables("xy"), positive("c")
    problem = cp.Problem(cp.Minimize(c * x * y + 1 / x), [y >= 1])
    with pytest.raises(NotDCPError, match="gp=True"):
        cl.ConvexLayer(problem, [c], [x])


def test_convex_program_with_gp_is_refused():
    x, c = cp.Variable(2), cp.Parameter(2)
    with pytest.raises(NotDCPError, match="DGP"):
        cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - c))), [c], [x], gp=True)


def test_parameter_that_is_not_positive_by_attribute_is_refused():
    """Its logarithm would be taken."""
    x, c = cp.Variable(pos=True), cp.Parameter(name="c")
    with pytest.raises((NotDCPError, NotDPPError), match="c"):
        cl.ConvexLayer(cp.Problem(cp.Minimize(c * x + 1 / x)), [c], [x], gp=True)


def test_exponent_times_exponent_is_not_dpp():
    x, a, b = cp.Variable(pos=True), cp.Parameter(name="a"), cp.Parameter(name="b")
    problem = cp.Problem(cp.Minimize((x**a) ** b + 1 / x))
    with pytest.raises(NotDPPError, match=r"affine in the parameters\. .*\b(a|b)\b"):
        cl.ConvexLayer(problem, [a, b], [x], gp=True)


def test_problem_is_left_alone():
    case = tutorial()
    before = [str(case.problem), *(parameter.value for parameter in case.values)]
    case.layer()
    assert [str(case.problem), *(parameter.value for parameter in case.values)] == before
    assert all(variable.value is None for variable in case.problem.variables())
    check_values(case)
