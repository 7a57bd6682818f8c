"""The optimization problem of a node, as functions of torch, and their derivatives over a batch.

    y(x) = argmin_y f(x, y)   subject to   h(x, y) = 0,   g(x, y) <= 0

Lagrangian: L = f + lam'c with c = [h; g] and multipliers lam = [nu; mu], mu >= 0. Inside, y is flat, (B, n), and so are
the constraints, (B, m), equalities first. Derivatives in y are dense; those in the inputs are products only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, vjp, vmap

from convexlayers.errors import ArgumentError, wrong_shape

Function = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """Objective and constraints.

    Attributes:
        objective: f(*inputs, y), a scalar per element.
        equalities, inequalities: h and g of the same arguments, any shape per element; None for none.
        shape: of y, of one element.
        batched: whether the functions take a batch, (B, ...) each, and return one; otherwise they take one element,
            which keeps elements apart by construction.
        slope, curvature: gradient and Hessian of the objective in y by formula, of the same arguments, (B, *shape) and
            (B, n, n), for batched functions; None for automatic differentiation.
    """

    objective: Function
    equalities: Function | None
    inequalities: Function | None
    shape: tuple[int, ...]
    batched: bool = False
    slope: Function | None = None
    curvature: Function | None = None

    @property
    def n(self) -> int:
        """Number of entries of y."""
        return math.prod(self.shape)

    @property
    def constrained(self) -> bool:
        """Whether there are constraints."""
        return self.equalities is not None or self.inequalities is not None

    def over_batch(self, function: Function, xs: Sequence[Tensor], y: Tensor) -> Tensor:
        """A function's values, (B, ...), at inputs (B, ...) and y (B, n)."""
        lifted = function if self.batched else vmap(function)
        return lifted(*xs, y.reshape(-1, *self.shape))

    def values(self, xs: Sequence[Tensor], y: Tensor) -> Tensor:
        """The objective, (B,)."""
        return self.over_batch(self.objective, xs, y).reshape(y.shape[0])

    def constraints(self, xs: Sequence[Tensor], y: Tensor) -> Tensor:
        """h and g, (B, m)."""
        given = [part for part in (self.equalities, self.inequalities) if part is not None]
        found = [self.over_batch(part, xs, y).reshape(y.shape[0], -1) for part in given]
        return torch.cat(found, 1) if found else y[:, :0]

    def lagrangian(self, xs: Sequence[Tensor], y: Tensor, lam: Tensor) -> Tensor:
        """f + lam'c, (B,)."""
        value = self.values(xs, y)
        return value + (lam * self.constraints(xs, y)).sum(1) if self.constrained else value

    def gradient(self, xs: Sequence[Tensor], y: Tensor) -> Tensor:
        """Of the objective in y, (B, n): an element's value depends on its own y only, so the sum does for all."""
        if self.slope is not None:
            return self.over_batch(self.slope, xs, y).reshape(y.shape)
        return grad(lambda point: self.values(xs, point).sum())(y)

    def lagrangian_gradient(self, xs: Sequence[Tensor], y: Tensor, lam: Tensor) -> Tensor:
        """Of the Lagrangian in y, (B, n)."""
        if not self.constrained:
            return self.gradient(xs, y)
        return grad(lambda point: self.lagrangian(xs, point, lam).sum())(y)

    def jacobian(self, xs: Sequence[Tensor], y: Tensor) -> Tensor:
        """Of the constraints in y, (B, m, n)."""
        if not self.constrained:
            return y.new_zeros(y.shape[0], 0, self.n)
        return row_jacobian(lambda point: self.constraints(xs, point), y)

    def hessian(self, xs: Sequence[Tensor], y: Tensor, lam: Tensor) -> Tensor:
        """Of the Lagrangian in y, (B, n, n), symmetric."""
        if self.curvature is not None and not self.constrained:
            return self.over_batch(self.curvature, xs, y)
        H = row_jacobian(lambda point: self.lagrangian_gradient(xs, point, lam), y)
        return 0.5 * (H + H.mT)

    def probe(self, xs: Sequence[Tensor], y: Tensor) -> tuple[int, int]:
        """Evaluate at one element and check what comes.

        Args:
            xs: inputs, (1, ...) each, detached.
            y: (1, n).

        Returns:
            the numbers of equalities and of inequalities.

        Raises:
            ArgumentError: the objective is not a scalar, or a function depends on a tensor that requires gradients and
                is not among the inputs: its gradient would be lost.
        """
        sizes = []
        for name in ("objective", "equalities", "inequalities"):
            function = getattr(self, name)
            if function is None:
                sizes.append(0)
                continue
            with torch.enable_grad():
                found = self.over_batch(function, xs, y)
            if found.requires_grad:
                raise ArgumentError(
                    f"{name} uses a tensor that requires gradients and is not an input of the node. Pass it as one; "
                    "no gradient reaches it otherwise."
                )
            if found.shape[:1] != (1,):
                raise wrong_shape(f"the result of {name}", found.shape, "(batch, ...)")
            sizes.append(found.numel())
        if sizes[0] != 1:
            raise ArgumentError(f"objective returns {sizes[0]} numbers per element, expected one.")
        return sizes[1], sizes[2]

    def refuse_tangents(self, xs: Sequence[Tensor], y: Tensor) -> None:
        """As `probe`, for tensors that carry tangents of torch's forward mode: theirs would be lost.

        Raises:
            ArgumentError: a function depends on one that is not among the inputs.
        """
        for name in ("objective", "equalities", "inequalities"):
            function = getattr(self, name)
            found = None if function is None else self.over_batch(function, xs, y)
            if found is not None and forward_ad.unpack_dual(found).tangent is not None:
                raise ArgumentError(f"{name} uses a tensor with a tangent that is not an input of the node: pass it.")


def row_jacobian(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """(B, k, n) of a function (B, n) -> (B, k) that keeps elements apart: k vector-Jacobian products at once, or n
    Jacobian-vector products where that is less work, each by two reverse passes (u -> J'u is linear, with adjoint J;
    torch's forward mode cannot be nested, and a caller may be inside it)."""
    out, pull = vjp(function, y)  # type: ignore[assignment]
    k, n = out.shape[1], y.shape[1]
    if k == 0 or n == 0:
        return y.new_zeros(y.shape[0], k, n)
    if k <= 2 * n:
        basis = torch.eye(k, dtype=out.dtype, device=out.device)
        return vmap(lambda row: pull(row.expand_as(out))[0])(basis).movedim(0, 1)
    basis = torch.eye(n, dtype=y.dtype, device=y.device)
    _, push = vjp(lambda u: pull(u)[0], torch.zeros_like(out))  # type: ignore[misc]
    return vmap(lambda column: push(column.expand_as(y))[0])(basis).movedim(0, 2)


@dataclass(frozen=True, eq=False)
class BoundProblem:
    """A problem at given inputs, a block of a batch, as the solvers see it.

    Attributes:
        problem: the functions.
        xs: inputs, (B, ...) each, detached.
        equalities: how many of the constraints are.
    """

    problem: Problem
    xs: tuple[Tensor, ...]
    equalities: int

    def values(self, y: Tensor) -> Tensor:
        """The objective, (B,)."""
        return self.problem.values(self.xs, y)

    def gradient(self, y: Tensor) -> Tensor:
        """Of the objective, (B, n)."""
        return self.problem.gradient(self.xs, y)

    def constraints(self, y: Tensor) -> Tensor:
        """Equalities, then inequalities, (B, m)."""
        return self.problem.constraints(self.xs, y)

    def jacobian(self, y: Tensor) -> Tensor:
        """Of the constraints, (B, m, n)."""
        return self.problem.jacobian(self.xs, y)

    def objective_hessian(self, y: Tensor) -> Tensor:
        """Of the objective, (B, n, n)."""
        return replace(self.problem, equalities=None, inequalities=None).hessian(self.xs, y, y[:, :0])

    def hessian(self, y: Tensor, lam: Tensor) -> Tensor:
        """Of the Lagrangian, (B, n, n)."""
        return self.problem.hessian(self.xs, y, lam)

    def apply(self, function: Function, y: Tensor) -> Tensor:
        """Another function of the inputs and y, such as the residuals of a least-squares problem."""
        return self.problem.over_batch(function, self.xs, y)
