"""Linear quadratic control over a finite horizon, with bounds on the controls: LQR and MPC.

    minimize    1/2 sum_t x_t+1'Q x_t+1 + u_t'R u_t            t = 0..T-1
    subject to  x_t+1 = A x_t + B u_t,  lower <= u_t <= upper

One QP in (u_0, x_1, u_1, x_2, ...): in this order of variables and with rows by time, all matrices are banded, and
where the batch shares A, B, Q and R they are passed as sparse ones, whose solver does work in proportion to T.
Without bounds it is the linear quadratic regulator, whose optimality conditions are one linear system.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.errors import ArgumentError
from convexlayers.functional import solve_qp
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


def _diagonals(
    blocks: list[tuple[int, int, Tensor]], shape: tuple[int, int], steps: int, stride: tuple[int, int]
) -> Tensor:
    """Blocks at (row, column) repeated over the steps, as a sparse matrix; those that begin outside are left out."""
    rows, cols, values = [], [], []
    time = torch.arange(steps)
    for row, col, block in blocks:
        i, j = torch.meshgrid(torch.arange(block.shape[0]), torch.arange(block.shape[1]), indexing="ij")
        first = time[(time * stride[1] + col >= 0) & (time * stride[0] + row < shape[0])][:, None, None]
        rows.append((first * stride[0] + row + i).reshape(-1))
        cols.append((first * stride[1] + col + j).reshape(-1))
        values.append(block.expand(len(first), *block.shape).reshape(-1))
    index = torch.stack([torch.cat(rows), torch.cat(cols)])
    return torch.sparse_coo_tensor(index, torch.cat(values), shape, check_invariants=False).coalesce()


def mpc(
    A: Value, B: Value, Q: Value, R: Value, x0: Value, steps: int,
    lower: Value | None = None, upper: Value | None = None, **options: Any,
) -> Trajectory:  # fmt: skip
    """The optimal plan from a state.

    Args:
        A: (nx, nx). B: (nx, nu). Q: (nx, nx). R: (nu, nu); shared by the batch, symmetric positive semidefinite the
        last two.
        x0: (*batch, nx).
        steps: T, the horizon.
        lower, upper: (*batch, nu) or numbers, or None.
        options: of `solve_qp`.

    Returns:
        the trajectory, differentiable in all matrices, x0 and bounds.

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
    P = _diagonals([(0, 0, R), (nu, nu, Q)], (size, size), steps, (width, width))
    # Row t: x_t+1 - A x_t - B u_t = 0; the block of A begins one step earlier, and for t = 0 it is on the right.
    dynamics = _diagonals([(0, 0, -B), (0, nu, eye), (0, -nx, -A)], (steps * nx, size), steps, (nx, width))
    first = (A @ x0.unsqueeze(-1)).squeeze(-1)
    right = torch.cat([first, first.new_zeros(*first.shape[:-1], (steps - 1) * nx)], dim=-1)
    bounds = {
        name: _repeated(value, nu, nx, steps, sign, x0)
        for name, value, sign in (("lb", lower, -1.0), ("ub", upper, 1.0)) if value is not None
    }  # fmt: skip
    solution = solve_qp(P, x0.new_zeros(size), A=dynamics, b=right, **bounds, **options)
    plan = solution.x.unflatten(-1, (steps, width))
    return Trajectory(plan[..., nu:], plan[..., :nu], solution.objective)


def _repeated(bound: Value, nu: int, nx: int, steps: int, sign: float, like: Tensor) -> Tensor:
    """A bound on the controls, at every step, none on the states."""
    (bound,) = unexpanded(("bound", vector_of(bound, like.new_empty(nu)), 1))
    expect("a bound of the controls", bound, (nu,))
    step = torch.cat([bound, bound.new_full((*bound.shape[:-1], nx), sign * torch.inf)], dim=-1)
    return step.repeat(*(1 for _ in bound.shape[:-1]), steps)


def lqr(A: Value, B: Value, Q: Value, R: Value, x0: Value, steps: int, **options: Any) -> Trajectory:
    """`mpc` without bounds: the linear quadratic regulator."""
    return mpc(A, B, Q, R, x0, steps, **options)
