"""The pictures of docs/seeing.md, drawn by `convexlayers.plot`.

Usage: python docs/pictures.py [--output FOLDER]

Each function draws one file on figures of its own. The problems are those of the page.
"""

import argparse
from pathlib import Path
from typing import Any

import cvxpy as cp
import matplotlib

matplotlib.use("Agg")
# The same figures give the same file, and text stays text.
matplotlib.rcParams.update({"svg.hashsalt": "convexlayers", "svg.fonttype": "none", "font.size": 9})

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

import convexlayers as cl  # noqa: E402

FOLDER = Path(__file__).parent / "images"


def controller() -> cl.ConvexLayer:
    """Steer a point of mass to the origin: position and speed in two dimensions, a bounded force, 10 steps."""
    horizon = 10
    X, U = cp.Variable((4, horizon + 1), name="X"), cp.Variable((2, horizon), name="U")
    start, limit = cp.Parameter(4, name="start"), cp.Parameter(name="limit", nonneg=True)
    position, speed = X[:2], X[2:]
    constraints: list[Any] = [
        X[:, 0] == start,
        position[:, 1:] == position[:, :-1] + 0.2 * speed[:, :-1],
        speed[:, 1:] == speed[:, :-1] + 0.2 * U,
        cp.norm(U, 2, axis=0) <= limit,
    ]
    objective = cp.Minimize(cp.sum_squares(X) + 0.1 * cp.sum_squares(U))
    return cl.ConvexLayer(cp.Problem(objective, constraints), [start, limit], [U], on_failure="nan")


def starts(count: int) -> torch.Tensor:
    """Random positions and speeds, (count, 4)."""
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def choice() -> cl.ConvexLayer:
    """A unit, divided among three options by their costs: all of it goes to the cheapest."""
    x, cost = cp.Variable(3, name="x"), cp.Parameter(3, name="cost")
    constraints: list[Any] = [cp.sum(x) == 1, x >= 0]
    return cl.ConvexLayer(cp.Problem(cp.Minimize(cost @ x), constraints), [cost], [x])


def matrices(path: Path) -> None:
    """The KKT matrix of the controller and its factor."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.4), layout="constrained")
    cl.plot.kkt(controller(), axes[0])
    cl.plot.factor(controller(), axes[1])
    save(figure, path)


def convergence(path: Path) -> None:
    """Residuals of 40 starts, by the native engine and by SCS."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
    layer = controller()
    cl.plot.convergence(layer, starts(40), 1.0, axes=axes[0])
    scs = cl.ConvexLayer.from_program(layer.program, solver="scs", on_failure="nan")
    cl.plot.convergence(scs, starts(8), 1.0, axes=axes[1])
    save(figure, path)


def gradients(path: Path) -> None:
    """What the first option gets as it becomes dearer, and the derivative of that by three strategies."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
    start, stop = {"cost": torch.tensor([0.5, 1.0, 1.2])}, {"cost": torch.tensor([1.5, 1.0, 1.2])}
    derivatives = {"exact": cl.Exact(), "smoothed": cl.Smoothed(mu=0.05), "perturbed": cl.Perturbed(tau=0.3)}
    cl.plot.loss(choice(), start, stop, derivatives=derivatives, axes=axes[0])
    cl.plot.gradient(choice(), start, stop, derivatives=derivatives, axes=axes[1])
    save(figure, path)


def statuses(path: Path) -> None:
    """A batch of 12 radii times 30 points, of which some have no solution and some are not numbers."""
    x, t, radius = cp.Variable(3), cp.Parameter(3, name="t"), cp.Parameter(name="radius")
    constraints: list[Any] = [cp.norm(x) <= radius, cp.sum(x) == 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), constraints)
    layer = cl.ConvexLayer(problem, [t, radius], [x], on_failure="nan")
    points = starts(30)[:, :3].clone()
    points[7, 1] = torch.nan
    radii = torch.linspace(0.3, 1.4, 12, dtype=torch.float64).unsqueeze(-1)
    figure, axes = plt.subplots(figsize=(8.0, 2.6), layout="constrained")
    cl.plot.status(layer.solve(points, radii), axes)
    axes.set_xlabel("point")
    axes.set_ylabel("radius")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write the file."""
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


PICTURES = {"matrices": matrices, "convergence": convergence, "gradients": gradients, "statuses": statuses}


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
