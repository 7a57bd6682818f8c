"""The contract between the library and whatever solves: an engine is a frozen value, a plan is what it prepared.

    engine.setup(program) -> plan                     once per structure, symbolic work only
    plan.solve(theta) -> Solution                     numbers, batched
    plan.adjoint(theta, solution, cotangents)         cotangents of theta
    plan.tangent(theta, solution, dtheta)             tangents of the solution

Plans are immutable and may be shared by threads; what a solve remembers for its derivative is in the Solution.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor

from convexlayers.derivatives import Cotangents, Derivative, Exact, Tangents
from convexlayers.errors import ArgumentError, EngineNotInstalledError
from convexlayers.program import ConeProgram, ParametrizedConeProgram
from convexlayers.scaling import Scaling, find_scaling
from convexlayers.solution import DerivativeReport, Solution

Block = TypeVar("Block", Tensor, Tensor | None)


class Plan(ABC):
    """An engine's preparation for one parametrized program.

    Attributes:
        program: what it was prepared for.
        derivative: the strategy behind `adjoint` and `tangent`.
    """

    def __init__(self, program: ParametrizedConeProgram, derivative: Derivative) -> None:
        self.program = program
        self.derivative = derivative

    @abstractmethod
    def solve(self, theta: Sequence[Tensor]) -> Solution:
        """Solve for blocks of theta of shape (B, k_i), or (1, k_i) where shared. Never raises for what data hold."""

    def adjoint(
        self, theta: Sequence[Tensor], solution: Solution, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Cotangents of the blocks of theta, None where not wanted.

        Elements that were not solved contribute zero, whatever their cotangents hold (NaN included).
        """
        indices = solution.solved.nonzero().squeeze(-1)
        grad = torch.zeros_like(solution.program.data)
        if len(indices):
            grad = grad.index_copy(0, indices, self._adjoint_at(solution, cotangents, indices))
        return self.program.map.adjoint(grad, theta, wanted)

    def tangent(self, theta: Sequence[Tensor], solution: Solution, dtheta: Sequence[Tensor | None]) -> Tangents:
        """Tangents of the solution; zero for elements that were not solved. None is a zero block."""
        indices = solution.solved.nonzero().squeeze(-1)
        out = Tangents(*(torch.zeros_like(v) for v in (solution.x, solution.s, solution.z, solution.objective)))
        if len(indices):
            self._write_tangents_at(solution, dtheta, indices, out)
        return out

    def _adjoint_at(self, solution: Solution, cotangents: Cotangents, indices: Tensor) -> Tensor:
        """Cotangents of the numbers of some solved elements, by the derivative strategy; fills the report."""
        elements = select_solved(solution, indices)
        normalized = elements.scaling.normalize_cotangents(cotangents.select(indices), elements.program)
        part, report = self._data_adjoint(elements, normalized)
        record(solution, indices, report)
        return part * elements.scaling.data

    def _write_tangents_at(
        self, solution: Solution, dtheta: Sequence[Tensor | None], indices: Tensor, out: Tangents
    ) -> None:
        """Tangents of some solved elements into `out`, by the derivative strategy; fills the report."""
        elements = select_solved(solution, indices)
        rows = select_rows(dtheta, indices, solution.program.batch)
        ddata = self.program.map.tangent(rows, len(indices))
        normalized, report = self._data_tangent(elements, ddata * elements.scaling.data)
        record(solution, indices, report)
        found = elements.scaling.restore_tangents(normalized)
        for name in ("dx", "ds", "dz", "objective"):
            getattr(out, name).index_copy_(0, indices, getattr(found, name))

    def _data_adjoint(self, elements: "SolvedElements", cotangents: Cotangents) -> tuple[Tensor, DerivativeReport]:
        """Cotangent of the normalized numbers of solved elements."""
        return self.derivative.adjoint(elements.program, elements.x, elements.s, elements.z, cotangents)

    def _data_tangent(self, elements: "SolvedElements", ddata: Tensor) -> tuple[Tangents, DerivativeReport]:
        """Tangent of the normalized solution of solved elements."""
        return self.derivative.tangent(elements.program, elements.x, elements.s, elements.z, ddata)


@dataclass(frozen=True, eq=False)
class SolvedElements:
    """The solved elements of a batch in units in which their numbers have size one.

    Attributes:
        program: normalized numbers.
        x, s, z: normalized solution.
        scaling: the units.
        states: what the engine remembers of each.
    """

    program: ConeProgram
    x: Tensor
    s: Tensor
    z: Tensor
    scaling: Scaling
    states: tuple[object, ...]


def select_solved(solution: Solution, indices: Tensor) -> SolvedElements:
    """The elements at `indices`, normalized."""
    program = solution.program.select(indices)
    scaling = find_scaling(program)
    x, s, z = scaling.normalize_point(solution.x[indices], solution.s[indices], solution.z[indices])
    state = solution.engine_state
    states = tuple(state[i] for i in indices.tolist()) if isinstance(state, tuple) else ()
    return SolvedElements(scaling.normalize(program), x, s, z, scaling, states)


def load_package(name: str) -> Any:
    """The module of a solver, imported when it is first needed.

    Raises:
        EngineNotInstalledError: it is missing.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise EngineNotInstalledError(f"Engine {name!r} needs the package {name}: pip install {name}") from error


def select_rows(blocks: Sequence[Block], indices: Tensor, batch: int) -> list[Block]:
    """Blocks of theta (B or 1, k_i) for some elements; None stays None."""
    return [
        block[indices.to(block.device)] if block is not None and block.shape[0] == batch else block for block in blocks
    ]


def record(solution: Solution, indices: Tensor, report: DerivativeReport) -> None:
    """Write what is known of some elements' derivative to the solution's report; of the others it says what it said.

    Before anything is known that is NaN and False.
    """
    known = solution.report
    if report.residual is not None:
        before = torch.full_like(solution.objective, float("nan")) if known.residual is None else known.residual
        known.residual = before.index_copy(0, indices, report.residual)
    if report.rank_deficient is not None:
        before = torch.zeros_like(solution.solved) if known.rank_deficient is None else known.rank_deficient
        known.rank_deficient = before.index_copy(0, indices, report.rank_deficient)


@dataclass(frozen=True)
class Engine(ABC):
    """What every engine can be told.

    Args:
        tolerance: relative accuracy of the solution.
        max_iterations: iteration limit, None for the solver's own.
        threads: number of threads for the batch, None for torch's number.
        derivative: the derivative strategy.
        options: passed to the solver under its own names, after the settings above.
    """

    tolerance: float = 1e-8
    max_iterations: int | None = None
    threads: int | None = None
    derivative: Derivative = field(default_factory=Exact)
    options: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ArgumentError(f"tolerance is {self.tolerance}, expected a number between 0 and 1.")
        if self.max_iterations is not None and self.max_iterations < 1:
            raise ArgumentError(f"max_iterations is {self.max_iterations}, expected at least 1.")
        if self.threads is not None and self.threads < 1:
            raise ArgumentError(f"threads is {self.threads}, expected at least 1.")

    @property
    @abstractmethod
    def name(self) -> str:
        """The name it is chosen by."""

    @abstractmethod
    def setup(self, program: ParametrizedConeProgram) -> Plan:
        """Prepare for a program.

        Raises:
            EngineNotInstalledError: the package behind the engine is missing.
            UnsupportedProblemError: the program has a cone that the engine does not handle.
        """
