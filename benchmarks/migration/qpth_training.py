"""A classifier whose last layer is a quadratic program, as OptNet has it, with qpth.

Hidden units p go into minimize 1/2 z'Qz + p'z subject to G z <= h, with Q = LL' + 0.1 I, G and h = G z0 + s0 learned,
and its solution into the scores. Each example of a batch has its own copies of the learned matrices, as in OptNet's
code. qpth is given iterations to spare: with its default limits it leaves some elements off by 1e-3.
"""

import torch
from qpth.qp import QPFunction
from torch import nn

INPUTS, HIDDEN, ROWS, CLASSES, EXAMPLES = 5, 6, 8, 3, 32


class OptNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.L = nn.Parameter(torch.tril(torch.rand(HIDDEN, HIDDEN)))
        self.G = nn.Parameter(torch.empty(ROWS, HIDDEN).uniform_(-1, 1))
        self.z0 = nn.Parameter(torch.zeros(HIDDEN))
        self.s0 = nn.Parameter(torch.ones(ROWS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        L = torch.tril(self.L)
        Q = L.mm(L.t()) + 0.1 * torch.eye(HIDDEN)
        h = self.G.mv(self.z0) + self.s0
        Q, G, h = Q.expand(batch, HIDDEN, HIDDEN), self.G.expand(batch, ROWS, HIDDEN), h.expand(batch, ROWS)
        p, e = torch.relu(self.first(x)), torch.empty(0)
        return self.last(QPFunction(verbose=False, notImprovedLim=10, maxIter=60)(Q, p, G, h, e, e))


def train(steps: int = 20) -> list[float]:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    x = torch.randn(EXAMPLES, INPUTS)
    labels = (x @ torch.randn(INPUTS, CLASSES)).argmax(1)
    model = OptNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.set_default_dtype(before)
    return losses


if __name__ == "__main__":
    for step, loss in enumerate(train()):
        print(step, loss)
