"""Compilation is linear in the entries of the parameters, in what it stores and in what it needs on the way."""

import gc
import tracemalloc

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from trust.families import assert_same, randn


def least_squares(n):
    """sum_squares(Q x - 1) with all of Q a parameter: n^2 entries."""
    x, Q = cp.Variable(n), cp.Parameter((n, n))
    return cp.Problem(cp.Minimize(cp.sum_squares(Q @ x - 1) + cp.sum_squares(x))), [Q], [x]


def compile_and_measure(n):
    """The program, and the peak of memory while it was compiled, in bytes."""
    problem, parameters, variables = least_squares(n)
    tracemalloc.start()
    try:
        program = cl.compile_problem(problem, parameters, variables)
        return program, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_entries_and_memory_grow_with_the_entries_of_the_parameter():
    (small, small_peak), (large, large_peak) = compile_and_measure(60), compile_and_measure(120)
    # One entry of the map for each of the parameter, and one of A; the rest is proportional to n.
    assert small.map.nnz == 60**2
    assert large.map.nnz == 120**2
    assert len(large.structure.A_rows) <= 120**2 + 3 * 120
    assert len(large.structure.P_rows) <= 3 * 120
    # Four times the entries; at most 1 kB for each.
    assert large_peak <= 6 * small_peak
    assert large_peak <= 1000 * 120**2


def all_parameters(kind, n=100, m=200):
    """A program whose coefficients are all parameters."""
    x, c, G, h = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    P, w = cp.Parameter((n, n), PSD=True), cp.Parameter(nonneg=True)
    objective, parameters = {
        "linear": (cp.Minimize(c @ x), [c]),
        "largest linear": (cp.Maximize(1 + c @ x), [c]),
        "quadratic": (cp.Minimize(0.5 * cp.quad_form(x, P) + c @ x), [c, P]),
        "largest quadratic": (cp.Maximize(c @ x - cp.quad_form(x, P) - 3), [c, P]),
        "squares": (cp.Minimize(cp.sum_squares(x - c) + w * cp.sum_squares(x) + cp.sum(x)), [c, w]),
        "norm": (cp.Minimize(cp.norm(x - c) + c @ x), [c]),
    }[kind]
    return cp.Problem(objective, [G @ x <= h]), [*parameters, G, h], [x]


@pytest.mark.parametrize("kind", ["linear", "largest linear", "quadratic", "largest quadratic", "squares", "norm"])
def test_memory_does_not_grow_with_variables_times_entries(kind):
    """100 variables times 20,000 entries of constraints in a dense matrix are 800 bytes for each entry."""
    problem, parameters, variables = all_parameters(kind)
    cl.compile_problem(*all_parameters(kind, 5, 5))
    tracemalloc.start()
    try:
        program = cl.compile_problem(problem, parameters, variables)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 400 * sum(info.size for info in program.parameters)


def test_affine_terms_go_where_they_belong(solver):
    """Nested sums, signs and constants around quadratic terms."""
    x, y, c, d = cp.Variable(3), cp.Variable(), cp.Parameter(3), cp.Parameter()
    objective = -(-(c @ x) + (d * y - 2) - (cp.sum_squares(x) + (cp.square(y) - (cp.sum(x) + 4)))) + cp.sum(c) - d * 3
    c_t, d_t = randn(4, 3, seed=1), randn(4, seed=2)
    # x: c + 2 x - 1 = 0; y: -d + 2 y = 0.
    right_x, right_y = (1 - c_t) / 2, d_t / 2
    squares = right_x.square().sum(-1) + right_y.square() - right_x.sum(-1) - 4
    value = (c_t * right_x).sum(-1) - d_t * right_y + 2 + squares + c_t.sum(-1) - 3 * d_t
    for problem, sign in ((cp.Minimize(objective), 1), (cp.Maximize(-objective), -1)):
        layer = cl.ConvexLayer(cp.Problem(problem), [c, d], [x, y], solver=solver)
        solution = layer.solve(c_t, d_t)
        assert_same(solution.values, (right_x, right_y), 1e-7)
        assert_same(solution.objective, sign * value, 1e-7)


def test_quadratic_terms_that_vanish_or_are_concave(solver):
    """A quadratic times zero is affine, but no expression for CVXPY's affine way; minus a concave one is convex."""
    x, c, N = cp.Variable(3), cp.Parameter(3), cp.Parameter((3, 3), NSD=True)
    c_t = randn(4, 3, seed=1)
    vanishing = cp.Minimize(cp.sum_squares(x) + 0.0 * cp.sum_squares(x - 1) - c @ x)
    (found,) = cl.ConvexLayer(cp.Problem(vanishing), [c], [x], solver=solver)(c_t)
    assert_same(found, c_t / 2, 1e-7)
    concave = cp.Maximize(cp.quad_form(x, N) + c @ x)
    (found,) = cl.ConvexLayer(cp.Problem(concave), [N, c], [x], solver=solver)(-torch.eye(3), c_t)
    assert_same(found, c_t / 2, 1e-7)


def test_the_large_program_is_the_right_one(solver):
    n = 40
    problem, parameters, variables = least_squares(n)
    Q = randn(n, n, seed=1)
    (x,) = cl.ConvexLayer(problem, parameters, variables, solver=solver)(Q)
    eye, ones = torch.eye(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    assert_same(x, torch.linalg.solve(Q.T @ Q + eye, Q.T @ ones), 1e-7)


@pytest.mark.slow
def test_a_million_entries_below_a_gigabyte():
    program, peak = compile_and_measure(1000)
    assert program.map.nnz == 1000**2
    assert peak <= 1e9


def test_bytes_for_each_entry_of_a_large_parameter():
    """What compilation needs on the way and what the program keeps; CVXPY's own part is about 150 of the 250."""
    rows, columns = 800, 500
    x, Q = cp.Variable(columns), cp.Parameter((rows, columns))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(Q @ x - 1) + cp.sum_squares(x)))
    cl.compile_problem(*least_squares(5))  # what is imported and remembered once
    tracemalloc.start()
    try:
        program = cl.compile_problem(problem, [Q], [x])
        peak = tracemalloc.get_traced_memory()[1]
        problem = x = Q = None
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert program.map.nnz == rows * columns
    assert peak <= 250 * rows * columns
    assert kept <= 60 * rows * columns
