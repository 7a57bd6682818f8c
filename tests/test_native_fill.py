"""Fill of the native engine's factor: against that of Clarabel's ordering on the same matrix."""

import runpy
from pathlib import Path

import clarabel
import cvxpy as cp
import numpy as np
import pytest
from scipy import sparse

import convexlayers as cl
from convexlayers.engines import make_engine
from convexlayers.engines.clarabel import translate_cones

FAMILIES = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "families.py"))["FAMILIES"]


def random_matrix(rows, columns, density, seed):
    return sparse.random_array((rows, columns), density=density, rng=np.random.default_rng(seed))


def random_qp(n, m, density, seed):
    x, q, h = cp.Variable(n), cp.Parameter(n), cp.Parameter(m)
    root, G = random_matrix(n, n, density, seed), random_matrix(m, n, density, seed + 1)
    return cp.Problem(cp.Minimize(cp.sum_squares(root @ x) + q @ x), [G @ x <= h]), [q, h], [x]


def chain(length):
    """Differences of neighbours: tridiagonal."""
    x, b = cp.Variable(length), cp.Parameter(length)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [cp.abs(cp.diff(x)) <= 1.0]), [b], [x]


def arrow(groups, size):
    """Groups of variables that only a few shared ones tie together."""
    x, shared, b = cp.Variable((groups, size)), cp.Variable(3), cp.Parameter((groups, size))
    total = cp.sum(x, axis=1) == cp.sum(shared)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - b) + cp.sum_squares(shared)), [total, x >= 0]), [b], [x]


def portfolio(assets, factors):
    """Factor model: exposures in y = F'x, a bound on the risk as a second-order cone."""
    x, y, mu = cp.Variable(assets), cp.Variable(factors), cp.Parameter(assets)
    F = random_matrix(factors, assets, 0.5, 3)
    constraints = [y == F @ x, cp.sum(x) == 1, x >= 0, cp.norm(y, 2) <= 2.0]
    return cp.Problem(cp.Minimize(-mu @ x + cp.sum_squares(0.1 * x)), constraints), [mu], [x]


def of_family(name):
    return lambda: FAMILIES[name][0]()[:3]


STRUCTURES = {
    **{name: of_family(name) for name in ("qp50", "mpc", "socp", "ot15", "simplex100")},
    "random qp, wide": lambda: random_qp(150, 60, 0.02, 0),
    "random qp, tall": lambda: random_qp(60, 200, 0.03, 10),
    "chain": lambda: chain(200),
    "arrow": lambda: arrow(20, 10),
    "portfolio": lambda: portfolio(80, 12),
}


def clarabel_fill(structure):
    """Entries of Clarabel's L below the diagonal, for any numbers of this structure."""
    rng = np.random.default_rng(0)
    n, m = structure.n, structure.m
    diagonal = structure.P_rows == structure.P_cols
    P_values = np.where(diagonal, 10.0 * n, rng.uniform(0.5, 1.0, len(diagonal)))
    P = sparse.csc_matrix((P_values, (structure.P_rows, structure.P_cols)), (n, n))
    A_values = rng.uniform(0.5, 1.0, len(structure.A_rows))
    A = sparse.csc_matrix((A_values, (structure.A_rows, structure.A_cols)), (m, n))
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_iter, settings.presolve_enable = False, 1, False
    settings.direct_solve_method = "qdldl"
    cones = translate_cones(clarabel, structure.cones)
    solver = clarabel.DefaultSolver(P, rng.standard_normal(n), A, rng.standard_normal(m), cones, settings)
    solver.solve()
    linear = solver.get_info().linsolver
    assert linear.name == "qdldl"
    return linear.nnzL


def test_counts_exclude_the_diagonal():
    """A diagonal P with one bound per variable: one entry of L for each, in both counts."""
    x, b = cp.Variable(5), cp.Parameter(5)
    program = cl.compile_problem(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0]), [b], [x])
    expected = len(program.structure.A_rows)
    assert make_engine("native").setup(program).describe()["nnz_L"] == expected
    assert clarabel_fill(program.structure) == expected


@pytest.mark.parametrize("name", STRUCTURES)
def test_at_most_a_tenth_more_than_clarabel(name):
    program = cl.compile_problem(*STRUCTURES[name]())
    ours = make_engine("native").setup(program).describe()["nnz_L"]
    theirs = clarabel_fill(program.structure)
    print(f"{name}: {ours} against {theirs}, {ours / theirs:.3f}")
    assert ours <= 1.1 * theirs
