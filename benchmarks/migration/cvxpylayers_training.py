"""Learn what somebody optimizes from what they chose: the limits and the tastes behind purchases, with cvxpylayers.

A customer with features f buys the x that maximizes (W f)'x - |x|^2 / 2 under G x <= h and a budget, x >= 0. W and h
are to be found. The solver is given a tight tolerance: with the package's default its own error would be compared.
"""

import cvxpy as cp
import torch
from cvxpylayers.torch import CvxpyLayer

GOODS, LIMITS, FEATURES, CUSTOMERS = 6, 4, 3, 24
SETTINGS = {"solve_method": "Clarabel", "tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def make_layer(G: torch.Tensor) -> CvxpyLayer:
    x, taste, h = cp.Variable(GOODS), cp.Parameter(GOODS), cp.Parameter(LIMITS)
    objective = cp.Maximize(taste @ x - 0.5 * cp.sum_squares(x))
    problem = cp.Problem(objective, [G.numpy() @ x <= h, cp.sum(x) <= 3, x >= 0])
    return CvxpyLayer(problem, parameters=[taste, h], variables=[x], solver_args=SETTINGS)


def train(steps: int = 20) -> list[float]:
    torch.manual_seed(0)
    G = torch.rand(LIMITS, GOODS, dtype=torch.float64)
    features = torch.randn(CUSTOMERS, FEATURES, dtype=torch.float64)
    layer = make_layer(G)

    truth = torch.randn(FEATURES, GOODS, dtype=torch.float64)
    (bought,) = layer(features @ truth, torch.ones(LIMITS, dtype=torch.float64))

    W = torch.nn.Parameter(torch.randn(FEATURES, GOODS, dtype=torch.float64))
    h = torch.nn.Parameter(torch.full((LIMITS,), 2.0, dtype=torch.float64))
    optimizer = torch.optim.SGD([W, h], lr=0.5)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        (x,) = layer(features @ W, h)
        loss = (x - bought).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    for step, loss in enumerate(train()):
        print(step, loss)
