"""diffcp's face: every cone of SCS beside SCS itself, derivatives beside differences and diffcp, errors."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import scs

from convexlayers.compat import diffcp
from convexlayers.errors import ArgumentError, UnsupportedProblemError

CONES = [
    {"z": 2, "l": 3},
    {"f": 1, "l": 2, "q": [3, 4]},
    {"l": 1, "q": [], "s": [3, 2]},
    {"z": 1, "ep": 2},
    {"z": 1, "ed": 2},
    {"l": 1, "ep": 1, "ed": 1, "p": [0.3, -0.6]},
    {"z": 1, "l": 1, "q": [3], "s": [2], "ep": 1, "ed": 1, "p": [-0.25]},
]
INSIDE = {"ep": (-1.0, 1.0, 2.0), "ed": (-1.0, 0.5, 1.0), "p": (1.5, 1.2, 0.3)}


def inside(cones):
    """A point in the interior of K."""
    parts = [np.zeros(cones.get("z", 0) + cones.get("f", 0)), np.ones(cones.get("l", 0))]
    parts += [np.r_[2.0, np.full(size - 1, 0.3)] for size in cones.get("q", [])]
    for size in cones.get("s", []):
        rows, cols = np.tril_indices(size)
        by_column = np.lexsort((rows, cols))
        matrix = np.eye(size) * (1.0 + np.arange(size)) + 0.2
        parts.append((matrix[rows, cols] * np.where(rows == cols, 1, np.sqrt(2)))[by_column])
    parts += [np.array(INSIDE["ep"])] * cones.get("ep", 0) + [np.array(INSIDE["ed"])] * cones.get("ed", 0)
    return np.concatenate([*parts, *[np.array(INSIDE["p"])] * len(cones.get("p", []))])


def program(cones, seed=0, n=4):
    """Feasible, strictly convex: A, b, c, P."""
    rng = np.random.default_rng(seed)
    point = inside(cones)
    A = sp.csc_matrix(rng.normal(size=(len(point), n)) * (rng.random((len(point), n)) < 0.8))
    L = rng.normal(size=(n, n))
    return A, A @ rng.normal(size=n) + point, 3 * rng.normal(size=n), sp.csc_matrix(L @ L.T / 4 + np.eye(n))


def directions(A, P, seed=1):
    rng = np.random.default_rng(seed)
    dA = A.copy()
    dA.data, half = rng.normal(size=A.nnz), rng.normal(size=P.shape)
    return dA, rng.normal(size=A.shape[0]), rng.normal(size=A.shape[1]), sp.csc_matrix(half + half.T)


@pytest.mark.parametrize("cones", CONES, ids=str)
def test_the_solution_is_that_of_scs(cones):
    A, b, c, P = program(cones)
    x, y, s = diffcp.solve_only(A, b, c, cones, P=P)
    own = {("z" if name == "f" else name): size for name, size in cones.items()}
    data = {"A": A, "b": b, "c": c, "P": sp.csc_matrix(sp.triu(P))}
    found = scs.SCS(data, own, verbose=False, eps_abs=1e-10, eps_rel=1e-10).solve()
    for name, part in (("x", x), ("y", y), ("s", s)):
        np.testing.assert_allclose(part, found[name], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(A @ x + s, b, atol=1e-8)
    np.testing.assert_allclose(P @ x + A.T @ y + c, 0, atol=1e-7)


@pytest.mark.parametrize("cones", CONES, ids=str)
def test_derivatives_are_those_of_differences_and_transposes_of_each_other(cones):
    A, b, c, P = program(cones)
    *_, D, DT = diffcp.solve_and_derivative(A, b, c, cones, P=P)
    dA, db, dc, dP = directions(A, P)
    forward, h = D(dA, db, dc, dP), 1e-5
    sides = [diffcp.solve_only(A + t * dA, b + t * db, c + t * dc, cones, P=P + t * dP) for t in (h, -h)]
    for tangent, right, left in zip(forward, *sides, strict=True):
        np.testing.assert_allclose(tangent, (right - left) / (2 * h), rtol=1e-4, atol=1e-4)
    rng = np.random.default_rng(2)
    cotangents = [rng.normal(size=part.shape) for part in forward]
    gA, gb, gc, gP = DT(*cotangents, return_dP=True)
    inner = (gA.multiply(dA)).sum() + gb @ db + gc @ dc + (gP.multiply(dP)).sum()
    expected = sum(cotangent @ tangent for cotangent, tangent in zip(cotangents, forward, strict=True))
    assert inner == pytest.approx(expected, rel=1e-8)
    assert (gA.nnz, gP.nnz) == (A.nnz, P.nnz)


@pytest.mark.parametrize("cones", [{"z": 2, "l": 3}, {"l": 2, "q": [3]}, {"l": 3, "s": [2]}], ids=str)
def test_derivatives_are_those_of_diffcp(cones):
    peer = pytest.importorskip("diffcp")
    A, b, c, _ = program(cones)
    # diffcp's exact modes take no P: |x_i| <= 2 bounds the linear program.
    n = len(c)
    A = sp.csc_matrix(
        sp.vstack([A[: cones.get("z", 0) + cones["l"]], sp.eye(n), -sp.eye(n), A[cones.get("z", 0) + cones["l"] :]])
    )
    first = cones.get("z", 0) + cones["l"]
    x0 = np.linspace(-1, 1, n)
    b = A @ x0 + np.r_[inside(cones)[:first], np.full(2 * n, 2.0), inside(cones)[first:]]
    cones = {**cones, "l": cones["l"] + 2 * n}
    x, y, s, _, DT = diffcp.solve_and_derivative(A.copy(), b, c, cones)
    expected = peer.solve_and_derivative(
        A.copy(),
        b,
        c,
        cones,
        solve_method="Clarabel",
        mode="dense",
        tol_gap_rel=1e-12,
        tol_gap_abs=1e-12,
        tol_feas=1e-12,
    )
    for part, other in zip((x, y, s), expected, strict=False):
        np.testing.assert_allclose(part, other, rtol=1e-6, atol=1e-6)
    rng = np.random.default_rng(3)
    cotangents = [rng.normal(size=part.shape) for part in (x, y, s)]
    for part, other in zip(DT(*cotangents), expected[4](*cotangents), strict=True):
        dense = [value.toarray() if sp.issparse(value) else value for value in (part, other)]
        np.testing.assert_allclose(*dense, rtol=1e-4, atol=1e-4)


def test_an_upper_triangle_stands_for_both():
    cones = {"l": 3}
    A, b, c, P = program(cones)
    full = diffcp.solve_and_derivative(A, b, c, cones, P=P)
    upper = diffcp.solve_and_derivative(A, b, c, cones, P=sp.csc_matrix(sp.triu(P)))
    np.testing.assert_allclose(full[0], upper[0], atol=1e-9)
    ones = [np.ones_like(part) for part in full[:3]]
    dP, half = full[4](*ones, return_dP=True)[3].toarray(), upper[4](*ones, return_dP=True)[3].toarray()
    np.testing.assert_allclose(half, np.triu(dP) + np.triu(dP, 1), rtol=1e-7, atol=1e-9)
    with pytest.raises(ArgumentError, match="neither symmetric nor an upper triangle"):
        diffcp.solve_only(A, b, c, cones, P=sp.csc_matrix(sp.tril(P)))


@pytest.mark.parametrize("mode", ["lsqr", "lsmr", "dense"])
def test_exact_modes_are_one(mode):
    cones = {"z": 1, "l": 2}
    A, b, c, P = program(cones)
    *_, DT = diffcp.solve_and_derivative(A, b, c, cones, mode=mode, P=P)
    *_, default = diffcp.solve_and_derivative(A, b, c, cones, P=P)
    for part, other in zip(
        DT(np.ones(4), np.ones(3), np.ones(3))[1:], default(np.ones(4), np.ones(3), np.ones(3))[1:], strict=True
    ):
        np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize("mode", ["lpgd", "lpgd_right", "lpgd_left"])
def test_lpgd_tells_at_a_vertex_what_the_exact_derivative_does_not(mode):
    """The cheapest of three: a loss that falls with the second entry wants its cost to fall."""
    A = sp.csc_matrix(np.vstack([np.ones((1, 3)), -np.eye(3)]))
    b, c, cones = np.array([1.0, 0, 0, 0]), np.array([1.0, 1.5, 3.0]), {"z": 1, "l": 3}
    cotangents = np.array([0.0, -1.0, 0.0]), np.zeros(4), np.zeros(4)
    *_, exact = diffcp.solve_and_derivative(A, b, c, cones)
    np.testing.assert_allclose(exact(*cotangents)[2], 0, atol=1e-8)
    *_, DT = diffcp.solve_and_derivative(A, b, c, cones, mode=mode, derivative_kwargs={"tau": 1.0, "rho": 0.1})
    later = diffcp.solve_and_derivative(A, b, c, cones, mode=mode)[4](*cotangents, tau=1.0, rho=0.1)
    dc = DT(*cotangents)[2]
    np.testing.assert_allclose(dc, later[2], rtol=1e-6, atol=1e-8)
    assert (dc[1] > 0.1) == (mode != "lpgd_left")


def test_a_batch_of_several_structures():
    """Each as if alone, in the order given."""
    cones = [CONES[0], CONES[1], CONES[0], CONES[4]]
    data = [program(cone, seed) for seed, cone in enumerate(cones)]
    As, bs, cs, Ps = (list(part) for part in zip(*data, strict=True))
    xs, ys, ss, D, DT = diffcp.solve_and_derivative_batch(As, bs, cs, cones, n_jobs_forward=2, Ps=Ps)
    tangents = D(*zip(*(directions(A, P)[:3] for A, P in zip(As, Ps, strict=True)), strict=True))
    grads = DT(xs, ys, ss, return_dP=True)
    for i, (A, b, c, P) in enumerate(data):
        x, y, s, D_one, DT_one = diffcp.solve_and_derivative(A, b, c, cones[i], P=P)
        expected = [*D_one(*directions(A, P)[:3]), *DT_one(xs[i], ys[i], ss[i], return_dP=True)]
        for part, other in zip([*(t[i] for t in tangents), *(g[i] for g in grads)], expected, strict=True):
            dense = [value.toarray() if sp.issparse(value) else value for value in (part, other)]
            np.testing.assert_allclose(*dense, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(np.concatenate([xs[i], ys[i], ss[i]]), np.concatenate([x, y, s]), atol=1e-9)
    alone = diffcp.solve_only_batch(As, bs, cs, cones, Ps=Ps)
    np.testing.assert_array_equal(np.concatenate(alone[0]), np.concatenate(xs))
    assert diffcp.solve_only_batch([], [], [], []) == ([], [], [])


def test_a_warm_start_gives_the_same_solution():
    A, b, c, P = program(CONES[4])
    point = diffcp.solve_only(A, b, c, CONES[4], P=P)
    again = diffcp.solve_only(A, b, c, CONES[4], P=P, warm_start=point)
    np.testing.assert_allclose(np.concatenate(again), np.concatenate(point), atol=1e-7)


def test_stored_zeros_of_A_have_gradients_and_A_is_left_alone():
    cones = {"l": 3}
    A, b, c, P = program(cones)
    A.data[0] = 0.0
    before = A.copy()
    *_, DT = diffcp.solve_and_derivative(A, b, c, cones, P=P)
    assert DT(np.ones(4), np.ones(3), np.ones(3))[0].nnz == A.nnz == before.nnz
    np.testing.assert_array_equal(A.data, before.data)


def test_infeasible_and_unbounded_programs():
    A, b, c = sp.csc_matrix([[1.0], [-1.0]]), np.array([0.0, -1.0]), np.array([1.0])
    with pytest.raises(diffcp.SolverError, match="PRIMAL_INFEASIBLE"):
        diffcp.solve_and_derivative(A, b, c, {"l": 2})
    assert np.isnan(diffcp.solve_only(A, b, c, {"l": 2}, raise_on_error=False)[0]).all()
    with pytest.raises(diffcp.SolverError, match="DUAL_INFEASIBLE"):
        diffcp.solve_only(A[:1], b[:1], c, {"l": 1})


def test_settings_are_heeded_or_named():
    A, b, c, P = program(CONES[0])
    with pytest.warns(UserWarning, match="'acceleration_lookback', 'scale'"):
        diffcp.solve_only(A, b, c, CONES[0], P=P, eps=1e-6, scale=0.1, acceleration_lookback=0, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffcp.solve_only(A, b, c, CONES[0], P=P, eps_abs=1e-6, max_iters=1000, solve_method="Clarabel")
    with pytest.raises(diffcp.SolverError, match="MAX_ITERATIONS"):
        diffcp.solve_only(A, b, c, CONES[0], P=P, max_iters=1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cone_dict": {"bu": [1.0], "bl": [0.0]}}, UnsupportedProblemError, "box cones"),
        ({"cone_dict": {"l": 5, "e": 1}}, ArgumentError, "unknown key 'e'"),
        ({"cone_dict": {"l": 4}}, ArgumentError, "b has shape"),
        ({"cone_dict": {"p": [1.5]}}, ArgumentError, "power"),
        ({"cone_dict": {}}, ArgumentError, "b has shape|no rows"),
        ({"mode": "lsq"}, ArgumentError, "mode is 'lsq'"),
        ({"solve_method": "OSQP"}, ArgumentError, "solve_method is 'OSQP'"),
        ({"eps": -1.0}, ArgumentError, "eps is -1.0"),
        ({"max_iters": 0.5}, ArgumentError, "max_iters is 0.5"),
        ({"mode": "lpgd", "derivative_kwargs": {"mu": 1.0}}, ArgumentError, "unknown keys"),
    ],
)
def test_errors(change, error, message):
    A, b, c, P = program(CONES[0])
    with pytest.raises(error, match=message):
        diffcp.solve_and_derivative(**({"A": A, "b": b, "c": c, "cone_dict": CONES[0], "P": P} | change))


def test_a_tangent_outside_the_pattern_is_an_error():
    A, b, c, P = program(CONES[0])
    *_, D, _ = diffcp.solve_and_derivative(A, b, c, CONES[0], P=P)
    with pytest.raises(ArgumentError, match="dA must be zero outside its sparsity pattern"):
        D(sp.csc_matrix(np.ones((5, 4))), b, c)
    bounded = sp.csc_matrix(np.vstack([np.eye(4), -np.eye(4)]))
    *_, D, _ = diffcp.solve_and_derivative(bounded, np.ones(8), c, {"l": 8})
    with pytest.raises(ArgumentError, match="no P"):
        D(bounded, np.ones(8), c, P)
