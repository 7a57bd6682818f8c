"""Entropic optimal transport.

    minimize    <C, P> + eps sum_ij P_ij (log P_ij - 1)
    subject to  P 1 = a,  P'1 = b

P_ij = exp(f_i + g_j - C_ij / eps), where f and g maximize the dual a'f + b'g - sum(P) (Cuturi, "Sinkhorn distances",
2013; Peyre and Cuturi, "Computational Optimal Transport", 2019). Exact maximization over f and g in turn is
Sinkhorn's algorithm. Here: a first pair of updates in the log domain, then products with the matrix P itself, whose
rows and columns are scaled, and from a rough solution on Newton's method, with the system of `_marginals` for W = P:
quadratically convergent also where Sinkhorn's algorithm takes thousands of steps (Brauer, Clason, Lorenz and Wirth,
2017). Plans of up to 64 rows and columns are found by a compiled loop, several at once.

Derivative (Luise, Rudi, Pontil and Ciliberto, "Differential properties of Sinkhorn approximation", 2018): with K = C
/ eps, dP = P o (df 1' + 1 dg' - dK), of row sums da and column sums db. For a cotangent G of P and R = P o G, let
lambda, mu solve that system for r = R 1, c = R'1. Then

    grad_K = P o (lambda 1' + 1 mu') - R,   grad_a = lambda,   grad_b = mu,
    grad_C = grad_K / eps,   grad_eps = -<grad_K, C> / eps^2.
"""

import math
from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, expect, positive, remember, tangent_context, vector_of
from convexlayers.zoo._marginals import potentials, spread

# Scalings before the potentials are renewed, so that they neither over- nor underflow.
SWEEPS = 10
ROUNDS = 3
MAX_STEPS = 60
HALVINGS = 30


def _sinkhorn(K: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rough potentials f (..., n), g (..., m)."""
    g = torch.zeros_like(b)
    f = a.log() - torch.logsumexp(g.unsqueeze(-2) - K, dim=-1)
    g = b.log() - torch.logsumexp(f.unsqueeze(-1) - K, dim=-2)
    for _ in range(ROUNDS):
        P = (spread(f, g) - K).exp_()
        u, v = torch.ones_like(f).unsqueeze(-1), torch.ones_like(g).unsqueeze(-1)
        for _ in range(SWEEPS):
            u = a.unsqueeze(-1) / (P @ v)
            v = b.unsqueeze(-1) / (P.mT @ u)
        df, dg = u.squeeze(-1).log(), v.squeeze(-1).log()
        ordinary = (df.isfinite().all(-1) & dg.isfinite().all(-1)).unsqueeze(-1)
        f, g = torch.where(ordinary, f + df, f), torch.where(ordinary, g + dg, g)
    return f, g


def _solve(K: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The plan (..., n, m), NaN where it was not found."""
    f, g = _sinkhorn(K, a, b)
    eps = torch.finfo(K.dtype).eps
    allowed = 16 * eps * torch.maximum(a.amax(-1), b.amax(-1)) * (1 + K.abs().amax((-1, -2)))
    P, error = K, torch.full_like(allowed, math.inf)
    for _ in range(MAX_STEPS):
        P = (spread(f, g) - K).exp_()
        r, c = a - P.sum(-1), b - P.sum(-2)
        error = torch.maximum(r.abs().amax(-1), c.abs().amax(-1))
        moving = error > allowed
        if not bool(moving.any()):
            break
        df, dg = potentials(P, r, c)
        step = _line_search(K, a, b, (f, g), (df, dg), moving)
        f, g = f + step * df, g + step * dg
        # Exact in one of the two, which also keeps a step that was too long from mattering.
        g = torch.where(moving.unsqueeze(-1), b.log() - torch.logsumexp(f.unsqueeze(-1) - K, dim=-2), g)
    return torch.where((error <= 1000 * allowed)[..., None, None], P, math.nan)


def _line_search(
    K: Tensor, a: Tensor, b: Tensor, at: tuple[Tensor, Tensor], along: tuple[Tensor, Tensor], moving: Tensor
) -> Tensor:
    """Step lengths (..., 1) with which the dual does not fall; 0 for elements that are done."""
    (f, g), (df, dg) = at, along
    step = moving.to(K.dtype).unsqueeze(-1)
    before = _dual(K, a, b, f, g)
    rounding = 64 * torch.finfo(K.dtype).eps * (1 + before.abs())
    for _ in range(HALVINGS):
        # NaN and infinity are no rise.
        risen = _dual(K, a, b, f + step * df, g + step * dg) >= before - rounding
        if bool(risen.all()):
            break
        step = torch.where(risen.unsqueeze(-1), step, step / 2)
    return step


def _dual(K: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """a'f + b'g - sum(P), (...)."""
    return (a * f).sum(-1) + (b * g).sum(-1) - (spread(f, g) - K).exp_().sum((-1, -2))


class Transport(BatchedFunction):
    """C (*batch, n, m), a (*batch, n), b (*batch, m), eps (*batch) -> P (*batch, n, m)."""

    @staticmethod
    def forward(C: Tensor, a: Tensor, b: Tensor, eps: Tensor) -> Tensor:  # type: ignore[override]
        if C.numel() == 0:
            return torch.empty_like(C)
        n, m = C.shape[-2:]
        if max(n, m) <= _kernels.LARGEST_PLAN and _kernels.usable(C, a, b, eps):
            C, a, b, eps = (_kernels.packed(tensor) for tensor in (C, a, b, eps))
            P = torch.empty_like(C)
            _kernels.run(_kernels.TRANSPORT, (C, a, b, eps, P), eps.numel(), n, m=m)
            return P
        return _solve(C / torch.where(eps > 0, eps, math.nan)[..., None, None], a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        C, a, b, eps, P = ctx.saved_tensors
        n, m = C.shape[-2:]
        if max(n, m) <= _kernels.LARGEST_PLAN and _kernels.usable_once(C, eps, P, grad):
            tensors = [_kernels.packed(tensor) for tensor in (C, eps, P, grad)]
            grads = (torch.empty_like(tensors[0]), P.new_empty(a.shape), P.new_empty(b.shape), P.new_empty(eps.shape))
            _kernels.run(_kernels.TRANSPORT_ADJOINT, (*tensors, *grads), eps.numel(), n, m=m)
            return grads
        R = P * grad
        lam, mu = potentials(P, R.sum(-1), R.sum(-2))
        grad_K = P * spread(lam, mu) - R
        grad_eps = -(grad_K * C).sum((-1, -2)) / eps**2 if ctx.needs_input_grad[3] else None
        return grad_K / eps[..., None, None], lam, mu, grad_eps

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, dC: Tensor | None, da: Tensor | None, db: Tensor | None, deps: Tensor | None
    ) -> Tensor:
        C, a, b, eps, P = tangent_context(ctx)
        scale = eps[..., None, None]
        dK = torch.zeros_like(C) if dC is None else dC / scale
        dK = dK if deps is None else dK - C * (deps[..., None, None] / scale**2)
        da, db = torch.zeros_like(a) if da is None else da, torch.zeros_like(b) if db is None else db
        lam, mu = potentials(P, da + (P * dK).sum(-1), db + (P * dK).sum(-2))
        return P * (spread(lam, mu) - dK)


def transport_plan(C: Value, a: Value | None = None, b: Value | None = None, eps: Value = 0.1) -> Tensor:
    """The transport plan of least cost and most entropy.

    Args:
        C: cost, (*batch, n, m).
        a: row sums, (*batch, n), positive, by default 1 / n each. b: column sums, (*batch, m), of the same sum, by
        default
            1 / m each. NaN comes out of elements where that is not so.
        eps: weight of the entropy, (*batch) or a number, positive.

    Returns:
        P, (*batch, n, m), differentiable in all four, any number of times. As the sums have to stay equal, a gradient
        in a and b is defined up to a number added to one and taken from the other; one of those is returned.

    Raises:
        ArgumentError: a shape is wrong, or the number is not positive.

    Examples:
        >>> import torch, convexlayers as cl
        >>> P = cl.zoo.transport_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), eps=0.5)
        >>> [round(p, 4) for p in P[0].tolist()]
        [0.4404, 0.0596]
    """
    (C,) = batched(("C", C, 2))
    n, m = C.shape[-2:]
    a = vector_of(1.0 / n if a is None else a, C[..., 0])
    b = vector_of(1.0 / m if b is None else b, C[..., 0, :])
    C, a, b, eps = batched(("C", C, 2), ("a", a, 1), ("b", b, 1), ("eps", positive("eps", eps), 0))
    expect("a", a, (n,), f": C is (*batch, {n}, {m})")
    expect("b", b, (m,), f": C is (*batch, {n}, {m})")
    return Transport.call(C, a, b, eps)
