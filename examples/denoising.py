"""Learn what signals are like: the matrix D of a denoising problem, from pairs of noisy and clean signals.

The layer (OptNet: Amos and Kolter, 2017, section 4.2) solves

    minimize  1/2 |z - x|_2^2 + |D z|_1

for a noisy signal x of 40 samples. With D = lambda times first differences it is total variation denoising, which makes
steps; the signals here are piecewise linear, and nobody tells the layer. D (39 x 40, dense) starts as total variation
and is learned by the squared error of z, through the solution. Held against the best total variation (lambda from a
grid, chosen on the test signals), and against a network of three layers trained on the same signals. Second differences
times 0.5, the choice of someone who knows the signals, would have an error of .0223: learning comes near it, not below.

Usage: python examples/denoising.py [--fast] [--seed N] [--output FOLDER]
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from time import process_time

import cvxpy as cp
import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import convexlayers as cl
from convexlayers import zoo

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LENGTH, NOISE = 40, 0.3
Denoiser = Callable[[Tensor], Tensor]


def signals(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noisy and clean signals, (count, 40) each: 3 to 5 linear pieces between values of a normal distribution."""
    grid, clean = np.linspace(0, 1, LENGTH), np.empty((count, LENGTH))
    for signal in clean:
        inner = np.sort(rng.uniform(0.1, 0.9, rng.integers(2, 5)))
        knots = np.concatenate([[0], inner, [1]])
        signal[:] = np.interp(grid, knots, rng.standard_normal(len(knots)))
    noisy = clean + NOISE * rng.standard_normal(clean.shape)
    return torch.as_tensor(noisy), torch.as_tensor(clean)


class LearnedDenoiser(nn.Module):
    """The layer with its matrix D."""

    def __init__(self) -> None:
        super().__init__()
        z, x, D = cp.Variable(LENGTH), cp.Parameter(LENGTH), cp.Parameter((LENGTH - 1, LENGTH))
        problem = cp.Problem(cp.Minimize(cp.sum_squares(z - x) / 2 + cp.norm1(D @ z)))
        self.layer = cl.ConvexLayer(problem, parameters=[x, D], variables=[z])
        self.D = nn.Parameter(0.3 * torch.eye(LENGTH, dtype=torch.float64).diff(dim=0))

    def forward(self, noisy: Tensor) -> Tensor:
        (z,) = self.layer(noisy, self.D)
        return z


def network() -> nn.Module:
    """The baseline: 40 -> 256 -> 256 -> 40."""
    parts = [nn.Linear(LENGTH, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, LENGTH)]
    return nn.Sequential(*parts).double()


@torch.no_grad()
def error(model: Denoiser, data: tuple[Tensor, Tensor]) -> float:
    """Mean squared error."""
    return float((model(data[0]) - data[1]).square().mean())


def train(
    name: str, model: nn.Module, data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], steps: int, rate: float
) -> tuple[list[float], list[float], float]:
    """Squared error, Adam, batches of 32; the steps looked at, the test errors there, seconds of the processor."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    when, errors, seconds = [], [], 0.0
    for step in (bar := tqdm(range(steps), desc=name)):
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            when.append(step / (steps - 1))
            errors.append(error(model, test))
            bar.set_postfix(test=f"{errors[-1]:.4f}")
        start = process_time()
        index = torch.randint(len(data[0]), (32,))
        loss = (model(data[0][index]) - data[1][index]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        seconds += process_time() - start
    return when, errors, seconds


def draw(
    curves: dict[str, tuple[list[float], list[float], float]], total: float, D: Tensor,
    test: tuple[Tensor, Tensor], models: dict[str, Denoiser], path: Path,
) -> None:  # fmt: skip
    """Test errors during training, the learned matrix, and a test signal."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    for name, (when, errors, _) in curves.items():
        left.semilogy(when, errors, "o-", label=name)
    left.axhline(total, color="gray", linestyle="--", label="best total variation")
    left.set(xlabel="training done", ylabel="test error")
    left.legend()
    middle.imshow(D.detach(), cmap="RdBu", vmin=-0.6, vmax=0.6)
    middle.set(title="learned D")
    right.plot(test[0][0], ".", color="gray", label="noisy")
    right.plot(test[1][0], color="black", label="clean")
    for name, model in models.items():
        right.plot(model(test[0][:1]).detach()[0], label=name)
    right.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Train both, compare, draw, and hold the result against its claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few seconds, with a looser claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)

    data, test = signals(2000, rng), signals(200 if options.fast else 1000, rng)
    steps = 150 if options.fast else 700
    layer, baseline = LearnedDenoiser(), network()
    curves = {
        "network": train("network", baseline, data, test, 4 * steps, 2e-3),
        "layer": train("layer  ", layer, data, test, steps, 0.01),
    }
    noisy = error(lambda x: x, test)
    variation = {weight: error(lambda x, w=weight: zoo.tv_denoise(x, w), test) for weight in np.arange(0.2, 0.65, 0.05)}
    best = min(variation, key=variation.__getitem__)
    found, of_network = error(layer, test), error(baseline, test)
    picture = options.output / "denoising.png"
    models = {"total variation": lambda x: zoo.tv_denoise(x, best), "layer": layer}
    draw(curves, variation[best], layer.D, test, models, picture)
    print(f"picture: {picture}")
    print(
        f"figure: test MSE noisy {noisy:.4f}, best total variation {variation[best]:.4f}, network {of_network:.4f}, "
        f"learned {found:.4f}; {curves['layer'][2]:.1f} s"
    )
    assert found < (0.95 if options.fast else 0.85) * variation[best], "the learned matrix is not clearly better"
    if not options.fast:
        assert found < of_network, "the network is better"


if __name__ == "__main__":
    main()
