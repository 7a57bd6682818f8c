"""Problems in CVXPY, one for each cone, whose solutions are formulas: values and gradients of layers against them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexlayers.layer import ConvexLayer
from convexlayers.testing.layer_checks import Finding, distance
from convexlayers.testing.pairs import Sampler

# A layer at its default tolerance is better than this.
ACCURACY = 1e-7
SIZE, BATCH = 4, 5


@dataclass(frozen=True)
class Form:
    """A problem with one parameter and its solution.

    Attributes:
        name: what it is, and the cone that it exercises.
        make: the problem, its parameter and its variable, for `ConvexLayer`.
        shape: of the parameter.
        solution: of one element, from the parameter's value, differentiable.
    """

    name: str
    make: Callable[[], tuple[Any, Any, Any]]
    shape: tuple[int, ...]
    solution: Callable[[Tensor], Tensor]


def compare(form: Form) -> list[Finding]:
    """Values of a batch, and gradients of a fixed linear function of them."""
    problem, parameter, variable = form.make()
    layer = ConvexLayer(problem, [parameter], [variable])
    value = Sampler.seeded((BATCH,), 0).normal(*form.shape)
    if len(form.shape) == 2:
        value = value + value.mT
    if form.shape == ():
        value = value.abs() + 0.5
    results = [_evaluate(solve, value) for solve in (lambda v: layer(v)[0], torch.vmap(form.solution))]
    (found, grad), (expected, grad_expected) = results
    return [
        Finding("solution", distance([found], [expected]), ACCURACY),
        Finding("gradient", distance([grad], [grad_expected]), ACCURACY),
    ]


def _evaluate(solve: Callable[[Tensor], Tensor], value: Tensor) -> Sequence[Tensor]:
    leaf = value.clone().requires_grad_()
    found = solve(leaf)
    weight = torch.linspace(1, 2, found[0].numel(), dtype=found.dtype).reshape(found.shape[1:])
    return found.detach(), torch.autograd.grad((weight * found).sum(), leaf)[0]


def _projection(constraints: Callable[[Any], list[Any]]) -> Callable[[], tuple[Any, Any, Any]]:
    """The point of a set that is nearest to the parameter."""

    def make() -> tuple[Any, Any, Any]:
        import cvxpy as cp

        x, t = cp.Variable(SIZE), cp.Parameter(SIZE)
        return cp.Problem(cp.Minimize(cp.sum_squares(x - t)), constraints(x)), t, x

    return make


def _ball(x: Any) -> list[Any]:
    import cvxpy as cp

    return [cp.norm(x) <= 1]


def _nearest_psd() -> tuple[Any, Any, Any]:
    import cvxpy as cp

    X, T = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3), symmetric=True)
    return cp.Problem(cp.Minimize(cp.sum_squares(X - T))), T, X


def _maximal_entropy() -> tuple[Any, Any, Any]:
    import cvxpy as cp

    x, t = cp.Variable(SIZE), cp.Parameter(SIZE)
    simplex: list[Any] = [cp.sum(x) == 1]
    return cp.Problem(cp.Maximize(t @ x + cp.sum(cp.entr(x))), simplex), t, x


EXPONENT = 0.3


def _power() -> tuple[Any, Any, Any]:
    import cvxpy as cp

    x, total = cp.Variable(3), cp.Parameter()
    inside = cp.PowCone3D(x[0], x[1], x[2], EXPONENT)
    return cp.Problem(cp.Maximize(x[2]), [inside, x[0] + x[1] == total]), total, x


def _psd_part(T: Tensor) -> Tensor:
    values, U = torch.linalg.eigh(T)
    part = (U * values.clamp(min=0)) @ U.mT
    # Gradients of a symmetric parameter are symmetric; eigh's need not be.
    return 0.5 * (part + part.mT)


def _power_form(total: Tensor) -> Tensor:
    """max x^a y^(1-a) over x + y = c is at x = a c, y = (1 - a) c, where the derivatives of both are equal."""
    a = EXPONENT
    return torch.stack([a * total, (1 - a) * total, total * a**a * (1 - a) ** (1 - a)])


FORMS = [
    Form(
        "projection onto a plane (zero)",
        _projection(lambda x: [sum(x) == 1]),
        (SIZE,),
        lambda t: t + (1 - t.sum()) / SIZE,
    ),
    Form(
        "projection onto a box (nonnegative)",
        _projection(lambda x: [x <= 1, x >= -1]),
        (SIZE,),
        lambda t: t.clamp(-1, 1),
    ),
    Form("projection onto a ball (second-order)", _projection(_ball), (SIZE,), lambda t: t / t.norm().clamp(min=1)),
    Form("nearest semidefinite matrix (PSD)", _nearest_psd, (3, 3), _psd_part),
    Form("softmax by maximal entropy (exponential)", _maximal_entropy, (SIZE,), lambda t: t.softmax(0)),
    Form("largest weighted geometric mean (power)", _power, (), _power_form),
]
