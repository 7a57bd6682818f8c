"""What became of each element of a batch, as a map."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from convexlayers.execute import BatchSolution
from convexlayers.plot.canvas import load, make_axes
from convexlayers.status import Status

COLORS = {
    Status.SOLVED: "#cfe3ee",
    Status.INACCURATE: "#f2c14e",
    Status.PRIMAL_INFEASIBLE: "#c8553d",
    Status.DUAL_INFEASIBLE: "#7b3fa0",
    Status.MAX_ITERATIONS: "#e08a3c",
    Status.NUMERICAL_ERROR: "#333333",
    Status.INVALID_DATA: "#7f7f7f",
}
NOTHING = len(COLORS)


def status(outcome: BatchSolution | Tensor, axes: Any = None) -> Any:
    """A cell per element of a batch, coloured by its status, with the counts in the legend.

    Args:
        outcome: what `layer.solve` returned, or its `status`, of any shape. Two batch dimensions are rows and columns;
            one is laid out row by row in a near square, more are flattened but for the first.
        axes: of matplotlib, to draw on; None for new ones.

    Returns:
        the axes.

    Raises:
        PackageNotInstalledError: there is no matplotlib.
    """
    codes = (outcome.status if isinstance(outcome, BatchSolution) else outcome).detach().cpu().numpy()
    axes = make_axes(axes)
    colormap = load("matplotlib.colors").ListedColormap([*COLORS.values(), "#ffffff"])
    axes.imshow(_grid(codes), cmap=colormap, vmin=0, vmax=NOTHING, interpolation="nearest")
    patch = load("matplotlib.patches").Patch
    present = [(code, int((codes == int(code)).sum())) for code in Status]
    handles = [patch(facecolor=COLORS[code], label=f"{code.name} ({count})") for code, count in present if count]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    axes.set_title(f"status of {codes.size} elements, batch {codes.shape}", fontsize=9)
    return axes


def _grid(codes: np.ndarray) -> np.ndarray:
    """The codes in two dimensions; cells behind the last element hold `NOTHING`."""
    if codes.ndim >= 2:
        return codes.reshape(len(codes), -1)
    width = max(1, math.ceil(math.sqrt(codes.size)))
    grid = np.full((max(1, math.ceil(codes.size / width)), width), NOTHING)
    grid.reshape(-1)[: codes.size] = codes.reshape(-1)
    return grid
