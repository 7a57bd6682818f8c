"""Cone programs in SCS's form, translated to the library's.

Every cone of SCS but boxes and complex PSD cones is translated by one invertible matrix T, s' = T s: the rows of a PSD
cone are permuted (`engines.scs.row_order`); the dual exponential cone {-u exp(v/u) <= e w, u < 0} is the exponential
one in (u - v, -u, w), since with y' = -u its inequality is y' exp((-v - y')/y') <= w; the dual power cone
{(u/a)^a (v/(1-a))^(1-a) >= |w|} is the power one in (u/a, v/(1-a), w). So A' = T A, b' = T b, and as y'(Ax - b) has to
stay what it is, y = T'z. Tangents follow the same maps, cotangents their transposes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse as sp

from convexlayers.cones import Cones
from convexlayers.engines.scs import row_order
from convexlayers.errors import ArgumentError, UnsupportedProblemError, wrong_shape
from convexlayers.sparse import Pattern, pick, split

KEYS = ("z", "f", "l", "q", "s", "ep", "ed", "p")
UNSUPPORTED = {"bu": "box cones", "bl": "box cones", "bsize": "box cones", "cs": "complex PSD cones"}
UNSUPPORTED["pnd"] = "power cones of several dimensions"
# Up to which P is symmetric, relative to its largest entry.
ASYMMETRY = 1e-9

Vector = np.ndarray


@dataclass(frozen=True, eq=False)
class Translation:
    """From SCS's rows to the library's.

    Attributes:
        cones: the library's.
        T: s' = T s, (m, m). inverse: of T. transpose, inverse_transpose: of these.
        is_identity: whether T is, as without PSD and dual cones.
    """

    cones: Cones
    T: sp.csr_array
    inverse: sp.csr_array
    transpose: sp.csr_array
    inverse_transpose: sp.csr_array
    is_identity: bool

    def slack(self, s: Vector) -> Vector:
        """The library's from the user's."""
        return s if self.is_identity else self.T @ s

    def dual(self, y: Vector) -> Vector:
        """The library's from the user's."""
        return y if self.is_identity else self.inverse_transpose @ y

    def user_slack(self, s: Vector) -> Vector:
        """The user's from the library's; on cotangents of duals it is the transpose of `dual`."""
        return s if self.is_identity else self.inverse @ s

    def user_dual(self, z: Vector) -> Vector:
        """The user's from the library's; on cotangents of slacks it is the transpose of `slack`."""
        return z if self.is_identity else self.transpose @ z


def translate(cone_dict: Mapping[str, Any]) -> Translation:
    """Read SCS's cones.

    Raises:
        UnsupportedProblemError: box, complex PSD or n-dimensional power cones.
        ArgumentError: a key is not known, or a size is none.
    """
    for name, value in cone_dict.items():
        # CVXPY names cones that a program does not have.
        if name in UNSUPPORTED and np.size(value) > 0:
            raise UnsupportedProblemError(f"cone_dict: {UNSUPPORTED[name]} ({name!r}) are not supported.")
        if name not in KEYS and name not in UNSUPPORTED:
            raise ArgumentError(f"cone_dict: unknown key {name!r}, expected some of {', '.join(map(repr, KEYS))}.")
    exponents = np.atleast_1d(np.asarray(cone_dict.get("p", ()), dtype=float)).tolist()
    exponential = int(cone_dict.get("ep") or 0), int(cone_dict.get("ed") or 0)
    zero = (cone_dict.get("z") or 0) + (cone_dict.get("f") or 0)
    sizes = _sizes(cone_dict.get("q")), _sizes(cone_dict.get("s"))
    return _translation(zero, cone_dict.get("l") or 0, *sizes, *exponential, tuple(exponents))


# The elements of a batch, and the calls of a loop, have the same cones.
@lru_cache(maxsize=64)
def _translation(
    zero: int, nonnegative: int, second_order: tuple[int, ...], psd: tuple[int, ...], primal: int, dual: int,
    exponents: tuple[float, ...],
) -> Translation:  # fmt: skip
    cones = Cones(
        zero=zero,
        nonnegative=nonnegative,
        second_order=second_order,
        psd=psd,
        exponential=primal + dual,
        power=tuple(abs(a) for a in exponents),
    )
    order, rows = row_order(cones), cones.rows
    first = rows - 3 * (dual + len(exponents))
    exponential = sp.csr_array(np.array([[1.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    blocks = [sp.csr_array((np.ones(first), (order[:first], np.arange(first))), shape=(first, first))]
    blocks += [exponential] * dual
    blocks += [sp.diags_array([1 / -a, 1 / (1 + a), 1.0] if a < 0 else [1.0, 1.0, 1.0]) for a in exponents]
    T = sp.csr_array(sp.block_diag(blocks))
    inverses = [blocks[0].T, *[sp.csr_array(np.linalg.inv(block.toarray())) for block in blocks[1:]]]
    inverse = sp.csr_array(sp.block_diag(inverses))
    is_identity = abs(T - sp.eye_array(rows)).nnz == 0
    return Translation(cones, T, inverse, sp.csr_array(T.T), sp.csr_array(inverse.T), is_identity)


def _sizes(value: Any) -> tuple[int, ...]:
    """A list of sizes, or one; cones of size zero have no rows."""
    return tuple(int(size) for size in np.atleast_1d(value) if size) if value is not None else ()


@dataclass(frozen=True, eq=False)
class Program:
    """One program as its user gave it, and the same as a plan takes it.

    Attributes:
        translation: of its cones.
        A: the user's pattern, and P: his, None without a quadratic part.
        values: the entries of P, c, the entries of A, b; no P where there is none.
        A_map: from entries of A to those of T A, None for the identity. P_map: from entries of P to those of both
            triangles.
        A_pattern, P_pattern: of T A, and of both triangles.
    """

    translation: Translation
    A: Pattern
    P: Pattern | None
    values: tuple[Vector, ...]
    A_map: sp.csr_array | None
    A_pattern: Pattern
    P_map: sp.csr_array | None
    P_pattern: Pattern | None

    @property
    def maps(self) -> list[sp.csr_array | None]:
        """From the user's values to theta, block by block; None for the identity."""
        blocks = [None, self.A_map, None if self.translation.is_identity else self.translation.T]
        return [self.P_map, *blocks] if self.P is not None else blocks

    @property
    def key(self) -> tuple[object, ...]:
        """Programs with equal keys are elements of one batch."""
        return self.translation.cones, len(self.values[-3]), self.A_pattern, self.P_pattern

    def theta(self, values: Sequence[Vector]) -> list[Vector]:
        """Blocks of the plan from values, or tangents of values."""
        return [value if M is None else M @ value for M, value in zip(self.maps, values, strict=True)]

    def tangents(self, dA: Any, db: Vector, dc: Vector, dP: Any) -> list[Vector]:
        """Tangents of theta from those of A, b, c, P."""
        parts = [np.asarray(dc, dtype=float), _entries("dA", dA, self.A), np.asarray(db, dtype=float)]
        if self.P is None and dP is not None:
            raise ArgumentError("dP is given, but the program has no P.")
        if self.P is not None:
            parts = [np.zeros(len(self.P.rows)) if dP is None else _entries("dP", dP, self.P), *parts]
        return self.theta(parts)

    def cotangents(self, grads: Sequence[Vector]) -> tuple[Any, ...]:
        """dA, db, dc and dP (None without P) from cotangents of theta."""
        found = [grad if M is None else M.T @ grad for M, grad in zip(self.maps, grads, strict=True)]
        dc, dA, db = found[-3:]
        dP = None if self.P is None else _matrix(self.P, found[0])
        return _matrix(self.A, dA), db, dc, dP


def _entries(name: str, value: Any, pattern: Pattern) -> Vector:
    """Entries of a sparse matrix on a pattern; what it has elsewhere is an error."""
    where = pattern.rows * pattern.shape[1] + pattern.cols
    return pick(name, sp.csc_array(value), pattern.shape, where).numpy().astype(float)


def _matrix(pattern: Pattern, values: Vector) -> sp.csc_matrix:
    order, rows, starts = _columns_of(pattern)
    return sp.csc_matrix((values[order], rows.copy(), starts.copy()), shape=pattern.shape)


@lru_cache(maxsize=32)
def _columns_of(pattern: Pattern) -> tuple[Vector, Vector, Vector]:
    """Order of the entries by columns, their rows, and where each column starts."""
    order = np.lexsort((pattern.rows, pattern.cols))
    starts = np.searchsorted(pattern.cols[order], np.arange(pattern.shape[1] + 1))
    return order, pattern.rows[order].astype(np.int32), starts.astype(np.int32)


def _split(name: str, value: Any, shape: tuple[int, int]) -> tuple[Pattern, Vector]:
    """Pattern and values of a sparse matrix."""
    matrix = sp.csc_array(value)
    if matrix.shape == shape and matrix.has_canonical_format and not np.iscomplexobj(matrix.data):
        pattern, order = _layout(
            shape, matrix.indptr.astype(np.int64).tobytes(), matrix.indices.astype(np.int64).tobytes()
        )
        return pattern, matrix.data[order].astype(float)
    pattern, values = split(name, matrix, shape)
    return pattern, values.numpy().astype(float)


# The elements of a batch, and the calls of a loop, have few patterns.
@lru_cache(maxsize=16)
def _layout(shape: tuple[int, int], starts: bytes, rows: bytes) -> tuple[Pattern, Vector]:
    """The pattern of a matrix by columns, and where its entries are found there."""
    indices = np.frombuffer(rows, dtype=np.int64)
    numbers = np.arange(len(indices), dtype=float)
    pattern, order = split(
        "A", sp.csc_array((numbers, indices, np.frombuffer(starts, dtype=np.int64)), shape=shape), shape
    )
    return pattern, order.numpy().astype(np.int64)


def read_program(A: Any, b: Vector, c: Vector, cone_dict: Mapping[str, Any], P: Any = None) -> Program:
    """A program in the library's terms.

    Args:
        A: (m, n), sparse. b: (m,). c: (n,). P: (n, n), sparse, symmetric or its upper triangle, or None.
        cone_dict: SCS's cones.

    Raises:
        ArgumentError: a shape is wrong, or P is neither symmetric nor triangular.
    """
    b, c = np.asarray(b, dtype=float).reshape(-1), np.asarray(c, dtype=float).reshape(-1)
    translation = translate(cone_dict)
    m, n = translation.cones.rows, len(c)
    if len(b) != m:
        raise wrong_shape("b", b.shape, f"({m},), as cone_dict says")
    if m == 0:
        raise ArgumentError("cone_dict has no rows, expected at least one.")
    pattern, entries = _split("A", A, (m, n))
    A_map, A_pattern = (None, pattern) if translation.is_identity else _multiplied(translation, pattern)
    values = (c, entries, b)
    if P is None:
        return Program(translation, pattern, None, values, A_map, A_pattern, None, None)
    P_own, P_entries = _split("P", P, (n, n))
    P_map, P_pattern = _symmetric(P_own, P_entries)
    values = (P_entries, *values)
    return Program(translation, pattern, P_own, values, A_map, A_pattern, P_map, P_pattern)


def _collected(shape: tuple[int, int], rows: Vector, cols: Vector, source: Vector, weight: Vector, count: int) -> Any:
    """The map to the entries of a matrix, and its pattern, from weighted entries; equal positions are added."""
    keys, target = np.unique(rows * shape[1] + cols, return_inverse=True)
    M = sp.csr_array((weight, (target, source)), shape=(len(keys), count))
    return M, Pattern(shape, keys // max(shape[1], 1), keys % max(shape[1], 1))


@lru_cache(maxsize=16)
def _multiplied(translation: Translation, A: Pattern) -> tuple[sp.csr_array, Pattern]:
    """From entries of A to entries of T A."""
    by_column = sp.csc_array(translation.T)
    counts = np.diff(by_column.indptr)[A.rows]
    source = np.repeat(np.arange(len(A.rows)), counts)
    within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    entry = by_column.indptr[A.rows][source] + within
    return _collected(A.shape, by_column.indices[entry], A.cols[source], source, by_column.data[entry], len(A.rows))


def _symmetric(P: Pattern, values: Vector) -> tuple[sp.csr_array, Pattern]:
    """From entries of P to those of both triangles; an upper triangle stands for both."""
    count, index = len(P.rows), np.arange(len(P.rows))
    matrix = _matrix(P, values)
    off = abs(matrix - matrix.T)
    if off.nnz == 0 or off.max() <= ASYMMETRY * abs(matrix).max():
        half = np.full(count, 0.5)
        return _collected(
            P.shape, np.r_[P.rows, P.cols], np.r_[P.cols, P.rows], np.r_[index, index], np.r_[half, half], count
        )
    above = P.cols > P.rows
    if values[P.cols < P.rows].any():
        raise ArgumentError("P is neither symmetric nor an upper triangle.")
    kept = P.cols >= P.rows
    rows, cols = np.r_[P.rows[kept], P.cols[above]], np.r_[P.cols[kept], P.rows[above]]
    source = np.r_[index[kept], index[above]]
    return _collected(P.shape, rows, cols, source, np.ones(len(rows)), count)
