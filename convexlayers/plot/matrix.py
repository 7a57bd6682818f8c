"""The KKT matrix and its factor: which entries there are."""

from typing import Any

import numpy as np

from convexlayers.errors import ArgumentError
from convexlayers.layer import ConvexLayer
from convexlayers.plot.canvas import load, make_axes
from convexlayers.program import ParametrizedConeProgram
from convexlayers.seeing.pattern import KKTPattern, factor_pattern, kkt_pattern

WHITE, DARK, FILL = "#ffffff", "#1f4e6e", "#e08a3c"
# Names of parts with a smaller share of the nodes would cover each other.
SMALLEST_SHARE = 0.02
# A picture has no more points than that, and takes their square in memory.
MOST_NODES = 5000


def kkt(subject: ConvexLayer | ParametrizedConeProgram, axes: Any = None) -> Any:
    """The symmetric matrix that the native engine factors in every iteration, and for the derivative.

    Variables first, then the rows of each kind of cone, then the extra nodes of second-order, exponential and power
    cones.

    Args:
        subject: a layer, or what `compile_problem` returned.
        axes: of matplotlib, to draw on; None for new ones.

    Returns:
        the axes.

    Raises:
        ArgumentError: the matrix is too large for a picture.
        PackageNotInstalledError: there is no matplotlib.
    """
    pattern = _pattern_of(subject)
    entries = np.zeros((pattern.nodes, pattern.nodes), dtype=np.uint8)
    entries[pattern.rows, pattern.cols] = entries[pattern.cols, pattern.rows] = 1
    np.fill_diagonal(entries, 1)
    axes = make_axes(axes)
    _draw(axes, entries, [WHITE, DARK])
    for _, start, _ in pattern.parts[1:]:
        axes.axhline(start - 0.5, color="0.6", linewidth=0.5)
        axes.axvline(start - 0.5, color="0.6", linewidth=0.5)
    shown = [part for part in pattern.parts if part[2] - part[1] >= SMALLEST_SHARE * pattern.nodes]
    axes.set_yticks([(start + stop - 1) / 2 for _, start, stop in shown], [name for name, _, _ in shown])
    axes.set_xticks([])
    axes.set_title(f"KKT matrix: order {pattern.nodes:,}, {pattern.entries:,} entries below the diagonal", fontsize=9)
    return axes


def factor(subject: ConvexLayer | ParametrizedConeProgram, axes: Any = None) -> Any:
    """The factor L of that matrix, in elimination order: its entries, and those among them that are fill-in.

    Args:
        subject, axes: as in `kkt`.

    Returns:
        the axes.

    Raises:
        ArgumentError: the matrix is too large for a picture.
        PackageNotInstalledError: there is no matplotlib.
    """
    pattern = _pattern_of(subject)
    found = factor_pattern(pattern)
    entries = np.zeros((pattern.nodes, pattern.nodes), dtype=np.uint8)
    entries[found.rows, found.cols] = np.where(found.original, 1, 2)
    np.fill_diagonal(entries, 1)
    axes = make_axes(axes)
    _draw(axes, entries, [WHITE, DARK, FILL])
    patch = load("matplotlib.patches").Patch
    filled = found.entries - pattern.entries
    handles = [
        patch(color=DARK, label=f"entries of the matrix ({pattern.entries:,})"),
        patch(color=FILL, label=f"fill-in ({filled:,})"),
    ]
    axes.legend(handles=handles, loc="upper right", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"factor: {found.entries:,} entries below the diagonal", fontsize=9)
    return axes


def _pattern_of(subject: ConvexLayer | ParametrizedConeProgram) -> KKTPattern:
    program = subject.program if isinstance(subject, ConvexLayer) else subject
    pattern = kkt_pattern(program.structure)
    if pattern.nodes > MOST_NODES:
        raise ArgumentError(
            f"The KKT matrix has order {pattern.nodes:,}, expected at most {MOST_NODES:,} for a picture. "
            "convexlayers.seeing.kkt_pattern and layer.report() have its entries and their number."
        )
    return pattern


def _draw(axes: Any, entries: np.ndarray, colors: list[str]) -> None:
    """An image with a colour per kind of entry."""
    colormap = load("matplotlib.colors").ListedColormap(colors)
    axes.imshow(entries, cmap=colormap, vmin=0, vmax=len(colors) - 1, interpolation="nearest")
