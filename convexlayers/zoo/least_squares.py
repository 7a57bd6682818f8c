"""Weighted and regularized least squares, with every datum differentiable.

    minimize  1/2 sum_i w_i (a_i'x + c - b_i)^2 + 1/2 ridge |x|^2        (c only with bias=True)

Normal equations N x = A'Wb with N = A'WA + R, R = ridge I (0 for the bias, a column of ones), by Cholesky, and one
step of refinement with the residual of the data. Where N is singular, the solution of minimum norm, by the
pseudo-inverse.

Derivative: with r = b - Ax, N dx = dA'W r + A'dW r + A'W (db - dA x) - dR x. For a cotangent g and N u = g,

    grad_b = W A u,   grad_w = r o A u,   grad_A = W (r u' - A u x'),   grad_R = -u o x.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.zoo._batched import BatchedFunction, batched, expect, positive, remember, tangent_context, vector_of


def _normal(A: Tensor, w: Tensor, R: Tensor) -> Tensor:
    return (A * w.unsqueeze(-1)).mT @ A + torch.diag_embed(R)


def _inverse(N: Tensor) -> tuple[Tensor, bool]:
    """The Cholesky factor; or the pseudo-inverse, and True, where an element is singular to rounding."""
    factor, info = torch.linalg.cholesky_ex(N)
    pivots = factor.detach().diagonal(dim1=-2, dim2=-1).square()
    small = pivots.amin(-1) <= N.shape[-1] * torch.finfo(N.dtype).eps * pivots.amax(-1)
    singular = ((info > 0) | small) & N.detach().isfinite().all(-1).all(-1)
    if torch._C._are_functorch_transforms_active() or not bool(singular.any()):
        return factor, False
    return torch.linalg.pinv(torch.where(N.isfinite(), N, 0.0), hermitian=True), True


def _apply(inverse: tuple[Tensor, bool], right: Tensor) -> Tensor:
    factor, dense = inverse
    right = right.unsqueeze(-1)
    return (factor @ right if dense else torch.cholesky_solve(right, factor)).squeeze(-1)


def _times(M: Tensor, v: Tensor) -> Tensor:
    return (M @ v.unsqueeze(-1)).squeeze(-1)


class LeastSquares(BatchedFunction):
    """A (*batch, m, n), b (*batch, m), w (*batch, m), R (*batch, n) -> x (*batch, n), factor (*batch, n, n), or NaN."""

    auxiliary = 1

    @staticmethod
    def forward(A: Tensor, b: Tensor, w: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        factor, dense = _inverse(_normal(A, w, R))
        x = _apply((factor, dense), _times(A.mT, w * b))
        x = x + _apply((factor, dense), _times(A.mT, w * (b - _times(A, x))) - R * x)
        return x, torch.full_like(factor, torch.nan) if dense else factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        remember(ctx, inputs, output, LeastSquares.auxiliary)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return (None,) * 4
        A, b, w, R, x, factor = ctx.saved_tensors
        # The saved factor is a constant: only good where nobody differentiates this pass.
        saved = not torch.is_grad_enabled() and not bool(factor[..., 0, 0].isnan().any())
        u = _apply((factor, False) if saved else _inverse(_normal(A, w, R)), grad)
        r, Au = b - _times(A, x), _times(A, u)
        grad_A = (w * r).unsqueeze(-1) * u.unsqueeze(-2) - (w * Au).unsqueeze(-1) * x.unsqueeze(-2)
        return grad_A, w * Au, r * Au, -u * x

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, dA: Tensor | None, db: Tensor | None, dw: Tensor | None, dR: Tensor | None
    ) -> tuple[Tensor, None]:
        A, b, w, R, x = tangent_context(ctx)[:5]
        r = b - _times(A, x)
        right, change = torch.zeros_like(x), torch.zeros_like(b)
        if dA is not None:
            right, change = _times(dA.mT, w * r), -w * _times(dA, x)
        change = change if db is None else change + w * db
        change = change if dw is None else change + dw * r
        right = right if dR is None else right - dR * x
        return _apply(_inverse(_normal(A, w, R)), right + _times(A.mT, change)), None


def least_squares(
    A: Value, b: Value, weight: Value = 1.0, ridge: Value = 0.0, *, bias: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Weighted least squares with ridge regularization.

    Args:
        A: features, (*batch, m, n). b: targets, (*batch, m).
        weight: (*batch, m) or a number, not negative. ridge: (*batch) or a number, not negative.
        bias: whether there is a bias, which is not regularized.

    Returns:
        x, (*batch, n), and with bias also c, (*batch); differentiable in all four, any number of times. Of several
        solutions that of minimum norm.

    Raises:
        ArgumentError: a shape is wrong, or a number is negative.
    """
    if bias:
        (A,) = batched(("A", A, 2), names=("m", "n"))
        A = torch.cat([A, torch.ones_like(A[..., :1])], dim=-1)
    b = b if isinstance(b, Tensor) else torch.as_tensor(b)
    weight = vector_of(positive("weight", weight, zero=True), b)
    ridge = positive("ridge", ridge, zero=True)
    A, b, w, ridge = batched(("A", A, 2), ("b", b, 1), ("weight", weight, 1), ("ridge", ridge, 0))
    expect("b", b, A.shape[-2:-1], f": A is (*batch, {A.shape[-2]}, n)")
    expect("weight", w, b.shape[-1:])
    R = ridge.unsqueeze(-1).expand(*ridge.shape, A.shape[-1])
    if bias:
        R = torch.cat([R[..., :-1], torch.zeros_like(R[..., :1])], dim=-1)
    x = LeastSquares.call(A, b, w, R)[0]
    return (x[..., :-1], x[..., -1]) if bias else x
