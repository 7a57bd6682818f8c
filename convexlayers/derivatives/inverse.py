"""Factorizations of batches of symmetric matrices, dense or sparse, behind one operation: apply the inverse."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
import torch
from torch import Tensor


class Inverse(ABC):
    """Factors of B matrices of order N."""

    @abstractmethod
    def apply(self, r: Tensor) -> Tensor:
        """K^-1 r for r of shape (B, N, 1); not finite where K is exactly singular."""

    @abstractmethod
    def replace(self, indices: Tensor, other: "Inverse") -> "Inverse":
        """This one with the elements at `indices` taken from another."""


@dataclass(frozen=True)
class DenseInverse(Inverse):
    """LDL' with Bunch-Kaufman pivoting (LAPACK sytrf).

    Attributes:
        ldl, pivots: from torch.linalg.ldl_factor.
    """

    ldl: Tensor
    pivots: Tensor

    @classmethod
    def of(cls, K: Tensor) -> "DenseInverse":
        """Factor (B, N, N)."""
        ldl, pivots, _ = torch.linalg.ldl_factor_ex(K)
        return cls(ldl, pivots)

    def apply(self, r: Tensor) -> Tensor:
        return torch.linalg.ldl_solve(self.ldl, self.pivots, r)

    def replace(self, indices: Tensor, other: Inverse) -> "DenseInverse":
        assert isinstance(other, DenseInverse)
        return DenseInverse(
            self.ldl.index_copy(0, indices, other.ldl), self.pivots.index_copy(0, indices, other.pivots)
        )


@dataclass(frozen=True)
class SparseInverse(Inverse):
    """SuperLU with an ordering for symmetric patterns, one matrix after the other, on the CPU.

    Attributes:
        factors: per element, None where the matrix is exactly singular.
    """

    factors: tuple[Any, ...]

    @classmethod
    def of(cls, K: Tensor) -> "SparseInverse":
        """Factor (B, N, N), most of whose entries are zero."""
        return cls(tuple(_superlu(matrix) for matrix in K.detach().cpu().numpy()))

    def apply(self, r: Tensor) -> Tensor:
        columns = r.squeeze(-1).cpu().numpy()
        nan = np.full(r.shape[1], np.nan)
        parts = [nan if f is None else f.solve(c) for f, c in zip(self.factors, columns, strict=True)]
        return torch.as_tensor(np.stack(parts), dtype=r.dtype, device=r.device).unsqueeze(-1)

    def replace(self, indices: Tensor, other: Inverse) -> "SparseInverse":
        assert isinstance(other, SparseInverse)
        factors = list(self.factors)
        for index, factor in zip(indices.tolist(), other.factors, strict=True):
            factors[index] = factor
        return SparseInverse(tuple(factors))


def _superlu(matrix: np.ndarray) -> Any:
    options = {"SymmetricMode": True}
    try:
        return spla.splu(sp.csc_matrix(matrix), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.01, options=options)
    except RuntimeError:  # "Factor is exactly singular"
        return None
