"""The pictures of docs/pipeline.md: the matrices of one real problem, before and after ordering, as SVG files.

Usage: python docs/pipeline_pictures.py [--folder docs/images]

The problem is the one of the page, a controller. The same program gives the same files.
"""

import argparse
from pathlib import Path
from typing import Any

import cvxpy as cp
import matplotlib
import numpy as np
import torch

import convexlayers as cl
from convexlayers.seeing.pattern import FactorPattern, KKTPattern, factor_pattern, kkt_pattern

matplotlib.use("Agg")
# The same figures give the same file, and text stays text.
matplotlib.rcParams.update({"svg.hashsalt": "convexlayers", "svg.fonttype": "none", "font.size": 9})

import matplotlib.pyplot as plt  # noqa: E402

STEPS = 8
BLUE, ORANGE, GREY = "#0b6e99", "#d95f02", "#b5b5b5"


def controller(steps: int = STEPS) -> cl.ConvexLayer:
    """A cart is pushed to the origin by a bounded force; its state x0 and the price of force are parameters."""
    A, B = np.array([[1.0, 0.3], [0.0, 1.0]]), np.array([[0.05], [0.3]])
    X, U = cp.Variable((2, steps + 1), name="X"), cp.Variable((1, steps), name="U")
    x0, weight = cp.Parameter(2, name="x0"), cp.Parameter(nonneg=True, name="weight")
    objective = cp.sum_squares(X) + weight * cp.sum_squares(U)
    constraints = [X[:, 0] == x0, X[:, 1:] == A @ X[:, :-1] + B @ U, cp.abs(U) <= 1.0]
    return cl.ConvexLayer(cp.Problem(cp.Minimize(objective), constraints), [x0, weight], [X, U])


def matrix_of(kkt: KKTPattern) -> np.ndarray:
    """Which entries the KKT matrix has."""
    entries = np.eye(kkt.nodes, dtype=bool)
    entries[kkt.rows, kkt.cols] = entries[kkt.cols, kkt.rows] = True
    return entries


def natural_fill(entries: np.ndarray) -> np.ndarray:
    """The pattern of L without an ordering, by eliminating column after column."""
    full = entries.copy()
    for k in range(len(full)):
        below = k + 1 + np.flatnonzero(full[k + 1 :, k])
        full[np.ix_(below, below)] = True
    return np.tril(full, -1)


def ordered_fill(factor: FactorPattern) -> np.ndarray:
    """The pattern of L in the order in which the core eliminates."""
    entries = np.zeros((len(factor.order),) * 2, dtype=bool)
    entries[factor.rows, factor.cols] = True
    return entries


def spy(axes: Any, entries: np.ndarray, filled: np.ndarray | None, title: str) -> None:
    """Entries of a matrix in blue, what fills in in orange."""
    for mask, color in ((entries, BLUE), (filled, ORANGE)):
        if mask is not None:
            rows, columns = np.nonzero(mask)
            axes.scatter(columns, rows, s=5, marker="s", color=color, linewidths=0)
    size = len(entries)
    axes.set(xlim=(-1, size), ylim=(size, -1), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)


def draw_patterns(layer: cl.ConvexLayer, path: Path) -> dict[str, int]:
    """The KKT matrix as it comes, its factor in that order, and the factor in the core's order; counts of entries."""
    structure = layer.program.structure
    kkt = kkt_pattern(structure)
    full, factor = matrix_of(kkt), factor_pattern(kkt)
    natural, ordered = natural_fill(full), ordered_fill(factor)
    order = factor.order
    below, moved = np.tril(full, -1), np.tril(full[np.ix_(order, order)], -1)
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.1))
    spy(axes[0], full, None, f"KKT matrix, order {kkt.nodes}")
    for line in (structure.n - 0.5,):
        axes[0].axhline(line, color=GREY, linewidth=0.5)
        axes[0].axvline(line, color=GREY, linewidth=0.5)
    spy(axes[1], below, natural & ~below, f"L as it comes: {natural.sum()} entries")
    spy(axes[2], moved, ordered & ~moved, f"L after ordering: {ordered.sum()} entries")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return {"entries": int(below.sum()), "natural": int(natural.sum()), "ordered": int(ordered.sum())}


def draw_derivative(layer: cl.ConvexLayer, path: Path) -> None:
    """Forces of the controller with their bounds, and the derivative of each in the initial position and velocity."""
    x0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    weight = torch.tensor(0.1, dtype=torch.float64)
    forces = layer(x0, weight)[1][0]
    jacobian = torch.func.jacrev(lambda value: layer(value, weight)[1][0])(x0)
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.4))
    steps = np.arange(len(forces))
    axes[0].bar(steps, forces, color=BLUE)
    for bound in (-1.0, 1.0):
        axes[0].axhline(bound, color=ORANGE, linewidth=0.8)
    axes[0].set(title="force U[t], bounds in orange", xlabel="t")
    axes[1].bar(steps - 0.2, jacobian[:, 0], 0.4, color=BLUE, label="in the position")
    axes[1].bar(steps + 0.2, jacobian[:, 1], 0.4, color=GREY, label="in the velocity")
    axes[1].set(title="dU[t] / dx0: zero where the force is at its bound", xlabel="t")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "images")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    layer = controller()
    draw_patterns(layer, folder / "kkt.svg")
    draw_derivative(layer, folder / "derivative.svg")


if __name__ == "__main__":
    main()
