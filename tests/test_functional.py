"""The standalone functions: blocks in every combination, gradients, batch dimensions, dtypes, messages."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

import convexlayers as cl
from convexlayers.cones import Cones
from convexlayers.errors import ArgumentError, SolverError
from convexlayers.testing import random_program

INF = float("inf")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(*batch, n=4, seed=0):
    """P positive definite and q."""
    F = normal(*batch, n, n, seed=seed)
    return F @ F.mT / n + torch.eye(n, dtype=torch.float64), normal(*batch, n, seed=seed + 1)


def blocks(*batch, n=4, seed=0):
    """All blocks of a feasible QP in which some inequalities and bounds are active and some are not."""
    P, q = quadratic(*batch, n=n, seed=seed)
    x, G, A = normal(*batch, n, seed=seed + 2), normal(*batch, 3, n, seed=seed + 3), normal(*batch, 1, n, seed=seed + 4)
    h = (G @ x.unsqueeze(-1)).squeeze(-1) + torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    b = (A @ x.unsqueeze(-1)).squeeze(-1)
    return {"P": P, "q": q, "G": G, "h": h, "A": A, "b": b, "lb": x - 0.3, "ub": x + 0.4}


def assert_optimal(arguments, solution, tolerance=1e-7):
    """KKT conditions of the QP as the user wrote it, with the duals under their names."""
    P, q, G, h, A, b, lb, ub = (arguments.get(key) for key in ("P", "q", "G", "h", "A", "b", "lb", "ub"))
    x, duals = solution.x, solution.duals

    def times(M, v):
        return (M @ v.unsqueeze(-1)).squeeze(-1)

    stationarity = q + (times(P, x) if P is not None else 0)
    if A is not None:
        assert (times(A, x) - b).abs().max() <= tolerance
        stationarity = stationarity + times(A.mT, duals["A"])
    if G is not None:
        stationarity = stationarity + times(G.mT, duals["G"])
    pairs = [("G", h - times(G, x))] if G is not None else []
    pairs += [("lb", x - lb)] if lb is not None else []
    pairs += [("ub", ub - x)] if ub is not None else []
    for name, slack in pairs:
        finite = slack.isfinite()
        assert (slack >= -tolerance).all()
        assert (duals[name] >= -tolerance).all()
        assert (duals[name] * slack)[finite].abs().max() <= tolerance
        assert (duals[name][~finite].abs() <= tolerance).all()
    stationarity = stationarity - duals.get("lb", 0) + duals.get("ub", 0)
    assert stationarity.abs().max() <= tolerance
    assert set(duals) == {key for key, value in (("A", A), ("G", G), ("lb", lb), ("ub", ub)) if value is not None}


# ------------------------------------------------------------------------------------------- blocks present and absent

OPTIONAL = (("P",), ("G", "h"), ("A", "b"), ("lb",), ("ub",))


@pytest.mark.parametrize("present", list(itertools.product((True, False), repeat=5)))
def test_any_block_may_be_left_out(present):
    kept = {key for keys, flag in zip(OPTIONAL, present, strict=True) if flag for key in keys} | {"q"}
    arguments = {key: value for key, value in blocks().items() if key in kept}
    if not present[0] and not (present[3] and present[4]):
        # Without P and without a box the objective is unbounded, unless it is zero.
        arguments["q"] = torch.zeros_like(arguments["q"])
    solution = cl.solve_qp(arguments.pop("P", None), arguments.pop("q"), **arguments)
    arguments = {key: value for key, value in blocks().items() if key in kept}
    if not present[0] and not (present[3] and present[4]):
        arguments["q"] = torch.zeros_like(arguments["q"])
    assert_optimal(arguments, solution)


def test_arguments_stand_in_the_order_of_qpsolvers():
    given = blocks()
    positional = cl.solve_qp(*(given[key] for key in ("P", "q", "G", "h", "A", "b", "lb", "ub")))
    named = cl.solve_qp(**given)
    assert torch.equal(positional.x, named.x)
    linear = cl.solve_lp(*(given[key] for key in ("q", "G", "h", "A", "b", "lb", "ub")))
    assert_optimal({key: value for key, value in given.items() if key != "P"}, linear)


def test_unconstrained_is_a_linear_system():
    P, q = quadratic(3)
    x = cl.solve_qp(P, q).x
    assert torch.allclose(x, -torch.linalg.solve(P, q), rtol=0, atol=1e-12)


def test_equalities_only_are_a_linear_system():
    P, q = quadratic()
    A, b = normal(2, 4, seed=5), normal(2, seed=6)
    solution = cl.solve_qp(P, q, A=A, b=b)
    K = torch.cat([torch.cat([P, A.T], 1), torch.cat([A, torch.zeros(2, 2)], 1)])
    exact = torch.linalg.solve(K, torch.cat([-q, b]))
    assert torch.allclose(torch.cat([solution.x, solution.duals["A"]]), exact, rtol=0, atol=1e-10)


def test_infinite_bounds_mixed_across_the_batch():
    arguments = blocks(3)
    arguments["lb"][0, 0], arguments["lb"][1] = -INF, -INF
    arguments["ub"][1, 2], arguments["ub"][2] = INF, INF
    arguments["h"][2, 0] = INF
    leaves = {key: value.clone().requires_grad_() for key, value in arguments.items()}
    solution = cl.solve_qp(**leaves)
    assert_optimal(arguments, solution)
    grads = dict(zip(leaves, torch.autograd.grad(solution.x.sum(), list(leaves.values())), strict=True))
    assert all(grad.isfinite().all() for grad in grads.values())
    for key in ("lb", "ub", "h"):
        assert (grads[key][arguments[key].isinf()] == 0).all()
    assert (grads["G"][2, 0] == 0).all()


def test_infinite_bounds_equal_no_bounds():
    given = blocks()
    without = {key: value for key, value in given.items() if key not in ("lb", "ub")}
    free = cl.solve_qp(**without, lb=-INF, ub=INF)
    assert torch.allclose(free.x, cl.solve_qp(**without).x, rtol=0, atol=1e-8)


def test_bounds_may_be_numbers():
    P, q = quadratic()
    assert_optimal(
        {"P": P, "q": q, "lb": torch.full((4,), -0.1), "ub": torch.full((4,), 0.2)}, cl.solve_qp(P, q, lb=-0.1, ub=0.2)
    )


@pytest.mark.parametrize(("name", "value"), [("lb", INF), ("ub", -INF), ("h", -INF)])
def test_infinite_bounds_of_the_wrong_sign_are_no_solution(name, value):
    arguments = blocks()
    arguments[name] = torch.full_like(arguments[name], value)
    with pytest.raises(SolverError, match=r"INVALID_DATA|PRIMAL_INFEASIBLE"):
        cl.solve_qp(**arguments)


def test_linear_program():
    """min q'x over the simplex: the smallest entry of q; its dual is that entry."""
    q = torch.tensor([[3.0, 1.0, 2.0], [0.5, 4.0, 1.0]], dtype=torch.float64)
    solution = cl.solve_lp(q, A=torch.ones(1, 3), b=torch.ones(1), lb=0.0)
    assert torch.allclose(solution.x, torch.tensor([[0.0, 1, 0], [1, 0, 0]], dtype=torch.float64), atol=1e-7)
    assert torch.allclose(solution.duals["A"][:, 0], -q.amin(1), atol=1e-7)
    assert torch.allclose(solution.objective, q.amin(1), atol=1e-7)
    assert torch.allclose(cl.solve_qp(None, q, A=torch.ones(1, 3), b=torch.ones(1), lb=0.0).x, solution.x)
    zero = cl.solve_qp(torch.zeros(3, 3), q, A=torch.ones(1, 3), b=torch.ones(1), lb=0.0).x
    assert torch.allclose(zero, solution.x, atol=1e-7)


# ------------------------------------------------------------------------------------------- second-order cones


def second_order_blocks(n=3):
    """Both cones hold with room at a point, and the objective pulls far away from it."""
    P, _ = quadratic(n=n)
    x, cones = normal(n, seed=40), []
    for i, size in enumerate((2, 4)):
        M, v, c = normal(size, n, seed=10 + i), normal(size, seed=20 + i), normal(n, seed=30 + i)
        cones.append((M, v, c, (M @ x + v).norm() - c @ x + 0.05))
    return P, -P @ (x + 10 * normal(n, seed=2)), cones


def test_second_order_cone_program_and_its_duals():
    P, q, cones = second_order_blocks()
    solution = cl.solve_socp(P, q, cones, lb=-5.0)
    x, duals = solution.x, solution.duals["second_order"]
    stationarity = P @ x + q - solution.duals["lb"]
    for (M, v, c, d), dual in zip(cones, duals, strict=True):
        t, u = dual[0], dual[1:]
        slack = torch.cat([(c @ x + d).reshape(1), M @ x + v])
        assert (M @ x + v).norm() <= c @ x + d + 1e-8
        assert u.norm() <= t + 1e-8
        assert (slack @ dual).abs() <= 1e-8
        stationarity = stationarity - c * t - M.T @ u
    assert all(float(dual[0]) > 1e-3 for dual in duals)
    assert stationarity.abs().max() <= 1e-8


def test_gradients_of_a_second_order_cone_program():
    P, q, cones = second_order_blocks()
    leaves = [value.clone().requires_grad_() for value in (P, q, *(part for cone in cones for part in cone))]

    def solve(P, q, *parts):
        P = 0.5 * (P + P.T)
        solution = cl.solve_socp(P, q, [parts[:4], parts[4:]])
        return (solution.x, solution.objective, *solution.duals["second_order"])

    assert torch.autograd.gradcheck(solve, leaves, eps=1e-5, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------- gradients


def test_gradients_of_each_block_of_a_quadratic_program():
    given = blocks()
    names = list(given)

    def solve(*values):
        arguments = dict(zip(names, values, strict=True))
        arguments["P"] = 0.5 * (arguments["P"] + arguments["P"].T)
        solution = cl.solve_qp(**arguments, tolerance=1e-10)
        return (solution.x, solution.objective, *solution.duals.values())

    leaves = [value.clone().requires_grad_() for value in given.values()]
    assert torch.autograd.gradcheck(solve, leaves, eps=1e-5, atol=1e-6, rtol=1e-5)


def test_gradients_of_each_block_of_a_linear_program():
    """At a vertex: zero in q for x, the multipliers move instead."""
    A, b = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    q, lb = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64), torch.tensor([0.1, 0.0, 0.2], dtype=torch.float64)

    def solve(q, A, b, lb):
        solution = cl.solve_lp(q, A=A, b=b, lb=lb, tolerance=1e-10)
        return solution.x, solution.duals["A"], solution.duals["lb"], solution.objective

    leaves = [value.clone().requires_grad_() for value in (q, A, b, lb)]
    assert torch.autograd.gradcheck(solve, leaves, eps=1e-5, atol=1e-6, rtol=1e-5)


def test_gradients_of_a_cone_program():
    problem = random_program(Cones(zero=1, second_order=(3,), psd=(2,)), seed=1)

    def solve(P, q, A, b):
        cones = {"zero": 1, "second_order": [3], "psd": [2]}
        solution = cl.solve_cone_program(0.5 * (P + P.T), q, A, b, cones)
        return solution.x, solution.s, solution.z, solution.objective

    leaves = [value.clone().requires_grad_() for value in (problem.P, problem.q, problem.A, problem.b)]
    assert torch.autograd.gradcheck(
        solve, leaves, eps=1e-5, atol=1e-6, rtol=1e-5, fast_mode=True, check_forward_ad=True
    )


def test_only_the_symmetric_part_of_P_counts():
    """The gradient is that with respect to a symmetric P, whichever triangle a step goes to."""
    P, q = quadratic()
    leaf = P.clone().requires_grad_()
    x = cl.solve_qp(leaf, q).x
    (grad,) = torch.autograd.grad(x.sum(), leaf)
    assert torch.allclose(grad, grad.T, rtol=0, atol=1e-15)
    w = torch.linalg.solve(P, torch.ones(4, dtype=torch.float64))
    assert torch.allclose(grad, -0.5 * (torch.outer(w, x.detach()) + torch.outer(x.detach(), w)), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (1, 2), (0,), (2, 0)])
def test_batch_dimensions(batch):
    arguments = {key: value.requires_grad_() for key, value in blocks(*batch).items()}
    solution = cl.solve_qp(**arguments)
    assert solution.x.shape == (*batch, 4)
    assert solution.z.shape == solution.s.shape == (*batch, 1 + 3 + 4 + 4)
    for value in (solution.objective, solution.status, solution.iterations, solution.gap, solution.primal_residual):
        assert value.shape == batch
    assert solution.duals["G"].shape == (*batch, 3)
    grads = torch.autograd.grad(solution.x.sum() + solution.objective.sum(), list(arguments.values()))
    for value, grad in zip(arguments.values(), grads, strict=True):
        assert grad.shape == value.shape


def test_elements_of_a_batch_are_what_they_are_alone():
    arguments = blocks(2, 3)
    together = cl.solve_qp(**arguments)
    for i, j in itertools.product(range(2), range(3)):
        alone = cl.solve_qp(**{key: value[i, j] for key, value in arguments.items()})
        assert torch.allclose(together.x[i, j], alone.x, rtol=0, atol=1e-13)
        assert torch.allclose(together.objective[i, j], alone.objective, rtol=1e-13, atol=0)


def test_batch_dimensions_broadcast():
    P, q = quadratic()
    batches = (q.repeat(3, 1, 1) + normal(3, 1, 4), torch.full((2, 4), -0.1).double() - normal(2, 4, seed=9).abs())
    leaves = [value.clone().requires_grad_() for value in (P, *batches)]
    solution = cl.solve_qp(leaves[0], leaves[1], lb=leaves[2])
    assert solution.x.shape == (3, 2, 4)
    weights = normal(3, 2, 4, seed=3)
    grads = torch.autograd.grad((weights * solution.x).sum(), leaves)
    full = [P.expand(3, 2, 4, 4), batches[0].expand(3, 2, 4), batches[1].expand(3, 2, 4)]
    copies = [value.clone().requires_grad_() for value in full]
    apart = torch.autograd.grad((weights * cl.solve_qp(copies[0], copies[1], lb=copies[2]).x).sum(), copies)
    assert torch.allclose(grads[0], apart[0].sum((0, 1)), rtol=1e-9, atol=1e-12)
    assert torch.allclose(grads[1], apart[1].sum(1, keepdim=True), rtol=1e-9, atol=1e-12)
    assert torch.allclose(grads[2], apart[2].sum(0), rtol=1e-9, atol=1e-12)


def test_bounds_broadcast_over_the_batch():
    P, q = quadratic()
    lb = torch.tensor([[-0.5], [0.0], [0.5]], dtype=torch.float64).expand(3, 4)
    x = cl.solve_qp(P, q, lb=lb).x
    assert x.shape == (3, 4)
    assert (x >= lb - 1e-8).all()


# ------------------------------------------------------------------------------------------- kinds of numbers


def test_float32_in_float32_out():
    arguments = {key: value.float().requires_grad_() for key, value in blocks().items()}
    solution = cl.solve_qp(**arguments)
    assert {solution.x.dtype, solution.z.dtype, solution.objective.dtype, solution.duals["A"].dtype} == {torch.float32}
    assert solution.status.dtype == torch.int64
    assert solution.primal_residual.dtype == torch.float64
    grads = torch.autograd.grad(solution.x.sum(), list(arguments.values()))
    assert {grad.dtype for grad in grads} == {torch.float32}
    exact = {key: value.detach().double().requires_grad_() for key, value in arguments.items()}
    expected = torch.autograd.grad(cl.solve_qp(**exact).x.sum(), list(exact.values()))
    for got, want in zip(grads, expected, strict=True):
        assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-5)


def test_mixed_dtypes_are_promoted():
    P, q = quadratic()
    assert cl.solve_qp(P.float(), q).x.dtype == torch.float64
    assert cl.solve_qp(P.float(), q.float(), lb=0.0).x.dtype == torch.float32
    assert cl.solve_qp(P.half().float(), q.float()).x.dtype == torch.float32


def test_arrays_and_lists():
    P, q = quadratic()
    expected = cl.solve_qp(P, q, lb=-0.1).x
    for kind in (np.asarray, lambda value: value.tolist()):
        solution = cl.solve_qp(kind(P), kind(q), lb=kind(torch.full((4,), -0.1).double()))
        assert torch.allclose(solution.x.double(), expected, rtol=0, atol=1e-6)
    assert cl.solve_qp(P.numpy(), q.numpy()).x.dtype == torch.float64
    assert cl.solve_qp(P.numpy().astype(np.float32), q.numpy().astype(np.float32)).x.dtype == torch.float32
    assert cl.solve_qp(np.eye(2, dtype=int), np.array([1, 2])).x.tolist() == pytest.approx([-1, -2])


def test_arrays_among_tensors_follow_the_tensors():
    P, q = quadratic()
    q = q.requires_grad_()
    solution = cl.solve_qp(P.numpy(), q, np.ones((1, 4)), np.array([0.3]))
    assert torch.autograd.grad(solution.x.sum(), q)[0].isfinite().all()


def test_arrays_are_not_written_to():
    arguments = {key: value.numpy() for key, value in blocks().items()}
    arguments["lb"][0] = -INF
    before = {key: value.copy() for key, value in arguments.items()}
    cl.solve_qp(**arguments)
    assert all(np.array_equal(arguments[key], before[key]) for key in arguments)


def test_read_only_and_strided_arrays():
    P, q = quadratic()
    array = np.asfortranarray(P.numpy())
    array.flags.writeable = False
    assert torch.allclose(cl.solve_qp(array, q.repeat(2)[::1][:4]).x, cl.solve_qp(P, q).x)
    assert torch.allclose(cl.solve_qp(P.numpy()[::-1, ::-1], q.flip(0).numpy()).x, cl.solve_qp(P, q).x.flip(0))


# ------------------------------------------------------------------------------------------- cone programs


def test_cones_as_a_mapping():
    problem = random_program(Cones(zero=1, nonnegative=2, second_order=(3,)), seed=2)
    blocks = (problem.P, problem.q, problem.A, problem.b)
    solution = cl.solve_cone_program(*blocks, {"zero": 1, "nonnegative": 2, "second_order": [3]})
    assert torch.allclose(solution.x, problem.x, rtol=0, atol=1e-7)
    assert torch.allclose(solution.s, problem.s, rtol=0, atol=1e-7)
    assert torch.allclose(solution.z, problem.z, rtol=0, atol=1e-7)
    with pytest.raises(ArgumentError, match="soc"):
        cl.solve_cone_program(*blocks, {"soc": [3]})


def test_cone_program_without_rows():
    P, q = quadratic()
    solution = cl.solve_cone_program(P, q, torch.zeros(0, 4), torch.zeros(0), Cones())
    assert torch.allclose(solution.x, -torch.linalg.solve(P, q), rtol=0, atol=1e-10)
    assert solution.z.shape == (0,)


# ------------------------------------------------------------------------------------------- wrong arguments

WRONG = {
    "P": (normal(3, 4), r"P has shape \(3, 4\), expected \(\*batch, 4, 4\)"),
    "G": (normal(3, 5), r"G has shape \(3, 5\), expected \(\*batch, 3, 4\)"),
    "h": (normal(2), r"G has shape \(3, 4\), expected \(\*batch, 2, 4\)"),
    "A": (normal(4), r"A has shape \(4,\), expected \(\*batch, 1, 4\)"),
    "b": (torch.tensor(1.0), r"b has shape \(\), expected \(\*batch, length\)"),
    "lb": (normal(3), r"lb has shape \(3,\), expected \(\*batch, 4\)"),
    "ub": (normal(4, 1), r"ub has shape \(4, 1\), expected \(\*batch, 4\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes_are_named(name):
    value, message = WRONG[name]
    with pytest.raises(ArgumentError, match=message):
        cl.solve_qp(**(blocks() | {name: value}))


def test_wrong_shapes_of_cones_are_named():
    P, q, cones = second_order_blocks()
    M, v, c, d = cones[1]
    with pytest.raises(ArgumentError, match=r"second_order\[1\]\[0\] has shape \(4, 2\), expected \(\*batch, 4, 3\)"):
        cl.solve_socp(P, q, [cones[0], (M[:, :2], v, c, d)])
    with pytest.raises(ArgumentError, match=r"second_order\[1\]"):
        cl.solve_socp(P, q, [cones[0], (M, v, c)])
    with pytest.raises(ArgumentError, match=r"b has shape \(2,\), expected \(\*batch, 3\)"):
        cl.solve_cone_program(P, q, normal(3, 3), normal(2), Cones(nonnegative=3))


def test_batch_dimensions_that_do_not_broadcast_are_listed():
    arguments = blocks(3)
    arguments["q"] = arguments["q"][:2]
    with pytest.raises(ArgumentError, match=r"P \(3,\), q \(2,\)"):
        cl.solve_qp(**arguments)


@pytest.mark.parametrize(("given", "message"), [({"G": 1}, "G and h"), ({"h": 1}, "G and h"), ({"A": 1}, "A and b")])
def test_halves_of_pairs_are_refused(given, message):
    arguments = blocks()
    with pytest.raises(ArgumentError, match=message):
        cl.solve_qp(arguments["P"], arguments["q"], **{key: arguments[key] for key in given})


def test_complex_numbers_strings_and_no_numbers_are_refused():
    P, q = quadratic()
    with pytest.raises(ArgumentError, match=r"[Pq] is on the meta device"):
        cl.solve_qp(P.to("meta"), q.to("meta"))
    with pytest.raises(ArgumentError, match="q is complex"):
        cl.solve_qp(P, q.to(torch.complex128))
    with pytest.raises(ArgumentError, match="q is a str"):
        cl.solve_qp(P, "abcd")


def test_matrices_that_are_not_psd_are_refused():
    P, q = quadratic(3)
    indefinite, lopsided = P.clone(), P.clone()
    indefinite[1] -= 5 * torch.eye(4)
    lopsided[2, 0, 1] += 1
    with pytest.raises(ArgumentError, match=r"P must be PSD.*index 1"):
        cl.solve_qp(indefinite, q)
    with pytest.raises(ArgumentError, match=r"P must be PSD.*index 2"):
        cl.solve_qp(lopsided, q)
    symmetric = 0.5 * (lopsided + lopsided.mT)
    assert torch.allclose(cl.solve_qp(lopsided, q, validate=False).x, cl.solve_qp(symmetric, q).x, rtol=0, atol=1e-12)


def test_unknown_policies_are_refused():
    P, q = quadratic()
    with pytest.raises(ArgumentError, match="on_failure"):
        cl.solve_qp(P, q, on_failure="ignore")


def test_crossed_bounds_are_infeasible():
    P, q = quadratic(2)
    lb = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    solution = cl.solve_qp(P, q, lb=lb, ub=0.5, on_failure="nan")
    assert solution.solved.tolist() == [True, False]
    assert cl.Status(int(solution.status[1])) is cl.Status.PRIMAL_INFEASIBLE


# ------------------------------------------------------------------------------------------- imports


def test_cvxpy_is_not_imported():
    code = (
        "import sys, torch, convexlayers as cl\n"
        "assert 'cvxpy' not in sys.modules and 'clarabel' not in sys.modules\n"
        "q = torch.ones(2, requires_grad=True)\n"
        "cl.solve_qp(torch.eye(2), q, lb=0.0).x.sum().backward()\n"
        "cl.solve_cone_program(None, [1.0], [[-1.0]], [0.0], {'nonnegative': 1})\n"
        "assert 'cvxpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning:convexlayers", "-c", code], check=True)


@pytest.mark.parametrize("solver", ["native", "torch", "clarabel", "scs"])
@pytest.mark.parametrize("b", [1e-300, 1e-17, -4.4e-16, 1e-12, 1e-9, 1e-6, 1e-3])
def test_a_right_hand_side_of_rounding_size(solver, b):
    """It once was the unit of the program, in which every solution is a ray: "unbounded", with P positive definite."""
    P, q = quadratic(n=5)
    A, b = torch.ones(1, 5, dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    solution = cl.solve_qp(P, q, A=A, b=b, solver=solver)
    K = torch.cat([torch.cat([P, A.mT], 1), torch.cat([A, torch.zeros(1, 1, dtype=torch.float64)], 1)])
    expected = torch.linalg.solve(K, torch.cat([-q, b]))[:5]
    assert torch.allclose(solution.x, expected, rtol=0, atol=1e-9)
