"""Linear quadratic control over a finite horizon, with bounds on the controls: LQR and MPC.

    minimize    sum_t 1/2 x_t+1'Q x_t+1 + q_t'x_t+1 + 1/2 u_t'R u_t + r_t'u_t        t = 0..T-1
    subject to  x_t+1 = A x_t + B u_t,  lower <= u_t <= upper

with Q_T in place of Q for the last state. Following x_ref is q_t = -Q x_ref, and a constant in the objective.

One QP in (u_0, x_1, u_1, x_2, ...): in this order of variables and with rows by time, all matrices are banded, and
where the batch shares A, B, Q and R they are passed as sparse ones, whose solver does work in proportion to T.
Without bounds it is the linear quadratic regulator, whose optimality conditions are one linear system.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.errors import ArgumentError
from convexlayers.functional import solve_qp
from convexlayers.maps import lasting_tensors
from convexlayers.sparse import Entries, Pattern
from convexlayers.zoo._batched import expect, unexpanded, vector_of


@dataclass(frozen=True)
class Trajectory:
    """A plan.

    Attributes:
        states: x_1..x_T, (*batch, T, nx). controls: u_0..u_T-1, (*batch, T, nu).
        objective: (*batch).
    """

    states: Tensor
    controls: Tensor
    objective: Tensor


# (row, column, height, width) of a block.
Place = tuple[int, int, int, int]


@lru_cache(maxsize=16)
def _pattern(
    places: tuple[Place, ...], shape: tuple[int, int], steps: int, stride: tuple[int, int]
) -> tuple[Pattern, Tensor, tuple[int, ...]]:
    """Blocks repeated over the steps, those left out that begin outside: where their entries stand in a pattern.

    Returns:
        the pattern; for every entry of every block, in turn, its place there; and how often each block is repeated.
    """
    keys, counts, time = [], [], np.arange(steps)
    for row, col, height, width in places:
        first = time[(time * stride[1] + col >= 0) & (time * stride[0] + row < shape[0])][:, None, None]
        i, j = np.ogrid[:height, :width]
        keys.append(((first * stride[0] + row + i) * shape[1] + first * stride[1] + col + j).reshape(-1))
        counts.append(len(first))
    stored, place = np.unique(np.concatenate(keys), return_inverse=True)
    with lasting_tensors():
        return Pattern(shape, stored // shape[1], stored % shape[1]), torch.from_numpy(place), tuple(counts)


def _diagonals(
    blocks: list[tuple[int, int, Tensor]], shape: tuple[int, int], steps: int, stride: tuple[int, int]
) -> Entries:
    """Blocks at (row, column) repeated over the steps; where they overlap, their sum."""
    places = tuple((row, col, *block.shape) for row, col, block in blocks)
    pattern, place, counts = _pattern(places, shape, steps, stride)
    repeated = [
        block.expand(count, *block.shape).reshape(-1) for (_, _, block), count in zip(blocks, counts, strict=True)
    ]
    values = torch.cat(repeated)
    return Entries(pattern, values.new_zeros(len(pattern.rows)).index_add(0, place.to(values.device), values))


def mpc(
    A: Value, B: Value, Q: Value, R: Value, x0: Value, steps: int,
    lower: Value | None = None, upper: Value | None = None, *, q: Value | None = None, r: Value | None = None,
    terminal: Value | None = None, **options: Any,
) -> Trajectory:  # fmt: skip
    """The optimal plan from a state.

    Args:
        A: (nx, nx). B: (nx, nu). Q: (nx, nx). R: (nu, nu); shared by the batch, symmetric positive semidefinite the
        last two.
        x0: (*batch, nx).
        steps: T, the horizon.
        lower, upper: (*batch, nu) or numbers, or None.
        q, r: linear costs of x_1..x_T and of u_0..u_T-1, (*batch, T, nx) and (*batch, T, nu), or None.
        terminal: Q_T, (nx, nx), shared by the batch; None for Q.
        options: of `solve_qp`.

    Returns:
        the trajectory, differentiable in all matrices, x0, linear costs and bounds.

    Raises:
        ArgumentError, SolverError: as in `solve_qp`.
    """
    A, B, Q, R, x0 = unexpanded(("A", A, 2), ("B", B, 2), ("Q", Q, 2), ("R", R, 2), ("x0", x0, 1), names=("nx", "nx"))
    nx, nu = x0.shape[-1], B.shape[-1]
    for name, value, shape in (("A", A, (nx, nx)), ("B", B, (nx, nu)), ("Q", Q, (nx, nx)), ("R", R, (nu, nu))):
        expect(name, value, shape)
        if value.ndim != 2:
            raise ArgumentError(f"{name} has shape {tuple(value.shape)}, expected {shape}: the batch shares it.")
    if steps < 1:
        raise ArgumentError(f"steps is {steps}, expected at least 1.")
    width, size = nu + nx, steps * (nu + nx)
    eye = torch.eye(nx, dtype=A.dtype, device=A.device)
    blocks = [(0, 0, R), (nu, nu, Q)]
    if terminal is not None:
        (last,) = unexpanded(("terminal", terminal, 2), names=("nx", "nx"))
        if last.ndim != 2:
            raise ArgumentError(f"terminal has shape {tuple(last.shape)}, expected {(nx, nx)}: the batch shares it.")
        expect("terminal", last, (nx, nx))
        blocks.append((size - nx, size - nx, last - Q))
    P = _diagonals(blocks, (size, size), steps, (width, width))
    # Row t: x_t+1 - A x_t - B u_t = 0; the block of A begins one step earlier, and for t = 0 it is on the right.
    dynamics = _diagonals([(0, 0, -B), (0, nu, eye), (0, -nx, -A)], (steps * nx, size), steps, (nx, width))
    first = (A @ x0.unsqueeze(-1)).squeeze(-1)
    right = torch.cat([first, first.new_zeros(*first.shape[:-1], (steps - 1) * nx)], dim=-1)
    bounds = {
        name: _repeated(value, nu, nx, steps, sign, x0)
        for name, value, sign in (("lb", lower, -1.0), ("ub", upper, 1.0)) if value is not None
    }  # fmt: skip
    linear = _linear(("r", r, nu), ("q", q, nx), steps, x0)
    solution = solve_qp(P, linear, A=dynamics, b=right, **bounds, **options)
    plan = solution.x.unflatten(-1, (steps, width))
    return Trajectory(plan[..., nu:], plan[..., :nu], solution.objective)


def _linear(
    of_controls: tuple[str, Value | None, int], of_states: tuple[str, Value | None, int], steps: int, like: Tensor
) -> Tensor:
    """The linear costs in the order of the variables, (*batch, T (nu + nx))."""
    parts = []
    for name, value, width in (of_controls, of_states):
        if value is None:
            parts.append(like.new_zeros(steps, width))
            continue
        (part,) = unexpanded((name, value, 2), names=("T", "nu" if name == "r" else "nx"))
        expect(name, part, (steps, width))
        parts.append(part)
    batch = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], dim=-1).flatten(-2)


def _repeated(bound: Value, nu: int, nx: int, steps: int, sign: float, like: Tensor) -> Tensor:
    """A bound on the controls, at every step, none on the states."""
    (bound,) = unexpanded(("bound", vector_of(bound, like.new_empty(nu)), 1))
    expect("a bound of the controls", bound, (nu,))
    step = torch.cat([bound, bound.new_full((*bound.shape[:-1], nx), sign * torch.inf)], dim=-1)
    return step.repeat(*(1 for _ in bound.shape[:-1]), steps)


def lqr(A: Value, B: Value, Q: Value, R: Value, x0: Value, steps: int, **options: Any) -> Trajectory:
    """`mpc` without bounds: the linear quadratic regulator."""
    return mpc(A, B, Q, R, x0, steps, **options)
