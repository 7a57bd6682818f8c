"""What diffcp's own tests and examples exercise, written anew, on its face: docs/migration.md has the list."""

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

from convexlayers.compat import diffcp
from convexlayers.compat.diffcp import cone_program, cones, utils
from convexlayers.errors import ArgumentError

MODES = ["lsqr", "lsmr", "dense"]
METHODS = {"SCS": {"eps": 1e-10}, "ECOS": {"abstol": 1e-10, "feastol": 1e-10}, "Clarabel": {"tol_gap_abs": 1e-12}}


def least_deviations():
    return utils.least_squares_eq_scs_data(20, 10)


def entropy():
    y = cp.Variable(6)
    return utils.scs_data_from_cvxpy_problem(cp.Problem(cp.Minimize(-cp.sum(cp.entr(y))), [cp.sum(y) == 1]))


def semidefinite():
    rng = np.random.default_rng(0)
    X, As = cp.Variable((3, 3), PSD=True), [part + part.T for part in rng.normal(size=(2, 3, 3))]
    constraints = [cp.trace(A @ X) == np.trace(A) for A in As]
    C = np.diag([1.0, 2.0, 3.0]) + 0.1
    return utils.scs_data_from_cvxpy_problem(cp.Problem(cp.Minimize(cp.trace(C @ X)), [*constraints, cp.trace(X) == 3]))


def ball():
    rng = np.random.default_rng(1)
    x = cp.Variable(5)
    objective = cp.sum_squares(rng.normal(size=(3, 5)) @ x) + rng.normal(size=5) @ x
    problem = cp.Problem(cp.Minimize(objective), [cp.norm2(x) <= 1, rng.normal(size=(2, 5)) @ x == 0.1])
    return utils.scs_data_from_cvxpy_problem(problem)


PROGRAMS = [least_deviations, entropy, semidefinite, ball]


def moved(A, b, c, seed=0, size=1e-6):
    rng = np.random.default_rng(seed)
    dA = utils.get_random_like(A, lambda count: rng.normal(0, size, count))
    return dA, rng.normal(0, size, b.size), rng.normal(0, size, c.size)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_the_conditions_of_optimality(program, method):
    A, b, c, cone_dict = program()
    x, y, s = diffcp.solve_only(A, b, c, cone_dict, solve_method=method, **METHODS[method])
    parsed = cones.parse_cone_dict(cone_dict)
    np.testing.assert_allclose(A @ x + s, b, atol=1e-8)
    np.testing.assert_allclose(A.T @ y + c, 0, atol=1e-8)
    assert s @ y == pytest.approx(0, abs=1e-8)
    np.testing.assert_allclose(cones.pi(s, parsed), s, atol=1e-8)
    np.testing.assert_allclose(cones.pi(y, parsed, dual=True), y, atol=1e-8)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("mode", MODES)
def test_the_derivative_predicts_the_next_solution(program, mode):
    A, b, c, cone_dict = program()
    x, y, s, D, _ = diffcp.solve_and_derivative(A, b, c, cone_dict, mode=mode, eps=1e-10)
    dA, db, dc = moved(A, b, c)
    predicted = D(dA, db, dc)
    after = diffcp.solve_only(A + dA, b + db, c + dc, cone_dict, eps=1e-10)
    for before, part, change in zip((x, y, s), after, predicted, strict=True):
        np.testing.assert_allclose(part - before, change, atol=1e-8)


@pytest.mark.parametrize("program", [least_deviations, semidefinite, ball], ids=lambda program: program.__name__)
def test_a_step_along_the_adjoint_raises_the_objective_by_its_square(program):
    A, b, c, cone_dict = program()
    x, y, s, _, DT = diffcp.solve_and_derivative(A, b, c, cone_dict)
    dA, db, dc = DT(c, np.zeros_like(y), np.zeros_like(s))
    step = 1e-6
    after = diffcp.solve_only(A + step * dA, b + step * db, c + step * dc, cone_dict)[0]
    square = dA.multiply(dA).sum() + db @ db + dc @ dc
    assert c @ after - c @ x == pytest.approx(step * square, rel=1e-2, abs=1e-9)


@pytest.mark.parametrize("program", [least_deviations, ball, semidefinite], ids=lambda program: program.__name__)
@pytest.mark.parametrize("mode", MODES)
def test_derivatives_are_those_of_the_package(program, mode):
    """D and DT of the same program, with the package's solver at its most accurate."""
    peer = pytest.importorskip("diffcp")
    A, b, c, cone_dict = program()
    settings = {"solve_method": "Clarabel", **dict.fromkeys(["tol_gap_abs", "tol_gap_rel", "tol_feas"], 1e-13)}
    theirs = peer.solve_and_derivative(A.copy(), b, c, cone_dict, mode=mode, **settings)
    ours = diffcp.solve_and_derivative(A.copy(), b, c, cone_dict, mode=mode)
    for part, other in zip(ours[:3], theirs[:3], strict=True):
        np.testing.assert_allclose(part, other, atol=1e-6)
    # Tangents of size one, since the package takes what is below 1e-8 for zero.
    tangents = moved(A, b, c, size=1.0)
    for part, other in zip(ours[3](*tangents), theirs[3](*tangents), strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-3, atol=1e-3)
    rng = np.random.default_rng(1)
    cotangents = [rng.normal(size=part.shape) for part in ours[:3]]
    for part, other in zip(ours[4](*cotangents), theirs[4](*cotangents), strict=True):
        dense = [value.toarray() if sp.issparse(value) else value for value in (part, other)]
        np.testing.assert_allclose(*dense, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("jobs", [1, -1])
def test_a_batch_is_its_elements(jobs):
    data = [utils.least_squares_eq_scs_data(12, 6, seed) for seed in range(8)]
    As, bs, cs, cone_dicts = (list(part) for part in zip(*data, strict=True))
    xs, ys, ss, D, DT = diffcp.solve_and_derivative_batch(
        As, bs, cs, cone_dicts, n_jobs_forward=jobs, n_jobs_backward=jobs
    )
    dAs, dbs, dcs = DT(xs, ys, ss)
    dxs, _, _ = D(As, bs, cs)
    for i, program in enumerate(data):
        x, y, s, D_one, DT_one = diffcp.solve_and_derivative(*program)
        np.testing.assert_allclose(
            np.concatenate([xs[i], ys[i], ss[i]]), np.concatenate([x, y, s]), rtol=1e-7, atol=1e-9
        )
        dA, db, dc = DT_one(x, y, s)
        np.testing.assert_allclose(dAs[i].toarray(), dA.toarray(), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(np.concatenate([dbs[i], dcs[i]]), np.concatenate([db, dc]), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(dxs[i], D_one(*program[:3])[0], rtol=1e-6, atol=1e-8)


def test_a_warm_start_at_the_solution():
    A, b, c, cone_dict = least_deviations()
    point = diffcp.solve_only(A, b, c, cone_dict)
    again = diffcp.solve_and_derivative(A, b, c, cone_dict, warm_start=point)
    for part, other in zip(again, point, strict=False):
        np.testing.assert_allclose(part, other, atol=1e-7)


@pytest.mark.parametrize("mode", ["lpgd", "lpgd_right", "lpgd_left"])
def test_small_perturbations_approach_the_derivative(mode):
    """Of a program with P, which is where diffcp has no other mode."""
    rng = np.random.default_rng(2)
    A, P = sp.csc_matrix(np.vstack([np.ones((1, 4)), -np.eye(4)])), sp.csc_matrix(np.diag([1.0, 2.0, 3.0, 4.0]))
    b, c, cone_dict = np.array([1.0, 0, 0, 0, 0]), rng.normal(size=4), {"z": 1, "l": 4}
    _, y, s, _, exact = diffcp.solve_and_derivative(A, b, c, cone_dict, P=P)
    given = {"tau": 1e-4, "rho": 0.0}
    DT = diffcp.solve_and_derivative(A, b, c, cone_dict, P=P, mode=mode, derivative_kwargs=given)[4]
    cotangents = rng.normal(size=4), np.zeros_like(y), np.zeros_like(s)
    for part, other in zip(DT(*cotangents, return_dP=True), exact(*cotangents, return_dP=True), strict=True):
        dense = [value.toarray() if sp.issparse(value) else value for value in (part, other)]
        np.testing.assert_allclose(*dense, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", [None, *METHODS])
def test_infeasible_programs(method):
    A, b, c = sp.csc_matrix(np.ones((2, 1))), np.array([1.0, -1.0]), np.ones(1)
    with pytest.raises(cone_program.SolverError, match="PRIMAL_INFEASIBLE"):
        diffcp.solve_and_derivative(A, b, c, {"f": 2}, solve_method=method)
    found = diffcp.solve_and_derivative_internal(A, b, c, {"f": 2}, solve_method=method, raise_on_error=False)
    assert (found["info"]["status"], found["D"], found["DT"]) == ("Infeasible", None, None)
    found = diffcp.solve_internal(A[:1], b[:1], 0 * c, {"z": 1}, solve_method=method)
    assert (found["info"]["status"], float(found["x"][0])) == ("Solved", pytest.approx(1.0))


def test_wrong_arguments_are_the_errors_of_python():
    A, b, c, cone_dict = least_deviations()
    with pytest.raises(ValueError, match="mode is 'sparse'"):
        diffcp.solve_and_derivative(A, b, c, cone_dict, mode="sparse")
    with pytest.raises(ValueError, match="solve_method is 'MOSEK'"):
        diffcp.solve_only(A, b, c, cone_dict, solve_method="MOSEK")
    with pytest.raises(RuntimeError, match="NaN"):
        diffcp.solve_only(A * np.nan, b, c, cone_dict)


def test_cvxpy_differentiates_on_the_face():
    """CVXPY's interface to diffcp asks for a dictionary."""
    x, t = cp.Variable(3), cp.Parameter(3, value=[0.9, 0.3, -1.0])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.sum(x) == 1, x >= 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "diffcp", diffcp)
        problem.solve(requires_grad=True)
        x.gradient = np.array([1.0, 0.0, 0.0])
        problem.backward()
    np.testing.assert_allclose(x.value, [0.8, 0.2, 0.0], atol=1e-5)
    np.testing.assert_allclose(t.gradient, [0.5, -0.5, 0.0], atol=1e-4)


def test_vectors_of_symmetric_matrices():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(5, 5))
    X, x = X + X.T, rng.normal(size=cones.vec_psd_dim(5))
    assert (cones.vec_psd_dim(10), cones.psd_dim(cones.vec_psd_dim(4096))) == (55, 4096)
    np.testing.assert_allclose(cones.unvec_symm(cones.vec_symm(X), 5), X)
    np.testing.assert_allclose(cones.vec_symm(cones.unvec_symm(x, 5)), x)
    assert x @ x == pytest.approx(np.sum(cones.unvec_symm(x, 5) ** 2))
    np.testing.assert_allclose(cones.vec_symm(X)[:3], [X[0, 0], np.sqrt(2) * X[1, 0], np.sqrt(2) * X[2, 0]])


@pytest.mark.parametrize("dual", [False, True])
def test_projections(dual):
    """In closed form, by Moreau's decomposition, and beside diffcp's."""
    rng = np.random.default_rng(4)
    peer = pytest.importorskip("diffcp.cones")
    listed = [("z", 2), ("l", 3), ("q", [3, 4]), ("s", [2, 3]), ("ep", 2), ("ed", 2)]
    x = rng.normal(size=2 + 3 + 7 + 9 + 12)
    found = cones.pi(x, listed, dual=dual)
    np.testing.assert_allclose(found, peer.pi(x, listed, dual=dual), atol=1e-6)
    np.testing.assert_allclose(found, x + cones.pi(-x, listed, dual=not dual), atol=1e-9)
    np.testing.assert_allclose(found[:5], np.r_[x[:2] * dual, np.maximum(x[2:5], 0)])
    values, vectors = np.linalg.eigh(cones.unvec_symm(x[15:21], 3))
    np.testing.assert_allclose(
        cones.unvec_symm(found[15:21], 3), (vectors * np.maximum(values, 0)) @ vectors.T, atol=1e-12
    )


def test_projections_of_other_vectors_are_errors():
    with pytest.raises(ArgumentError, match=r"x has shape \(3,\), expected \(2,\)"):
        cones.pi(np.ones(3), [("l", 2)])
    with pytest.raises(ArgumentError, match=r"x has shape \(1,\), expected \(2,\)"):
        cones.pi(np.ones(1), [("l", 2)])
    with pytest.raises(ArgumentError, match="unknown name 'f'"):
        cones.pi(np.ones(2), [("f", 2)])


def test_patterns_of_random_matrices():
    A = sp.csc_matrix(np.eye(5))
    B = utils.get_random_like(A, np.ones)
    assert (B != A).nnz == 0


def test_a_quadratic_objective_is_not_lost():
    """Where diffcp's own function leaves it out."""
    x = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - np.array([1.0, 2.0]))), [x <= 1.5])
    A, b, c, cone_dict = utils.scs_data_from_cvxpy_problem(problem)
    problem.solve(cp.CLARABEL)
    found = diffcp.solve_only(A, b, c, cone_dict)[0]
    assert min(np.abs(found[i : i + 2] - [1.0, 1.5]).max() for i in range(len(found) - 1)) < 1e-6
