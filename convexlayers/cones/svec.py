"""Symmetric matrices as vectors: the one place that knows the order of their entries.

svec(X) stacks the upper triangle column by column, off-diagonal entries times sqrt(2), so that
<svec(X), svec(Y)> = trace(X Y). For order 3: X00, r X01, X11, r X02, r X12, X22 with r = sqrt(2).
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SQRT2 = float(np.sqrt(2.0))


def triangle_size(order: int) -> int:
    """Number of entries of svec for matrices of this order."""
    return order * (order + 1) // 2


@lru_cache(maxsize=256)
def triangle_indices(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the upper triangle, column by column (row <= column)."""
    # np.tril_indices walks the lower triangle row by row, which is the upper one column by column, transposed.
    cols, rows = np.tril_indices(order)
    return rows, cols


@lru_cache(maxsize=256)
def svec_index(order: int) -> np.ndarray:
    """Matrix of shape (order, order): position in svec of each entry (symmetric)."""
    rows, cols = triangle_indices(order)
    index = np.zeros((order, order), dtype=np.int64)
    index[rows, cols] = index[cols, rows] = np.arange(len(rows))
    return index


def svec_scale(order: int) -> np.ndarray:
    """Factor of each entry of svec: 1 on the diagonal, sqrt(2) off it."""
    rows, cols = triangle_indices(order)
    return np.where(rows == cols, 1.0, SQRT2)


def svec(X: Tensor) -> Tensor:
    """Symmetric matrices (..., n, n) to vectors (..., n (n + 1) / 2). Only the upper triangle is read."""
    order = X.shape[-1]
    rows, cols = (torch.as_tensor(i, device=X.device) for i in triangle_indices(order))
    return X[..., rows, cols] * torch.as_tensor(svec_scale(order), dtype=X.dtype, device=X.device)


def smat(v: Tensor, order: int) -> Tensor:
    """Inverse of `svec`: vectors (..., n (n + 1) / 2) to symmetric matrices (..., n, n)."""
    unscaled = v / torch.as_tensor(svec_scale(order), dtype=v.dtype, device=v.device)
    return unscaled[..., torch.as_tensor(svec_index(order), device=v.device)]
