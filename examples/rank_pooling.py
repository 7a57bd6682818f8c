"""Tell which way a digit moves, with a layer whose output is the direction of time.

Rank pooling (Fernando, Gavves, Oramas, Ghodrati and Tuytelaars, "Modeling video evolution for action recognition",
2015) describes a video by the vector u along which its frames v_t advance: u'v_t grows with t as evenly as it can,

    minimize    1/2 |u|^2 + C/2 sum_t max(|u'v_t - t| - eps, 0)^2.

As a layer (Fernando and Gould, "Learning End-to-end Video Classification with Rank-Pooling", 2016) it lets the
network that describes the frames learn from what is made of u. Here digits of scikit-learn move right or left, up or
down, grow or shrink: six classes in three pairs. A video of one class played backwards is one of the other class of
its pair, with the same set of frames: poolings that forget the order, mean and max, cannot tell them apart and reach
.5 at best. Compared: mean, max and rank pooling behind the same convolutional network. Figure: the test accuracy of
each.

Usage: python examples/rank_pooling.py [--fast] [--seed N] [--output FOLDER]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import convexlayers as cl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FRAMES, SIDE, FEATURES, BATCH = 8, 16, 8, 32
CLASSES = ("right", "left", "down", "up", "grow", "shrink")
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda frames: frames.mean(1),
    "max": lambda frames: frames.amax(1),
    "rank": lambda frames: cl.zoo.rank_pool(frames, C=1.0, eps=0.1),
}


def videos(digits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Videos (count, FRAMES, SIDE, SIDE) of random digits (N, 8, 8), and their classes (count,).

    Frame t shows the digit at position p_t and of size s_t, sampled from the image by an affine map of its grid.
    """
    chosen = digits[torch.randint(len(digits), (count,))]
    classes = torch.randint(len(CLASSES), (count,))
    sign = 1.0 - 2.0 * (classes % 2)
    time = torch.linspace(-1, 1, FRAMES) * sign[:, None] * (0.5 + 0.5 * torch.rand(count, 1))
    place = 0.6 * torch.rand(count, 1, 2) - 0.3 + torch.zeros(count, FRAMES, 2)
    kind = classes // 2
    place[..., 0] += torch.where(kind[:, None] == 0, 0.5 * time, 0.0)
    place[..., 1] += torch.where(kind[:, None] == 1, 0.5 * time, 0.0)
    size = 0.5 * torch.where(kind[:, None] == 2, 1.6**time, 1.0)
    zero = torch.zeros_like(size)
    rows = [1 / size, zero, -place[..., 0] / size, zero, 1 / size, -place[..., 1] / size]
    maps = torch.stack(rows, dim=-1).reshape(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(maps, [count * FRAMES, 1, SIDE, SIDE], align_corners=False)
    images = chosen[:, None].expand(-1, FRAMES, 8, 8).reshape(-1, 1, 8, 8)
    frames = torch.nn.functional.grid_sample(images, grid, align_corners=False).reshape(count, FRAMES, SIDE, SIDE)
    return frames + 0.1 * torch.randn_like(frames), classes


class VideoClassifier(torch.nn.Module):
    """A convolutional network for each frame, a pool over the frames, a linear classifier."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.frames = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, stride=2, padding=1), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 12, 3, stride=2, padding=1), torch.nn.ReLU(),
            torch.nn.Flatten(), torch.nn.Linear(12 * 16, FEATURES),
        )  # fmt: skip
        self.pool = pool
        self.classes = torch.nn.Linear(FEATURES, len(CLASSES))

    def forward(self, videos: Tensor) -> Tensor:
        """(B, FRAMES, SIDE, SIDE) -> scores (B, classes)."""
        features = self.frames(videos.reshape(-1, 1, SIDE, SIDE)).reshape(-1, FRAMES, FEATURES)
        return self.classes(self.pool(features))


def train(kind: str, digits: Tensor, test: tuple[Tensor, Tensor], steps: int, seed: int) -> dict[str, list[float]]:
    """Cross-entropy, Adam, new videos in every step; the accuracy on the test videos as it rises."""
    torch.manual_seed(seed)
    model = VideoClassifier(POOLS[kind])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    curve: dict[str, list[float]] = {"step": [], "accuracy": []}
    bar = tqdm(range(steps), desc=f"{kind:>5}")
    for step in bar:
        frames, labels = videos(digits, BATCH)
        loss = torch.nn.functional.cross_entropy(model(frames), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 6) == 0 or step == steps - 1:
            with torch.no_grad():
                curve["accuracy"].append(float((model(test[0]).argmax(-1) == test[1]).float().mean()))
            curve["step"].append(step + 1)
        bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{curve['accuracy'][-1]:.1%}")
    return curve


def draw(curves: dict[str, dict[str, list[float]]], examples: Tensor, path: Path) -> None:
    """One video per row, and the accuracies against the training step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.imshow(np.vstack([np.hstack(list(video.numpy())) for video in examples]), cmap="gray_r")
    left.set(xlabel="time", xticks=[], yticks=[])
    for name, curve in curves.items():
        right.plot(curve["step"], curve["accuracy"], "o-", label=f"{name} pooling")
    right.axhline(0.5, color="gray", linestyle=":", label="best without the order")
    right.set(xlabel="training step", ylabel="test accuracy", ylim=(0, 1.03))
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60)


def main() -> None:
    """Train a network with each pool, compare, draw, and hold the result against its claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few seconds, with a looser claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    digits = torch.as_tensor(load_digits(return_X_y=True)[0] / 16.0, dtype=torch.float32).reshape(-1, 8, 8)
    digits = digits[torch.randperm(len(digits))]
    training, held_out = digits[:1200], digits[1200:]
    test = videos(held_out, 120 if options.fast else 400)
    steps = 90 if options.fast else 200
    curves = {kind: train(kind, training, test, steps, options.seed) for kind in POOLS}
    picture = options.output / "rank_pooling.png"
    draw(curves, torch.stack([test[0][test[1] == label][0] for label in range(len(CLASSES))]), picture)
    print(f"picture: {picture}")
    accuracy = {kind: curve["accuracy"][-1] for kind, curve in curves.items()}
    print("figure: test accuracy: " + ", ".join(f"{kind} {value:.3f}" for kind, value in accuracy.items()))
    unordered, least = max(accuracy["mean"], accuracy["max"]), 0.6 if options.fast else 0.97
    assert unordered < 0.6, f"a pool without order reached {unordered:.3f}: the videos give their class away"
    assert accuracy["rank"] > least, f"rank pooling reached {accuracy['rank']:.3f}, expected {least}"


if __name__ == "__main__":
    main()
