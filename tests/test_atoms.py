"""CVXPY's atoms, one entry each: values, objective, duals and gradients of the layer, in objective and constraint.

For an atom f and a point p of its domain the problems are, with e(x) = s x + b,

    in the objective    minimize 1/2 |x - c|^2 + w'f(e(x)) + 2.5       (or maximize the negative, where f is concave)
    in a constraint     minimize 1/2 |x - c|^2  subject to  f(e(x)) <= t

with s, b, c, t parameters and w constant. The quadratic makes x unique. In the constraint, e(x) = p is strictly
feasible and c lies beyond it in the direction in which f increases, so that something is active, at a multiplier that
is unique because the entries of t are generic. Affine atoms stand in the objective as |f(e(x)) - t|^2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import cvxpy.transforms
import numpy as np
import pytest
import scipy.linalg
import torch
from cvxpy_reference import Case, check_gradients, check_values, deprecated

import convexlayers as cl


@dataclass(frozen=True)
class Atom:
    """One entry of the table.

    Attributes:
        name: of the test.
        apply: the atom.
        at: a point of its domain.
        attributes: of the variable and of the shift b.
        plain: whether e(x) = x, for the atoms whose argument must be free of parameters.
    """

    name: str
    apply: Callable[[cp.Expression], cp.Expression]
    at: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)
    plain: bool = False


def random(*shape: int, low: float = -1.5, high: float = 1.5, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape)


def definite(order: int) -> np.ndarray:
    """A symmetric matrix with eigenvalues between 0.7 and 2.5 or so."""
    basis = np.linalg.qr(random(order, order))[0]
    return basis @ np.diag(np.linspace(0.7, 2.5, order)) @ basis.T


SCALAR = np.array(0.8)
VECTOR = np.array([1.3, -0.7, 0.4, -1.6])
POSITIVE = np.array([1.3, 0.7, 0.4, 1.6])
MATRIX = random(2, 3)
POSITIVE_MATRIX = random(2, 3, low=0.4, high=1.8)
SQUARE = random(3, 3)
SYMMETRIC = definite(3) - 1.2 * np.eye(3)
DEFINITE = definite(3)
IS_SYMMETRIC = {"symmetric": True}
IS_POSITIVE = {"nonneg": True}
CONSTANT = np.array([[0.7, -0.3, 0.5], [0.2, 1.1, -0.6]])
WEIGHTS = np.array([0.9, -0.4, 0.3, 0.6])

ATOMS = [
    # Elementwise, convex.
    Atom("abs", cp.abs, VECTOR),
    Atom("abs_of_matrix", cp.abs, MATRIX),
    Atom("exp", cp.exp, VECTOR),
    Atom("exp_of_scalar", cp.exp, SCALAR),
    Atom("exp_of_matrix", cp.exp, MATRIX),
    Atom("huber", cp.huber, VECTOR),
    Atom("huber_of_scalar", lambda x: cp.huber(x, 0.4), SCALAR),
    Atom("inv_pos", cp.inv_pos, POSITIVE),
    Atom("kl_div", lambda x: cp.kl_div(x[:2], x[2:]), POSITIVE),
    Atom("kl_div_of_matrix", lambda x: cp.kl_div(x, POSITIVE_MATRIX[::-1]), POSITIVE_MATRIX),
    Atom("rel_entr", lambda x: cp.rel_entr(x[:2], x[2:]), POSITIVE),
    Atom("rel_entr_of_constant", lambda x: cp.rel_entr(POSITIVE[::-1], x), POSITIVE),
    Atom("loggamma", cp.loggamma, POSITIVE),
    Atom("logistic", cp.logistic, VECTOR),
    Atom("maximum", lambda x: cp.maximum(x, 0.2, -x), VECTOR),
    Atom("neg", cp.neg, VECTOR),
    Atom("pos", cp.pos, VECTOR),
    Atom("power_2", lambda x: cp.power(x, 2), VECTOR),
    Atom("power_3", lambda x: cp.power(x, 3), POSITIVE),
    Atom("power_3_exact", lambda x: cp.power(x, 3, approx=False), POSITIVE),
    Atom("power_4", lambda x: cp.power(x, 4), VECTOR),
    Atom("power_1.5", lambda x: cp.power(x, 1.5), POSITIVE),
    Atom("power_2.7_exact", lambda x: cp.power(x, 2.7, approx=False), POSITIVE),
    Atom("power_-1", lambda x: cp.power(x, -1), POSITIVE),
    Atom("power_-0.6_exact", lambda x: cp.power(x, -0.6, approx=False), POSITIVE),
    Atom("scalene", lambda x: cp.scalene(x, 2.0, 0.5), VECTOR),
    Atom("square", cp.square, VECTOR),
    Atom("square_of_matrix", cp.square, MATRIX),
    Atom("xexp", cp.xexp, POSITIVE, IS_POSITIVE),
    # Elementwise, concave.
    Atom("entr", cp.entr, POSITIVE),
    Atom("log", cp.log, POSITIVE),
    Atom("log_of_matrix", cp.log, POSITIVE_MATRIX),
    Atom("log1p", cp.log1p, POSITIVE),
    Atom("log_normcdf", cp.log_normcdf, VECTOR),
    Atom("minimum", lambda x: cp.minimum(x, 0.9, 0.3 - x), VECTOR),
    Atom("power_0.5", lambda x: cp.power(x, 0.5), POSITIVE),
    Atom("power_0.37_exact", lambda x: cp.power(x, 0.37, approx=False), POSITIVE),
    Atom("sqrt", cp.sqrt, POSITIVE),
    # Vectors and matrices to scalars or along an axis, convex.
    Atom("cvar", lambda x: cp.cvar(x, 0.6), VECTOR),
    Atom("dotsort", lambda x: cp.dotsort(x, WEIGHTS), VECTOR),
    Atom("log_sum_exp", cp.log_sum_exp, VECTOR),
    Atom("log_sum_exp_of_rows", lambda x: cp.log_sum_exp(x, axis=1), MATRIX),
    Atom("max", cp.max, VECTOR),
    Atom("max_of_columns", lambda x: cp.max(x, axis=0), MATRIX),
    Atom("mixed_norm", lambda x: cp.mixed_norm(x, 2, 1), MATRIX),
    Atom("norm1", cp.norm1, VECTOR),
    Atom("norm1_of_rows", lambda x: cp.norm(x, 1, axis=1), MATRIX),
    Atom("norm2", lambda x: cp.norm(x, 2), VECTOR),
    Atom("norm2_of_columns", lambda x: cp.norm(x, 2, axis=0), MATRIX),
    Atom("norm2_of_rows", lambda x: cp.norm(x, 2, axis=1), MATRIX),
    Atom("norm_fro", lambda x: cp.norm(x, "fro"), MATRIX),
    Atom("norm_inf", cp.norm_inf, VECTOR),
    Atom("norm_inf_of_rows", lambda x: cp.norm(x, "inf", axis=1), MATRIX),
    Atom("pnorm_1.5", lambda x: cp.pnorm(x, 1.5), VECTOR),
    Atom("pnorm_3", lambda x: cp.pnorm(x, 3), VECTOR),
    Atom("pnorm_3_exact", lambda x: cp.pnorm(x, 3, approx=False), VECTOR),
    Atom("ptp", cp.ptp, VECTOR),
    Atom("quad_form", lambda x: cp.quad_form(x, DEFINITE), VECTOR[:3]),
    Atom("quad_over_lin", lambda x: cp.quad_over_lin(x[:3], x[3]), POSITIVE, plain=True),
    Atom("std", cp.std, VECTOR),
    Atom("sum_largest", lambda x: cp.sum_largest(x, 2), VECTOR),
    Atom("sum_largest_fractional", lambda x: cp.sum_largest(x, 1.5), VECTOR),
    Atom("sum_squares", cp.sum_squares, VECTOR),
    Atom("sum_squares_of_matrix", cp.sum_squares, MATRIX),
    Atom("suppfunc", lambda x: support_of_ellipsoid()(x), VECTOR, plain=True),
    Atom("tv", cp.tv, VECTOR),
    Atom("tv_of_matrix", cp.tv, SQUARE),
    Atom("var", cp.var, VECTOR),
    # Vectors and matrices to scalars or along an axis, concave.
    Atom("geo_mean", cp.geo_mean, POSITIVE),
    Atom("geo_mean_weighted", lambda x: cp.geo_mean(x, [1, 2, 3, 1]), POSITIVE),
    Atom("geo_mean_exact", lambda x: cp.geo_mean(x, [1, 2, 3, 1], approx=False), POSITIVE),
    Atom("harmonic_mean", cp.harmonic_mean, POSITIVE),
    Atom("min", cp.min, VECTOR),
    Atom("min_of_rows", lambda x: cp.min(x, axis=1), MATRIX),
    Atom("pnorm_0.5", lambda x: cp.pnorm(x, 0.5), POSITIVE),
    Atom("sum_smallest", lambda x: cp.sum_smallest(x, 2), VECTOR),
    Atom("negative_quad_form", lambda x: cp.quad_form(x, -DEFINITE), VECTOR[:3]),
    # Vectors to vectors.
    Atom("cummax", cp.cummax, VECTOR),
    Atom("cummax_of_columns", lambda x: cp.cummax(x, axis=0), MATRIX),
    # Spectral.
    Atom("lambda_max", cp.lambda_max, SYMMETRIC, IS_SYMMETRIC),
    Atom("lambda_min", cp.lambda_min, SYMMETRIC, IS_SYMMETRIC),
    Atom("lambda_sum_largest", lambda X: cp.lambda_sum_largest(X, 2), SYMMETRIC, IS_SYMMETRIC),
    Atom("lambda_sum_smallest", lambda X: cp.lambda_sum_smallest(X, 2), SYMMETRIC, IS_SYMMETRIC),
    Atom("log_det", cp.log_det, DEFINITE, IS_SYMMETRIC),
    Atom("matrix_frac", lambda X: cp.matrix_frac(CONSTANT.T, X), DEFINITE, IS_SYMMETRIC),
    Atom("matrix_frac_of_constant", lambda x: cp.matrix_frac(x, DEFINITE), VECTOR[:3]),
    Atom("norm_nuc", lambda X: cp.norm(X, "nuc"), MATRIX),
    Atom("sigma_max", cp.sigma_max, MATRIX),
    Atom("tr_inv", cp.tr_inv, DEFINITE, IS_SYMMETRIC),
    Atom("von_neumann_entr", cp.von_neumann_entr, definite(2), IS_SYMMETRIC),
    # Affine.
    Atom("bmat", lambda x: cp.bmat([[x[:1], x[1:2]], [x[3:], -x[2:3]]]), VECTOR),
    Atom("broadcast_to", lambda x: cp.broadcast_to(x, (2, 4)), VECTOR),
    Atom("concatenate", lambda x: cp.concatenate([x[2:], 2 * x[:2]]), VECTOR),
    Atom("conv", lambda x: deprecated(cp.conv, [1.0, -0.5, 0.3], x), VECTOR),
    Atom("convolve", lambda x: cp.convolve(np.array([1.0, -0.5]), x), VECTOR),
    Atom("cumsum", cp.cumsum, VECTOR),
    Atom("cumsum_of_rows", lambda x: cp.cumsum(x, axis=1), MATRIX),
    Atom("diag_of_vector", cp.diag, VECTOR),
    Atom("diag_of_matrix", cp.diag, SQUARE),
    Atom("diff", cp.diff, VECTOR),
    Atom("diff_second", lambda x: cp.diff(x, 2), VECTOR),
    Atom("division", lambda x: x / np.array([1.0, 2.0, -3.0, 0.5]), VECTOR),
    Atom("einsum", lambda x: cp.einsum("ij,kj->ik", CONSTANT, x), MATRIX),
    Atom("hstack", lambda x: cp.hstack([x[:, :1], CONSTANT, x]), MATRIX),
    Atom("indexing", lambda x: x[1, ::-2], MATRIX),
    Atom("indexing_by_list", lambda x: x[[3, 0, 3]], VECTOR),
    Atom("indexing_by_mask", lambda x: x[MATRIX > 0], MATRIX),
    Atom("kron", lambda x: cp.kron(CONSTANT[:, :2], x), MATRIX, plain=True),
    Atom("kron_right", lambda x: cp.kron(x, CONSTANT[:, :2]), MATRIX, plain=True),
    Atom("matmul_left", lambda x: CONSTANT @ x, VECTOR[:3]),
    Atom("matmul_right", lambda x: x @ CONSTANT.T, MATRIX),
    Atom("matmul_both", lambda x: CONSTANT.T @ x @ SQUARE, MATRIX),
    Atom("mean", lambda x: cp.mean(x, axis=0), MATRIX),
    Atom("moveaxis", lambda x: cp.moveaxis(x, 0, 1), MATRIX),
    Atom("multiply", lambda x: cp.multiply(CONSTANT, x), MATRIX),
    Atom("multiply_broadcast", lambda x: cp.multiply(CONSTANT[:, :1], x), MATRIX),
    Atom("negation", lambda x: 3 - x, VECTOR),
    Atom("outer", lambda x: cp.outer(x, [1.0, -2.0]), VECTOR),
    Atom("partial_trace", lambda x: cp.partial_trace(x, (2, 2), axis=0), random(4, 4)),
    Atom("partial_transpose", lambda x: cp.partial_transpose(x, (2, 2), axis=0), random(4, 4)),
    Atom("permute_dims", lambda x: cp.permute_dims(x, (1, 0)), MATRIX),
    Atom("reshape_by_columns", lambda x: cp.reshape(x, (3, 2), order="F"), MATRIX),
    Atom("reshape_by_rows", lambda x: cp.reshape(x, (3, 2), order="C"), MATRIX),
    Atom("scalar_product", lambda x: cp.scalar_product(x, WEIGHTS), VECTOR),
    Atom("squeeze", lambda x: cp.squeeze(x[:1]), MATRIX),
    Atom("stack", lambda x: cp.stack([x, 2 * x], axis=1), VECTOR),
    Atom("sum", cp.sum, MATRIX),
    Atom("sum_of_rows", lambda x: cp.sum(x, axis=1, keepdims=True), MATRIX),
    Atom("swapaxes", lambda x: cp.swapaxes(x, 0, 1), MATRIX),
    Atom("trace", cp.trace, SQUARE),
    Atom("transpose", lambda x: x.T, MATRIX),
    Atom("upper_tri", cp.upper_tri, SQUARE),
    Atom("vdot", lambda x: cp.vdot(WEIGHTS, x), VECTOR),
    Atom("vec_by_columns", lambda x: cp.vec(x, order="F"), MATRIX),
    Atom("vec_by_rows", lambda x: cp.vec(x, order="C"), MATRIX),
    Atom("vec_to_upper_tri", lambda x: cp.vec_to_upper_tri(x[:3]), VECTOR),
    Atom("vstack", lambda x: cp.vstack([x, CONSTANT, -x]), MATRIX),
    # Composed.
    Atom("composed_convex", lambda x: cp.exp(cp.norm2(x)) + cp.max(cp.abs(x)), VECTOR),
    Atom("composed_concave", lambda x: cp.log(cp.sqrt(x) + cp.minimum(x, 1.0)), POSITIVE),
    Atom("composed_spectral", lambda X: cp.exp(cp.lambda_max(X)) + cp.norm(X, "nuc"), SYMMETRIC, IS_SYMMETRIC),
]  # fmt: skip


def support_of_ellipsoid():
    """The support function of {y : |y - 1| <= 1, y_0 <= 1.2}."""
    y = cp.Variable(4)
    return cp.suppfunc(y, [cp.norm(y - 1) <= 1, y[0] <= 1.2])


def argument(atom: Atom):
    """x, c and e(x) = s x + b, with values of the parameters such that e(x) = at for x = the last thing returned."""
    shape = atom.at.shape
    x = cp.Variable(shape, name="x", **atom.attributes)
    s = cp.Parameter(nonneg=True, name="s")
    b = cp.Parameter(shape, name="b", **atom.attributes)
    c = cp.Parameter(shape, name="c", **({} if atom.attributes == IS_POSITIVE else atom.attributes))
    if atom.plain:
        return x, c, x, {}, atom.at
    shift = random(*shape, low=0.05, high=0.2, seed=11)
    shift = (shift + shift.T) / 2 if atom.attributes == IS_SYMMETRIC else shift
    values = {s: 1.2, b: shift}
    return x, c, s * x + b, values, (atom.at - shift) / 1.2


def in_objective(atom: Atom) -> Case:
    x, c, inside, values, start = argument(atom)
    term = atom.apply(inside)
    distance = 0.5 * cp.sum_squares(x - c)
    if term.is_affine():
        t = cp.Parameter(term.shape, name="t")
        values = {**values, t: random(*term.shape, seed=5)}
        objective = cp.Minimize(distance + cp.sum_squares(term - t) + 2.5)
    else:
        weights = random(*term.shape, low=0.4, high=1.2, seed=7)
        weighted = cp.sum(cp.multiply(weights, term))
        objective = (
            cp.Minimize(distance + weighted + 2.5) if term.is_convex() else cp.Maximize(weighted - distance + 2.5)
        )
    return Case(cp.Problem(objective), {**values, c: start})


def in_constraint(atom: Atom) -> Case:
    x, c, inside, values, start = argument(atom)
    term = atom.apply(inside)
    sign = 1.0 if term.is_convex() else -1.0
    plain = atom.apply(at := cp.Variable(atom.at.shape, **atom.attributes))

    def total(point: np.ndarray) -> float:
        at.value = point
        return sign * float(np.sum(plain.value))

    slope = np.zeros(atom.at.shape)
    for index in np.ndindex(*atom.at.shape):
        unit = np.zeros(atom.at.shape)
        unit[index] = 0.5e-4
        unit = (unit + unit.T) / 2 if atom.attributes == IS_SYMMETRIC else unit
        slope[index] = (total(atom.at + unit) - total(atom.at - unit)) / 1e-4
    at.value = atom.at
    t = cp.Parameter(term.shape, name="t")
    margin = random(*term.shape, low=0.05, high=0.3, seed=9)
    values = {
        **values,
        t: plain.value.reshape(term.shape) + sign * margin,
        c: start + slope / np.linalg.norm(slope),
    }
    distance = 0.5 * cp.sum_squares(x - c)
    if sign > 0:
        return Case(cp.Problem(cp.Minimize(distance), [term <= t]), values)
    return Case(cp.Problem(cp.Maximize(-distance), [term >= t]), values)


@pytest.mark.parametrize("atom", ATOMS, ids=lambda atom: atom.name)
def test_atom_in_objective(atom):
    case = in_objective(atom)
    layer = check_values(case)
    check_gradients(case, layer)


@pytest.mark.parametrize("atom", ATOMS, ids=lambda atom: atom.name)
def test_atom_in_constraint(atom):
    case = in_constraint(atom)
    layer = check_values(case)
    assert np.abs(case.problem.constraints[0].dual_value).max() > 1e-3, "nothing is active"
    check_gradients(case, layer)


# Problems whose matrices and weights are parameters, one function each.


def quad_form_of_parameter():
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter(3, name="q")
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x), [cp.sum(x) == 1, x >= -0.4])
    return Case(problem, {P: DEFINITE, q: VECTOR[:3]})


def quad_form_of_negative_parameter():
    x, N, q = cp.Variable(3), cp.Parameter((3, 3), NSD=True, name="N"), cp.Parameter(3, name="q")
    problem = cp.Problem(cp.Maximize(0.5 * cp.quad_form(x, N) - q @ x + 1), [x <= 0.3])
    return Case(problem, {N: -DEFINITE, q: VECTOR[:3]})


def quad_form_of_parameter_beside_shifted_one():
    x, P, b = cp.Variable(3), cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter(3, name="b")
    objective = 2 * cp.quad_form(x, P) + cp.quad_form(x - b, DEFINITE) + cp.norm1(x)
    return Case(cp.Problem(cp.Minimize(objective), [cp.sum(x) == 1]), {P: DEFINITE[::-1, ::-1], b: VECTOR[:3]})


def lasso():
    x, A = cp.Variable(3), cp.Parameter((5, 3), name="A")
    b, weight = cp.Parameter(5, name="b"), cp.Parameter(nonneg=True, name="weight")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + weight * cp.norm1(x)))
    return Case(problem, {A: random(5, 3), b: random(5, seed=4), weight: 0.8})


def matrix_on_both_sides():
    X, L, R = cp.Variable((2, 3)), cp.Parameter((3, 2), name="L"), cp.Parameter((3, 2), name="R")
    fit = cp.sum_squares(L @ X - np.eye(3)) + cp.sum_squares(X @ R - np.eye(2)) + 0.1 * cp.sum_squares(X)
    return Case(cp.Problem(cp.Minimize(fit), [X >= -0.5]), {L: random(3, 2), R: random(3, 2, seed=4)})


def weighted_sum_of_atoms():
    x, w, c = cp.Variable(4), cp.Parameter(4, nonneg=True, name="w"), cp.Parameter(4, name="c")
    bound = cp.Parameter(2, nonneg=True, name="bound")
    objective = cp.sum(cp.multiply(w, cp.exp(x))) + bound[0] * cp.norm2(x) + cp.sum_squares(x) + c @ x
    problem = cp.Problem(cp.Minimize(objective), [w @ cp.square(x) <= bound[1]])
    return Case(problem, {w: POSITIVE, c: -3 * VECTOR, bound: np.array([0.5, 1.2])})


def portfolio():
    w, mu, factor = cp.Variable(4), cp.Parameter(4, name="mu"), cp.Parameter((4, 4), name="factor")
    limit = cp.Parameter(nonneg=True, name="limit")
    constraints = [cp.sum(w) == 1, w >= 0, cp.norm1(w - 0.25) <= limit]
    problem = cp.Problem(cp.Maximize(mu @ w - cp.sum_squares(factor @ w)), constraints)
    return Case(problem, {mu: VECTOR, factor: random(4, 4), limit: 0.7})


def logistic_regression():
    w, offset = cp.Variable(3, name="w"), cp.Variable(name="offset")
    data, weight = cp.Parameter((6, 3), name="data"), cp.Parameter(nonneg=True, name="weight")
    signs = np.array([1, -1, 1, 1, -1, -1])
    loss = cp.sum(cp.logistic(cp.multiply(-signs, data @ w + offset))) + weight * cp.sum_squares(w)
    return Case(cp.Problem(cp.Minimize(loss)), {data: random(6, 3), weight: 0.3})


def support_vector_machine():
    w, data, weight = cp.Variable(3), cp.Parameter((6, 3), name="data"), cp.Parameter(nonneg=True, name="weight")
    signs = np.array([1, -1, 1, 1, -1, -1])
    loss = cp.sum(cp.pos(1 - cp.multiply(signs, data @ w))) + weight * cp.sum_squares(w)
    return Case(cp.Problem(cp.Minimize(loss)), {data: random(6, 3), weight: 0.3})


def matrix_frac_of_two_variables():
    x, X = cp.Variable(3), cp.Variable((3, 3), symmetric=True)
    b, C = cp.Parameter(3, name="b"), cp.Parameter((3, 3), symmetric=True, name="C")
    problem = cp.Problem(cp.Minimize(cp.matrix_frac(x - b, X) + cp.sum_squares(X - C) + cp.sum_squares(x)))
    return Case(problem, {b: VECTOR[:3], C: DEFINITE})


def matrix_frac_of_parameter():
    x, P, c = cp.Variable(3), cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter(3, name="c")
    return Case(cp.Problem(cp.Minimize(cp.matrix_frac(x - c, P) + cp.sum_squares(x))), {P: DEFINITE, c: VECTOR[:3]})


def perspective():
    x, t, c = cp.Variable(2), cp.Variable(nonneg=True), cp.Parameter(2, name="c")
    objective = cp.perspective(cp.sum_squares(x), t) + cp.sum_squares(x - c) + cp.square(t - 1)
    return Case(cp.Problem(cp.Minimize(objective)), {c: VECTOR[:2]})


def relative_entropy_to_parameter():
    x, b, c = cp.Variable(4), cp.Parameter(4, pos=True, name="b"), cp.Parameter(4, name="c")
    problem = cp.Problem(cp.Minimize(cp.sum(cp.kl_div(x, b)) + c @ x), [cp.sum(x) == 1])
    return Case(problem, {b: POSITIVE, c: VECTOR})


def parameters_of_atoms():
    x, a, width, w = cp.Variable(4), *(cp.Parameter(nonneg=True, name=name) for name in ("a", "width", "w"))
    order = cp.Parameter(4, name="order")
    objective = cp.sum(cp.scalene(x, a, w)) + cp.sum(cp.huber(x - 1, width)) + cp.dotsort(x, order)
    return Case(
        cp.Problem(cp.Minimize(objective + cp.sum_squares(x - VECTOR))), {a: 0.7, width: 0.9, w: 0.4, order: POSITIVE}
    )


def indicator():
    x, b = cp.Variable(3), cp.Parameter(3, name="b")
    inside = cvxpy.transforms.indicator([x <= b, cp.norm(x) <= 1.1])
    return Case(cp.Problem(cp.Minimize(cp.sum_squares(x - VECTOR[:3]) + inside)), {b: np.array([0.5, 0.3, 0.2])})


def chebyshev_fit():
    x, A, b = cp.Variable(2), cp.Parameter((5, 2), name="A"), cp.Parameter(5, name="b")
    return Case(cp.Problem(cp.Minimize(cp.norm_inf(A @ x - b))), {A: random(5, 2), b: random(5, seed=4)})


def linear_program():
    x, A, b = cp.Variable(2, name="x"), cp.Parameter((3, 2), name="A"), cp.Parameter(3, name="b")
    values = {A: np.array([[1.0, 0.3], [0.2, 1.0], [1.0, 1.0]]), b: np.array([1.0, 1.0, 1.4])}
    return Case(cp.Problem(cp.Maximize(cp.sum(x) + 0.2 * x[0]), [A @ x <= b, x >= 0]), values)


def three_dimensional_arrays():
    x, c = cp.Variable((2, 3, 2)), cp.Parameter((2, 3, 2), name="c")
    t = cp.Parameter((2, 2), name="t")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c) + cp.sum(cp.abs(x[:, 1]))), [cp.sum(x, axis=1) <= t])
    return Case(problem, {c: random(2, 3, 2), t: random(2, 2, seed=4, low=-1, high=0)})


def several_of_everything():
    """Scalar, vector and matrix variables, every kind of cone."""
    t, x, X = cp.Variable(name="t"), cp.Variable(3, name="x"), cp.Variable((2, 2), symmetric=True, name="X")
    a, b, C = cp.Parameter(name="a"), cp.Parameter(3, name="b"), cp.Parameter((2, 2), symmetric=True, name="C")
    constraints = [
        cp.sum(x) + t == a,
        x >= -0.7,
        cp.norm(x - b) <= 1.5,
        X >> 0.1 * np.eye(2),
        cp.log_sum_exp(x) <= t + 1.5,
        cp.PowCone3D(X[0, 0], X[1, 1], t, 0.3),
    ]
    objective = cp.sum_squares(X - C) + cp.square(t - a) + cp.sum_squares(x + 2 * b)
    return Case(cp.Problem(cp.Minimize(objective), constraints), {a: 0.9, b: VECTOR[:3], C: SYMMETRIC[:2, :2]})


def functions_of_symmetric_variables():
    X = cp.Variable((3, 3), symmetric=True)
    P, C = cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter((3, 3), name="C")
    quadratic = cp.quad_form(cp.diag(X), P) + cp.quad_form(X[:, 0], DEFINITE) + cp.sum_squares(X - C)
    problem = cp.Problem(cp.Minimize(quadratic + cp.trace(P @ X)), [cp.trace(C @ X) <= 0.3, P + X >> 0])
    return Case(problem, {P: DEFINITE, C: SQUARE})


def column_vectors():
    """Shapes with ones in them."""
    x, A = cp.Variable((3, 1)), cp.Parameter((3, 3), name="A")
    b, s = cp.Parameter((3, 1), name="b"), cp.Parameter((1, 1), nonneg=True, name="s")
    objective = cp.sum_squares(A @ x - b) + s * cp.norm(x) + s @ x.T @ np.ones((3, 1))
    return Case(cp.Problem(cp.Minimize(objective), [b.T @ x <= 0.2 * s]), {A: SQUARE, b: random(3, 1), s: [[0.7]]})


def approximated_relative_entropy_cone():
    """A cone that CVXPY replaces by second-order cones."""
    x, y, z, c = cp.Variable(3), cp.Variable(3), cp.Variable(3), cp.Parameter(3, name="c")
    distance = cp.sum_squares(x - c) + cp.sum_squares(y - c) + cp.sum_squares(z + 1)
    problem = cp.Problem(cp.Minimize(distance), [cp.RelEntrConeQuad(x, y, z, 3, 3)])
    return Case(problem, {c: POSITIVE[:3]}, duals=False)


PROBLEMS = [
    quad_form_of_parameter,
    quad_form_of_negative_parameter,
    quad_form_of_parameter_beside_shifted_one,
    lasso,
    matrix_on_both_sides,
    weighted_sum_of_atoms,
    portfolio,
    logistic_regression,
    support_vector_machine,
    matrix_frac_of_two_variables,
    matrix_frac_of_parameter,
    perspective,
    relative_entropy_to_parameter,
    parameters_of_atoms,
    indicator,
    chebyshev_fit,
    linear_program,
    three_dimensional_arrays,
    several_of_everything,
    functions_of_symmetric_variables,
    column_vectors,
    approximated_relative_entropy_cone,
]


@pytest.mark.parametrize("build", PROBLEMS, ids=lambda build: build.__name__)
def test_problem_with_parameters(build):
    case = build()
    layer = check_values(case)
    check_gradients(case, layer)


def test_quantum_relative_entropy():
    """tr X (log X - log B), with gradient log X - log B + I, to the accuracy of CVXPY's approximation of it."""
    X, C = cp.Variable((2, 2), symmetric=True), cp.Parameter((2, 2), symmetric=True)
    at, B = definite(2), definite(2)[::-1, ::-1]
    problem = cp.Problem(cp.Minimize(cp.quantum_rel_entr(X, B) + 0.5 * cp.sum_squares(X - C)))
    layer = cl.ConvexLayer(problem, [C], [X])
    difference = scipy.linalg.logm(at) - scipy.linalg.logm(B)
    solution = layer.solve(torch.tensor(at + difference + np.eye(2)))
    np.testing.assert_allclose(solution.values[0].numpy(), at, atol=1e-6)
    expected = np.trace(at @ difference) + 0.5 * np.square(difference + np.eye(2)).sum()
    assert solution.objective.item() == pytest.approx(expected, abs=1e-6)
