"""The public check of layers: it passes what is right, and catches each way of being wrong."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers.engines import Clarabel, Engine
from convexlayers.engines.clarabel import ClarabelPlan
from convexlayers.testing import check_layer

B, n = 3, 4


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qp(**options):
    """min |x - t|^2 + w'x st x >= 0, sum(x) = 1, with a dual among its outputs."""
    x, t, w = cp.Variable(n), cp.Parameter(n, name="t"), cp.Parameter(n, name="w", nonneg=True)
    total = cp.sum(x) == 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t) + w @ x), [x >= 0, total])
    return cl.ConvexLayer(problem, [t, w], [x, total.dual_variables[0]], **options)


def qp_values():
    return [randn(B, n, seed=1), randn(B, n, seed=2).abs() + 0.5]


def attributes(**options):
    """Parameters that may only be moved within a set: definite, symmetric, diagonal, sparse."""
    x, X = cp.Variable(n), cp.Variable((2, 2), symmetric=True)
    P, C = cp.Parameter((n, n), PSD=True, name="P"), cp.Parameter((2, 2), symmetric=True, name="C")
    D = cp.Parameter((n, n), diag=True, name="D")
    S = cp.Parameter((2, 2), sparsity=[(0, 1), (0, 1)], name="S")
    objective = cp.quad_form(x, P) + cp.sum_squares(X - C) + cp.sum(D @ x) + cp.trace(S @ X)
    return cl.ConvexLayer(cp.Problem(cp.Minimize(objective), [X >> 0, cp.sum(x) == 1]), [P, C, D, S], [x, X], **options)


def attribute_values():
    R, M = randn(B, n, n, seed=1), randn(B, 2, 2, seed=2)
    eye = torch.eye(n, dtype=torch.float64)
    D, S = torch.diag_embed(randn(B, n, seed=3)), torch.diag_embed(randn(B, 2, seed=4))
    return [R @ R.mT + eye, M + M.mT, D, S]


def one_parameter(**options):
    x, t = cp.Variable(n), cp.Parameter(n, name="t")
    return cl.ConvexLayer(cp.Problem(cp.Minimize(cp.norm(x - t) + cp.sum_squares(x))), [t], [x], **options)


LAYERS = {
    "qp": (qp, qp_values),
    "attributes": (attributes, attribute_values),
    "one parameter": (one_parameter, lambda: [2 * randn(B, n, seed=1)]),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("solver", ["native", "clarabel"])
def test_correct_layers_pass(name, solver):
    make, values = LAYERS[name]
    worst = check_layer(make(solver=solver), *values())
    # Float32 rounds by half of what is allowed, so that a figure of zero would say that nothing was compared.
    assert 1e-3 < worst <= 1


def test_figures_repeat():
    layer, values = qp(), qp_values()
    assert check_layer(layer, *values) == check_layer(layer, *values)


def test_the_layer_is_left_as_it_was():
    layer, values = qp(), qp_values()
    before = [value.clone() for value in values]
    check_layer(layer, *values)
    assert layer.on_failure == "raise"
    assert all(torch.equal(one, other) for one, other in zip(values, before, strict=True))


# ------------------------------------------------------------------------------------------- wrong engines


def keep_solution(solution):
    return solution


def keep_grad(grad, value, solution):
    return grad


@dataclass(frozen=True)
class Faulty(Engine):
    """Clarabel with a fault.

    Attributes:
        solution: what becomes of a solution.
        grad: what becomes of a gradient, given the value it belongs to and the solution.
    """

    solution: Callable = keep_solution
    grad: Callable = keep_grad

    @property
    def name(self):
        return "faulty"

    def setup(self, program):
        return FaultyPlan(program, self, 1)


class FaultyPlan(ClarabelPlan):
    def solve(self, theta):
        return self.engine.solution(super().solve(theta))

    def adjoint(self, theta, solution, cotangents, wanted):
        grads = super().adjoint(theta, solution, cotangents, wanted)
        pairs = zip(grads, theta, strict=True)
        return tuple(None if grad is None else self.engine.grad(grad, value, solution) for grad, value in pairs)


def average(grad, value, solution):
    shared = len(value) < len(solution.x)
    return grad / len(solution.x) if shared else grad


def drop(grad, value, solution):
    return torch.zeros_like(grad)


def exaggerate(grad, value, solution):
    return grad * (1 + 1e-4)


def negate(grad, value, solution):
    return -grad


def reverse_entries(grad, value, solution):
    return grad.flip(-1)


def lose(grad, value, solution):
    return grad * float("nan")


def leak(grad, value, solution):
    return torch.where(solution.solved.unsqueeze(-1), grad, torch.ones_like(grad)) if len(grad) > 1 else grad


def share_a_norm(grad, value, solution):
    """Clipped by the norm of the whole batch."""
    return grad / grad.norm().clamp(min=1)


def stop_early(solution):
    """Each element as far off as the size of the batch: all of it stops together."""
    return replace(solution, x=solution.x * (1 + 1e-7 * len(solution.x)))


def believe_neighbours(solution):
    """A failed element fails those beside it a little."""
    failed = (~solution.solved).double().mean()
    return replace(solution, x=solution.x + 1e-6 * failed)


def fill_in(solution):
    """Failed elements as the solution zero."""
    x, s, z = (part.nan_to_num(0.0) for part in (solution.x, solution.s, solution.z))
    return replace(solution, x=x, s=s, z=z, status=torch.zeros_like(solution.status))


FAULTS = {
    "averages instead of sums": (Faulty(grad=average), "shared by the batch, against the sum"),
    "gradient off by 1e-4": (Faulty(grad=exaggerate), "against differences"),
    "gradient with the wrong sign": (Faulty(grad=negate), "against differences"),
    "gradient that is zero": (Faulty(grad=drop), "against differences"),
    "gradient in the wrong order": (Faulty(grad=reverse_entries), "against differences"),
    "gradient that depends on the batch": (Faulty(grad=share_a_norm), "against alone, gradients"),
    "gradient of a failed element": (Faulty(grad=leak), "its gradient is zero: no"),
    "NaN in a gradient": (Faulty(grad=lose), "against differences.*: nan"),
    "solution that depends on the batch": (Faulty(solution=stop_early), "against alone, values"),
    "solution that depends on a failed neighbour": (Faulty(solution=believe_neighbours), "of the others"),
    "numbers for a failed element": (Faulty(solution=fill_in), "its values are NaN: no"),
    "engine that cannot be pickled": (Faulty(solution=lambda solution: solution), "can be pickled"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_engines_are_caught(name):
    engine, message = FAULTS[name]
    with pytest.raises(AssertionError, match=message):
        check_layer(qp(solver=engine), *qp_values())


def test_the_engine_without_a_fault_passes():
    assert check_layer(qp(solver=Faulty()), *qp_values()) <= 1


# ------------------------------------------------------------------------------------------- wrong layers


class DoubleLayer(cl.ConvexLayer):
    """Always float64."""

    def forward(self, *values, **named):
        return tuple(value.double() for value in super().forward(*values, **named))


class RoundedLayer(cl.ConvexLayer):
    """Solves in float32 what comes in float64."""

    def forward(self, *values, **named):
        outputs = super().forward(*(value.float() for value in values), **named)
        return tuple(output.to(values[0].dtype) for output in outputs)


class ForgetfulLayer(cl.ConvexLayer):
    """A copy returns something else."""

    factor = 1.0

    def forward(self, *values, **named):
        return tuple(self.factor * value for value in super().forward(*values, **named))

    def __deepcopy__(self, memo):
        other = type(self).from_program(self.program, solver=self.engine)
        other.factor = 1 + 1e-12
        return other


class DetachedLayer(cl.ConvexLayer):
    """Half of the gradient is lost on the way."""

    def forward(self, *values, **named):
        return tuple(0.5 * (v + v.detach()) for v in super().forward(*values, **named))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (DoubleLayer, "float32 in, values in torch.float64: no"),
        (RoundedLayer, "against differences"),
        (ForgetfulLayer, "a deep copy has the same values: no"),
        (DetachedLayer, "against differences"),
    ],
)
def test_faults_of_layers_are_caught(kind, message):
    layer = kind.from_program(qp().program)
    with pytest.raises(AssertionError, match=message):
        check_layer(layer, *qp_values())


def test_all_faults_are_listed_with_figures():
    layer = qp(solver=Faulty(grad=average))
    with pytest.raises(AssertionError, match=r"gradient of t, shared.*: \d\.\de[-+]\d+, allowed 1\.0e-10") as caught:
        check_layer(layer, *qp_values())
    assert "gradient of w, shared" in str(caught.value)


def test_accuracy_says_what_is_allowed():
    """At an accuracy of 1e-3 differences prove nothing of an error of 1e-4, and the check does not pretend so."""
    values = qp_values()
    assert check_layer(qp(solver=Faulty(grad=exaggerate)), *values, accuracy=1e-3) <= 1


def test_values_without_a_batch_are_refused():
    with pytest.raises(AssertionError, match="Shapes are"):
        check_layer(qp(), *[value[0] for value in qp_values()])
    with pytest.raises(AssertionError, match="One element is no batch"):
        check_layer(qp(), *[value[:1] for value in qp_values()])


def test_copies_of_layers_with_engines_of_others():
    layer = qp(solver=Clarabel(tolerance=1e-9))
    assert check_layer(copy.deepcopy(layer), *qp_values()) == check_layer(layer, *qp_values())
