"""From the user's parameters to the columns of CVXPY's tensors.

A block of theta is one parameter's value, flattened row by row, or its logarithm. CVXPY's tensors have columns for the
entries of its own parameters, column by column, with symmetric, diagonal and sparse ones reduced to their free entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.reductions.cvx_attr2constr import lower_value

from convexlayers.compiler.canonicalize import Canonical
from convexlayers.program import Block, ParameterInfo

ATTRIBUTES = ("nonneg", "nonpos", "pos", "neg", "symmetric", "PSD", "NSD", "diag")
SYMMETRIC = ("symmetric", "PSD", "NSD")


@dataclass(frozen=True)
class Columns:
    """Where a block enters the tensors.

    Attributes:
        start: first column.
        reduce: from the block's entries to the columns, (columns, entries).
    """

    start: int
    reduce: sp.csr_array

    @property
    def width(self) -> int:
        """Number of columns."""
        return _shape(self.reduce)[0]

    @property
    def entries(self) -> int:
        """Number of entries of the block."""
        return _shape(self.reduce)[1]


def _shape(matrix: Any) -> tuple[int, int]:
    # scipy's stubs call the shape of a sparse array optional.
    return matrix.shape


def describe_parameters(parameters: Sequence[cp.Parameter]) -> tuple[ParameterInfo, ...]:
    """What has to be known of the parameters without cvxpy."""
    return tuple(_describe(parameter) for parameter in parameters)


def _describe(parameter: cp.Parameter) -> ParameterInfo:
    attributes = tuple(name for name in ATTRIBUTES if parameter.attributes.get(name))
    sparsity = None
    if parameter.sparse_idx is not None:
        sparsity = np.ravel_multi_index(parameter.sparse_idx, parameter.shape)
    return ParameterInfo(
        key=parameter.id,
        name=parameter.name(),
        shape=tuple(parameter.shape),
        attributes=attributes,
        bounds=_bounds(parameter),
        sparsity=sparsity,
    )


def _bounds(parameter: cp.Parameter) -> tuple[np.ndarray, np.ndarray] | None:
    bounds = parameter.attributes.get("bounds")
    if bounds is None:
        return None
    lower, upper = (np.asarray(bound.toarray() if sp.issparse(bound) else bound, dtype=float) for bound in bounds)
    return lower, upper


def parameter_blocks(
    parameters: Sequence[cp.Parameter], infos: Sequence[ParameterInfo], canonical: Canonical
) -> tuple[tuple[Block, ...], list[list[Columns]]]:
    """The blocks of theta, and for each the columns that it feeds."""
    starts = canonical.stuffed.param_id_to_col
    blocks: list[Block] = []
    columns: list[list[Columns]] = []
    for position, (parameter, info) in enumerate(zip(parameters, infos, strict=True)):
        sources = [(parameter, False)]
        if parameter.id in canonical.logarithms:
            sources.append((canonical.logarithms[parameter.id], True))
        for leaf, logarithm in sources:
            found = _columns_of(leaf, canonical, starts)
            if found:
                blocks.append(Block(position, logarithm, info if info.sparsity is not None else None))
                columns.append(found)
    return tuple(blocks), columns


def _columns_of(leaf: cp.Parameter, canonical: Canonical, starts: dict[int, int]) -> list[Columns]:
    """The columns of a parameter as it is and in its reduced form; none if the problem lost it on the way."""
    if leaf.sparse_idx is not None:
        return _sparse_columns_of(leaf, canonical, starts)
    found = []
    indices = np.arange(leaf.size).reshape(leaf.shape)
    if leaf.id in starts:
        found.append(Columns(starts[leaf.id], _selection([indices.flatten(order="F")], leaf.size)))
    if leaf.id in canonical.reduced_parameters:
        _, reduced = canonical.reduced_parameters[leaf.id]
        picked = [np.asarray(lower_value(leaf, indices)).reshape(-1)]
        if any(leaf.attributes[name] for name in SYMMETRIC):
            # CVXPY reads the upper triangle. Reading both halves gives a symmetric gradient, and the same value.
            picked.append(np.asarray(lower_value(leaf, np.swapaxes(indices, -1, -2))).reshape(-1))
        if reduced.id in starts:
            found.append(Columns(starts[reduced.id], _selection(picked, leaf.size)))
    return found


def _sparse_columns_of(leaf: cp.Parameter, canonical: Canonical, starts: dict[int, int]) -> list[Columns]:
    """Of a parameter with a sparsity pattern, whose block holds its entries in CVXPY's order of them."""
    pattern: Any = leaf.sparse_idx
    count, found = len(pattern[0]), []
    if leaf.id in starts:
        column = np.ravel_multi_index(pattern, leaf.shape, order="F")
        spread = sp.csr_array((np.ones(count), (column, np.arange(count))), shape=(leaf.size, count))
        found.append(Columns(starts[leaf.id], spread))
    if leaf.id in canonical.reduced_parameters:
        _, reduced = canonical.reduced_parameters[leaf.id]
        if reduced.id in starts:
            found.append(Columns(starts[reduced.id], _selection([np.arange(count)], count)))
    return found


def _selection(picked: list[np.ndarray], size: int) -> sp.csr_array:
    """The average of selections of entries, (len(picked[0]), size)."""
    count = len(picked[0])
    rows = np.tile(np.arange(count), len(picked))
    values = np.full(len(rows), 1.0 / len(picked))
    return sp.csr_array((values, (rows, np.concatenate(picked))), shape=(count, size))
