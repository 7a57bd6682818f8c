"""Classify point clouds in which most points are wrong, with robust pooling.

A small PointNet (Qi, Su, Mo and Guibas, "PointNet: Deep Learning on Point Sets for 3D Classification and
Segmentation", 2017) maps each of 128 points to features by the same network, pools every feature over the points, and
classifies the result. Six analytic surfaces, noisy, scaled and turned about the vertical axis, are to be told apart.
In training up to 70 % of the points of a cloud are wrong ones, and in the test up to 80 %: they fill a cube that
overlaps the object, evenly. The figure depends on that: with wrong points of heavy tails max pooling holds up as well.

Max pooling, which PointNet uses, takes wrong points for the extreme ones. The mean minimizes a sum of squares; robust
pools minimize a penalty that grows more slowly (Gould, Hartley and Campbell, "Deep Declarative Networks", 2019), and
their scale is learned with the network. Compared: max, mean, Huber, pseudo-Huber and, with --welsch, the Welsch pool,
which is not convex: it is solved from several starts and takes longer than the others together. Figure: the
accuracy of each on clouds with 60 % of wrong points.

Usage: python examples/point_clouds.py [--fast] [--welsch] [--seed N] [--output FOLDER]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from torch import Tensor
from tqdm import tqdm

import convexlayers as cl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

POINTS, FEATURES, EACH = 128, 24, 6
SHAPES = ("sphere", "cone", "torus", "plate", "saddle", "helix")
PLAIN = ("max", "mean")
TRAINED_SHARE, SHARES, SHOWN = 0.7, (0.0, 0.2, 0.4, 0.6, 0.8), 3


def around(radius: Tensor, angle: Tensor, height: Tensor) -> Tensor:
    """Points in cylindrical coordinates (...), as (..., 3)."""
    return torch.stack([radius * angle.cos(), radius * angle.sin(), height], dim=-1)


def surface(shape: str, count: int) -> Tensor:
    """Points on a surface, (count, POINTS, 3), inside the cube of side 2."""
    u, v = torch.rand(2, count, POINTS)
    across, along, angle = 2 * u - 1, 2 * v - 1, 2 * torch.pi * v
    points = {
        "sphere": around((1 - across**2).sqrt(), angle, across),
        "cone": around(u.sqrt(), angle, 1 - 2 * u.sqrt()),
        "torus": around(0.7 + 0.3 * (2 * torch.pi * u).cos(), angle, 0.3 * (2 * torch.pi * u).sin()),
        "plate": torch.stack([across, along, torch.zeros_like(u)], dim=-1),
        "saddle": torch.stack([across, along, across * along], dim=-1),
        "helix": around(torch.full_like(u, 0.8), 2 * angle, along),
    }
    return points[shape]


def clouds(each: int, share: Tensor) -> tuple[Tensor, Tensor]:
    """Clouds (6 each, POINTS, 3) and labels (6 each), with a share, () or (6 each, 1), of wrong points."""
    points = torch.cat([surface(shape, each) for shape in SHAPES])
    labels = torch.arange(len(SHAPES)).repeat_interleave(each)
    size = len(points)
    turn = around(torch.ones(size, 1), 2 * torch.pi * torch.rand(size, 1), torch.zeros(size, 1))
    x, y = points[..., 0] + 0j, points[..., 1]
    turned = (x + 1j * y) * torch.complex(turn[..., 0], turn[..., 1])
    points = torch.stack([turned.real, turned.imag, points[..., 2]], dim=-1)
    points = points * (0.9 + 0.2 * torch.rand(size, 1, 1)) + 0.02 * torch.randn(size, POINTS, 3)
    wrong = torch.rand(size, POINTS, 1) < share.unsqueeze(-1)
    return torch.where(wrong, 2.4 * torch.rand(size, POINTS, 3) - 1.2, points), labels


class PointNet(torch.nn.Module):
    """The same network for every point, a pool over the points, a small network for the classes."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        linear, relu = torch.nn.Linear, torch.nn.ReLU
        self.points = torch.nn.Sequential(linear(3, 48), relu(), linear(48, FEATURES))
        self.pool = pool
        self.classes = torch.nn.Sequential(linear(FEATURES, 48), relu(), linear(48, len(SHAPES)))

    def forward(self, clouds: Tensor) -> Tensor:
        """(B, POINTS, 3) -> scores (B, 6)."""
        return self.classes(self.pool(self.points(clouds).mT))


def make_pool(kind: str) -> Callable[[Tensor], Tensor]:
    """(B, FEATURES, POINTS) -> (B, FEATURES)."""
    if kind == "max":
        return lambda features: features.amax(-1)
    if kind == "mean":
        return lambda features: features.mean(-1)
    return cl.zoo.RobustPool(kind, alpha=0.5, dims=1, learned=True)


def train(kind: str, steps: int, test: list[tuple[Tensor, Tensor]], seed: int) -> list[float]:
    """Cross-entropy, Adam, new clouds in every step; the accuracies on the test sets."""
    torch.manual_seed(seed)  # the same clouds and the same first network for every pool
    model = PointNet(make_pool(kind))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    bar = tqdm(range(steps), desc=f"{kind:>12}")
    for _ in bar:
        points, labels = clouds(EACH, TRAINED_SHARE * torch.rand(EACH * len(SHAPES), 1))
        loss = torch.nn.functional.cross_entropy(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    with torch.no_grad():
        return [float((model(points).argmax(-1) == labels).float().mean()) for points, labels in test]


def draw(accuracy: dict[str, list[float]], cloud: Tensor, path: Path) -> None:
    """A cloud with wrong points, and the accuracies against their share."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.scatter(cloud[:, 0], cloud[:, 2], s=6)
    left.set(xlabel="x", ylabel="z", aspect="equal", title=f"a torus: {SHARES[SHOWN]:.0%} of the points are wrong")
    for kind, values in accuracy.items():
        right.plot(SHARES, values, "s--" if kind in PLAIN else "o-", label=kind)
    right.set(xlabel="share of wrong points", ylabel="test accuracy", ylim=(0, 1.03))
    right.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def main() -> None:
    """Train a network with each pool, compare, draw, and hold the result against its claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few seconds, two pools, with a looser claim")
    parser.add_argument("--welsch", action="store_true", help="the Welsch pool, too: slow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    test = [clouds(20 if options.fast else 80, torch.tensor([[share]])) for share in SHARES]
    kinds, steps = (("max", "mean", "huber", "pseudo-huber"), 700)
    if options.fast:
        kinds, steps = ("max", "pseudo-huber"), 100
    if options.welsch:
        kinds = (*kinds, "welsch")
    accuracy = {kind: train(kind, steps, test, options.seed) for kind in kinds}
    picture = options.output / "point_clouds.png"
    draw(accuracy, test[SHOWN][0][len(test[SHOWN][1]) // 3], picture)
    print(f"picture: {picture}")
    at = {kind: values[SHOWN] for kind, values in accuracy.items()}
    print(f"figure: accuracy at {SHARES[SHOWN]:.0%} wrong points: " + ", ".join(f"{k} {v:.3f}" for k, v in at.items()))
    robust = min(value for kind, value in at.items() if kind not in PLAIN)
    plain = max(value for kind, value in at.items() if kind in PLAIN)
    advantage = 0.05 if options.fast else 0.1
    assert robust > plain + advantage, f"the worst robust pool has {robust:.3f}, the best plain one {plain:.3f}"


if __name__ == "__main__":
    main()
