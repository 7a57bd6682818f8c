"""The face of `ddn.basic.node`: declarative nodes of one vector in and one out, written with numpy.

Replace `from ddn.basic.node import *` by `from convexlayers.compat.ddn.basic.node import *`; objectives and constraints
may use numpy or the numpy of the autograd package, which is not needed (`tracing`). Gradients come from
`convexlayers.nodes`, as those of `ddn.pytorch.node` do.

What differs: where y is not a solution a `DerivativeWarning` says so, in place of a failing assertion; and singular
conditions get the derivative of minimum norm, in place of NaN, so that `NonUniqueDeclarativeNode` is a name only.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexlayers.compat.ddn.basic.tracing import grad, jacobian, traced
from convexlayers.compat.ddn.pytorch import node as batched
from convexlayers.errors import wrong_shape

__all__ = [
    "AbstractDeclarativeNode",
    "AbstractNode",
    "EqConstDeclarativeNode",
    "IneqConstDeclarativeNode",
    "LinEqConstDeclarativeNode",
    "NonUniqueDeclarativeNode",
    # That module's star import gives these, too, and nodes written for it rely on it.
    "grad",
    "jacobian",
    "np",
]


class AbstractNode:
    """A function with a gradient.

    Args:
        n: dimension of the input. m: dimension of the output.
    """

    def __init__(self, n: int = 1, m: int = 1) -> None:
        if n < 1 or m < 1:
            raise wrong_shape("the node", (n, m), "positive dimensions")
        self.dim_x, self.dim_y = n, m

    def solve(self, x: Any) -> tuple[Any, Any]:
        """The output, (m,), at (n,), and what the gradient may use, or None."""
        raise NotImplementedError(f"{type(self).__name__} does not implement solve.")

    def gradient(self, x: Any, y: Any = None, ctx: Any = None) -> Any:
        """dy/dx, (m, n)."""
        raise NotImplementedError(f"{type(self).__name__} does not implement gradient.")


class AbstractDeclarativeNode(AbstractNode):
    """minimize f(x, y) over y. Implement `objective` and `solve`.

    `fY`, `fYY` and `fXY` are derivatives of f at (x, y): (m,), (m, m) and (m, n).
    """

    eps = 1.0e-6

    def __init__(self, n: int = 1, m: int = 1) -> None:
        super().__init__(n, m)
        self.fY = grad(self.objective, 1)
        self.fYY, self.fXY = jacobian(self.fY, 1), jacobian(self.fY, 0)

    def objective(self, x: Any, y: Any) -> Any:
        """f, a number."""
        raise NotImplementedError(f"{type(self).__name__} does not implement objective.")

    def gradient(self, x: Any, y: Any = None, ctx: Any = None) -> Any:
        """dy/dx, (m, n).

        Args:
            x: (n,). y: solution, (m,), by default that of `solve`.
            ctx: of `solve`: the multiplier nu of the Lagrangian f - nu h, as a number or as entry "nu"; or None.
        """
        if y is None:
            y, ctx = self.solve(x)
        x_, y_ = (np.asarray(value, dtype=np.float64).reshape(-1) for value in (x, y))
        given = torch.from_numpy(x_).unsqueeze(0).requires_grad_()
        # Both are of a batch of one.
        solution = torch.from_numpy(y_).unsqueeze(0)
        attached = batched.attach(self._of_a_batch(), [given], solution, self._multipliers(ctx))
        rows = [torch.autograd.grad(part, given, retain_graph=True)[0][0] for part in attached[0]]
        return torch.stack(rows).numpy()

    def _of_a_batch(self) -> batched.AbstractDeclarativeNode:
        return _OfABatch(self)

    def _multipliers(self, ctx: Any) -> dict[str, Tensor] | None:
        return None

    def _check_optimality_cond(self, x: Any, y: Any, ctx: Any = None) -> bool:
        return bool((abs(self.fY(x, y)) <= self.eps).all())


class EqConstDeclarativeNode(AbstractDeclarativeNode):
    """minimize f(x, y) over y subject to h(x, y) = 0. Implement `objective`, `constraint` and `solve`.

    `hY`, `hX`, `hYY` and `hXY` are derivatives of h at (x, y): (m,), (n,), (m, m) and (m, n).
    """

    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.hY, self.hX = grad(self.constraint, 1), grad(self.constraint, 0)
        self.hYY, self.hXY = jacobian(self.hY, 1), jacobian(self.hY, 0)

    def constraint(self, x: Any, y: Any) -> Any:
        """h, a number."""
        raise NotImplementedError(f"{type(self).__name__} does not implement constraint.")

    def gradient(self, x: Any, y: Any = None, ctx: Any = None) -> Any:
        """dy/dx, (m, n), without dimensions of length one."""
        return super().gradient(x, y, ctx).squeeze()

    def _of_a_batch(self) -> batched.AbstractDeclarativeNode:
        return _WithEquality(self)

    def _multipliers(self, ctx: Any) -> dict[str, Tensor] | None:
        nu = ctx.get("nu") if isinstance(ctx, dict) else ctx
        if nu is None or not np.isfinite(nu).all():
            return None
        return {"nu": torch.as_tensor(nu, dtype=torch.float64).reshape(1, -1)}


class IneqConstDeclarativeNode(EqConstDeclarativeNode):
    """minimize f(x, y) over y subject to h(x, y) <= 0. Implement `objective`, `constraint` and `solve`."""

    def _of_a_batch(self) -> batched.AbstractDeclarativeNode:
        return _WithInequality(self)


class LinEqConstDeclarativeNode(AbstractDeclarativeNode):
    """minimize f(x, y) over y subject to A y = b. Implement `objective` and `solve`.

    Args:
        n: dimension of x. m: dimension of y. A: (p, m). b: (p,).
    """

    def __init__(self, n: int, m: int, A: Any, b: Any) -> None:
        super().__init__(n, m)
        if A.shape[1:] != (m,) or A.shape[:1] != b.shape:
            raise wrong_shape("A", A.shape, f"({len(b)}, {m})")
        self.A, self.b = A, b

    def _of_a_batch(self) -> batched.AbstractDeclarativeNode:
        return _WithLinear(self)


class NonUniqueDeclarativeNode(AbstractDeclarativeNode):
    """minimize f(x, y) over y, where solutions are not unique: the derivative of minimum norm."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)


class _OfABatch(batched.IneqConstDeclarativeNode):
    """A node for vectors as one for batches."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.node = node

    def _each(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        function = traced(getattr(self.node, name))
        return torch.stack([function(*pair).reshape(()) for pair in zip(x, y, strict=True)])

    def objective(self, x: Any, y: Tensor) -> Tensor:  # type: ignore[override]
        return self._each("objective", x, y)

    def inequality_constraints(self, x: Any, y: Tensor) -> Tensor | None:  # type: ignore[override]
        return None


class _WithEquality(_OfABatch):
    def equality_constraints(self, x: Any, y: Tensor) -> Tensor | None:  # type: ignore[override]
        return self._each("constraint", x, y)


class _WithInequality(_OfABatch):
    def inequality_constraints(self, x: Any, y: Tensor) -> Tensor | None:  # type: ignore[override]
        return self._each("constraint", x, y)


class _WithLinear(_OfABatch):
    def equality_constraints(self, x: Any, y: Tensor) -> Tensor | None:  # type: ignore[override]
        A, b = (torch.as_tensor(part, dtype=torch.float64) for part in (self.node.A, self.node.b))
        return y @ A.mT - b
