"""Predict returns for the decision they lead to: portfolios with a risk limit and transaction costs.

A linear model predicts the returns of 8 assets from features of the day, and a second-order cone program trades from
the present portfolio w_0 to

    maximize  m'w - 0.02 |w - w_0|_1    subject to  sum(w) = 1,  w >= 0,  |L'w|_2 <= 0.35,

with the prediction m, costs of 2 % and the covariance LL' of the returns. Two models are compared: least squares, which
is predict-then-optimize, and one that starts there and is trained on the same days by what the portfolio returns after
costs, through the solution of the program (Elmachtoub and Grigas, "Smart predict, then optimize", 2022; Butler and
Kwon, "Integrating prediction in mean-variance portfolio optimization", 2023). The expected returns are not linear in
the features, so that no linear model has them: what matters is where its errors lie.

Usage: python examples/portfolio.py [--fast] [--seed N] [--output FOLDER]
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import cvxpy as cp
import matplotlib
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import convexlayers as cl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ASSETS, FEATURES, COST, RISK = 8, 4, 0.02, 0.35


@dataclass(frozen=True)
class Days:
    """Features, expected and realized returns, and the portfolios of before.

    Attributes:
        features: (count, 5), the last one 1. expected, realized, before: (count, 8).
    """

    features: Tensor
    expected: Tensor
    realized: Tensor
    before: Tensor

    def __getitem__(self, index: Tensor) -> "Days":
        return Days(self.features[index], self.expected[index], self.realized[index], self.before[index])


class Market:
    """Expected returns linear plus squares and products of the features, through a saturation."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.linear = rng.standard_normal((FEATURES, ASSETS))
        self.quadratic = rng.standard_normal((FEATURES * (FEATURES + 1) // 2, ASSETS))
        turn, _ = np.linalg.qr(rng.standard_normal((ASSETS, ASSETS)))
        self.L = turn * np.linspace(0.3, 1.5, ASSETS)

    def draw(self, count: int) -> Days:
        """Independent days."""
        u = self.rng.standard_normal((count, FEATURES))
        i, j = np.triu_indices(FEATURES)
        products = u[:, i] * u[:, j] - (i == j)
        expected = 0.045 * u @ self.linear + 0.15 * np.tanh(0.5 * products @ self.quadratic)
        realized = expected + 0.3 * self.rng.standard_normal((count, ASSETS)) @ self.L.T
        before = self.rng.dirichlet(np.ones(ASSETS), count)
        features = np.hstack([u, np.ones((count, 1))])
        return Days(*(torch.as_tensor(part) for part in (features, expected, realized, before)))


def trader(L: np.ndarray) -> cl.ConvexLayer:
    """The program as a layer of the prediction and the portfolio of before."""
    w, m, before = cp.Variable(ASSETS), cp.Parameter(ASSETS), cp.Parameter(ASSETS)
    constraints = [cp.sum(w) == 1, w >= 0, cp.norm(L.T @ w) <= RISK]
    problem = cp.Problem(cp.Maximize(m @ w - COST * cp.norm1(w - before)), constraints)
    return cl.ConvexLayer(problem, parameters=[m, before], variables=[w])


def gained(layer: cl.ConvexLayer, prediction: Tensor, days: Days, returns: Tensor) -> Tensor:
    """What the portfolios of the predictions return after costs, in the mean."""
    (w,) = layer(prediction, days.before)
    return ((returns * w).sum(-1) - COST * (w - days.before).abs().sum(-1)).mean()


def train(
    layer: cl.ConvexLayer, start: Tensor, data: Days, test: Days, steps: int
) -> tuple[Tensor, list[int], list[float], float]:
    """The model (5, 8) that gains most, the steps looked at, the gains there, seconds of the processor."""
    model = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([model], lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    when, curve, seconds = [], [], 0.0
    for step in (bar := tqdm(range(steps), desc="portfolio")):
        begin = process_time()
        batch = data[torch.randint(len(data.features), (64,))]
        gain = gained(layer, batch.features @ model, batch, batch.realized)
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
        schedule.step()
        seconds += process_time() - begin
        if step % (steps // 10) == 0 or step == steps - 1:
            when.append(step)
            curve.append(float(gained(layer, test.features @ model.detach(), test, test.expected)))
            bar.set_postfix(gain=f"{curve[-1]:.4f}")
    return model.detach(), when, curve, seconds


def draw(when: list[int], curve: list[float], usual: float, best: float, errors: dict[str, Tensor], path: Path) -> None:
    """Gains during training, and where the two models err: against the expected return."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
    left.plot(when, curve, "o-", label="trained on the decision")
    left.axhline(usual, color="gray", linestyle="--", label="least squares")
    left.axhline(best, color="black", linestyle=":", label="expected returns known")
    left.set(xlabel="step", ylabel="gain per test day")
    left.legend(fontsize="small")
    right.bar(errors.keys(), [float(error) for error in errors.values()])
    right.set(ylabel="error of the prediction, mean squared")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Train, compare, draw, and hold the result against its claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few seconds, with a looser claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    market = Market(np.random.default_rng(options.seed))

    data, test = market.draw(1000), market.draw(500 if options.fast else 2000)
    layer = trader(market.L)
    usual = torch.linalg.lstsq(data.features, data.realized).solution
    trained, when, curve, seconds = train(layer, usual, data, test, 100 if options.fast else 400)
    models = {"least squares": usual, "trained on the decision": trained}
    gains = [float(gained(layer, test.features @ model, test, test.expected)) for model in models.values()]
    best = float(gained(layer, test.expected, test, test.expected))
    errors = {name: (test.features @ model - test.expected).square().mean() for name, model in models.items()}
    for name, gain in zip(models, gains, strict=True):
        print(f"{name:>24}: error of the prediction {errors[name]:.4f}, gain per day {gain:.4f}")
    picture = options.output / "portfolio.png"
    draw(when, curve, gains[0], best, errors, picture)
    print(f"picture: {picture}")
    regrets = [best - gain for gain in gains]
    print(
        f"figure: regret per day of predict-then-optimize {regrets[0]:.4f}, of the trained prediction {regrets[1]:.4f} "
        f"({1 - regrets[1] / regrets[0]:.0%} less); {seconds:.1f} s"
    )
    # The seed makes another market too. Seeds 0 to 3: 24, 34, 8 and 9 % less; fast 17, 37, 5 and 2 %.
    assert regrets[1] < (0.99 if options.fast else 0.95) * regrets[0], "the prediction did not learn to decide"


if __name__ == "__main__":
    main()
