"""The face of `diffcp.cones`: names of cones, SCS's vectors of symmetric matrices, projections."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from convexlayers.cones import Cones
from convexlayers.engines.scs import row_order
from convexlayers.errors import ArgumentError, wrong_shape

__all__ = [
    "CONES",
    "EQ_DIM",
    "EXP",
    "EXP_DUAL",
    "POS",
    "PSD",
    "SOC",
    "ZERO",
    "parse_cone_dict",
    "pi",
    "psd_dim",
    "unvec_symm",
    "vec_psd_dim",
    "vec_symm",
]

ZERO, POS, SOC, PSD, EXP, EXP_DUAL = "z", "l", "q", "s", "ep", "ed"
EQ_DIM = ZERO
CONES = [ZERO, POS, SOC, PSD, EXP, EXP_DUAL]


def parse_cone_dict(cone_dict: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, size or sizes) of the cones in a dictionary, in the order of their rows."""
    return [(name, cone_dict[name]) for name in CONES if name in cone_dict]


def vec_psd_dim(dim: int) -> int:
    """Rows of a PSD cone of order `dim`."""
    return dim * (dim + 1) // 2


def psd_dim(size: int) -> int:
    """Order of a PSD cone with `size` rows."""
    return int(np.sqrt(2 * size))


def vec_symm(X: np.ndarray) -> np.ndarray:
    """The lower triangle by columns, off-diagonals times sqrt(2)."""
    rows, cols = _triangle(len(X))
    return X[rows, cols] * np.where(rows == cols, 1.0, np.sqrt(2.0))


def unvec_symm(x: np.ndarray, dim: int) -> np.ndarray:
    """The symmetric matrix, (dim, dim), behind `vec_symm`."""
    rows, cols = _triangle(dim)
    X = np.empty((dim, dim))
    X[rows, cols] = X[cols, rows] = x / np.where(rows == cols, 1.0, np.sqrt(2.0))
    return X


def _triangle(dim: int) -> tuple[np.ndarray, np.ndarray]:
    cols, rows = np.triu_indices(dim)
    return rows, cols


def pi(x: np.ndarray, cones: Sequence[tuple[str, Any]], dual: bool = False) -> np.ndarray:
    """Projection onto a product of cones, or of their duals.

    Args:
        x: (m,). cones: (name, size or sizes), as `parse_cone_dict` gives them.
        dual: onto the dual cones.

    Raises:
        ArgumentError: a cone is not known, or x has another number of rows.
    """
    x = np.asarray(x, dtype=float)
    parts, row = [], 0
    for name, sizes in cones:
        block = _block(name, sizes)
        part = x[row : row + block.rows]
        if len(part) < block.rows:
            break
        # The dual exponential cone is a name of its own.
        parts.append(_project(part, block, dual != (name == EXP_DUAL)))
        row += block.rows
    found = np.concatenate([np.empty(0), *parts])
    if len(found) != len(x):
        raise wrong_shape("x", x.shape, f"({sum(_block(*cone).rows for cone in cones)},), as the cones say")
    return found


def _project(x: np.ndarray, cones: Cones, dual: bool) -> np.ndarray:
    order, v = row_order(cones), np.empty_like(x)
    v[order] = x
    project = cones.project_dual if dual else cones.project
    return project(torch.from_numpy(v)[None])[0].numpy()[order]


def _block(name: str, sizes: Any) -> Cones:
    listed = tuple(int(size) for size in np.atleast_1d(np.asarray(sizes, dtype=int)) if size)
    total = sum(listed)
    known = {
        ZERO: {"zero": total},
        POS: {"nonnegative": total},
        SOC: {"second_order": listed},
        PSD: {"psd": listed},
        EXP: {"exponential": total},
        EXP_DUAL: {"exponential": total},
    }
    if name not in known:
        raise ArgumentError(f"cones: unknown name {name!r}, expected one of {', '.join(map(repr, CONES))}.")
    return Cones(**known[name])
