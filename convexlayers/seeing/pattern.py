"""The pattern of the matrix that the native engine factors, and of its factor, to be looked at.

    [ P    A'        ]     nodes 0 .. n-1: variables
    [ A   -H         ]     nodes n .. n+m-1: rows, then two more for each cone whose H is diagonal plus two vectors

The engine makes the same pattern in C++, where it stays (native/src/plan/kkt.hpp says what the extra nodes are and why
the rows of a semidefinite cone meet every column that meets one of them). Here it is made once more, by other lines;
a test holds the number of entries of the two factors against each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from convexlayers.cones import Cones
from convexlayers.cones.svec import triangle_size
from convexlayers.native import analyze
from convexlayers.program import Structure


@dataclass(frozen=True, eq=False)
class KKTPattern:
    """Entries of the KKT matrix strictly below its diagonal; the diagonal is full.

    Attributes:
        nodes: order of the matrix.
        plain: how many of them are variables and rows; the others are the extra nodes of curved cones.
        rows, cols: (nnz,) the entries, row > column.
        parts: names of consecutive nodes with the first one and one past the last.
        expanded: of each cone with extra nodes, in their order, its first node and dimension.
    """

    nodes: int
    plain: int
    rows: np.ndarray
    cols: np.ndarray
    parts: tuple[tuple[str, int, int], ...]
    expanded: tuple[tuple[int, int], ...]

    @property
    def entries(self) -> int:
        """Entries below the diagonal."""
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class FactorPattern:
    """Entries of L strictly below its diagonal, in elimination order.

    Attributes:
        order: (nodes,) the node that is eliminated at each step.
        rows, cols: (nnz,) the entries, row > column.
        original: (nnz,) whether the KKT matrix has the entry; the others are fill-in.
    """

    order: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    original: np.ndarray

    @property
    def entries(self) -> int:
        """Entries below the diagonal."""
        return len(self.rows)


def kkt_pattern(structure: Structure) -> KKTPattern:
    """The pattern of the matrix that is factored in every iteration and for the derivative.

    Args:
        structure: of the program.
    """
    n, cones, plain = structure.n, structure.cones, structure.n + structure.m
    off = structure.P_rows != structure.P_cols
    pieces = [(structure.P_cols[off], structure.P_rows[off]), *_entries_of_A(structure)]
    expanded = tuple((n + start, dim) for start, dim in _expanded(cones))
    for k, (first, dim) in enumerate(expanded):
        for extra in (plain + 2 * k, plain + 2 * k + 1):
            pieces.append((np.full(dim, extra), np.arange(first, first + dim)))
    rows, cols = (np.concatenate(part).astype(np.int64) for part in zip(*pieces, strict=True))
    nodes = plain + 2 * len(expanded)
    return KKTPattern(nodes, plain, rows, cols, tuple(_parts(n, cones, nodes)), expanded)


def factor_pattern(kkt: KKTPattern) -> FactorPattern:
    """The factor in the order in which the native engine eliminates.

    Column k of L has the entries of the matrix and those of the columns that k is the first entry of; so one pass from
    left to right finds them all (George and Liu, "Computer solution of large sparse positive definite systems", 1981).

    Args:
        kkt: from `kkt_pattern`. Meant for pictures: Python works through every entry of L.
    """
    order = _elimination_order(kkt)
    place = np.empty(kkt.nodes, dtype=np.int64)
    place[order] = np.arange(kkt.nodes)
    i, j = place[kkt.rows], place[kkt.cols]
    below: list[set[int]] = [set() for _ in range(kkt.nodes)]
    for row, column in zip(np.maximum(i, j).tolist(), np.minimum(i, j).tolist(), strict=True):
        below[column].add(row)
    original = {(row, column) for column, rows in enumerate(below) for row in rows}
    for rows in below:
        if rows:
            first = min(rows)
            below[first] |= rows - {first}
    found = [(row, column) for column, rows in enumerate(below) for row in sorted(rows)]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return FactorPattern(order, pairs[:, 0], pairs[:, 1], np.array([pair in original for pair in found], dtype=bool))


def _row_starts(cones: Cones) -> Iterator[tuple[str, int, int]]:
    """Kind, first row and number of rows of every cone that is not of single rows."""
    start = cones.zero + cones.nonnegative
    sizes = chain(
        (("second-order", dim) for dim in cones.second_order),
        (("PSD", triangle_size(order)) for order in cones.psd),
        (("exponential", 3) for _ in range(cones.exponential)),
        (("power", 3) for _ in cones.power),
    )
    for kind, size in sizes:
        yield kind, start, size
        start += size


def _expanded(cones: Cones) -> list[tuple[int, int]]:
    """First row and dimension of the cones that have two extra nodes."""
    return [(start, size) for kind, start, size in _row_starts(cones) if kind != "PSD" and size > 1]


def _entries_of_A(structure: Structure) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns: as they are, but full in the rows of a semidefinite cone where one of them has an entry."""
    n, rows, cols = structure.n, structure.A_rows, structure.A_cols
    rotated = np.zeros(structure.m, dtype=bool)
    for kind, start, size in _row_starts(structure.cones):
        if kind == "PSD" and size > 1:
            rotated[start : start + size] = True
            met = np.unique(cols[(rows >= start) & (rows < start + size)])
            yield n + start + np.tile(np.arange(size), len(met)), np.repeat(met, size)
    kept = ~rotated[rows]
    yield n + rows[kept], cols[kept]


def _parts(n: int, cones: Cones, nodes: int) -> Iterator[tuple[str, int, int]]:
    """Names of the nodes, runs of the same kind of cone together."""
    sizes = {"variables": n, "zero": cones.zero, "nonnegative": cones.nonnegative}
    for kind, _, size in _row_starts(cones):
        sizes[kind] = sizes.get(kind, 0) + size
    sizes["extra nodes"] = nodes - n - cones.rows
    start = 0
    for name, size in sizes.items():
        if size:
            yield name, start, start + size
        start += size


def _elimination_order(kkt: KKTPattern) -> np.ndarray:
    """Minimum degree of variables and rows; the extra nodes of a cone come right after the last of its rows."""
    inside = kkt.rows < kkt.plain
    rows, cols = kkt.rows[inside], kkt.cols[inside]
    sort = np.lexsort((cols, rows))
    indptr = np.searchsorted(rows[sort], np.arange(kkt.plain + 1))
    permutation = analyze(kkt.plain, indptr, cols[sort]).permutation
    place = np.empty(kkt.plain, dtype=np.int64)
    place[permutation] = np.arange(kkt.plain)
    after: dict[int, list[int]] = {}
    for k, (first, dim) in enumerate(kkt.expanded):
        last = int(place[first : first + dim].max())
        after.setdefault(last, []).extend((kkt.plain + 2 * k + 1, kkt.plain + 2 * k))
    order = [node for k, plain in enumerate(permutation.tolist()) for node in (plain, *after.get(k, ()))]
    return np.array(order, dtype=np.int64)
