"""Factorizations of batches of symmetric matrices, dense or sparse, behind the same few operations."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
import torch
from torch import Tensor


def product(matrix: Tensor, columns: Tensor) -> Tensor:
    """matrix @ columns, (B, i, j) times (B, j, k).

    The same for an element whatever else is in the batch: BLAS takes a single column another way in a batch of one.
    """
    if columns.shape[-1] == 1:
        return torch.bmm(matrix, columns.repeat(1, 1, 2))[..., :1]
    return torch.bmm(matrix, columns)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector, (B, i, j) times (B, j)."""
    return product(matrix, vector.unsqueeze(-1)).squeeze(-1)


class Inverse(ABC):
    """B matrices K of order N, and factors of them or of what `shift` made of them."""

    @abstractmethod
    def apply(self, r: Tensor) -> Tensor:
        """The inverse times r, (B, N, 1); not finite where a matrix is exactly singular."""

    @abstractmethod
    def multiply(self, u: Tensor) -> Tensor:
        """K u for u of shape (B, N, 1), whatever has been shifted."""

    @abstractmethod
    def shift(self, indices: Tensor, diagonal: Tensor) -> "Inverse":
        """The same with factors of K + diag(diagonal) for the elements at `indices`; diagonal has shape (count, N)."""

    @abstractmethod
    def dense(self, index: int) -> Tensor:
        """K of one element, (N, N)."""


@dataclass(frozen=True, eq=False)
class DenseInverse(Inverse):
    """LDL' with Bunch-Kaufman pivoting (LAPACK sytrf).

    Attributes:
        K: (B, N, N).
        ldl, pivots: from torch.linalg.ldl_factor.
    """

    K: Tensor
    ldl: Tensor
    pivots: Tensor

    @classmethod
    def of(cls, K: Tensor) -> "DenseInverse":
        """Factor (B, N, N)."""
        ldl, pivots, _ = torch.linalg.ldl_factor_ex(K)
        return cls(K, ldl, pivots)

    def apply(self, r: Tensor) -> Tensor:
        return torch.linalg.ldl_solve(self.ldl, self.pivots, r)

    def multiply(self, u: Tensor) -> Tensor:
        return product(self.K, u)

    def shift(self, indices: Tensor, diagonal: Tensor) -> "DenseInverse":
        ldl, pivots, _ = torch.linalg.ldl_factor_ex(self.K[indices] + torch.diag_embed(diagonal))
        return replace(
            self, ldl=self.ldl.index_copy(0, indices, ldl), pivots=self.pivots.index_copy(0, indices, pivots)
        )

    def dense(self, index: int) -> Tensor:
        return self.K[index]


@dataclass(frozen=True, eq=False)
class SparseInverse(Inverse):
    """SuperLU with an ordering for symmetric patterns, one matrix after the other, on the CPU.

    Attributes:
        matrices: K per element, compressed sparse columns.
        factors: per element, None where the matrix is exactly singular.
    """

    matrices: tuple[Any, ...]
    factors: tuple[Any, ...]

    @classmethod
    def of(cls, K: Tensor) -> "SparseInverse":
        """Factor (B, N, N), most of whose entries are zero."""
        matrices = tuple(sp.csc_matrix(matrix) for matrix in K.detach().cpu().numpy())
        return cls(matrices, tuple(_superlu(matrix) for matrix in matrices))

    def apply(self, r: Tensor) -> Tensor:
        nan = np.full(r.shape[1], np.nan)
        operations = [(lambda _: nan) if factor is None else factor.solve for factor in self.factors]
        return _each(operations, r)

    def multiply(self, u: Tensor) -> Tensor:
        return _each([matrix.dot for matrix in self.matrices], u)

    def shift(self, indices: Tensor, diagonal: Tensor) -> "SparseInverse":
        factors = list(self.factors)
        for index, entries in zip(indices.tolist(), diagonal.cpu().numpy(), strict=True):
            factors[index] = _superlu(sp.csc_matrix(self.matrices[index] + sp.diags_array(entries)))
        return replace(self, factors=tuple(factors))

    def dense(self, index: int) -> Tensor:
        return torch.as_tensor(self.matrices[index].toarray())


def _each(operations: list[Callable[[np.ndarray], np.ndarray]], columns: Tensor) -> Tensor:
    """Each element's operation on its column, (B, N, 1)."""
    vectors = columns.squeeze(-1).cpu().numpy()
    results = [operation(vector) for operation, vector in zip(operations, vectors, strict=True)]
    return torch.as_tensor(np.stack(results), dtype=columns.dtype, device=columns.device).unsqueeze(-1)


def _superlu(matrix: Any) -> Any:
    # Not in SuperLU's symmetric mode: with zeros on the diagonal that reads memory nobody wrote, and may crash.
    try:
        return spla.splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.01)
    except RuntimeError:  # "Factor is exactly singular"
        return None
