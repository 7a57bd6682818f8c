"""What users write, as a type checker sees it: read by `make lint`, never run.

The lines marked as errors are errors: a mark that is not needed is one itself.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

import convexlayers as cl
from convexlayers.engines import Native


class Projection(torch.nn.Module):
    """A network in front of a layer."""

    def __init__(self) -> None:
        super().__init__()
        x, t = cp.Variable(3), cp.Parameter(3, name="t")
        constraints = [cp.sum(x) == 1, x >= 0]
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), constraints)
        self.net = torch.nn.Linear(4, 3)
        self.layer = cl.ConvexLayer(
            problem, parameters=[t], variables=[x], solver="native", derivative=cl.Smoothed(mu=1e-3), on_failure="nan"
        )

    def forward(self, inputs: Tensor) -> Tensor:
        (x,) = self.layer(self.net(inputs))
        return x


def layer_as_a_module(model: Projection) -> None:
    layer = model.layer
    assert_type(layer(torch.ones(3)), tuple[Tensor, ...])
    solution = layer.solve(torch.ones(3))
    assert_type(solution.values, tuple[Tensor, ...])
    assert_type(solution.objective, Tensor)
    assert_type(solution.status, Tensor)
    assert_type(solution.solved, Tensor)
    assert_type(solution.iterations, Tensor)
    assert_type(solution.margin, Tensor)
    assert_type(solution.describe(), str)
    by_name = layer.solve(t=np.ones(3))
    by_mapping = layer.solve({"t": 1.0})
    assert_type(by_name.duals + by_mapping.variables, tuple[Tensor, ...])
    report = solution.derivative_report
    if report.residual is not None:
        assert_type(report.residual, Tensor)


def files(layer: cl.ConvexLayer) -> cl.ConvexLayer:
    layer.save("layer.pt")
    loaded = cl.ConvexLayer.load("layer.pt", solver=Native(tolerance=1e-9), relax=None, on_failure="raise")
    assert_type(loaded, cl.ConvexLayer)
    loaded.load_state_dict(layer.state_dict())
    return cl.ConvexLayer.from_program(loaded.program, solver="clarabel")


def without_cvxpy(P: Tensor, q: Tensor) -> Tensor:
    solution = cl.solve_qp(P, q, A=torch.ones(1, 3), b=torch.ones(1), lb=0.0, on_failure="nan")
    assert_type(solution.x, Tensor)
    assert_type(solution.objective, Tensor)
    cones = cl.Cones(zero=1, second_order=(3,))
    other = cl.solve_cone_program(P, q, torch.ones(4, 3), torch.ones(4), cones)
    assert_type(other.z, Tensor)
    return solution.x + other.x


def failures(layer: cl.ConvexLayer) -> Tensor | None:
    try:
        return layer.solve(torch.zeros(3)).values[0]
    except cl.SolverError as error:
        assert_type(str(error), str)
        return None


def seeing(layer: cl.ConvexLayer) -> None:
    found = layer.report(torch.ones(3))
    if found.work is not None and found.batch is not None:
        assert_type(found.work.fill, float)
        assert_type(found.batch.solution.status, Tensor)
    assert_type(cl.report(layer.program, solver="native").memory.kept, int)
    assert_type(cl.citation(layer).bibtex, str)
    assert_type(cl.plot.trace(layer, torch.ones(3)).residual, Tensor)
    cl.plot.status(layer.solve(torch.ones(3)), axes=cl.plot.kkt(layer.program))


def statuses(solution_status: Tensor) -> bool:
    return bool((solution_status == cl.Status.SOLVED).all())


def mistakes(layer: cl.ConvexLayer) -> None:
    layer("text")  # pyright: ignore[reportArgumentType]
    layer.solve(torch.ones(3)).value  # pyright: ignore[reportAttributeAccessIssue]
    layer.solve(torch.ones(3)).objective = torch.ones(3)  # pyright: ignore[reportAttributeAccessIssue]
    cl.ConvexLayer.load("layer.pt", speed=1)  # pyright: ignore[reportCallIssue]
    cl.solve_qp(None)  # pyright: ignore[reportCallIssue]
    cl.solve_qp(None, "q")  # pyright: ignore[reportArgumentType]
