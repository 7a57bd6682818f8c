"""Long runs: what a step takes it gives back."""

import subprocess
import sys

import pytest

STEPS = """
import os, sys
import cvxpy as cp
import torch
import convexlayers as cl

def memory():
    "Resident, in bytes."
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def thread_count():
    return len(os.listdir("/proc/self/task"))

solver, steps, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(2 if solver == "native" else 1)
torch.manual_seed(0)
x, q, G = cp.Variable(3), cp.Parameter(3), cp.Parameter((2, 3))
problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + q @ x), [G @ x <= 0.1])
layer = cl.ConvexLayer(problem, [q, G], [x, problem.constraints[0].dual_variables[0]], solver=solver)
net, G_value = torch.nn.Linear(4, 3).double(), torch.randn(2, 3).double().requires_grad_()
optimizer = torch.optim.Adam([*net.parameters(), G_value], lr=1e-3)
inputs = torch.randn(batch, 4).double()

def step(i):
    # Batches of two sizes, a report of status now and then, and an element that fails.
    part = inputs[: batch - i % 2].clone()
    solution = layer.solve(net(part), G_value)
    optimizer.zero_grad()
    (solution.variables[0].square().sum() + solution.objective.sum() + solution.duals[0].sum()).backward()
    optimizer.step()
    if i % 10 == 0:
        solution.describe()
        with torch.no_grad():
            layer(torch.full((1, 3), 1.0), G_value.detach())
        try:
            layer(torch.full((1, 3), float("nan")), G_value.detach())
        except cl.SolverError:
            return 1
    return 0

# The allocators take what they need at the beginning.
for i in range(steps // 5):
    step(i)
before, threads_before = memory(), thread_count()
failed = sum(step(i) for i in range(steps))
print(memory() - before, thread_count() - threads_before, failed)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory and threads are read from /proc")
def test_steps_give_back_what_they_take(solver, figure):
    """Less than 5 MB, 2.5 kB for each step, which is less than one graph; fewer steps with the slow engine."""
    steps, batch = (2000, 16) if solver == "native" else (400, 2)
    command = [sys.executable, "-c", STEPS, solver, str(steps), str(batch)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    grown, threads, failed = map(int, run.stdout.split())
    figure(max(grown, 0), "bytes more in memory")
    assert failed == steps // 10
    assert threads == 0
    assert grown < 5_000_000
