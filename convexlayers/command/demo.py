"""A layer that learns, in some seconds: how somebody divides a budget, from what they did.

Every day has features f; whoever decides sees returns r = W f, and invests

    x = argmin |x - r|^2    subject to    sum(x) = 1,  0 <= x <= cap.

Seen are f and x, not W and cap. A layer with the same problem and its own W and cap is trained to do what they did: the
gradient of the loss goes through the solution, into a matrix that is shared by all days and into a bound.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convexlayers.layer import ConvexLayer

DAYS, ASSETS, FEATURES = 128, 5, 3
STEPS, LINES = 200, 10
CAP = 0.45
# What the loss has to fall by.
ENOUGH = 1e-3
BAR = 40

Write = Callable[[str], object]


def run(write: Write) -> int:
    """Train, with a line for every tenth of the steps, and report.

    Args:
        write: takes the lines.

    Returns:
        0, or 1 if the loss did not fall enough.
    """
    layer = make_layer()
    features, decisions, W_true = observe(layer)
    W = torch.zeros(ASSETS, FEATURES, dtype=torch.float64, requires_grad=True)
    cap = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([W, cap], lr=0.05)
    write(f"{DAYS} decisions on {ASSETS} assets; learned are a matrix {ASSETS} x {FEATURES} and the cap\n\n")
    losses: list[float] = []
    for step in range(STEPS + 1):
        (x,) = layer(features @ W.T, cap)
        loss = (x - decisions).square().sum(-1).mean()
        losses.append(loss.item())
        if step % (STEPS // LINES) == 0:
            bar = "#" * round(BAR * losses[-1] / losses[0])
            write(f"step {step:4d}  loss {losses[-1]:.1e}  cap {cap.item():.3f}  {bar}\n")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = centered(W.detach() - W_true).norm() / centered(W_true).norm()
    write(f"\nthe cap was {CAP}; W is off by {100 * error.item():.1f} %, up to what decisions do not depend on\n")
    write(f"\n{layer.report(features @ W.detach().T, cap.detach())}\n")
    return int(losses[-1] > ENOUGH * losses[0])


def make_layer() -> ConvexLayer:
    """The problem, with r and the cap as parameters."""
    import cvxpy as cp

    x, r, cap = cp.Variable(ASSETS, name="x"), cp.Parameter(ASSETS, name="r"), cp.Parameter(name="cap")
    constraints: list[Any] = [cp.sum(x) == 1, x >= 0, x <= cap]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - r)), constraints)
    return ConvexLayer(problem, [r, cap], [x])


def observe(layer: ConvexLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Features (DAYS, FEATURES), decisions (DAYS, ASSETS), and the matrix behind them (ASSETS, FEATURES)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(DAYS, FEATURES, generator=generator, dtype=torch.float64)
    W = 0.4 * torch.randn(ASSETS, FEATURES, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        (decisions,) = layer(features @ W.T, CAP)
    return features, decisions, W


def centered(W: Tensor) -> Tensor:
    """Without what is the same for all assets: adding it to r changes no decision."""
    return W - W.mean(0)
