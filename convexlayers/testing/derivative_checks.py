"""Does the derivative of an engine agree with itself, forward and reverse, and with differences of solutions?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from convexlayers.derivatives import Cotangents, Tangents
from convexlayers.engines import Plan
from convexlayers.program import ParametrizedConeProgram
from convexlayers.solution import Solution
from convexlayers.status import describe
from convexlayers.testing.pairs import Sampler
from convexlayers.testing.problems import Numbers, random_psd
from convexlayers.testing.reference import CENTRAL, ONE_SIDED, OUTPUTS, Line, difference_quotients

# Distance of two points of a stencil, along directions of norm one.
STEP = 2e-4
# A P with an eigenvalue below this may become indefinite within a stencil.
SINGULAR = 1e-2
# A part of the derivative smaller than these shares of the largest part is measured against that share: rounding leaves
# no more of it, in the derivative and in differences.
NEGLIGIBLE = 1e-5
NEGLIGIBLE_DIFFERENCE = 1e-3


class Prepares(Protocol):
    """An engine, as far as the checks need it."""

    def setup(self, program: ParametrizedConeProgram) -> Plan:
        """Prepare for a program."""
        ...


@dataclass(frozen=True)
class Figure:
    """Errors of one part J of the derivative: that of one output with respect to one block of theta.

    With d a direction of the block, w a cotangent of the output and D the difference quotient along d, the largest over
    the batch of:

    Attributes:
        block: name of the parameter, such as "P".
        output: "x", "s", "z" or "objective".
        identity: |<J d, w> - <d, J'w>| / (|J d| |w|).
        forward: |J d - D| / |J d|. NaN where not measured, also below.
        reverse: |<d, J'w> - <D, w>| / (|J d| |w|).
    """

    block: str
    output: str
    identity: float
    forward: float
    reverse: float

    def __str__(self) -> str:
        return (
            f"d{self.output}/d{self.block}: adjoint identity {self.identity:.1e}, "
            f"differences: forward mode {self.forward:.1e}, reverse mode {self.reverse:.1e}"
        )


def check_derivative(
    engine: Prepares,
    problem: Numbers,
    *,
    identity_tolerance: float = 1e-9,
    difference_tolerance: float | None = 1e-5,
    step: float = STEP,
    seed: int = 0,
) -> list[Figure]:
    """Forward against reverse mode, and both against differences of solutions, for each block and each output apart.

    Args:
        engine: to be checked; it solves `problem` and differentiates its own solution.
        problem: with a differentiable solution, for instance from `random_program`.
        identity_tolerance: of the adjoint identity, relative.
        difference_tolerance: against differences, relative; None leaves them out.
        step: of the differences.
        seed: of directions and cotangents.

    Returns:
        the errors, one entry per block and output.

    Raises:
        AssertionError: an error is above its tolerance; the message lists those that are.
    """
    plan = engine.setup(problem.program)
    figures = _figures(_measure(plan, problem, None if difference_tolerance is None else step, seed))
    bad = [str(figure) for figure in figures if _is_bad(figure, identity_tolerance, difference_tolerance)]
    assert not bad, f"Derivative of {type(engine).__name__}, {problem.cones.describe()}:\n" + "\n".join(bad)
    return figures


@dataclass(frozen=True)
class Part:
    """What was measured of one part of the derivative, one row per element, all flat.

    Attributes:
        block, output: which part.
        tangent: J d. direction: d. weight: w. gradient: J'w. difference: D, or None.
    """

    block: str
    output: str
    tangent: Tensor
    direction: Tensor
    weight: Tensor
    gradient: Tensor
    difference: Tensor | None

    def errors(self, largest: Tensor) -> Figure:
        """The figures; `largest` is the largest |J d| of all parts, (B,)."""
        size, weight = self.tangent.norm(dim=-1), self.weight.norm(dim=-1)
        pulled = (self.direction * self.gradient).sum(-1)
        identity = _worst((self.tangent * self.weight).sum(-1) - pulled, weight * size.clamp(min=NEGLIGIBLE * largest))
        if self.difference is None:
            return Figure(self.block, self.output, identity, float("nan"), float("nan"))
        size = size.clamp(min=NEGLIGIBLE_DIFFERENCE * largest)
        forward = _worst((self.tangent - self.difference).norm(dim=-1), size)
        reverse = _worst((self.difference * self.weight).sum(-1) - pulled, weight * size)
        return Figure(self.block, self.output, identity, forward, reverse)


def solve_all(plan: Plan, theta: Sequence[Tensor]) -> Solution:
    """Solve, and insist on every element.

    Raises:
        AssertionError: an element is not solved.
    """
    solution = plan.solve(theta)
    assert bool(solution.solved.all()), f"{type(plan).__name__}: {describe(solution.status)}"
    return solution


def _measure(plan: Plan, problem: Numbers, step: float | None, seed: int) -> list[Part]:
    """Every block against every output; differences are left out if the step is None."""
    theta, blocks = problem.theta, [info.name for info in problem.program.parameters]
    sampler = Sampler.seeded((len(theta[1]),), seed)
    solution = solve_all(plan, theta)
    weights = {name: sampler.normal(*getattr(solution, name).shape[1:]) for name in OUTPUTS}
    gradients = {name: _adjoint(plan, theta, solution, name, weights[name]) for name in OUTPUTS}
    lines = [_line(problem, block, value, sampler) for block, value in zip(blocks, theta, strict=True)]
    quotients: list[dict[str, Tensor]] = [{} for _ in blocks]
    if step is not None:
        start = (solution.x, solution.s, solution.z)
        quotients = difference_quotients(problem.program, theta, lines, step, start)
    parts = []
    for k, block in enumerate(blocks):
        direction = lines[k].direction
        tangents = plan.tangent(theta, solution, [direction if i == k else None for i in range(len(theta))])
        for name in OUTPUTS:
            weight, tangent = weights[name].reshape(len(direction), -1), _of(tangents, name)
            parts.append(Part(block, name, tangent, direction, weight, gradients[name][k], quotients[k].get(name)))
    return parts


def _figures(parts: Sequence[Part]) -> list[Figure]:
    largest = torch.stack([part.tangent.norm(dim=-1) for part in parts]).amax(0)
    return [part.errors(largest) for part in parts]


def _is_bad(figure: Figure, identity_tolerance: float, difference_tolerance: float | None) -> bool:
    # Written so that NaN is bad.
    good = figure.identity <= identity_tolerance
    if difference_tolerance is not None:
        good = good and figure.forward <= difference_tolerance and figure.reverse <= difference_tolerance
    return not good


def _worst(error: Tensor, size: Tensor) -> float:
    """Largest |error| / size over the batch, 0 / 0 = 0, NaN as infinity."""
    ratio = torch.where(error == 0, error, error.abs() / size)
    return float(torch.nan_to_num(ratio, nan=float("inf")).amax()) if len(ratio) else 0.0


def _of(tangents: Tangents, name: str) -> Tensor:
    return tangents.objective.unsqueeze(-1) if name == "objective" else getattr(tangents, f"d{name}")


def _adjoint(plan: Plan, theta: Sequence[Tensor], solution: Solution, output: str, weight: Tensor) -> list[Tensor]:
    """J'w for all blocks, with w for one output and zero for the others."""
    zero = {name: torch.zeros_like(getattr(solution, name)) for name in OUTPUTS}
    gradients = plan.adjoint(theta, solution, Cotangents(**(zero | {output: weight})), [True] * len(theta))
    return [gradient for gradient in gradients if gradient is not None]


def _line(problem: Numbers, block: str, value: Tensor, sampler: Sampler) -> Line:
    """A direction of norm one in which programs stay convex, and the stencil along it."""
    direction, stencil = sampler.normal(value.shape[1]), CENTRAL
    if block == "P":
        n = problem.q.shape[-1]
        square = direction.reshape(-1, n, n)
        direction = square + square.transpose(-1, -2)
        if bool((torch.linalg.eigvalsh(problem.P)[..., 0] < SINGULAR).any()):
            # Only one side of a singular P holds positive semidefinite matrices.
            direction, stencil = random_psd(sampler, n, n), ONE_SIDED
        direction = direction.reshape(len(value), -1)
    return Line(torch.nn.functional.normalize(direction, dim=-1), stencil)
