"""The face of `qpth.qp`: OptNet's QP layer on this library's solver and derivative.

Replace `from qpth.qp import QPFunction, QPSolvers` by `from convexlayers.compat.qpth import QPFunction, QPSolvers`.

What differs: a block that the batch shares gets the sum of its elements' gradients, as everywhere in torch, where qpth
returns their mean; a warning says so, and `shared_gradients="mean"` is qpth's way. An element without a solution is a
`SolverError`, where qpth prints a warning and returns the last iterate. Problems without constraints are solved too.
`eps` above the library's tolerance loosens it; `notImprovedLim`, `maxIter` and `verbose` steer qpth's iteration, which
is not used here. The multipliers and slacks, which qpth keeps to itself, come from `solve_with_duals`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from convexlayers.engines import Engine, make_engine
from convexlayers.errors import ArgumentError, wrong_shape
from convexlayers.functional import ProgramSolution, solve_qp

__all__ = ["NotPositiveDefiniteError", "QPFunction", "QPSolvers", "SpQPFunction", "solve_with_duals"]

NAMES: tuple[str, ...] = ("Q", "p", "G", "h", "A", "b")
# Dimensions of a value with the batch in front.
BATCHED: dict[str, int] = dict(zip(NAMES, (3, 2, 3, 2, 3, 2), strict=True))
TOLERANCE = 1e-8

Solve = Callable[..., Tensor]


class QPSolvers(Enum):
    """qpth's solvers: `PDIPM_BATCHED` is engine "auto" here, `CVXPY` engine "clarabel"."""

    PDIPM_BATCHED = 1
    CVXPY = 2


ENGINES = {QPSolvers.PDIPM_BATCHED: "auto", QPSolvers.CVXPY: "clarabel"}


class NotPositiveDefiniteError(ArgumentError, RuntimeError):
    """Q is not positive definite; a RuntimeError as in qpth."""


def QPFunction(
    eps: float = 1e-12,
    verbose: int = 0,  # noqa: ARG001
    notImprovedLim: int = 3,  # noqa: ARG001
    maxIter: int = 20,  # noqa: ARG001
    solver: QPSolvers = QPSolvers.PDIPM_BATCHED,
    check_Q_spd: bool = True,
    shared_gradients: str | None = None,
) -> Solve:
    """A function that solves a batch of QPs: minimize 1/2 z'Qz + p'z subject to Gz <= h, Az = b.

    Args:
        eps: accuracy; the tolerance is the larger one of it and 1e-8, and solutions are refined.
        verbose, notImprovedLim, maxIter: accepted; see the module.
        solver: see `QPSolvers`.
        check_Q_spd: check that Q is positive definite. Without it semidefinite ones are solved.
        shared_gradients: of blocks without a batch dimension where others have one: "sum", the derivative, or "mean",
            what qpth returns. None is "sum" with a warning where it matters.

    Returns:
        a function of Q (*batch, nz, nz), p (*batch, nz), G (*batch, nineq, nz), h (*batch, nineq), A (*batch, neq, nz),
        b (*batch, neq), each with one batch dimension or without, absent blocks as empty tensors; it returns the
        solution, (nBatch, nz), with nBatch = 1 where nothing has a batch dimension.

    Examples:
        >>> import torch
        >>> e = torch.empty(0)
        >>> zhat = QPFunction()(torch.eye(2), torch.tensor([-1.0, 2.0]), -torch.eye(2), torch.zeros(2), e, e)
        >>> [[abs(round(entry, 6)) for entry in row] for row in zhat.tolist()]
        [[1.0, 0.0]]
    """
    settings = Settings(_engine(eps, solver), check_Q_spd, shared_gradients)

    def solve(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
        x = _solve(settings, (Q, p, G, h, A, b)).x
        return x if x.ndim == 2 else x.unsqueeze(0)

    return solve


def solve_with_duals(
    Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor,
    eps: float = 1e-12, solver: QPSolvers = QPSolvers.PDIPM_BATCHED, check_Q_spd: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The solution and what qpth's own solver returns besides, all of them differentiable.

    Args:
        Q, p, G, h, A, b, eps, solver, check_Q_spd: see `QPFunction`.

    Returns:
        zhat (nBatch, nz), nu (nBatch, neq) with Qz + p + G'lam + A'nu = 0, lam >= 0 (nBatch, nineq) and the slacks
        h - Gz (nBatch, nineq).

    Examples:
        >>> import torch
        >>> e = torch.empty(0)
        >>> zhat, nu, lam, slack = solve_with_duals(torch.eye(1), torch.ones(1), -torch.eye(1), torch.zeros(1), e, e)
        >>> round(float(lam), 6), nu.shape
        (1.0, torch.Size([1, 0]))
    """
    found = _solve(Settings(_engine(eps, solver), check_Q_spd, "sum"), (Q, p, G, h, A, b))
    none = found.x[..., :0]
    lam, nu = found.duals.get("G", none), found.duals.get("A", none)
    slack = h - (G @ found.x.unsqueeze(-1)).squeeze(-1) if lam.numel() else none
    zhat, nu, lam, slack = (part if part.ndim == 2 else part.unsqueeze(0) for part in (found.x, nu, lam, slack))
    return zhat, nu, lam, slack


def _engine(eps: float, solver: QPSolvers) -> Engine:
    if solver not in ENGINES:
        raise ArgumentError(f"solver is {solver!r}, expected a member of QPSolvers.")
    return make_engine(ENGINES[solver], tolerance=max(eps, TOLERANCE))


@dataclass(frozen=True)
class Settings:
    """What a `QPFunction` was told."""

    engine: Engine
    check_Q_spd: bool
    shared_gradients: str | None

    def __post_init__(self) -> None:
        if self.shared_gradients not in (None, "sum", "mean"):
            raise ArgumentError(f"shared_gradients is {self.shared_gradients!r}, expected 'sum', 'mean' or None.")


def _solve(settings: Settings, values: Sequence[Tensor]) -> ProgramSolution:
    given = dict(zip(NAMES, values, strict=True))
    present = {name: value for name, value in given.items() if value.numel() > 0}
    batch = _check_shapes(present)
    if settings.check_Q_spd:
        _check_definite(given["Q"])
    if batch is not None and settings.shared_gradients != "sum":
        given |= _shared(present, batch, settings.shared_gradients)
    left, right = (given[name] if name in present else None for name in ("G", "A"))
    h, b = (given["h"] if left is not None else None), (given["b"] if right is not None else None)
    return solve_qp(given["Q"], given["p"], left, h, right, b, solver=settings.engine, validate=settings.check_Q_spd)


def _shared(present: dict[str, Tensor], batch: int, gradients: str | None) -> dict[str, Tensor]:
    """The blocks that the batch shares and that are learned, so that their gradient is the mean, or a warning."""
    learned = {
        name: value
        for name, value in present.items()
        if value.ndim < BATCHED[name] and value.requires_grad and batch > 1
    }
    if gradients == "mean":
        return {name: value / batch + (value - value / batch).detach() for name, value in learned.items()}
    if learned:
        warnings.warn(
            f"The gradients of {', '.join(learned)}, which the {batch} elements share, are sums over the elements; "
            'qpth returns their mean. shared_gradients="mean" trains as with qpth, "sum" is silent.',
            stacklevel=4,
        )
    return {}


def _check_shapes(present: dict[str, Tensor]) -> int | None:
    """Dimensions by qpth's names; the size of the batch, None where nothing has one.

    Raises:
        ArgumentError: a block is missing, or does not have the dimensions it should.
    """
    for name in ("Q", "p"):
        if name not in present:
            raise ArgumentError(f"{name} is empty, expected a tensor with entries.")
    for pair in (("G", "h"), ("A", "b")):
        if (pair[0] in present) != (pair[1] in present):
            raise ArgumentError(f"{pair[0]} and {pair[1]} belong together: both empty or neither.")
    n = present["p"].shape[-1]
    heights = {"Q": n, "G": _height(present, "h"), "A": _height(present, "b")}
    batches = {}
    for name, value in present.items():
        tail = (heights[name], n) if name in heights else value.shape[-1:]
        expected = f"(nBatch, {', '.join(map(str, tail))}) or without nBatch"
        if value.ndim not in (BATCHED[name] - 1, BATCHED[name]) or value.shape[value.ndim - len(tail) :] != tail:
            raise wrong_shape(name, value.shape, expected)
        if value.ndim == BATCHED[name]:
            batches[name] = len(value)
    if len(set(batches.values())) > 1:
        raise ArgumentError(f"The batch sizes differ: {', '.join(f'{name} {size}' for name, size in batches.items())}.")
    return next(iter(batches.values()), None)


def _height(present: dict[str, Tensor], name: str) -> int:
    return int(present[name].shape[-1]) if name in present and present[name].ndim else 0


def _check_definite(Q: Tensor) -> None:
    _, info = torch.linalg.cholesky_ex(Q.detach())
    if bool((info != 0).any()):
        index = int(info.reshape(-1).nonzero()[0])
        where = f" (batch index {index})" if Q.ndim == 3 else ""
        raise NotPositiveDefiniteError(
            f"Q is not SPD{where}: it has no Cholesky factor. Semidefinite ones are solved with check_Q_spd=False."
        )


class SpQPFunction:
    """QPs with sparse Q, G, A: their patterns are fixed, their values an argument with a batch dimension.

    The face of a class that recent versions of torch do not run any more. Values are spread out and solved by the dense
    method; where the batch shares the matrices, `convexlayers.solve_qp` takes them sparse.

    Args:
        Qi, Gi, Ai: positions of the entries, (2, entries) each; those that occur twice are added.
        Qsz, Gsz, Asz: shapes of the matrices.
        eps, verbose, notImprovedLim, maxIter: see `QPFunction`.
    """

    def __init__(
        self, Qi: Tensor, Qsz: Sequence[int], Gi: Tensor, Gsz: Sequence[int], Ai: Tensor, Asz: Sequence[int],
        eps: float = 1e-12, verbose: int = 0, notImprovedLim: int = 3, maxIter: int = 20,
    ) -> None:  # fmt: skip
        self.patterns = [(Qi, tuple(Qsz)), (Gi, tuple(Gsz)), (Ai, tuple(Asz))]
        self._solve = QPFunction(eps, verbose, notImprovedLim, maxIter, check_Q_spd=False)

    def __call__(self, Qv: Tensor, p: Tensor, Gv: Tensor, h: Tensor, Av: Tensor, b: Tensor) -> Tensor:
        """Values (nBatch, entries), vectors (nBatch, length); returns (nBatch, nz)."""
        Q, G, A = (_spread(value, *pattern) for value, pattern in zip((Qv, Gv, Av), self.patterns, strict=True))
        return self._solve(Q, p, G, h, A, b)


def _spread(values: Tensor, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Dense matrices, (nBatch, *shape), from entries (nBatch, entries)."""
    rows, columns = positions.to(values.device)
    flat = values.new_zeros(*values.shape[:-1], shape[0] * shape[1])
    return flat.index_add(-1, rows * shape[1] + columns, values).reshape(*values.shape[:-1], *shape)
