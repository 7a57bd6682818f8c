"""Units do not matter: of the data, of single rows, of the objective. Solutions and gradients follow the rescaling.

Two solves are compared, in the old units. Rescaling by powers of ten rounds every number, which moves solution and
gradient by 1e-16 times a condition number; those here are below 1e4.
"""

import pytest
import torch

import convexlayers as cl
from trust.families import leaves, randn
from trust.measured import record

TOLERANCE = 1e-11
SIZES = [1e-4, 1e-2, 1e2, 1e4, 1e6]
OBJECTIVES = [1e-6, 1e-3, 1e3, 1e6]
CONES = 3


def make_qp():
    """Two equalities; three of eight inequalities are active, so that the solution moves with everything."""
    n, e, g = 8, 2, 8
    L, inside = randn(n, n, seed=0), randn(n, seed=3)
    A, G = randn(e, n, seed=1), randn(g, n, seed=2)
    P = L @ L.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
    h = G @ inside + 1.5 * randn(g, seed=5).abs()
    return {"P": P, "q": randn(n, seed=4) - P @ inside, "G": G, "h": h, "A": A, "b": A @ inside}


def make_lp():
    """Bounded, as q has a dual point; its solution is a vertex."""
    n, g = 4, 12
    G, y = randn(g, n, seed=1), randn(g, seed=2).abs()
    return {"q": -G.mT @ y, "G": G, "h": randn(g, seed=3).abs() + 0.1}


def make_socp():
    n = 5
    data = {"P": 0.05 * torch.eye(n, dtype=torch.float64), "q": randn(n, seed=1)}
    inside = 0.3 * randn(n, seed=0)
    for k, dim in zip(range(CONES), (3, 4, 6), strict=True):
        M, c, v = randn(dim - 1, n, seed=10 + k), 0.1 * randn(n, seed=20 + k), randn(dim - 1, seed=30 + k)
        data |= {f"M{k}": M, f"v{k}": v, f"c{k}": c, f"d{k}": (M @ inside + v).norm() - c @ inside + 0.1}
    return data


MAKERS = {"qp": make_qp, "lp": make_lp, "socp": make_socp}


def run(data, solver):
    """x, s, and gradients of a fixed linear function of x."""
    names, values = list(data), leaves(data.values())
    given = dict(zip(names, values, strict=True))
    cones = [tuple(given.pop(f"{part}{k}") for part in "Mvcd") for k in range(CONES)] if "M0" in given else []
    solution = cl.solve_socp(given.pop("P", None), given.pop("q"), cones, **given, solver=solver)
    weight = randn(solution.x.shape[-1], seed=9)
    grads = torch.autograd.grad((weight * solution.x).sum(), values)
    return solution.x.detach(), solution.s.detach(), dict(zip(names, grads, strict=True))


def rows_tolerance(solver, largest):
    """The native engine equilibrates rows. Clarabel's solutions are refined until residuals are at rounding relative to
    the largest row (derivatives/refine.py), which is `largest` times as much of the smallest.
    """
    return TOLERANCE if solver == "native" else TOLERANCE * largest


def assert_close(got, expected, label, tolerance=TOLERANCE):
    error = float((got - expected).norm()) / max(1.0, float(expected.norm()))
    assert record(error, "difference") <= tolerance, label


def assert_follows(solver, name, factors, size=1.0, rows=None, tolerance=TOLERANCE):
    """Solve with each block times its factor: x comes out `size` times as large, gradients as the chain rule says.

    Args:
        factors: block -> number or tensor; 1 where it is missing.
        rows: of s, if they are rescaled.
    """
    data = MAKERS[name]()
    x, s, grads = run(data, solver)
    scaled = {block: value * factors.get(block, 1.0) for block, value in data.items()}
    new_x, new_s, new_grads = run(scaled, solver)
    assert_close(new_x / size, x, "x", tolerance)
    assert_close(new_s / (size if rows is None else rows), s, "s", tolerance)
    for block, grad in grads.items():
        assert_close(new_grads[block] * factors.get(block, 1.0) / size, grad, block, tolerance)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_not_trivial(solver, name):
    """What the others compare is not zero; only the solution of a linear program does not move with its costs."""
    x, s, grads = run(MAKERS[name](), solver)
    assert min(float(value.norm()) for value in (x, s)) > 0.1
    for block, grad in grads.items():
        assert float(grad.norm()) > 1e-2 or (name == "lp" and block == "q"), block


@pytest.mark.parametrize("factor", OBJECTIVES)
@pytest.mark.parametrize("name", MAKERS)
def test_units_of_the_objective(solver, name, factor):
    assert_follows(solver, name, {"P": factor, "q": factor})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MAKERS)
def test_units_of_the_data(solver, name, size):
    """x in other units: right-hand sides and, in a quadratic objective, its linear part, in the same ones."""
    factors = {"h": size, "b": size} | {f"{part}{k}": size for part in "vd" for k in range(CONES)}
    if name != "lp":
        factors["q"] = size
    assert_follows(solver, name, factors, size)


@pytest.mark.parametrize("largest", [1e2, 1e4])
@pytest.mark.parametrize("name", ["qp", "lp"])
def test_units_of_rows(solver, name, largest):
    """Each row in units of its own, from 1 to `largest`, in random order."""
    data = MAKERS[name]()
    pairs = [(matrix, right) for matrix, right in ("Ab", "Gh") if right in data]
    heights = [len(data[right]) for _, right in pairs]
    rows = torch.logspace(0, float(torch.tensor(largest).log10()), sum(heights), dtype=torch.float64)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    factors = {}
    for (matrix, right), part in zip(pairs, rows.split(heights), strict=True):
        factors |= {right: part, matrix: part.unsqueeze(-1)}
    assert_follows(solver, name, factors, rows=rows, tolerance=rows_tolerance(solver, largest))


@pytest.mark.parametrize("largest", [1e2, 1e4])
def test_units_of_cones(solver, largest):
    """A cone's rows share their units."""
    units = [largest, 1.0, largest**0.5]
    factors = {f"{part}{k}": unit for k, unit in enumerate(units) for part in "Mvcd"}
    rows = torch.tensor(units, dtype=torch.float64).repeat_interleave(torch.tensor([3, 4, 6]))
    assert_follows(solver, "socp", factors, rows=rows, tolerance=rows_tolerance(solver, largest))


@pytest.mark.parametrize("size", SIZES)
def test_units_differ_within_a_batch(solver, size):
    """Every element has its own: none is solved in another's."""
    data = make_qp()
    units = torch.tensor([1.0, size, 1.0], dtype=torch.float64).unsqueeze(-1)
    batch = {block: value * units if block in "qhb" else value for block, value in data.items()}
    expected, _, _ = run(data, solver)
    solution = cl.solve_qp(*[batch[block] for block in ("P", "q", "G", "h", "A", "b")], solver=solver)
    for value, unit in zip(solution.x, units, strict=True):
        assert_close(value / unit, expected, float(unit))


@pytest.mark.parametrize("size", SIZES)
def test_simplex_of_any_size(solver, size):
    """Against the closed form (Held, Wolfe, Crowder, 1974), where the first of these promises was broken."""
    y = randn(6, seed=3)
    ordered = y.sort(descending=True).values
    thresholds = (ordered.cumsum(0) - 1) / torch.arange(1, 7, dtype=y.dtype)
    expected = (y - thresholds[(ordered > thresholds).sum() - 1]).clamp(min=0)
    leaf = (size * y).requires_grad_()
    ones = torch.ones(1, 6, dtype=torch.float64)
    x = cl.solve_qp(torch.eye(6, dtype=torch.float64), -leaf, A=ones, b=size * ones[0, :1], lb=0.0, solver=solver).x
    assert_close(x.detach() / size, expected, "x")
    weight, active = randn(6, seed=4), expected > 0
    (grad,) = torch.autograd.grad((weight * x).sum(), leaf)
    assert_close(grad, torch.where(active, weight - weight[active].mean(), 0.0), "gradient")
