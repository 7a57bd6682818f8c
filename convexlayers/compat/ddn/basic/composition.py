"""The face of `ddn.basic.composition`: nodes after each other, side by side, and parts of a result."""

from typing import Any

import numpy as np

from convexlayers.compat.ddn.basic.node import AbstractNode
from convexlayers.errors import ArgumentError

__all__ = ["ComposedNode", "ParallelNode", "SelectNode"]


class ComposedNode(AbstractNode):
    """y = g(f(x)).

    Args:
        nodeA: f. nodeB: g.
    """

    def __init__(self, nodeA: AbstractNode, nodeB: AbstractNode) -> None:
        if nodeA.dim_y != nodeB.dim_x:
            raise ArgumentError(f"nodeB takes {nodeB.dim_x} numbers, expected the {nodeA.dim_y} of nodeA.")
        super().__init__(nodeA.dim_x, nodeB.dim_y)
        self.nodeA, self.nodeB = nodeA, nodeB

    def solve(self, x: Any) -> tuple[Any, Any]:
        """y, and what both nodes returned."""
        z, ctxA = self.nodeA.solve(x)
        y, ctxB = self.nodeB.solve(z)
        return y, {"ctxA": ctxA, "ctxB": ctxB, "z": z}

    def gradient(self, x: Any, y: Any = None, ctx: Any = None) -> Any:
        """dy/dx, (m, n), by the chain rule."""
        if ctx is None:
            z, ctxA = self.nodeA.solve(x)
            ctxB = None
            y = None
        else:
            z, ctxA, ctxB = ctx["z"], ctx["ctxA"], ctx["ctxB"]
        return _matrix(self.nodeB, z, y, ctxB) @ _matrix(self.nodeA, x, z, ctxA)


class ParallelNode(AbstractNode):
    """y = (f(x), g(x)).

    Args:
        nodeA: f. nodeB: g.
    """

    def __init__(self, nodeA: AbstractNode, nodeB: AbstractNode) -> None:
        if nodeA.dim_x != nodeB.dim_x:
            raise ArgumentError(f"nodeB takes {nodeB.dim_x} numbers, expected {nodeA.dim_x} as nodeA.")
        super().__init__(nodeA.dim_x, nodeA.dim_y + nodeB.dim_y)
        self.nodeA, self.nodeB = nodeA, nodeB

    def solve(self, x: Any) -> tuple[Any, Any]:
        """y, and what both nodes returned."""
        (yA, ctxA), (yB, ctxB) = self.nodeA.solve(x), self.nodeB.solve(x)
        return np.concatenate([np.ravel(yA), np.ravel(yB)]), {"ctxA": ctxA, "ctxB": ctxB}

    def gradient(self, x: Any, y: Any = None, ctx: Any = None) -> Any:
        """dy/dx, (m, n)."""
        if y is None:
            y, ctx = self.solve(x)
        ctx = ctx or {"ctxA": None, "ctxB": None}
        flat, split = np.ravel(y), self.nodeA.dim_y
        above = _matrix(self.nodeA, x, flat[:split], ctx["ctxA"])
        return np.vstack([above, _matrix(self.nodeB, x, flat[split:], ctx["ctxB"])])


class SelectNode(AbstractNode):
    """y = x[startIndx], ..., x[endIndx].

    Args:
        n: dimension of x. startIndx, endIndx: first and last entry; -1 for the last of x.
    """

    def __init__(self, n: int, startIndx: int = 0, endIndx: int = -1) -> None:
        last = n - 1 if endIndx == -1 else endIndx
        if not 0 <= startIndx <= last < n:
            raise ArgumentError(f"startIndx, endIndx are {startIndx}, {last}, expected entries of {n} in order.")
        super().__init__(n, last - startIndx + 1)
        self.startIndx, self.endIndx = startIndx, last

    def solve(self, x: Any) -> tuple[Any, Any]:
        """The entries."""
        return x[self.startIndx : self.endIndx + 1], None

    def gradient(self, x: Any, y: Any = None, ctx: Any = None) -> Any:
        """Zeros and ones, (m, n)."""
        return np.eye(self.dim_x)[self.startIndx : self.endIndx + 1]


def _matrix(node: AbstractNode, x: Any, y: Any, ctx: Any) -> Any:
    return np.asarray(node.gradient(x, y, ctx)).reshape(node.dim_y, node.dim_x)
