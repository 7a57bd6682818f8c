"""Random problems with random values in random batches: the library's own errors or right answers, nothing else.

What is drawn: a DPP problem from atoms and cones, values of its parameters of any size, with and without NaN and Inf,
batch shapes, an engine. What is asked: no other exception than the library's own; SOLVED only where residuals, measured
again from the numbers, are within tolerance; NaN everywhere else; finite gradients, zero in failed elements; and for
values of ordinary size the objective and the statuses that CVXPY finds.

In `make test` the examples are always the same; `make fuzz FUZZ_EXAMPLES=2000` draws new ones, and prints what fails in
a form that `reproduce_failure` takes.
"""

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, event, given, note, settings
from hypothesis import strategies as st

import convexlayers as cl
from convexlayers import Status
from convexlayers.cones import Cones
from convexlayers.engines import Native
from convexlayers.errors import ConvexLayersError, DerivativeWarning
from convexlayers.scaling import find_scaling
from convexlayers.solution import TOLERANCE_FACTOR, measure
from convexlayers.testing import Numbers

ASKED = os.environ.get("CONVEXLAYERS_FUZZ_EXAMPLES")
EXAMPLES = int(ASKED or 0)
TOLERANCE = 1e-8
# What CVXPY's solve leaves in the objective, relative.
CVXPY_TOLERANCE = 1e-5
NO_LIMITS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def fuzz(examples: int) -> settings:
    """So many examples, always the same ones unless a longer run was asked for."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not ASKED,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink] if ASKED else [Phase.generate],
        suppress_health_check=NO_LIMITS,
    )


# ------------------------------------------------------------------------------------------------------- problems

Atom = Callable[[cp.Expression], cp.Expression]

# Of a vector, convex, finite everywhere.
ANYWHERE: dict[str, Atom] = {
    "norm1": cp.norm1,
    "norm2": lambda e: cp.norm(e, 2),
    "norm_inf": cp.norm_inf,
    "pnorm": lambda e: cp.pnorm(e, 3),
    "sum_squares": cp.sum_squares,
    "quad_over_lin": lambda e: cp.quad_over_lin(e, 1.5),
    "huber": lambda e: cp.sum(cp.huber(e, 0.7)),
    "logistic": lambda e: cp.sum(cp.logistic(e)),
    "exp": lambda e: cp.sum(cp.exp(e)),
    "log_sum_exp": cp.log_sum_exp,
    "max": cp.max,
    "pos": lambda e: cp.sum(cp.pos(e)),
    "power": lambda e: cp.sum(cp.power(cp.pos(e), 1.5)),
    "power_4": lambda e: cp.sum(cp.power(e, 4)),
    "sum_largest": lambda e: cp.sum_largest(e, 1.5),
    "cumsum": lambda e: cp.max(cp.cumsum(e)),
    "maximum": lambda e: cp.sum(cp.maximum(e, 0.3, -2 * e)),
    "composed": lambda e: cp.exp(cp.norm2(e)) + cp.abs(cp.sum(e)),
}
# Of a vector, convex, for positive entries.
POSITIVE: dict[str, Atom] = {
    "log": lambda e: -cp.sum(cp.log(e)),
    "entr": lambda e: -cp.sum(cp.entr(e)),
    "kl_div": lambda e: cp.sum(cp.kl_div(e, 0.8)),
    "rel_entr": lambda e: cp.sum(cp.rel_entr(0.6, e)),
    "inv_pos": lambda e: cp.sum(cp.inv_pos(e)),
    "sqrt": lambda e: -cp.sum(cp.sqrt(e)),
    "geo_mean": lambda e: -cp.geo_mean(e),
    "geo_mean_exact": lambda e: -cp.geo_mean(e, approx=False),
    "power_exact": lambda e: -cp.sum(cp.power(e, 0.37, approx=False)),
    "xlog": lambda e: cp.max(e) - cp.sum(cp.log(1 + e)),
}
# Of a symmetric matrix, convex.
SPECTRAL: dict[str, Atom] = {
    "lambda_max": cp.lambda_max,
    "lambda_sum_largest": lambda e: cp.lambda_sum_largest(e, 2),
    "norm_nuc": lambda e: cp.norm(e, "nuc"),
    "sigma_max": cp.sigma_max,
    "trace": lambda e: cp.trace(e) + cp.sum_squares(e),
    "log_det": lambda e: cp.trace(e) - cp.log_det(e),
}


@dataclass(frozen=True)
class Drawn:
    """A problem and what its parameters stand for.

    Attributes:
        problem: DPP.
        parameters: all of them.
        variables: to return.
        text: what was drawn, for messages.
    """

    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]
    text: str


def constraints_on(draw, x: cp.Expression, e: cp.Expression, b: cp.Parameter, r: cp.Parameter):
    """A few constraints on a vector x and an affine expression e."""
    makers = {
        "rows": lambda: e <= b,
        "bounds": lambda: x >= -r,
        "box": lambda: cp.abs(x) <= 1 + r,
        "equality": lambda: cp.sum(x) == r,
        "equalities": lambda: e == b,
        "ball": lambda: cp.norm(e) <= r,
        "soc": lambda: cp.SOC(r, x - b[0]),
        "sum of squares": lambda: cp.sum_squares(e) <= 1 + r,
        "logarithms": lambda: cp.log_sum_exp(e) <= r + 2,
        "repeated": lambda: cp.hstack([x, x]) <= cp.hstack([b[0] + r + 0 * x, b[0] + r + 0 * x]),
        "exponential": lambda: cp.ExpCone(x[0], r + x[-1] * 0, x[-1] + 3),
        "power": lambda: cp.PowCone3D(x[0], x[-1] + 1, e[0], 0.3),
        "psd": lambda: cp.bmat([[x[0] + r, x[-1]], [x[-1], 1 + r]]) >> 0,
    }
    names = draw(st.lists(st.sampled_from(sorted(makers)), max_size=3, unique=True))
    return names, [makers[name]() for name in names]


@st.composite
def vector_problems(draw) -> Drawn:
    """In a vector, with a quadratic, a linear or no term besides the atoms."""
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    x = cp.Variable(n, name="x")
    A, b, c = cp.Parameter((m, n), name="A"), cp.Parameter(m, name="b"), cp.Parameter(n, name="c")
    r = cp.Parameter(nonneg=True, name="r")
    e = {"rows": lambda: A @ x + b, "shifted": lambda: r * x + c, "plain": lambda: x}[
        draw(st.sampled_from(["rows", "shifted", "plain"]))
    ]()
    base = draw(st.sampled_from(["distance", "distance", "linear", "nothing"]))
    terms: list = {"distance": [cp.sum_squares(x - c)], "linear": [c @ x], "nothing": []}[base]
    names = draw(st.lists(st.sampled_from([*ANYWHERE, *POSITIVE]), max_size=2, unique=True))
    for name in names:
        weight = r if draw(st.booleans()) and name in ("norm1", "exp", "huber", "log", "entr") else 0.7
        # DPP: a parameter times an expression with parameters is not affine in them.
        inside = x if weight is r else e
        terms.append(weight * (ANYWHERE | POSITIVE)[name](inside))
    chosen, constraints = constraints_on(draw, x, A @ x, b, r)
    objective = sum(terms) if terms else cp.Constant(1.5)
    maximize = draw(st.booleans())
    problem = cp.Problem(cp.Maximize(-objective) if maximize else cp.Minimize(objective), constraints)
    return finish(problem, f"n={n} m={m} {base} e={e} atoms={names} constraints={chosen} maximize={maximize}")


@st.composite
def matrix_problems(draw) -> Drawn:
    """In a symmetric matrix."""
    order = draw(st.integers(1, 3))
    X = cp.Variable((order, order), symmetric=True, name="X")
    C = cp.Parameter((order, order), symmetric=True, name="C")
    r = cp.Parameter(nonneg=True, name="r")
    name = draw(st.sampled_from(sorted(SPECTRAL)))
    atom = SPECTRAL[name]
    if name == "lambda_sum_largest" and order < 2:
        atom = SPECTRAL["lambda_max"]
    makers = {
        "psd": lambda: X >> 0,
        "trace": lambda: cp.trace(X) == r,
        "shifted": lambda: X << (1 + r) * np.eye(order),
        "entries": lambda: cp.abs(X) <= 1 + r,
    }
    chosen = draw(st.lists(st.sampled_from(sorted(makers)), max_size=2, unique=True))
    base = draw(st.sampled_from(["distance", "linear"]))
    first = cp.sum_squares(X - C) if base == "distance" else cp.trace(C @ X)
    problem = cp.Problem(cp.Minimize(first + 0.6 * atom(X)), [makers[one]() for one in chosen])
    return finish(problem, f"order={order} {base} atom={name} constraints={chosen}")


def finish(problem: cp.Problem, text: str) -> Drawn:
    assume(problem.variables())
    return Drawn(problem, problem.parameters(), problem.variables(), text)


# --------------------------------------------------------------------------------------------------------- values

# Up to 1e20, which stands for "no bound" in other solvers; see also `test_bounds_beyond_all_others`.
SPECIAL = (float("nan"), float("inf"), -float("inf"), 1e20, -1e20, 1e-300, 1e16)
BATCHES = ((), (3,), (2, 2), (0,), (1,), (5,))


@dataclass(frozen=True)
class Values:
    """Of the parameters.

    Attributes:
        tensors: one per parameter.
        batch: the common batch shape.
        ordinary: whether all are finite and of size one.
    """

    tensors: list[torch.Tensor]
    batch: tuple[int, ...]
    ordinary: bool


@st.composite
def values_of(draw, drawn: Drawn, batches=BATCHES) -> Values:
    """Each parameter with the batch dimensions, with sizes of 1 instead, or with none."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.sampled_from(batches))
    scale = draw(st.sampled_from([1.0, 1.0, 1.0, 1e-6, 1e6]))
    poison = draw(st.sampled_from([None, None, None, *SPECIAL]))
    tensors = []
    for parameter in drawn.parameters:
        how = draw(st.sampled_from(["full", "full", "shared", "ones"]))
        dims = {"full": batch, "shared": (), "ones": (1,) * len(batch)}[how]
        value = scale * torch.randn((*dims, *parameter.shape), generator=generator, dtype=torch.float64)
        value = value.abs() if parameter.is_nonneg() else value
        value = value + value.mT if parameter.attributes["symmetric"] else value
        tensors.append(value)
    if poison is not None and tensors and tensors[0].numel():
        k = draw(st.integers(0, len(tensors) - 1))
        assume(tensors[k].numel() > 0)
        if not (drawn.parameters[k].is_nonneg() and poison < 0) and not drawn.parameters[k].attributes["symmetric"]:
            tensors[k].view(-1)[draw(st.integers(0, tensors[k].numel() - 1))] = poison
    shapes = [t.shape[: t.ndim - len(p.shape)] for t, p in zip(tensors, drawn.parameters, strict=True)]
    batch = torch.broadcast_shapes(*shapes) if shapes else ()
    return Values(tensors, tuple(batch), scale == 1.0 and poison is None)


# --------------------------------------------------------------------------------------------------------- checks


def check_elements(solution, values: Values, variables: int) -> None:
    """What SOLVED promises, and what everything else is."""
    assert solution.status.shape == values.batch
    cone, solved = solution.cone_solution, solution.solved
    scaling = find_scaling(cone.program)
    point = scaling.normalize_point(cone.x, cone.s, cone.z)
    residual = measure(scaling.normalize(cone.program), *point).largest
    worst = residual[cone.solved]
    assert (worst <= TOLERANCE_FACTOR * TOLERANCE).all(), f"SOLVED with a residual of {worst.max():.1e}"
    assert len(solution.values) == variables
    for value in solution.values:
        assert value[solved].isfinite().all()
        assert value[~solved].isnan().all()
    # Not every entry of every parameter is a number of the program.
    finite = cone.program.data.isfinite().all(-1)
    assert not (cone.solved & ~finite).any(), "SOLVED with data that are not finite"


def has_tiny(values: Values) -> bool:
    """Whether a reciprocal of a value is no number any more."""
    return any(bool(((t != 0) & (t.abs() < 1e-150)).any()) for t in values.tensors)


def check_gradients(drawn: Drawn, solution, leaves: list[torch.Tensor], values: Values) -> None:
    """Finite, and zero in failed elements whatever comes from above."""
    weights = [torch.where(value.isnan(), float("nan"), 1.0) for value in solution.values]
    gradients = torch.autograd.grad(solution.values, leaves, weights, allow_unused=True)
    for parameter, leaf, gradient in zip(drawn.parameters, leaves, gradients, strict=True):
        if gradient is None:
            continue
        assert gradient.shape == leaf.shape
        # At 1e-300 the derivative itself may be too large for a number.
        assert gradient.isfinite().all() or has_tiny(values), "a gradient that is not finite"
        if gradient.shape == (*values.batch, *parameter.shape):
            assert (gradient[~solution.solved] == 0).all(), "a gradient of a failed element"


def check_against_cvxpy(drawn: Drawn, values: Values, solution) -> None:
    """The first element, by CVXPY and Clarabel: the same objective, or the same reason for none."""
    index = (0,) * len(values.batch)
    for parameter, tensor in zip(drawn.parameters, values.tensors, strict=True):
        parameter.value = tensor.expand((*values.batch, *parameter.shape))[index].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            drawn.problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
        except cp.SolverError:
            return
    status, found = drawn.problem.status, Status(int(solution.status[index]))
    event(f"CVXPY says {status}, we say {found.name}")
    pairs = {cp.OPTIMAL: Status.SOLVED, cp.INFEASIBLE: Status.PRIMAL_INFEASIBLE, cp.UNBOUNDED: Status.DUAL_INFEASIBLE}
    # A program that is neither feasible nor bounded may be called either.
    if status not in pairs or found not in pairs.values():
        return
    if status != cp.OPTIMAL and found != Status.SOLVED:
        return
    assert found == pairs[status], f"CVXPY says {status}"
    expected = drawn.problem.solution.opt_val
    off = abs(float(solution.objective.detach()[index]) - expected) / max(1.0, abs(expected))
    assert off <= CVXPY_TOLERANCE, f"objective {float(solution.objective.detach()[index])}, CVXPY says {expected}"


def check(drawn: Drawn, values: Values, engine: str, dtype: torch.dtype = torch.float64) -> None:
    """Everything, for one draw."""
    note(f"{drawn.text}\n{engine} batch={values.batch}\n{values.tensors}")
    try:
        layer = cl.ConvexLayer(
            drawn.problem, drawn.parameters, drawn.variables, solver=engine, on_failure="nan", tolerance=TOLERANCE
        )
        leaves = [tensor.to(dtype).clone().requires_grad_() for tensor in values.tensors]
        solution = layer.solve(*leaves)
    except ConvexLayersError as error:
        event(f"{type(error).__name__}")
        return
    for code in set(solution.status.flatten().tolist()):
        event(f"{engine}: {Status(code).name}")
    check_elements(solution, values, len(drawn.variables))
    if leaves and solution.values[0].requires_grad:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DerivativeWarning)
            check_gradients(drawn, solution, leaves, values)
    if values.ordinary and solution.status.numel() and dtype == torch.float64:
        check_against_cvxpy(drawn, values, solution)


@pytest.mark.parametrize("huge", [1e6, 1e12, 1e20, 1e50, 1e100, 1e300])
def test_bounds_beyond_all_others(huge):
    """An upper bound that never matters: minimize |x - 1|^2 subject to 0 <= x <= (1/2, huge) has x = (1/2, 1)."""
    x, u = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= u, x >= 0])
    layer = cl.ConvexLayer(problem, [u], [x], on_failure="nan")
    solution = layer.solve(torch.tensor([0.5, huge], dtype=torch.float64))
    assert solution.solved
    assert torch.allclose(solution.values[0], torch.tensor([0.5, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("huge", [1e8, 1e12, 1e16, 1e19])
def test_a_huge_bound_beside_a_cone(huge):
    """|X| <= 1 + huge, with X where the norm puts it: the bound once decided what counts as a small residual."""
    X, C, r = cp.Variable((1, 1)), cp.Parameter((1, 1)), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C) + 0.6 * cp.norm(X, "nuc")), [cp.abs(X) <= 1 + r])
    layer = cl.ConvexLayer(problem, [C, r], [X])
    C_t = torch.tensor([3.0820, -0.5869, -4.3576], dtype=torch.float64).reshape(3, 1, 1)
    (found,) = layer(C_t, torch.tensor(huge, dtype=torch.float64))
    assert torch.allclose(found, C_t.sign() * (C_t.abs() - 0.3), rtol=0, atol=1e-7)


def test_projections_far_along_the_exponential_cone():
    """minimize 1/2 |x - v|^2 for x in K: the native engine beside the library's own projection."""
    cones, count = Cones(exponential=1), 2000
    v = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = v * torch.tensor([2.0, 6.0, 2.0], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    numbers = Numbers(cones, eye, -v, -eye, torch.zeros_like(v))
    solution = Native(tolerance=TOLERANCE).setup(numbers.program).solve(numbers.theta)
    point = solution.x[solution.solved], solution.s[solution.solved], solution.z[solution.solved]
    residual = measure(solution.program.select(solution.solved.nonzero().squeeze(-1)), *point).largest
    assert residual.amax() <= TOLERANCE_FACTOR * TOLERANCE
    assert (point[0] - cones.project(v[solution.solved])).abs().amax() <= 1e-6


def test_an_overflow_is_a_status():
    """The matrix of the derivative has no eigenvalues then, and that once was the call's error."""
    x, c, r = cp.Variable(2), cp.Parameter(2), cp.Parameter(nonneg=True)
    e = r * x + c
    objective = cp.sum_squares(x - c) + 0.7 * cp.sum(cp.huber(e, 0.7)) + 0.7 * cp.norm(e, 2)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(objective), [x >= -r]), [c, r], [x], on_failure="nan")
    c_t = torch.tensor([[-1e200, 6.7468e-07], [0.3, -0.2]], dtype=torch.float64)
    solution = layer.solve(c_t, torch.tensor(1.6915e-07, dtype=torch.float64))
    assert solution.solved.tolist() == [False, True]


@pytest.mark.slow
@fuzz(1600)
@given(st.data())
def test_vector_problems(data):
    drawn = data.draw(vector_problems())
    check(drawn, data.draw(values_of(drawn)), data.draw(st.sampled_from(["native", "native", "clarabel"])))


@pytest.mark.slow
@fuzz(1000)
@given(st.data())
def test_matrix_problems(data):
    drawn = data.draw(matrix_problems())
    check(drawn, data.draw(values_of(drawn)), data.draw(st.sampled_from(["native", "native", "clarabel"])))


@pytest.mark.slow
@fuzz(600)
@given(st.data())
def test_other_engines(data):
    """On one element: they are slow, and talk."""
    drawn = data.draw(vector_problems())
    engine = data.draw(st.sampled_from(["scs", "diffcp"]))
    with contextlib.redirect_stdout(None):
        check(drawn, data.draw(values_of(drawn, batches=((), (2,)))), engine)
