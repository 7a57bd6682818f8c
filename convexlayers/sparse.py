"""Sparse matrices as arguments: their pattern belongs to the program, their values are a parameter.

A sparse matrix has no batch dimensions: the batch shares it, and its gradient is a sum over the batch. Gradients reach
the stored entries only. Nothing here costs more than the entries: an n by n matrix is never spread out.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from convexlayers.errors import ArgumentError, SecondDerivativeError, wrong_shape


class SparseMatrix(Protocol):
    """A sparse matrix or array of scipy."""

    @property
    def shape(self) -> Any:
        """Rows and columns."""

    def tocoo(self, copy: bool = ...) -> Any:
        """In coordinate form."""


LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
# Entries of a pattern that its hash looks at.
SAMPLES = 512
# How far from symmetric a matrix may be, relative to its largest entry.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}


class Pattern:
    """Which entries of a matrix are stored, sorted by row, then column.

    Attributes:
        shape: of the matrix.
        rows, cols: one stored entry each.
    """

    def __init__(self, shape: tuple[int, int], rows: np.ndarray, cols: np.ndarray) -> None:
        self.shape, self.rows, self.cols = shape, rows, cols
        step = max(1, len(rows) // SAMPLES)
        self._hash = hash((shape, len(rows), rows[::step].tobytes(), cols[::step].tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and (
            self.shape == other.shape
            and np.array_equal(self.rows, other.rows)
            and np.array_equal(self.cols, other.cols)
        )


@dataclass(frozen=True, eq=False)
class Entries:
    """A sparse matrix as pattern and values, which torch can transform and differentiate as often as it likes.

    Attributes:
        pattern: of the matrix.
        values: in the pattern's order, (entries,).
    """

    pattern: Pattern
    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pattern.shape


class _DifferentiatedOnce(torch.autograd.Function):
    """The identity. A second derivative is an error, since torch loses it on its way through a sparse tensor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, name: str) -> Tensor:
        ctx.name = name
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        if torch.is_grad_enabled() and grad.requires_grad:
            raise SecondDerivativeError(
                f"{ctx.name} is a sparse tensor that requires a gradient, and second derivatives do not reach through "
                "those: torch would return zero for them. Detach it, or pass it dense."
            )
        return grad, None


def is_sparse(value: object) -> bool:
    """Whether a value is a sparse tensor of torch, a sparse matrix of scipy, or `Entries`."""
    return (
        value.layout in LAYOUTS if isinstance(value, Tensor) else hasattr(value, "tocoo") or isinstance(value, Entries)
    )


def split(name: str, value: Any, shape: tuple[int, int]) -> tuple[Pattern, Tensor]:
    """Pattern and values, differentiable where the value is.

    Args:
        name: for messages.
        value: for which `is_sparse` holds.
        shape: that it has to have.

    Raises:
        ArgumentError: the shape is another one, or the numbers are complex.
    """
    if tuple(value.shape) != shape:
        raise wrong_shape(name, value.shape, f"{shape} (a sparse matrix has no batch dimensions)")
    if isinstance(value, Entries):
        return value.pattern, value.values
    if isinstance(value, Tensor):
        entries = value.to_sparse_coo().coalesce()
        rows, cols = entries.indices().cpu().numpy()
        values = entries.values()
        values = _DifferentiatedOnce.apply(values, name) if values.requires_grad else values
    else:
        entries = value.tocsr(copy=True)
        entries.sum_duplicates()
        entries = entries.tocoo()
        rows, cols, values = entries.row, entries.col, torch.from_numpy(np.array(entries.data))
    if values.is_complex():
        raise ArgumentError(f"{name} is complex, expected real numbers.")
    values = values if values.is_floating_point() else values.to(torch.float64)
    return Pattern(shape, rows.astype(np.int64), cols.astype(np.int64)), values


def pick(name: str, value: Any, shape: tuple[int, ...], sparsity: np.ndarray) -> Tensor:
    """The entries of a sparse value on a given pattern, differentiable where the value is; zero where it stores none.

    Args:
        name: for messages.
        value: for which `is_sparse` holds, without batch dimensions.
        shape: that it has to have.
        sparsity: the pattern, as distinct flat row-major indices.

    Returns:
        (len(sparsity),), in the order of the pattern.

    Raises:
        ArgumentError: the shape is another one, or an entry that is not zero is outside the pattern.
    """
    if len(shape) != 2:
        raise ArgumentError(f"{name} is sparse, which only a matrix can be; its shape is {shape}.")
    pattern, values = split(name, value, (shape[0], shape[1]))
    keys, order = pattern.rows * shape[1] + pattern.cols, np.argsort(sparsity)
    place = np.minimum(np.searchsorted(sparsity[order], keys), max(len(sparsity) - 1, 0))
    inside = sparsity[order][place] == keys if len(sparsity) else np.zeros(len(keys), dtype=bool)
    outside = values.detach().cpu().numpy()[~inside] != 0
    if outside.any():
        i, j = int(pattern.rows[~inside][outside][0]), int(pattern.cols[~inside][outside][0])
        raise ArgumentError(f"{name} must be zero outside its sparsity pattern, but stores an entry at ({i}, {j}).")
    kept = torch.as_tensor(np.nonzero(inside)[0], device=values.device)
    target = torch.as_tensor(order[place[inside]], device=values.device)
    return values.new_zeros(len(sparsity)).index_put((target,), values.index_select(0, kept))


def check_quadratic(name: str, pattern: Pattern, values: Tensor) -> None:
    """That a matrix is symmetric with a nonnegative diagonal, both up to rounding; its eigenvalues are not computed.

    Raises:
        ArgumentError: it is not; the message names an entry.
    """
    found = values.detach().to(device="cpu", dtype=torch.float64).numpy()
    if not np.isfinite(found).all():
        return  # the status of the element will say so
    allowed = ROUNDING.get(values.dtype, 1e-2) * np.abs(found).max(initial=0.0)
    n = pattern.shape[0]
    mirrored, keys = pattern.cols * n + pattern.rows, pattern.rows * n + pattern.cols
    place = np.minimum(np.searchsorted(keys, mirrored), max(len(keys) - 1, 0))
    other = np.where(keys[place] == mirrored, found[place], 0.0) if len(keys) else found
    off = np.abs(found - other) > allowed
    if off.any():
        i, j = int(pattern.rows[off][0]), int(pattern.cols[off][0])
        raise ArgumentError(f"{name} is not symmetric: entries ({i}, {j}) and ({j}, {i}) differ.")
    negative = (pattern.rows == pattern.cols) & (found < -allowed)
    if negative.any():
        i = int(pattern.rows[negative][0])
        raise ArgumentError(f"{name} is not positive semidefinite: entry ({i}, {i}) is {found[negative][0]:.3g}.")
