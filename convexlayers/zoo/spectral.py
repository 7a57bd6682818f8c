"""Functions of a symmetric matrix through its eigenvalues: nearest positive semidefinite matrix, top projector.

    minimize  1/2 |X - A|^2  subject to  X positive semidefinite      X = sum over lambda_i > 0 of lambda_i v_i v_i'
    maximize  tr(AX)  subject to  0 <= X <= I, tr X = k                X = sum over the k largest of v_i v_i'

Both are X = V f(Lambda) V' with an f that is linear on each of two groups of eigenvalues, those in and those out. With
divided differences f[i,j] = (f_i - f_j) / (l_i - l_j), f[i,k,j] = (f[i,k] - f[k,j]) / (l_i - l_j), and E = V'dA V,

    V'X(A + dA)V = f(Lambda) + f[i,j] E_ij + sum_k f[i,k,j] E_ik E_kj + ...

(Higham, "Functions of Matrices", 2008, section 3.2; Bhatia, "Matrix Analysis", section V.3). Within a group the
differences are slopes, known without a division, and across groups the eigenvalues are apart: equal eigenvalues
inside or outside of the group do no harm. The first derivative is symmetric, so it is its own adjoint; the second
term gives the derivative of the adjoint. At the gap itself, lambda = 0 or lambda_k = lambda_k+1, there is no
derivative: the pairs of equal eigenvalues across it count as 0.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.errors import ArgumentError, SecondDerivativeError
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, expect, remember, tangent_context


def _groups(eigenvalues: Tensor, count: int | None) -> tuple[Tensor, float, Tensor]:
    """Which eigenvalues are in, the slope of f there, and f: of max(., 0) or, with a count, of the top projector."""
    inside = torch.zeros_like(eigenvalues, dtype=torch.bool)
    if count is None:
        return eigenvalues > 0, 1.0, eigenvalues.clamp(min=0)
    inside[..., eigenvalues.shape[-1] - count :] = True
    return inside, 0.0, inside.to(eigenvalues.dtype)


def _first_differences(eigenvalues: Tensor, count: int | None) -> Tensor:
    """f[i,j], (..., n, n)."""
    inside, slope, f = _groups(eigenvalues, count)
    rows, cols = inside.unsqueeze(-1), inside.unsqueeze(-2)
    gap = eigenvalues.unsqueeze(-1) - eigenvalues.unsqueeze(-2)
    across = (f.unsqueeze(-1) - f.unsqueeze(-2)) / torch.where(gap == 0, torch.inf, gap)
    return torch.where(rows ^ cols, across, slope * (rows & cols).to(f.dtype))


def _second_differences(eigenvalues: Tensor, count: int | None) -> Tensor:
    """f[i,k,j], (..., n, n, n) in the order i, k, j. Symmetric in the three, so one pair across the groups divides."""
    first = _first_differences(eigenvalues, count)
    inside = _groups(eigenvalues, count)[0]
    i, k, j = inside[..., :, None, None], inside[..., None, :, None], inside[..., None, None, :]
    l_i, l_k, l_j = eigenvalues[..., :, None, None], eigenvalues[..., None, :, None], eigenvalues[..., None, None, :]
    f_ik, f_kj, f_ij = first.unsqueeze(-1), first.unsqueeze(-3), first.unsqueeze(-2)
    outer, inner = i ^ j, ~(i ^ j) & (i ^ k)
    gap = torch.where(outer, l_i - l_j, torch.where(inner, l_i - l_k, torch.inf))
    return torch.where(outer, f_ik - f_kj, f_ij - f_kj) / torch.where(gap == 0, torch.inf, gap)


def _rotated(V: Tensor, X: Tensor) -> Tensor:
    return V.mT @ X @ V


def _symmetric(X: Tensor) -> Tensor:
    return (X + X.mT) / 2


class SpectralMap(BatchedFunction):
    """A (*batch, n, n), count -> X (*batch, n, n), eigenvalues (*batch, n), eigenvectors (*batch, n, n)."""

    auxiliary = 2

    @staticmethod
    def forward(A: Tensor, count: int | None) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        n = A.shape[-1]
        if n <= _kernels.LARGEST_SPECTRUM and _kernels.usable(A):
            A = _kernels.packed(A)
            X, eigenvalues, V = torch.empty_like(A), A.new_empty(A.shape[:-1]), torch.empty_like(A)
            _kernels.run(_kernels.SPECTRAL, (A, X, eigenvalues, V), A.numel() // n**2, n, option=count or 0)
            return X, eigenvalues, V
        A = _symmetric(A)
        finite = A.isfinite().all(-1).all(-1)[..., None, None]
        eigenvalues, V = torch.linalg.eigh(torch.where(finite, A, 0.0))
        X = (V * _groups(eigenvalues, count)[2].unsqueeze(-2)) @ V.mT
        return torch.where(finite, X, torch.nan), eigenvalues, V

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        remember(ctx, inputs, output, SpectralMap.auxiliary)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:  # type: ignore[override]
        if grad is None:
            return None, None
        A, eigenvalues, V = ctx.saved_tensors[0], *ctx.saved_tensors[2:]
        if _kernels.usable_once(V, grad) and V.shape[-1] <= _kernels.LARGEST_ORDER:
            grad = _kernels.packed(grad)
            grad_A, tensors = torch.empty_like(grad), (_kernels.packed(eigenvalues), _kernels.packed(V), grad)
            rows, n = eigenvalues.numel() // V.shape[-1], V.shape[-1]
            _kernels.run(_kernels.SPECTRAL_DERIVATIVE, (*tensors, grad_A), rows, n, option=ctx.options[0] or 0)
            return grad_A, None
        return SpectralTangent.call(A, _symmetric(grad), eigenvalues, V, *ctx.options), None

    @staticmethod
    def jvp(ctx: Any, dA: Tensor, _: None) -> tuple[Tensor, None, None]:  # type: ignore[override]
        A, eigenvalues, V = tangent_context(ctx)[0], *tangent_context(ctx)[2:]
        return SpectralTangent.call(A, _symmetric(dA), eigenvalues, V, *ctx.options), None, None


class SpectralTangent(BatchedFunction):
    """A, dA (*batch, n, n), symmetric, with the eigensystem of A -> V (f[i,j] V'dA V) V', with its own derivative."""

    @staticmethod
    def forward(  # type: ignore[override]
        A: Tensor, dA: Tensor, eigenvalues: Tensor, V: Tensor, count: int | None
    ) -> Tensor:
        return V @ (_first_differences(eigenvalues, count) * _rotated(V, dA)) @ V.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        A, dA, eigenvalues, V = ctx.saved_tensors[:4]
        grad = _symmetric(grad)
        return (
            _curvature(A, dA, grad, eigenvalues, V, *ctx.options),
            _linear(A, grad, eigenvalues, V, ctx),
            None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, tA: Tensor | None, tdA: Tensor | None, *_: None) -> Tensor:  # type: ignore[override]
        A, dA, eigenvalues, V = tangent_context(ctx)[:4]
        out = torch.zeros_like(dA) if tdA is None else _linear(A, tdA, eigenvalues, V, ctx)
        return out if tA is None else out + _curvature(A, dA, _symmetric(tA), eigenvalues, V, *ctx.options)


def _linear(A: Tensor, dA: Tensor, eigenvalues: Tensor, V: Tensor, ctx: Any) -> Tensor:
    """The first derivative at A along dA, as a Function of both."""
    return SpectralTangent.call(A, dA, eigenvalues, V, *ctx.options)


def _curvature(A: Tensor, dA: Tensor, dB: Tensor, eigenvalues: Tensor, V: Tensor, count: int | None) -> Tensor:
    """The second derivative at A along dA and dB, symmetric in the two and self-adjoint in each."""
    return SpectralCurvature.call(A, dA, dB, eigenvalues, V, count)


class SpectralCurvature(BatchedFunction):
    """V (sum_k f[i,k,j] (E_ik F_kj + F_ik E_kj)) V' with E = V'dA V, F = V'dB V; not to be differentiated."""

    @staticmethod
    def forward(  # type: ignore[override]
        A: Tensor, dA: Tensor, dB: Tensor, eigenvalues: Tensor, V: Tensor, count: int | None
    ) -> Tensor:
        E, F, second = _rotated(V, dA), _rotated(V, dB), _second_differences(eigenvalues, count)
        product = (second * E.unsqueeze(-1) * F.unsqueeze(-3)).sum(-2)
        return V @ (product + product.mT) @ V.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        raise third_derivative()

    @staticmethod
    def jvp(ctx: Any, *_: Tensor | None) -> Tensor:  # type: ignore[override]
        raise third_derivative()


def third_derivative() -> SecondDerivativeError:
    """The error."""
    return SecondDerivativeError(
        "The third derivative of a function of eigenvalues was asked for; two are implemented."
    )


def _square(name: str, A: Value) -> Tensor:
    (A,) = batched((name, A, 2), names=("n", "n"))
    expect(name, A, (A.shape[-1], A.shape[-1]))
    return A


def project_psd(A: Value) -> Tensor:
    """The nearest symmetric positive semidefinite matrix, in the Frobenius norm.

    Args:
        A: (*batch, n, n); only its symmetric part counts.

    Returns:
        X, (*batch, n, n), differentiable twice where A is not singular, equal eigenvalues or not; NaN where A is not
        finite.

    Raises:
        ArgumentError: the matrices are not square.
    """
    return SpectralMap.call(_square("A", A), None)[0]


def top_projector(A: Value, k: int) -> Tensor:
    """The orthogonal projector onto the span of the k leading eigenvectors of a symmetric matrix.

    What is well defined about leading eigenvectors: signs and, among equal eigenvalues, rotations leave it alone.

    Args:
        A: (*batch, n, n); only its symmetric part counts.
        k: number of eigenvectors, 1 to n.

    Returns:
        X = V_k V_k', (*batch, n, n), differentiable twice where the k-th and the next eigenvalue differ.

    Raises:
        ArgumentError: the matrices are not square, or k is out of range.
    """
    A = _square("A", A)
    if not 1 <= k <= A.shape[-1]:
        raise ArgumentError(f"k is {k}, expected a number from 1 to {A.shape[-1]}.")
    return SpectralMap.call(A, k)[0]
