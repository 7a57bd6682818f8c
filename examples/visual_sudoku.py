"""Read handwritten digits without a single label of a digit, by the rules of sudoku.

A puzzle is 4x4, its clues are images of handwritten digits 1 to 4 of scikit-learn, and what is given in training is
only the values of the cells that were *not* shown. A convolutional network reads every clue; its probabilities p are
the linear cost of a layer that knows the rules,

    maximize    <p, z> - 0.05 |z|^2    over z_ijk >= 0, each cell, row, column and block with one of each digit in all,

and the loss compares the layer's empty cells with the solution (after Amos and Kolter, "OptNet: Differentiable
Optimization as a Layer in Neural Networks", 2017, and the visual sudoku of Wang, Donti, Wilder and Kolter, "SATNet",
2019). The gradient through the program is the only teacher of the network. Figure: the share of unseen digit images
read right, without a digit label, beside that of a network of the same kind trained with them.

Usage: python examples/visual_sudoku.py [--fast] [--seed N] [--output FOLDER]
"""

import argparse
from itertools import permutations, product
from pathlib import Path
from typing import Any

import cvxpy as cp
import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import convexlayers as cl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH, CLUES = 16, 10


def all_boards() -> Tensor:
    """The 288 solved boards, (288, 16)."""
    rows = list(permutations(range(4)))

    def is_solved(board: np.ndarray) -> bool:
        columns = all(len(set(board[:, j])) == 4 for j in range(4))
        return columns and all(len(set(board[i : i + 2, j : j + 2].flat)) == 4 for i in (0, 2) for j in (0, 2))

    boards = (np.array(board) for board in product(rows, repeat=4))
    return torch.as_tensor(np.stack([board.reshape(16) for board in boards if is_solved(board)]))


def rules_layer() -> cl.ConvexLayer:
    """The layer: scores (B, 16, 4) to soft boards (B, 16, 4)."""
    z, p = cp.Variable((16, 4)), cp.Parameter((16, 4))
    cells = np.arange(16).reshape(4, 4)
    blocks = [cells[i : i + 2, j : j + 2].reshape(4) for i in (0, 2) for j in (0, 2)]
    rules: list[Any] = [cp.sum(z[group], axis=0) == 1 for group in (*cells, *cells.T, *blocks)]
    rules += [z >= 0, cp.sum(z, axis=1) == 1]
    objective = cp.Maximize(cp.sum(cp.multiply(p, z)) - 0.05 * cp.sum_squares(z))
    return cl.ConvexLayer(cp.Problem(objective, rules), parameters=[p], variables=[z])


class Puzzles:
    """Puzzles whose clues are images (N, 8, 8), picked by their labels (N,), 0 to 3, which models never see."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.of_value = [images[labels == value] for value in range(4)]
        self.boards = all_boards()

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images (count, 16, 8, 8), zero where there is no clue, the mask of the clues, and solutions (count, 16)."""
        boards = self.boards[torch.randint(len(self.boards), (count,))]
        given = torch.rand(count, 16).argsort(dim=1) < CLUES
        images = torch.zeros(count, 16, 8, 8)
        for value, pool in enumerate(self.of_value):
            cells = given & (boards == value)
            images[cells] = pool[torch.randint(len(pool), (int(cells.sum()),))]
        return images, given, boards


def reader() -> torch.nn.Module:
    """Images (N, 8, 8) to scores (N, 4)."""
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8)), torch.nn.Conv2d(1, 12, 3), torch.nn.ReLU(), torch.nn.Conv2d(12, 16, 3),
        torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4),
    )  # fmt: skip


class Solver(torch.nn.Module):
    """Reads the clues and completes the board."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.layer = reader(), rules_layer()

    def forward(self, images: Tensor, given: Tensor) -> Tensor:
        """(B, 16, 8, 8) and (B, 16) -> soft boards (B, 16, 4)."""
        p = torch.zeros(*given.shape, 4).index_put((given,), self.reader(images[given]).softmax(dim=-1))
        return self.layer(p)[0]


@torch.no_grad()
def read_right(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images read right."""
    return float((model(images).argmax(dim=1) == labels).float().mean())


def train(model: Solver, puzzles: Puzzles, test: tuple[Tensor, Tensor], steps: int) -> dict[str, list[float]]:
    """Squared error of the empty cells, Adam; how many test images are read right as training goes on."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    curve: dict[str, list[float]] = {"loss": [], "right": []}
    bar = tqdm(range(steps), desc="rules")
    for _ in bar:
        images, given, boards = puzzles.draw(BATCH)
        truth = torch.nn.functional.one_hot(boards, 4).float()
        loss = (model(images, given) - truth)[~given].square().sum(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        curve["loss"].append(loss.item())
        curve["right"].append(read_right(model.reader, *test))
        bar.set_postfix(loss=f"{loss.item():.3f}", read=f"{curve['right'][-1]:.1%}")
    return curve


def train_with_labels(images: Tensor, labels: Tensor, steps: int) -> torch.nn.Module:
    """The same reader, taught the digits."""
    model = reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in tqdm(range(steps), desc="labels"):
        chosen = torch.randint(len(images), (BATCH * CLUES,))
        loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def draw(puzzle: tuple[Tensor, Tensor, Tensor], found: Tensor, curve: dict[str, list[float]], path: Path) -> None:
    """A puzzle, its empty cells as they were filled, and the curves."""
    images, given, boards = puzzle
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.imshow(images[0].reshape(4, 4, 8, 8).permute(0, 2, 1, 3).reshape(32, 32), cmap="gray_r")
    for cell in (~given[0]).nonzero().flatten().tolist():
        color = "green" if found[cell] == boards[0, cell] else "red"
        left.text(
            cell % 4 * 8 + 3.5,
            cell // 4 * 8 + 3.5,
            str(int(found[cell]) + 1),
            color=color,
            size=20,
            ha="center",
            va="center",
        )
    left.set(xticks=np.arange(7.5, 31), yticks=np.arange(7.5, 31), xticklabels=[], yticklabels=[])
    left.grid(color="black")
    right.plot(curve["right"], label="unseen digits read right")
    right.plot(curve["loss"], label="squared error of the empty cells", alpha=0.6)
    right.set(xlabel="training step", ylim=(0, 1.2))
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def main() -> None:
    """Train, read, draw, and hold the result against its claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few seconds, with a looser claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    pixels, digits = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels / 16.0, dtype=torch.float32).reshape(-1, 8, 8)
    labels = torch.as_tensor(digits) - 1
    chosen = ((labels >= 0) & (labels < 4)).nonzero().flatten()
    chosen = chosen[torch.randperm(len(chosen))]
    training, held_out = chosen[:500], chosen[500:]
    test = images[held_out], labels[held_out]

    model, steps = Solver(), 30 if options.fast else 300
    curve = train(model, Puzzles(images[training], labels[training]), test, steps)
    taught = read_right(train_with_labels(images[training], labels[training], steps), *test)
    puzzle = Puzzles(*test).draw(200)
    with torch.no_grad():
        found = model(puzzle[0], puzzle[1]).argmax(dim=-1)
    solved = float((found == puzzle[2]).all(dim=1).float().mean())
    picture = options.output / "visual_sudoku.png"
    draw(puzzle, found[0], curve, picture)
    print(f"picture: {picture}")
    read, least = curve["right"][-1], 0.5 if options.fast else 0.94
    print(f"figure: unseen digits read right {read:.1%} without labels, {taught:.1%} with; boards right {solved:.1%}")
    assert read > least, f"{read:.1%} of the digits are read right, expected {least:.0%}"


if __name__ == "__main__":
    main()
