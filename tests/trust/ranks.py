"""One rank of a distributed training step: `python -m torch.distributed.run --nproc-per-node 2 ranks.py SOLVER FILE`.

Number of ranks, gradients and state of the model go to FILE.
"""

import sys

import cvxpy as cp
import torch
from torch.nn.parallel import DistributedDataParallel

import convexlayers as cl

SAMPLES = 6


class Model(torch.nn.Module):
    """A network, a layer whose constraints are weights, and a network."""

    def __init__(self, solver):
        super().__init__()
        x, q, G, h = cp.Variable(3), cp.Parameter(3), cp.Parameter((4, 3)), cp.Parameter(4)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + q @ x), [G @ x <= h])
        self.front, self.back = torch.nn.Linear(5, 3), torch.nn.Linear(3, 2)
        self.layer = cl.ConvexLayer(problem, [q, G, h], [x], solver=solver)
        self.G, self.h = torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(0.1 * torch.rand(4))

    def forward(self, inputs):
        (x,) = self.layer(self.front(inputs), self.G, self.h)
        return self.back(x)


def gradients(solver, rank, ranks):
    """Of two steps, added up, on this rank's share of the samples; and the state of the model."""
    torch.manual_seed(0)
    model = Model(solver).double()
    inputs, targets = torch.randn(SAMPLES, 5, dtype=torch.float64), torch.randn(SAMPLES, 2, dtype=torch.float64)
    trained = DistributedDataParallel(model) if ranks > 1 else model
    for _ in range(2):
        (trained(inputs[rank::ranks]) - targets[rank::ranks]).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}, trained.state_dict()


def main():
    solver, path = sys.argv[1:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    grads, state = gradients(solver, rank, ranks)
    if rank == 0:
        torch.save((ranks, grads, state), path)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
