"""Learn the exclusive-or from the parity of 20-bit strings, with an exact semidefinite program as the layer.

SATNet (Wang, Donti, Wilder and Kolter, "SATNet: Bridging deep learning and logical reasoning using a differentiable
satisfiability solver", 2019) relaxes the satisfaction of m clauses S over n truth values to vectors, one per
variable,

    minimize    <S'S, V'V>    subject to    |v_i| = 1,    v_i fixed for the inputs,

and learns S. Its solver is a local one in low rank. Here the same program is solved exactly, as the semidefinite
program over X = V'V with 8 x 8 entries: truth, two inputs, one output, four auxiliary variables. Cosines between
truth and inputs are given, the one between truth and output is the answer, 1 for true and -1 for false.

The clauses are learned from the four rows of the truth table of the exclusive-or, with inputs that are less than
sure. A string then goes through the layer bit by bit, as in SATNet's parity experiment: the output of a step, as it
is and not rounded, is an input of the next. Figure: share of right parities of 20-bit strings, and in how many of
four runs from random clauses it is 100 %.

Usage: python examples/maxsat.py [--fast] [--seed N] [--output FOLDER]
"""

import argparse
from pathlib import Path

import cvxpy as cp
import matplotlib
import torch
from torch import Tensor
from tqdm import tqdm

import convexlayers as cl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZE, CLAUSES, LENGTH = 8, 8, 20
TRUTH, FIRST, SECOND, OUTPUT = range(4)  # the other four are auxiliary


def clause_layer() -> cl.ConvexLayer:
    """The semidefinite program; parameters are the cost of the clauses and the cosines of the inputs."""
    X = cp.Variable((SIZE, SIZE), PSD=True)
    cost, cosines = cp.Parameter((SIZE, SIZE), symmetric=True), cp.Parameter(2)
    given = [X[TRUTH, FIRST] == cosines[0], X[TRUTH, SECOND] == cosines[1]]
    problem = cp.Problem(cp.Minimize(cp.trace(cost @ X)), [cp.diag(X) == 1, *given])
    return cl.ConvexLayer(problem, parameters=[cost, cosines], variables=[X])


class Logic(torch.nn.Module):
    """A function of two truth values whose clauses are learned."""

    def __init__(self, layer: cl.ConvexLayer) -> None:
        super().__init__()
        self.layer = layer
        self.S = torch.nn.Parameter(torch.randn(CLAUSES, SIZE, dtype=torch.float64) / SIZE**0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        """Cosines of the inputs, (B, 2), to that of the output, (B,)."""
        (X,) = self.layer(self.S.T @ self.S, 0.999 * inputs)
        return X[:, TRUTH, OUTPUT]


def train(logic: Logic, steps: int, name: str) -> list[float]:
    """Squared error on the truth table, Adam; returns the losses."""
    rows = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    exclusive_or = -rows.prod(dim=1)
    optimizer = torch.optim.Adam(logic.parameters(), lr=0.05)
    losses = []
    bar = tqdm(range(steps), desc=name)
    for _ in bar:
        # Inputs that are less than sure, so that a chain of answers becomes surer and not less sure.
        unsure = rows * (1 - 0.3 * torch.rand_like(rows))
        loss = (logic(unsure) - exclusive_or).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.1e}")
    return losses


@torch.no_grad()
def parities(logic: Logic, strings: Tensor) -> Tensor:
    """The state after every bit, (B, LENGTH - 1), of strings (B, LENGTH) of 1 and -1."""
    states = [strings[:, 0]]
    for bit in strings[:, 1:].unbind(dim=1):
        states.append(logic(torch.stack([states[-1], bit], dim=1)))
    return torch.stack(states[1:], dim=1)


def draw(losses: list[list[float]], states: list[Tensor], truth: Tensor, path: Path) -> None:
    """The losses, and how sure the answers stay along the string."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for run, (loss, state) in enumerate(zip(losses, states, strict=True)):
        left.semilogy(loss, label=f"run {run}")
        right.plot(range(2, LENGTH + 1), (state * truth).min(dim=0).values, label=f"run {run}")
    left.set(xlabel="training step", ylabel="squared error on the truth table")
    left.legend()
    right.axhline(0, color="gray", linestyle=":")
    right.set(xlabel="bits read", ylabel="least cosine with the right answer", ylim=(-1.05, 1.05))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def main() -> None:
    """Learn the clauses, read strings, draw, and hold the result against its claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="one run, with a looser claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()

    generator = torch.Generator().manual_seed(options.seed)
    strings = 1.0 - 2.0 * torch.randint(2, (100 if options.fast else 200, LENGTH), generator=generator).double()
    # True is 1: every bit after the first turns a state of 1 into the bit's opposite.
    truth = -(-strings).cumprod(dim=1)[:, 1:]
    runs, steps = (1, 100) if options.fast else (4, 250)
    layer, losses, states = clause_layer(), [], []
    for run in range(runs):
        torch.manual_seed(options.seed + run)
        logic = Logic(layer)
        losses.append(train(logic, steps, f"run {run}"))
        states.append(parities(logic, strings))
    right = [float((state * truth > 0)[:, -1].double().mean()) for state in states]
    perfect = sum(share == 1.0 for share in right)
    picture = options.output / "maxsat.png"
    draw(losses, states, truth, picture)
    print(f"picture: {picture}")
    print(f"figure: parity of {LENGTH} bits right: {min(right):.1%} in the worst run, all in {perfect} of {runs} runs")
    if options.fast:
        assert right[0] > 0.9, f"{right[0]:.1%} of the parities are right"
    else:
        assert perfect == runs, f"{perfect} of {runs} runs have every parity right: {right}"


if __name__ == "__main__":
    main()
