"""Projection onto matrices with given row and column sums: the Birkhoff polytope of doubly stochastic ones.

    minimize    1/2 |X - V|^2
    subject to  X 1 = a,  X'1 = b,  X >= 0        (a = b = 1, n = m: Birkhoff)

X = max(V + lambda 1' + 1 mu', 0), where lambda and mu maximize the dual a'lambda + b'mu - 1/2 |max(V + lambda 1' + 1
mu', 0)|^2, which is piecewise quadratic. A few rounds of exact maximization over lambda and mu in turn (each a
projection of rows or columns onto the simplex), then Newton's method with steps that are halved until the dual rises,
and one such round after each step (Li, Sun and Toh, "On the efficient computation of a projector over the Birkhoff
polytope", 2020). On the right pattern of zeros one step is exact.

Derivative: with S the pattern of positive entries, dX = S o (dV + dlambda 1' + 1 dmu'), of row sums da and column
sums db: the system of `_marginals` with W = S. The map from dV is an orthogonal projector and its own adjoint.
"""

import math
from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.zoo._batched import BatchedFunction, batched, expect, remember, tangent_context, vector_of
from convexlayers.zoo._marginals import potentials, spread
from convexlayers.zoo.simplex import threshold

ROUNDS = 3
MAX_STEPS = 60
HALVINGS = 30
# The longest first step, in sizes of V.
REACH = 4.0


def _residuals(X: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a - X.sum(-1), b - X.sum(-2)


def _dual(V: Tensor, a: Tensor, b: Tensor, lam: Tensor, mu: Tensor) -> Tensor:
    """The dual objective, (...)."""
    X = (V + spread(lam, mu)).clamp(min=0)
    return (a * lam).sum(-1) + (b * mu).sum(-1) - (X * X).sum((-1, -2)) / 2


def _in_turn(V: Tensor, a: Tensor, b: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """The dual maximized over lambda, then over mu."""
    lam = -threshold(V + mu.unsqueeze(-2), a.unsqueeze(-1)).squeeze(-1)
    return lam, -threshold((V + lam.unsqueeze(-1)).mT, b.unsqueeze(-1)).squeeze(-1)


def _solve(V: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The projection of (..., n, m), NaN where it was not found."""
    lam, mu = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(ROUNDS):
        lam, mu = _in_turn(V, a, b, mu)
    eps = torch.finfo(V.dtype).eps
    size = torch.maximum(V.abs().amax((-1, -2)), torch.maximum(a.amax(-1), b.amax(-1)))
    allowed = 16 * eps * size * max(V.shape[-2:])
    X, error = V, torch.full_like(size, math.inf)
    for _ in range(MAX_STEPS):
        X = (V + spread(lam, mu)).clamp_(min=0)
        r, c = _residuals(X, a, b)
        error = torch.maximum(r.abs().amax(-1), c.abs().amax(-1))
        moving = error > allowed
        if not bool(moving.any()):
            break
        dlam, dmu = potentials(X.sign(), r, c)
        # Where the pattern falls into parts whose sums do not agree, the system has no solution, and what comes out is
        # as large as its ridge is small. No multiplier has to move further than a few times the size of V.
        length = torch.maximum(dlam.abs().amax(-1), dmu.abs().amax(-1))
        step = torch.where(moving, (REACH * size / length.clamp(min=torch.finfo(V.dtype).tiny)).clamp(max=1), 0.0)
        before = _dual(V, a, b, lam, mu)
        rise = (r * dlam).sum(-1) + (c * dmu).sum(-1)
        for _ in range(HALVINGS):
            s = step.unsqueeze(-1)
            low = _dual(V, a, b, lam + s * dlam, mu + s * dmu) < before + 1e-4 * step * rise - 8 * eps * before.abs()
            if not bool(low.any()):
                break
            step = torch.where(low, step / 2, step)
        lam, mu = lam + step.unsqueeze(-1) * dlam, mu + step.unsqueeze(-1) * dmu
        # Newton's method alone can go round between patterns; each in turn always rises.
        turned = _in_turn(V, a, b, mu)
        lam, mu = (torch.where(moving.unsqueeze(-1), new, old) for new, old in zip(turned, (lam, mu), strict=True))
    return torch.where((error <= 100 * allowed)[..., None, None], X, math.nan)


class Marginals(BatchedFunction):
    """V (*batch, n, m), a (*batch, n), b (*batch, m) -> X (*batch, n, m)."""

    @staticmethod
    def forward(V: Tensor, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        return _solve(V, a, b) if V.numel() else torch.empty_like(V)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        S = ctx.saved_tensors[-1].detach().sign()
        kept = S * grad
        lam, mu = potentials(S, kept.sum(-1), kept.sum(-2))
        return kept - S * spread(lam, mu), lam, mu

    @staticmethod
    def jvp(ctx: Any, dV: Tensor | None, da: Tensor | None, db: Tensor | None) -> Tensor:  # type: ignore[override]
        _, a, b, X = tangent_context(ctx)
        S = X.detach().sign()
        kept = torch.zeros_like(X) if dV is None else S * dV
        da, db = torch.zeros_like(a) if da is None else da, torch.zeros_like(b) if db is None else db
        lam, mu = potentials(S, da - kept.sum(-1), db - kept.sum(-2))
        return kept + S * spread(lam, mu)


def project_transport_polytope(V: Value, a: Value, b: Value) -> Tensor:
    """The nearest nonnegative matrix with row sums a and column sums b.

    Args:
        V: (*batch, n, m).
        a: (*batch, n) or a number, positive. b: (*batch, m) or a number, positive, of the same sum; NaN comes out of
            elements where that is not so.

    Returns:
        X, (*batch, n, m), differentiable in all three, any number of times. As the sums have to stay equal, a
        gradient in a and b is defined up to a number added to one and taken from the other; one of those is returned.

    Raises:
        ArgumentError: a shape is wrong.
    """
    (V,) = batched(("V", V, 2))
    a, b = vector_of(a, V[..., 0]), vector_of(b, V[..., 0, :])
    V, a, b = batched(("V", V, 2), ("a", a, 1), ("b", b, 1))
    expect("a", a, V.shape[-2:-1], f": V is (*batch, {V.shape[-2]}, {V.shape[-1]})")
    expect("b", b, V.shape[-1:], f": V is (*batch, {V.shape[-2]}, {V.shape[-1]})")
    return Marginals.call(V, a, b)


def project_birkhoff(V: Value) -> Tensor:
    """The nearest doubly stochastic matrix; from scores, a soft permutation with exact zeros.

    Args:
        V: (*batch, n, n).

    Returns:
        X, (*batch, n, n), differentiable any number of times.

    Raises:
        ArgumentError: the matrices are not square.
    """
    (V,) = batched(("V", V, 2), names=("n", "n"))
    expect("V", V, (V.shape[-1], V.shape[-1]))
    return project_transport_polytope(V, 1.0, 1.0)
