"""Tridiagonal and block tridiagonal systems: sequences in which neighbours are coupled.

    Ax = b,    A = tridiag(L, D, U),  entries (tridiagonal) or blocks of k x k

Entries: the systems of a batch are eliminated with partial pivoting, eight side by side, by a compiled loop.

Blocks, and what that loop cannot take: the systems of a batch, one after the other, are one long banded system whose
couplings between elements are zero, so that one call of LAPACK (gtsv, gbsv: elimination with partial pivoting, which
never swaps rows across a zero coupling) solves them all, in time proportional to the number of unknowns, with no loop
in Python. It runs on the CPU, in double precision unless everything is single.

Derivative: A dx = db - dA x. With A'w = g for a cotangent g: grad_b = w, and grad_A = -w x' on the three diagonals.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.errors import wrong_shape
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, expect, remember, tangent_context


def _product(L: Tensor, D: Tensor, U: Tensor, x: Tensor) -> Tensor:
    """A x for blocks L (..., T - 1, k, k), D (..., T, k, k), U and x (..., T, k)."""
    y = (D @ x.unsqueeze(-1)).squeeze(-1)
    above = (U @ x[..., 1:, :].unsqueeze(-1)).squeeze(-1)
    below = (L @ x[..., :-1, :].unsqueeze(-1)).squeeze(-1)
    border = torch.zeros_like(x[..., :1, :])
    return y + torch.cat([above, border], dim=-2) + torch.cat([border, below], dim=-2)


@lru_cache(maxsize=32)
def _band(steps: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where in band storage, by rows of a flat array of one element, the entries of L, D and U go."""
    width = 2 * k - 1
    row, col = np.meshgrid(np.arange(k), np.arange(k), indexing="ij")

    def places(first_row: np.ndarray, first_col: np.ndarray) -> np.ndarray:
        rows = first_row[:, None, None] * k + row
        cols = first_col[:, None, None] * k + col
        return (cols * (3 * width + 1) + 2 * width + rows - cols).reshape(-1)

    time = np.arange(steps)
    return places(time[1:], time[:-1]), places(time, time), places(time[:-1], time[1:])


def _eliminate(L: np.ndarray, D: np.ndarray, U: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, bool]:
    """Solutions (B, T, k), and whether all were found."""
    # Loaded by who needs it: importing this package does not import scipy.linalg.
    from scipy.linalg import lapack

    batch, steps, k = b.shape
    suffix = "s" if b.dtype == np.float32 else "d"
    if k == 1:
        border = np.zeros((batch, 1), b.dtype)
        lower, upper = (np.concatenate([part.reshape(batch, -1), border], 1).reshape(-1)[:-1] for part in (L, U))
        *_, x, info = getattr(lapack, f"{suffix}gtsv")(lower, D.reshape(-1), upper, b.reshape(-1))
    else:
        width = 2 * k - 1
        band = np.zeros((batch, steps * k * (3 * width + 1)), b.dtype)
        for places, part in zip(_band(steps, k), (L, D, U), strict=True):
            band[:, places] = part.reshape(batch, -1)
        band = band.reshape(batch * steps * k, 3 * width + 1).T
        *_, x, info = getattr(lapack, f"{suffix}gbsv")(width, width, band, b.reshape(-1), overwrite_ab=True)
    return x.reshape(b.shape), info == 0 and bool(np.isfinite(x).all())


def _solve(L: Tensor, D: Tensor, U: Tensor, b: Tensor) -> Tensor:
    """Solutions (..., T, k), NaN in elements that are singular."""
    dtype = torch.float32 if b.dtype is torch.float32 else torch.float64
    steps, k = b.shape[-2:]
    shapes = ((-1, steps - 1, k, k), (-1, steps, k, k), (-1, steps - 1, k, k), (-1, steps, k))
    parts = [
        part.detach().to("cpu", dtype).reshape(shape).numpy() for part, shape in zip((L, D, U, b), shapes, strict=True)
    ]
    x, solved = _eliminate(*parts)
    if not solved:
        # A singular element stops the elimination or spreads infinities over zero couplings: one by one, then.
        x = np.empty_like(parts[-1])
        for i in range(len(x)):
            found, solved = _eliminate(*(part[i : i + 1] for part in parts))
            x[i] = found[0] if solved else np.nan
    return torch.from_numpy(np.ascontiguousarray(x)).reshape(b.shape).to(b)


class BlockTridiagonal(BatchedFunction):
    """L, D, U, b (*batch, T - 1 or T, k, k) and (*batch, T, k) -> x (*batch, T, k)."""

    @staticmethod
    def forward(L: Tensor, D: Tensor, U: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        return _solve(L, D, U, b) if b.numel() else torch.empty_like(b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        L, D, U, _, x = ctx.saved_tensors
        w = BlockTridiagonal.call(U.mT, D.mT, L.mT, grad)
        left, right = -w.unsqueeze(-1), x.unsqueeze(-2)
        return left[..., 1:, :, :] * right[..., :-1, :, :], left * right, left[..., :-1, :, :] * right[..., 1:, :, :], w

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, dL: Tensor | None, dD: Tensor | None, dU: Tensor | None, db: Tensor | None
    ) -> Tensor:
        L, D, U, b, x = tangent_context(ctx)
        dL, dD, dU, db = (
            torch.zeros_like(p) if t is None else t for p, t in ((L, dL), (D, dD), (U, dU), (b, db))
        )  # fmt: skip
        return BlockTridiagonal.call(L, D, U, db - _product(dL, dD, dU, x))


class Tridiagonal(BatchedFunction):
    """lower, diagonal, upper, b (*batch, n - 1 or n) -> x (*batch, n)."""

    @staticmethod
    def forward(lower: Tensor, diagonal: Tensor, upper: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        if b.numel() == 0:
            return torch.empty_like(b)
        if _kernels.usable(lower, diagonal, upper, b):
            tensors = [_kernels.packed(tensor) for tensor in (lower, diagonal, upper, b)]
            x = torch.empty_like(tensors[-1])
            _kernels.run(_kernels.TRIDIAGONAL, (*tensors, x), x.numel() // x.shape[-1], x.shape[-1])
            return x
        L, D, U = (part[..., None, None] for part in (lower, diagonal, upper))
        return _solve(L, D, U, b.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        lower, diagonal, upper, _, x = ctx.saved_tensors
        if _kernels.usable_once(x, grad):
            tensors = [_kernels.packed(tensor) for tensor in (lower, diagonal, upper, x, grad)]
            grads = [torch.empty_like(tensors[position]) for position in (0, 1, 2, 3)]
            _kernels.run(_kernels.TRIDIAGONAL_ADJOINT, (*tensors, *grads), x.numel() // x.shape[-1], x.shape[-1])
            return tuple(grads)
        w = Tridiagonal.call(upper, diagonal, lower, grad)
        return -w[..., 1:] * x[..., :-1], -w * x, -w[..., :-1] * x[..., 1:], w

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, dlower: Tensor | None, ddiagonal: Tensor | None, dupper: Tensor | None, db: Tensor | None
    ) -> Tensor:
        lower, diagonal, upper, b, x = tangent_context(ctx)
        right = torch.zeros_like(b) if db is None else db
        right = right if ddiagonal is None else right - ddiagonal * x
        if dlower is not None:
            right = right - torch.nn.functional.pad(dlower * x[..., :-1], (1, 0))
        if dupper is not None:
            right = right - torch.nn.functional.pad(dupper * x[..., 1:], (0, 1))
        return Tridiagonal.call(lower, diagonal, upper, right)


def tridiagonal_solve(lower: Value, diagonal: Value, upper: Value, b: Value) -> Tensor:
    """Solve tridiagonal systems.

    Args:
        lower, upper: below and above the diagonal, (*batch, n - 1). diagonal: (*batch, n), n >= 2.
        b: (*batch, n).

    Returns:
        x, (*batch, n), differentiable in all four, any number of times; NaN in elements that are singular.

    Raises:
        ArgumentError: a shape is wrong.

    Examples:
        >>> import torch, convexlayers as cl
        >>> cl.zoo.tridiagonal_solve(torch.ones(1), torch.tensor([2.0, 3.0]), torch.ones(1), torch.ones(2)).tolist()
        [0.4..., 0.2...]
    """
    lower, diagonal, upper, b = batched(
        ("lower", lower, 1), ("diagonal", diagonal, 1), ("upper", upper, 1), ("b", b, 1)
    )
    n = diagonal.shape[-1]
    if (lower.shape[-1], upper.shape[-1], b.shape[-1]) != (n - 1, n - 1, n):
        for name, value, size in (("lower", lower, n - 1), ("upper", upper, n - 1), ("b", b, n)):
            expect(name, value, (size,), f": diagonal is (*batch, {n})")
    return Tridiagonal.call(lower, diagonal, upper, b)


def block_tridiagonal_solve(lower: Value, diagonal: Value, upper: Value, b: Value) -> Tensor:
    """Solve block tridiagonal systems.

    Args:
        lower, upper: (*batch, T - 1, k, k). diagonal: (*batch, T, k, k), T >= 2.
        b: (*batch, T, k).

    Returns:
        x, (*batch, T, k), differentiable in all four, any number of times; NaN in elements that are singular.

    Raises:
        ArgumentError: a shape is wrong.
    """
    lower, diagonal, upper, b = batched(
        ("lower", lower, 3), ("diagonal", diagonal, 3), ("upper", upper, 3), ("b", b, 2)
    )
    steps, k = b.shape[-2:]
    if steps < 2:
        raise wrong_shape("b", b.shape, "(*batch, T, k) with T >= 2")
    for name, value, size in (("lower", lower, steps - 1), ("diagonal", diagonal, steps), ("upper", upper, steps - 1)):
        expect(name, value, (size, k, k), f": b is (*batch, {steps}, {k})")
    return BlockTridiagonal.call(lower, diagonal, upper, b)
