"""What layers promise besides solutions: batches, copies, files, threads, warm starts."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from convexlayers.cones import Cones
from convexlayers.engines import make_engine
from convexlayers.layer import ConvexLayer
from convexlayers.testing import check_layer, random_program
from convexlayers.testing.layer_checks import Finding, distance
from convexlayers.testing.pairs import Sampler

BATCH = 6


def fact(what: str, holds: bool) -> Finding:
    """A statement that holds or does not."""
    return Finding(what, 0.0 if holds else math.inf, 1.0)


def _layer() -> tuple[ConvexLayer, list[Tensor]]:
    """Robust least squares from CVXPY with its values: a matrix, a vector and a bound as parameters."""
    import cvxpy as cp

    x, A, b = cp.Variable(3), cp.Parameter((5, 3), name="A"), cp.Parameter(5, name="b")
    cap = cp.Parameter(nonneg=True, name="cap")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.norm(x, 1)), [cp.norm(x) <= cap])
    sampler = Sampler.seeded((BATCH,), 0)
    return ConvexLayer(problem, [A, b, cap], [x]), [sampler.normal(5, 3), sampler.normal(5), sampler.between(0.1, 0.3)]


def _whole_layer() -> Sequence[Finding]:
    layer, values = _layer()
    # Inside it everything has been compared, each with its own bound.
    return [Finding("largest share of what is allowed", check_layer(layer, *values), 1.0)]


def _independence() -> Sequence[Finding]:
    """Bits of the native engine: alone or in a batch, on one thread or on more."""
    problem = random_program(Cones(zero=2, nonnegative=6, second_order=(4,)), batch=(BATCH,), draws=1)
    plan = make_engine("native", threads=1).setup(problem.program)
    together = plan.solve(problem.theta)
    alone = [plan.solve([value[k : k + 1] for value in problem.theta]) for k in range(BATCH)]
    more = make_engine("native", threads=3).setup(problem.program).solve(problem.theta)
    parts = ("x", "s", "z")
    same = all(torch.equal(getattr(one, n)[0], getattr(together, n)[k]) for k, one in enumerate(alone) for n in parts)
    return [
        fact("an element has the same bits alone and in a batch", same),
        fact("and on any number of threads", all(torch.equal(getattr(more, n), getattr(together, n)) for n in parts)),
    ]


def _files() -> Sequence[Finding]:
    layer, values = _layer()
    file = io.BytesIO()
    layer.save(file)
    file.seek(0)
    loaded = ConvexLayer.load(file)
    error = distance(loaded(*values), layer(*values))
    return [fact("a loaded layer returns the same bits", error == 0.0)]


def _warm_start() -> Sequence[Finding]:
    layer, (A, b, cap) = _layer()
    before = layer.solve(A, b, cap)
    cold, warm = layer.solve(A, b + 1e-4, cap), layer.solve(A, b + 1e-4, cap, warm_start=before)
    counts = int(cold.iterations.sum()), int(warm.iterations.sum())
    return [
        Finding("solution against a cold start", distance(warm.values, cold.values), 1e-7),
        fact(f"{counts[1]} iterations in place of {counts[0]}", counts[1] < counts[0]),
    ]


def _failures() -> Sequence[Finding]:
    """A plane that the ball does not reach, in one element."""
    import cvxpy as cp

    x, radius = cp.Variable(3), cp.Parameter()
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.norm(x)), [x[0] == 1, cp.norm(x) <= radius]), [radius], [x])
    nan = ConvexLayer.from_program(layer.program, solver=replace(layer.engine), on_failure="nan")
    value = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    (found,) = nan(value)
    found.nan_to_num(0.0).sum().backward()
    assert value.grad is not None
    return [
        fact(
            "an infeasible element is NaN, the others are solved",
            found.isnan().any(-1).tolist() == [False, True, False],
        ),
        fact("and no gradient is", bool(value.grad.isfinite().all())),
    ]


PROMISES: dict[str, Callable[[], Sequence[Finding]]] = {
    "a layer from CVXPY: batches, sharing, float32, differences, NaN, copies": _whole_layer,
    "independence of a batch": _independence,
    "failure of one element": _failures,
    "save and load": _files,
    "warm start": _warm_start,
}
