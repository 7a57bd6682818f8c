"""Symbolic analysis of a sparse LDL' factorization: ordering, elimination tree, pattern of L."""

from dataclasses import dataclass, fields
from operator import index
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convexlayers.errors import ArgumentError
from convexlayers.native import _core

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SymbolicFactor:
    """All that is known of `A[p][:, p] = L D L'` (L unit lower triangular, D diagonal) before the values of A are.

    Attributes:
        permutation: (n,) p, fill-reducing: row and column k of the factored matrix are row and column `p[k]` of A.
        elimination_tree: (n,) parent of each column of L, always a later one; -1 for a root. Postordered: the columns
            below a node precede it without a gap.
        column_counts: (n,) entries in each column of L strictly below the diagonal.
        L_indptr: (n + 1,) where the columns of L begin in `L_indices`.
        L_indices: (nnz_L,) row indices of L strictly below the diagonal, ascending within each column.
        nnz_L: entries of L strictly below the diagonal.
        flops: additions, multiplications and divisions of one numeric factorization.
    """

    permutation: IntArray
    elimination_tree: IntArray
    column_counts: IntArray
    L_indptr: IntArray
    L_indices: IntArray
    nnz_L: int
    flops: int

    def __post_init__(self) -> None:
        # Frozen to the bottom: a factor is shared by every solve with its pattern.
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value.flags.writeable = False


def analyze(n: int, indptr: ArrayLike, indices: ArrayLike) -> SymbolicFactor:
    """Order a symmetric matrix to keep its factor sparse, and find the pattern of that factor.

    The ordering is approximate minimum degree (Amestoy, Davis, Duff 1996), with rows adjacent to nearly everything
    set aside and ordered last, followed by a postorder of the elimination tree, which makes columns of L with the same
    pattern neighbours. The result depends on nothing but the pattern. The GIL is released meanwhile.

    Args:
        n: order of the matrix.
        indptr: (n + 1,) integers, where each column begins in `indices`.
        indices: (nnz,) integers, row indices of the **upper triangle** (row <= column), strictly ascending within each
            column: scipy's `sparse.triu(A, format="csc")` after `sort_indices()`. Diagonal entries may be left out;
            the diagonal counts as full either way.

    Returns:
        The symbolic factor.

    Raises:
        ArgumentError: (a ValueError) n is negative or no integer, the arrays are not one-dimensional integers, or they
            are not the pattern of an upper triangle.

    Example:
        >>> factor = analyze(4, [0, 1, 3, 5, 7], [0, 0, 1, 0, 2, 0, 3])  # an arrow: the first row is full
        >>> factor.permutation.tolist()  # it goes late, and nothing fills in
        [1, 2, 0, 3]
        >>> factor.nnz_L, factor.L_indices.tolist()
        (3, [2, 2, 3])
    """
    order = _order(n)
    columns = _integers("indptr", indptr)
    rows = _integers("indices", indices)
    _check_upper_triangle(order, columns, rows)
    permutation, tree, counts, L_indptr, L_indices, flops = _core.analyze(order, columns, rows)
    return SymbolicFactor(permutation, tree, counts, L_indptr, L_indices, nnz_L=len(L_indices), flops=flops)


def _order(n: Any) -> int:
    try:
        order = index(n)
    except TypeError:
        raise ArgumentError(f"n is {n!r}, expected an integer >= 0.") from None
    if order < 0:
        raise ArgumentError(f"n is {order}, expected an integer >= 0.")
    return order


def _integers(name: str, values: ArrayLike) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ArgumentError(f"{name} has shape {array.shape}, expected one dimension.")
    if array.size > 0 and array.dtype.kind not in "iu":
        raise ArgumentError(f"{name} has dtype {array.dtype}, expected integers.")
    return np.ascontiguousarray(array, dtype=np.int64)


def _check_upper_triangle(n: int, indptr: IntArray, indices: IntArray) -> None:
    if len(indptr) != n + 1:
        raise ArgumentError(f"indptr has {len(indptr)} entries, expected n + 1 = {n + 1}.")
    if indptr[0] != 0:
        raise ArgumentError(f"indptr[0] is {indptr[0]}, expected 0.")
    lengths = np.diff(indptr)
    if (lengths < 0).any():
        column = int(np.argmax(lengths < 0))
        raise ArgumentError(
            f"indptr falls from {indptr[column]} to {indptr[column + 1]} at column {column}, expected it never to fall."
        )
    if indptr[-1] != len(indices):
        raise ArgumentError(f"indptr[-1] is {indptr[-1]}, expected the length of indices, {len(indices)}.")
    columns = np.repeat(np.arange(n), lengths)
    outside = (indices < 0) | (indices > columns)
    if outside.any():
        k = int(np.argmax(outside))
        raise ArgumentError(
            f"indices has row {indices[k]} in column {columns[k]}, "
            f"expected rows 0 to {columns[k]}: the upper triangle, diagonal included."
        )
    unordered = (indices[1:] <= indices[:-1]) & (columns[1:] == columns[:-1])
    if unordered.any():
        k = int(np.argmax(unordered))
        raise ArgumentError(
            f"indices has row {indices[k + 1]} after row {indices[k]} in column {columns[k]}, "
            "expected strictly ascending rows in each column (sort_indices and sum_duplicates make them so)."
        )
