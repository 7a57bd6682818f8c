"""The k largest eigenvalues of a symmetric matrix and their eigenvectors.

    maximize  tr(V'AV)  subject to  V'V = I,  V (n, k)

Derivative: dlambda_i = v_i'dA v_i, dv_i = sum_j v_j (v_j'dA v_i) / (lambda_i - lambda_j) over all j != i. Pairs
outside of the k never occur, so equal eigenvalues there do no harm; equal ones inside have no eigenvectors of their
own, and their pairs count as 0: right for every function of the eigenvectors that does not depend on their rotation,
such as V V'. Signs are arbitrary too. For a function of the subspace take `top_projector`, where pairs inside never
occur and second derivatives are right at equal eigenvalues as well.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.errors import ArgumentError
from convexlayers.zoo._batched import BatchedFunction, batched, expect, remember, tangent_context

# Eigenvalues are equal whose difference is this many roundings of the largest, times the order.
EQUAL = 4.0


class Eigensystem(BatchedFunction):
    """Symmetric A (*batch, n, n) -> eigenvalues (*batch, n), descending, eigenvectors (*batch, n, n)."""

    @staticmethod
    def forward(A: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        finite = A.isfinite().all(-1).all(-1)
        values, V = torch.linalg.eigh(torch.where(finite[..., None, None], A, 0.0))
        values, V = values.flip(-1), V.flip(-1)
        return torch.where(finite[..., None], values, torch.nan), torch.where(finite[..., None, None], V, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, grad_V: Tensor) -> Tensor:  # type: ignore[override]
        _, values, V = ctx.saved_tensors
        inner = _inverse_gaps(values) * (V.mT @ grad_V) + torch.diag_embed(grad_values)
        grad = V @ inner @ V.mT
        return (grad + grad.mT) / 2

    @staticmethod
    def jvp(ctx: Any, dA: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        _, values, V = tangent_context(ctx)
        inner = V.mT @ ((dA + dA.mT) / 2) @ V
        return inner.diagonal(dim1=-2, dim2=-1), V @ (_inverse_gaps(values) * inner)


def _inverse_gaps(values: Tensor) -> Tensor:
    """1 / (lambda_j - lambda_i) at (i, j), 0 where the two are equal to rounding."""
    gaps = values.unsqueeze(-2) - values.unsqueeze(-1)
    size = values.detach().abs().amax(-1)[..., None, None]
    equal = gaps.detach().abs() <= EQUAL * values.shape[-1] * torch.finfo(values.dtype).eps * size
    return torch.where(equal, 0.0, 1 / torch.where(equal, 1.0, gaps))


def top_eigen(A: Value, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues, descending, and their eigenvectors.

    Args:
        A: (*batch, n, n); only its symmetric part counts.
        k: 1 to n.

    Returns:
        eigenvalues (*batch, k) and eigenvectors (*batch, n, k), differentiable; see the module for equal eigenvalues.

    Raises:
        ArgumentError: the matrices are not square, or k is out of range.
    """
    (A,) = batched(("A", A, 2), names=("n", "n"))
    expect("A", A, (A.shape[-1], A.shape[-1]))
    if not 1 <= k <= A.shape[-1]:
        raise ArgumentError(f"k is {k}, expected a number from 1 to {A.shape[-1]}.")
    values, V = Eigensystem.call((A + A.mT) / 2)
    return values[..., :k], V[..., :k]
