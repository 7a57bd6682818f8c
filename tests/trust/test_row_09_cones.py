"""Every cone, every pair of cones, all at once; duals with CVXPY's sign, shape and symmetric form; closed forms."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from convexlayers.cones import Cones
from convexlayers.engines import make_engine
from convexlayers.testing import check_derivative, check_solution, cone_cases, random_program
from trust.cvxpy_solve import solve_by_cvxpy
from trust.engines import ENGINES, has_cones
from trust.families import randn

CASES = cone_cases() | {
    "psd4": Cones(psd=(4,)),
    "psd6": Cones(nonnegative=2, psd=(6,)),
    "five cones": Cones(zero=2, nonnegative=3, second_order=(4, 3), psd=(3, 4), exponential=2),
}
# For the engines that take one problem at a time and many iterations.
FEW = ["psd3+psd4", "psd4", "all", "five cones"]


def cases(names):
    """Pairs of engine and name of a case, as far as the engine has the cones."""
    for solver, claims in ENGINES.items():
        for name in names if claims.thorough else [name for name in names if name in FEW]:
            if has_cones(solver, {"power"} if CASES[name].power else set()):
                yield pytest.param(solver, name, id=f"{solver}-{name}")


def accuracy_of(solver):
    return ENGINES[solver].accuracy


# ------------------------------------------------------------------------------------------- products of cones


@pytest.mark.parametrize(("solver", "name"), list(cases(CASES)))
def test_known_solution(solver, name, figure):
    problem = random_program(CASES[name], batch=(3,), seed=1)
    figure(check_solution(make_engine(solver), problem, accuracy_of(solver)), "solution")


@pytest.mark.parametrize(("solver", "name"), list(cases(CASES)))
def test_derivative_of_every_output_in_every_block(solver, name, figure):
    """Forward and reverse mode against each other and against differences of solutions to machine precision.

    Those are of fourth order with step 2e-4 and lose 1e-13 / 2e-4, less than 1e-8 of a part of size one and 1e-5 of the
    smallest that is looked at, a thousandth of the largest (`check_derivative`).
    """
    accuracy = accuracy_of(solver)
    tolerances = {"identity_tolerance": max(accuracy, 1e-8), "difference_tolerance": max(accuracy, 1e-5)}
    found = check_derivative(make_engine(solver), random_program(CASES[name], batch=(2,), seed=4), **tolerances)
    figure(max(part.identity for part in found), "adjoint identity")
    figure(max(part.forward for part in found), "derivative against differences")


# ------------------------------------------------------------------------------------------- closed forms


def by_layer(solver, objective, constraints, parameter, variable):
    problem = cp.Problem(objective, constraints)
    return cl.ConvexLayer(problem, [parameter], [variable], solver=solver)


def projection(solver, variable, constraints, n):
    t = cp.Parameter(variable.shape)
    return by_layer(solver, cp.Minimize(cp.sum_squares(variable - t)), constraints, t, variable)


def simplex(solver):
    x = cp.Variable(5)
    return projection(solver, x, [x >= 0, cp.sum(x) == 1], 5)


def simplex_form(t):
    """The largest k with t_(k) > (t_(1) + .. + t_(k) - 1) / k gives the threshold (Held, Wolfe, Crowder, 1974)."""
    ordered = t.sort(-1, descending=True).values
    thresholds = (ordered.cumsum(-1) - 1) / torch.arange(1, t.shape[-1] + 1)
    count = (ordered > thresholds).sum(-1, keepdim=True)
    return (t - thresholds.gather(-1, count - 1)).clamp(min=0)


def norm_ball(order):
    def make(solver):
        x = cp.Variable(5)
        return projection(solver, x, [cp.norm(x, order) <= 1], 5)

    return make


def l1_ball_form(t):
    inside = t.abs().sum(-1, keepdim=True) <= 1
    return torch.where(inside, t, t.sign() * simplex_form(t.abs()))


def l2_ball_form(t):
    return t / t.norm(dim=-1, keepdim=True).clamp(min=1)


def linf_ball_form(t):
    return t.clamp(-1, 1)


def psd_cone(solver):
    X = cp.Variable((4, 4), symmetric=True)
    return projection(solver, X, [X >> 0], 4)


def psd_cone_form(T):
    values, U = torch.linalg.eigh((T + T.mT) / 2)
    return (U * values.clamp(min=0).unsqueeze(-2)) @ U.mT


def softmax(solver):
    x, t = cp.Variable(5), cp.Parameter(5)
    return by_layer(solver, cp.Maximize(t @ x + cp.sum(cp.entr(x))), [cp.sum(x) == 1], t, x)


def softmax_form(t):
    return t.softmax(-1)


def spectraplex(solver):
    X, C = cp.Variable((4, 4), PSD=True), cp.Parameter((4, 4), symmetric=True)
    return by_layer(solver, cp.Minimize(cp.trace(C @ X)), [cp.trace(X) == 1], C, X)


def spectraplex_form(C):
    """uu' for the eigenvector of the smallest eigenvalue; its derivative is that of perturbation theory."""
    u = torch.linalg.eigh((C + C.mT) / 2)[1][..., :1]
    return u @ u.mT


FORMS = {
    "simplex": (simplex, simplex_form, (5,)),
    "l1 ball": (norm_ball(1), l1_ball_form, (5,)),
    "l2 ball": (norm_ball(2), l2_ball_form, (5,)),
    "linf ball": (norm_ball("inf"), linf_ball_form, (5,)),
    "PSD cone": (psd_cone, psd_cone_form, (4, 4)),
    "softmax": (softmax, softmax_form, (5,)),
    "spectraplex": (spectraplex, spectraplex_form, (4, 4)),
}


def largest_error(found, expected):
    return float((found - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1))


@pytest.mark.parametrize("name", FORMS)
def test_closed_form(solver, name, figure):
    make, form, shape = FORMS[name]
    value = 1.5 * randn(4, *shape, seed=1)
    value = (value + value.mT) / 2 if len(shape) == 2 else value
    value.requires_grad_()
    (found,), expected = make(solver)(value), form(value)
    # Of a batch, both kinds: points that move and points that stay.
    weight = randn(4, *shape, seed=2)
    (grad,), (right,) = (torch.autograd.grad(x, value, weight) for x in (found, expected))
    right = (right + right.mT) / 2 if len(shape) == 2 else right
    assert figure(largest_error(found, expected), "closed form") <= accuracy_of(solver)
    assert figure(largest_error(grad, right), "gradient of a closed form") <= accuracy_of(solver)


@pytest.mark.parametrize("solver", [name for name in ENGINES if has_cones(name, {"power"})])
def test_power_cone(solver, figure):
    """max z st x^.3 y^.7 >= |z|, x + y = a: z = .3^.3 .7^.7 a."""
    x, y, z, a = cp.Variable(), cp.Variable(), cp.Variable(), cp.Parameter()
    layer = by_layer(solver, cp.Maximize(z), [cp.PowCone3D(x, y, z, 0.3), x + y == a], a, z)
    value = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (found,) = layer(value)
    (grad,) = torch.autograd.grad(found, value)
    slope = 0.3**0.3 * 0.7**0.7
    assert 2 * slope == pytest.approx(1.0857630, abs=1e-7)
    assert slope == pytest.approx(0.5428815, abs=1e-7)
    assert figure(abs(float(found.detach()) - 2 * slope), "closed form") <= accuracy_of(solver)
    assert figure(abs(float(grad) - slope), "gradient of a closed form") <= accuracy_of(solver)


def test_optimal_values(solver, figure):
    """Of softmax log sum exp, of the spectraplex the smallest eigenvalue, with their gradients."""
    for make, form, shape in (
        (softmax, lambda t: t.logsumexp(-1), (5,)),
        (spectraplex, lambda C: torch.linalg.eigvalsh(C)[..., 0], (4, 4)),
    ):
        value = randn(3, *shape, seed=3)
        value = ((value + value.mT) / 2 if len(shape) == 2 else value).requires_grad_()
        objective, expected = make(solver).solve(value).objective, form(value)
        (grad,), (right,) = (torch.autograd.grad(part.sum(), value) for part in (objective, expected))
        assert figure(largest_error(objective, expected), "closed form") <= accuracy_of(solver)
        assert figure(largest_error(grad, right), "gradient of a closed form") <= accuracy_of(solver)


# ------------------------------------------------------------------------------------------- duals


def uniform(*shape, low=-1.5, high=1.5, seed=3):
    return np.random.default_rng(seed).uniform(low, high, shape)


def equality_and_inequality():
    x = cp.Variable(4)
    return x, [cp.sum(x) == 0.5, x >= -0.8, cp.Constant(np.full(4, 0.9)) >= x], np.array([1.3, -0.7, 0.4, -1.6])


def matrix_inequality():
    x = cp.Variable((2, 3))
    return x, [x <= 0.2, 2 * x >= -1.9], uniform(2, 3)


def second_order_along(axis):
    def make():
        x = cp.Variable((3, 2) if axis == 0 else (2, 3))
        return x, [cp.SOC(np.array([0.6, 0.8]), x, axis=axis)], uniform(*x.shape, low=0.5)

    return make


def semidefinite():
    X = cp.Variable((4, 4), symmetric=True)
    value = uniform(4, 4)
    return X, [X >> 0, X << np.eye(4)], value + value.T


def exponential(*shape):
    """Vectorised: one cone per entry of x, y, z, which are slices of one variable."""

    def make():
        x = cp.Variable((3, *shape))
        c = np.stack([uniform(*shape, low=low, high=low + 0.7, seed=int(9 * low)) for low in (0.5, 0.4, 0.0)])
        return x, [cp.ExpCone(x[0], x[1], x[2])], c

    return make


def power(*shape):
    def make():
        x = cp.Variable((3, *shape))
        c = np.stack([uniform(*shape, low=low, high=low + 0.7, seed=int(9 * low)) for low in (0.5, 0.4, 1.5)])
        return x, [cp.PowCone3D(x[0], x[1], x[2], uniform(*shape, low=0.3, high=0.7))], c

    return make


DUALS = {
    "equality, inequality": (equality_and_inequality, set()),
    "matrix inequality": (matrix_inequality, set()),
    "second order, columns": (second_order_along(0), set()),
    "second order, rows": (second_order_along(1), set()),
    "semidefinite": (semidefinite, set()),
    "exponential, vector": (exponential(4), set()),
    "exponential, matrix": (exponential(2, 3), set()),
    "power, vector": (power(4), {"power"}),
    "power, matrix": (power(2, 3), {"power"}),
}


def dual_cases():
    for solver in ENGINES:
        for name, (_, kinds) in DUALS.items():
            if has_cones(solver, kinds):
                yield pytest.param(solver, name, id=f"{solver}-{name}")


def dual_problem(name, maximize=False):
    """Projection of a point outside of the feasible set; multipliers are unique and not zero."""
    x, constraints, value = DUALS[name][0]()
    c = cp.Parameter(x.shape, name="c", symmetric=x.attributes["symmetric"])
    distance = 0.5 * cp.sum_squares(x - c)
    objective = cp.Maximize(-distance) if maximize else cp.Minimize(distance)
    duals = [dual for constraint in constraints for dual in constraint.dual_variables]
    return cp.Problem(objective, constraints), c, [x, *duals], value


@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
@pytest.mark.parametrize(("solver", "name"), list(dual_cases()))
def test_duals_are_those_of_cvxpy(solver, name, maximize, figure):
    problem, c, outputs, value = dual_problem(name, maximize)
    found = cl.ConvexLayer(problem, [c], outputs, solver=solver)(torch.as_tensor(value))
    expected = solve_by_cvxpy(problem, {c: value}, outputs)
    assert max(np.abs(dual).max() for dual in expected[1:]) > 0.1
    # CVXPY's solver stops at a gap of 1e-12, so at 1e-6 where a cone is curved.
    tolerance = max(1e-6, accuracy_of(solver))
    for tensor, output, wanted in zip(found, outputs, expected, strict=True):
        assert tensor.shape == output.shape
        assert figure(np.abs(tensor.numpy() - wanted).max() / max(1, np.abs(wanted).max()), "dual") <= tolerance
    if name == "semidefinite":
        assert all(torch.equal(dual, dual.mT) for dual in found[1:])


@pytest.mark.parametrize(("solver", "name"), list(dual_cases()))
def test_gradients_of_duals(solver, name, figure):
    """Along a random direction against central differences of the layer.

    At step 1e-3 they truncate at 1e-6 times a third derivative, and solutions that are good to `accuracy`, or to
    rounding where they are refined, leave `accuracy` / 1e-3, in each of two points.
    """
    step, accuracy = 1e-3, accuracy_of(solver)
    problem, c, outputs, value = dual_problem(name)
    layer = cl.ConvexLayer(problem, [c], outputs[1:], solver=solver)
    value = torch.tensor(value, requires_grad=True)
    direction = randn(*value.shape, seed=5)
    direction = (direction + direction.mT) / 2 if c.attributes["symmetric"] else direction
    direction = direction / direction.norm()
    duals = layer(value)
    weights = [randn(*dual.shape, seed=7 + k) for k, dual in enumerate(duals)]
    (grad,) = torch.autograd.grad(duals, value, weights)
    with torch.no_grad():
        above, below = (layer(value + sign * step * direction) for sign in (1, -1))
    quotient = sum((w * (a - b)).sum() / (2 * step) for w, a, b in zip(weights, above, below, strict=True))
    error = abs(float((grad * direction).sum() - quotient)) / max(1.0, abs(float(quotient)))
    size = sum(float(w.norm()) for w in weights)
    assert figure(error, "gradient of a dual") <= size * (1e-5 + min(accuracy, 1e-4) / step)
