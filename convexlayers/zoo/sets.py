"""Projections onto boxes, halfspaces, affine subspaces and polyhedra, with derivatives in all that describes them.

    minimize    1/2 |x - v|^2
    subject to  lb <= x <= ub          box:        x = clip(v, lb, ub)
                a'x <= b               halfspace:  x = v - a max(a'v - b, 0) / a'a
                Ax = b                 affine:     x = v - A^+ (Av - b)
                Gx <= h, Ax = b        polyhedron: no closed form, `solve_qp` with P = I, q = -v

A^+ is the pseudo-inverse, whose derivative needs no more than A^+ itself as long as the rank stays (Golub and Pereyra,
"The differentiation of pseudo-inverses", 1973), so that repeated rows do no harm; where Ax = b has no solution, the
nearest of the points with least |Ax - b| comes out.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.functional import solve_qp
from convexlayers.zoo._batched import batched, expect, unexpanded, vector_of


def project_box(v: Value, lb: Value = 0.0, ub: Value = 1.0) -> Tensor:
    """The nearest point with lb <= x <= ub.

    Args:
        v: (*batch, n).
        lb, ub: (*batch, n) or numbers; NaN comes out of entries with lb > ub.

    Returns:
        x, (*batch, n), differentiable in all three.

    Raises:
        ArgumentError: a shape is wrong.

    Examples:
        >>> import torch, convexlayers as cl
        >>> cl.zoo.project_box(torch.tensor([-1.0, 0.5]), 0.0, 2.0).tolist()
        [0.0, 0.5]
    """
    v, lb, ub = batched(("v", v, 1), ("lb", vector_of(lb, v), 1), ("ub", vector_of(ub, v), 1))
    expect("lb", lb, v.shape[-1:])
    expect("ub", ub, v.shape[-1:])
    return torch.where(lb <= ub, torch.clamp(v, lb, ub), torch.nan)


def project_halfspace(v: Value, a: Value, b: Value) -> Tensor:
    """The nearest point with a'x <= b.

    Args:
        v, a: (*batch, n). b: (*batch) or a number. NaN comes out where a is zero.

    Returns:
        x, (*batch, n), differentiable in v, a and b, any number of times.

    Raises:
        ArgumentError: a shape is wrong.
    """
    v, a, b = batched(("v", v, 1), ("a", a, 1), ("b", b, 0))
    expect("a", a, v.shape[-1:])
    excess = ((a * v).sum(-1) - b).clamp(min=0)
    return v - a * (excess / (a * a).sum(-1)).unsqueeze(-1)


def project_affine(v: Value, A: Value, b: Value) -> Tensor:
    """The nearest point with Ax = b.

    Args:
        v: (*batch, n). A: (*batch, m, n), of any rank. b: (*batch, m).

    Returns:
        x, (*batch, n), differentiable in v, A and b, any number of times, where the rank of A does not change.

    Raises:
        ArgumentError: a shape is wrong.
    """
    v, A, b = unexpanded(("v", v, 1), ("A", A, 2), ("b", b, 1))
    expect("A", A, (b.shape[-1], v.shape[-1]))
    residual = (A @ v.unsqueeze(-1)).squeeze(-1) - b
    return v - (torch.linalg.pinv(A) @ residual.unsqueeze(-1)).squeeze(-1)


def project_polyhedron(
    v: Value,
    G: Value | None = None,
    h: Value | None = None,
    A: Value | None = None,
    b: Value | None = None,
    lb: Value | None = None,
    ub: Value | None = None,
    **options: Any,
) -> Tensor:
    """The nearest point with Gx <= h, Ax = b, lb <= x <= ub.

    Args:
        v: (*batch, n).
        G, h, A, b, lb, ub and options: as in `solve_qp`.

    Returns:
        x, (*batch, n), differentiable in all of them.

    Raises:
        ArgumentError, SolverError: as in `solve_qp`.
    """
    (v,) = batched(("v", v, 1))
    eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    return solve_qp(eye, -v, G, h, A, b, lb, ub, **options).x
