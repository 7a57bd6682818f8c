"""Residuals against iterations.

Engines keep no history, so there is nothing to be read off: the batch is solved again with max_iterations = 1, 2, 3,
..., and the residuals of what comes back are measured. That shows for every engine what it would return after so many
iterations, with the polishing that belongs to it, and costs as many solves as there are points.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.layer import ConvexLayer
from convexlayers.plot.canvas import make_axes
from convexlayers.solution import measure

# Solves at most; engines that take thousands of iterations are looked at where a logarithmic axis wants it.
POINTS = 60
# Residuals below this are drawn there: rounding.
SMALLEST = 1e-17


@dataclass(frozen=True, eq=False)
class Trace:
    """Residuals of a batch as iterations are allowed.

    Attributes:
        iterations: (K,) limits, ascending.
        residual: (K, B) the largest of primal residual, dual residual and gap, relative; infinite where a limit left no
            finite point.
        finished: (B,) iterations that the layer with its own limit took.
        tolerance: of the layer's engine.
    """

    iterations: Tensor
    residual: Tensor
    finished: Tensor
    tolerance: float


def trace(layer: ConvexLayer, *values: Value) -> Trace:
    """Solve a batch with every limit of iterations up to the number that it takes.

    Args:
        layer: whose engine is looked at; nothing is relaxed.
        *values: one per parameter, as in a call.
    """
    with torch.no_grad():
        solution = _limited(layer, layer.engine.max_iterations).solve(*values)
        most = max(1, int(solution.iterations.max()))
        limits = np.unique(np.geomspace(1, most, POINTS).round().astype(int)) if most > POINTS else range(1, most + 1)
        residual = [_residual(_limited(layer, int(limit)), values) for limit in limits]
    iterations = torch.tensor([int(limit) for limit in limits])
    return Trace(iterations, torch.stack(residual), solution.iterations.reshape(-1), layer.engine.tolerance)


def convergence(layer: ConvexLayer, *values: Value, axes: Any = None) -> Any:
    """The largest residual of every element against the number of iterations.

    Args:
        layer: whose engine is looked at.
        *values: one per parameter, as in a call.
        axes: of matplotlib, to draw on; None for new ones.

    Returns:
        the axes.

    Raises:
        PackageNotInstalledError: there is no matplotlib.
    """
    axes, found = make_axes(axes), trace(layer, *values)
    shown = found.residual.clamp(min=SMALLEST)
    shown = shown.masked_fill(shown.isinf(), torch.nan)
    count = shown.shape[1]
    alpha = max(0.15, min(1.0, 8 / max(count, 1)))
    lines = axes.semilogy(found.iterations.numpy(), shown.cpu().numpy(), color="#1f4e6e", alpha=alpha, linewidth=1)
    if lines:
        lines[0].set_label("1 element" if count == 1 else f"{count} elements")
    axes.axhline(found.tolerance, color="0.4", linestyle=":", linewidth=1, label=f"tolerance {found.tolerance:g}")
    if len(found.iterations) < int(found.iterations[-1]):
        axes.set_xscale("log")
    axes.set_xlabel("iterations allowed")
    axes.set_ylabel("largest relative residual")
    axes.set_title(f"{layer.engine.name}", fontsize=9)
    axes.legend(fontsize=8)
    return axes


def _limited(layer: ConvexLayer, limit: int | None) -> ConvexLayer:
    """The same layer with another limit, which goes on where an element is not solved."""
    engine = replace(layer.engine, max_iterations=limit)
    return ConvexLayer.from_program(layer.program, solver=engine, on_failure="nan", validate=layer.validate)


def _residual(layer: ConvexLayer, values: tuple[Value, ...]) -> Tensor:
    """Measured anew where the engine did not: of points that are no solutions it need not say anything."""
    found = layer.solve(*values).cone_solution
    return measure(found.program, found.x, found.s, found.z).largest
