"""From CVXPY's tensors to the library's structure and affine map.

CVXPY gives three sparse matrices with one column per parameter entry and a last one for the constant: `q` with rows for
the n variables and the offset; `P` with n^2 rows, column by column; `A` with rows for every entry of every constraint's
arguments, stacked, times (n + 1) for the coefficients of each variable and the constant, column by column. An argument
arg = C x + d of a cone constraint becomes rows of s = b - A x = +-arg in the library's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import scipy.sparse as sp
from cvxpy.constraints.exponential import ExpCone
from cvxpy.constraints.nonpos import NonNeg
from cvxpy.constraints.power import PowCone3D
from cvxpy.constraints.psd import PSD
from cvxpy.constraints.second_order import SOC
from cvxpy.constraints.zero import Zero
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg

from convexlayers.compiler.parameters import Columns
from convexlayers.cones import Cones
from convexlayers.cones.svec import SQRT2, svec_index
from convexlayers.maps import AffineMap, SparseMap
from convexlayers.program import Structure

# The numbers of a program, in their order.
BLOCKS = ("P", "q", "A", "b", "offset")


@dataclass(frozen=True)
class RowMap:
    """Where the entries of one constraint's arguments stand among the rows of s.

    Attributes:
        rows: for each argument the row of each of its entries, column by column; entries (i, j) and (j, i) of a PSD
            argument share one.
        factor: for each argument ds / d(entry).
    """

    rows: tuple[np.ndarray, ...]
    factor: tuple[np.ndarray, ...]


def extract(
    stuffed: ParamConeProg, columns: Sequence[Sequence[Columns]]
) -> tuple[Structure, AffineMap, dict[int, RowMap]]:
    """Structure, affine map, and the rows of each cone constraint by its id."""
    cones, row_maps = arrange(stuffed.constraints)
    structure, tensor = _assemble(stuffed, cones, row_maps)
    constant = tensor[:, [-1]].toarray().reshape(-1)
    return structure, AffineMap(constant, [_block_map(tensor, block) for block in columns]), row_maps


def _assemble(stuffed: ParamConeProg, cones: Cones, row_maps: dict[int, RowMap]) -> tuple[Structure, Any]:
    """Structure, and one matrix from parameters and 1 to all numbers. Parts are let go of when they are in it."""
    n = stuffed.x.size
    A_part, b_part = _constraint_entries(stuffed, n, row_maps)
    P_part = _quadratic_entries(stuffed, n)
    q: Any = sp.coo_array(stuffed.q)
    P_rows, P_cols, P_position = _pattern(P_part.row, P_part.col, n)
    A_rows, A_cols, A_position = _pattern(A_part.row, A_part.col, cones.rows)
    structure = Structure(n=n, cones=cones, P_rows=P_rows, P_cols=P_cols, A_rows=A_rows, A_cols=A_cols)
    where = structure.slices
    linear = q.row < n
    positions = [P_position, q.row[linear], A_position, b_part.row, q.row[~linear] - n]
    number = np.concatenate([where[name].start + part for name, part in zip(BLOCKS, positions, strict=True)])
    del P_position, A_position, positions
    parameter = np.concatenate([P_part.parameter, q.col[linear], A_part.parameter, b_part.parameter, q.col[~linear]])
    value = np.concatenate([P_part.value, q.data[linear], A_part.value, b_part.value, q.data[~linear]])
    del P_part, A_part, b_part
    return structure, sp.csc_array((value, (number, parameter)), shape=(structure.size, stuffed.q.shape[1]))


@dataclass(frozen=True)
class Entries:
    """Nonzeros of a parametrized matrix: row, column, which parameter entry, coefficient."""

    row: np.ndarray
    col: np.ndarray
    parameter: np.ndarray
    value: np.ndarray


def arrange(constraints: Sequence[Any]) -> tuple[Cones, dict[int, RowMap]]:
    """Give every cone constraint its rows. CVXPY has put them in the library's order of cones already."""
    sizes: dict[type, list[Any]] = {kind: [] for kind in (Zero, NonNeg, SOC, PSD, ExpCone, PowCone3D)}
    row_maps: dict[int, RowMap] = {}
    row = 0
    for constraint in constraints:
        kind = type(constraint)
        row_maps[constraint.id] = ARRANGE[kind](constraint, row)
        sizes[kind] += _cone_sizes(constraint)
        row = 1 + max(chain((row - 1,), *(rows.tolist() for rows in row_maps[constraint.id].rows)))
    cones = Cones(
        zero=sum(sizes[Zero]),
        nonnegative=sum(sizes[NonNeg]),
        second_order=tuple(sizes[SOC]),
        psd=tuple(sizes[PSD]),
        exponential=len(sizes[ExpCone]),
        power=tuple(sizes[PowCone3D]),
    )
    assert cones.rows == row, "rows of the constraints and of the cones differ"
    return cones, row_maps


def _cone_sizes(constraint: Any) -> list[Any]:
    if isinstance(constraint, Zero | NonNeg):
        return [constraint.size]
    if isinstance(constraint, PowCone3D):
        return np.asarray(constraint.alpha.value, dtype=float).reshape(-1, order="F").tolist()
    return list(constraint.cone_sizes())


def _arrange_linear(sign: float) -> Any:
    def arrange_one(constraint: Any, row: int) -> RowMap:
        size = constraint.args[0].size
        return RowMap((row + np.arange(size),), (np.full(size, sign),))

    return arrange_one


def _arrange_second_order(constraint: Any, row: int) -> RowMap:
    """Cone i takes t_i, then column i of X."""
    count, size = constraint.args[0].size, constraint.args[1].size
    width = size // count
    starts = row + (width + 1) * np.arange(count)
    inside = (starts[:, None] + 1 + np.arange(width)).reshape(-1)
    return RowMap((starts, inside), (np.ones(count), np.ones(size)))


def _arrange_semidefinite(constraint: Any, row: int) -> RowMap:
    """svec of the symmetric part: X_ij and X_ji share a row, each with half of sqrt(2)."""
    shape = constraint.args[0].shape
    order, count = shape[-1], int(np.prod(shape[:-2], dtype=int))
    starts = row + (order * (order + 1) // 2) * np.arange(count).reshape(shape[:-2])
    rows = starts[..., None, None] + svec_index(order)
    factor = np.where(np.eye(order, dtype=bool), 1.0, SQRT2 / 2) * np.ones(shape)
    return RowMap((rows.reshape(-1, order="F"),), (factor.reshape(-1, order="F"),))


def _arrange_triples(constraint: Any, row: int) -> RowMap:
    """Cone i takes entry i of each of the three arguments."""
    starts = row + 3 * np.arange(constraint.args[0].size)
    ones = np.ones(len(starts))
    return RowMap((starts, starts + 1, starts + 2), (ones, ones, ones))


ARRANGE = {
    Zero: _arrange_linear(-1.0),
    NonNeg: _arrange_linear(1.0),
    SOC: _arrange_second_order,
    PSD: _arrange_semidefinite,
    ExpCone: _arrange_triples,
    PowCone3D: _arrange_triples,
}


def _constraint_entries(stuffed: ParamConeProg, n: int, row_maps: dict[int, RowMap]) -> tuple[Entries, Entries]:
    """Entries of A and of b: s = factor (C x + d) = b - A x."""
    maps = [row_maps[constraint.id] for constraint in stuffed.constraints]
    empty = np.zeros(0)
    rows = np.concatenate([empty.astype(np.int64), *(part for m in maps for part in m.rows)])
    if len(rows) < np.iinfo(np.int32).max:
        rows = rows.astype(np.int32)
    factor = np.concatenate([empty, *(part for m in maps for part in m.factor)])
    tensor: Any = sp.coo_array(stuffed.A)
    height = max(len(rows), 1)
    # Column n, the constant, comes last.
    in_A = tensor.row < height * n

    def pick(chosen: np.ndarray, sign: float) -> Entries:
        flat = tensor.row[chosen]
        argument, col = flat % height, flat // height
        if not len(rows):
            return Entries(argument, col, tensor.col[chosen], sign * tensor.data[chosen])
        return Entries(rows[argument], col, tensor.col[chosen], sign * tensor.data[chosen] * factor[argument])

    return pick(in_A, -1.0), pick(~in_A, 1.0)


def _quadratic_entries(stuffed: ParamConeProg, n: int) -> Entries:
    """Entries of the upper triangle of (P + P') / 2."""
    if stuffed.P is None:
        none = np.zeros(0, dtype=np.int64)
        return Entries(none, none, none, np.zeros(0))
    tensor = sp.coo_array(stuffed.P)
    flat = np.asarray(tensor.row, dtype=np.int64)
    i, j = flat % n, flat // n
    halves = np.where(i == j, 1.0, 0.5)
    return Entries(np.minimum(i, j), np.maximum(i, j), tensor.col, halves * tensor.data)


def _pattern(row: np.ndarray, col: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct positions sorted by column then row, and for each entry its place among them."""
    height = max(height, 1)
    keys = col.astype(np.int64) * height + row
    # One copy of them at a time: there may be millions.
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    position = np.empty_like(order)
    position[order] = np.cumsum(first) - 1
    del order
    unique = keys if bool(first.all()) else keys[first]
    return unique % height, unique // height, position


def _block_map(tensor: Any, block: Sequence[Columns]) -> SparseMap:
    """The columns that a block feeds, times how it feeds them."""
    total: Any = sum((tensor[:, c.start : c.start + c.width] @ c.reduce for c in block), start=0)
    # Row by row, with the columns of a row in order, there is nothing to sort.
    total = sp.csr_array(total)
    total.sum_duplicates()
    entries = sp.coo_array(total)
    del total
    height, width = tensor.shape[0], block[0].entries
    return SparseMap(entries.row, entries.col, entries.data, (height, width))
