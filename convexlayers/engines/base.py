"""The contract between the library and whatever solves: an engine is a frozen value, a plan is what it prepared.

    engine.setup(program) -> plan                     once per structure, symbolic work only
    plan.solve(theta) -> Solution                     numbers, batched
    plan.solve(theta, start) -> Solution              the same, from points that may be near the solutions
    plan.answer(theta) -> Solution                    the same, at the point that the derivative strategy returns
    plan.adjoint(theta, solution, cotangents)         cotangents of theta
    plan.tangent(theta, solution, dtheta)             tangents of the solution

Plans are immutable and may be shared by threads; what a solve remembers for its derivative is in the Solution.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from convexlayers.assembly import numbers_program
from convexlayers.derivatives import Context, Cotangents, Derivative, Exact, Tangents
from convexlayers.errors import ArgumentError, EngineNotInstalledError
from convexlayers.packages import import_package
from convexlayers.program import ConeProgram, ParametrizedConeProgram
from convexlayers.scaling import Scaling, find_scaling
from convexlayers.solution import DerivativeReport, Point, Solution, measure
from convexlayers.status import Status

Block = TypeVar("Block", Tensor, Tensor | None)


class Plan(ABC):
    """An engine's preparation for one parametrized program.

    Attributes:
        program: what it was prepared for.
        derivative: the strategy behind `adjoint` and `tangent`.
    """

    def __init__(self, program: ParametrizedConeProgram, derivative: Derivative) -> None:
        if not isinstance(derivative, Derivative):
            raise ArgumentError(
                f"derivative is {derivative!r}, expected a strategy: Exact(), Smoothed(mu=...), Perturbed(tau=...) "
                "or an object of your own class of Derivative."
            )
        self.program = program
        self.derivative = derivative

    @abstractmethod
    def solve(self, theta: Sequence[Tensor], start: Point | None = None) -> Solution:
        """Solve for blocks of theta of shape (B, k_i), or (1, k_i) where shared. Never raises for what data hold.

        start: points x (B, n), s (B, m), z (B, m) to begin at, NaN for elements without one. An engine may use it or
        not; what is SOLVED satisfies the same tolerance.
        """

    @property
    @abstractmethod
    def resolving_engine(self) -> "Engine":
        """Who solves other programs for the derivative strategy."""

    def resolve(self, program: ConeProgram) -> Solution:
        """Solve a program of any structure, given by its numbers."""
        return self.resolving_engine.setup(numbers_program(program.structure)).solve([program.data])

    def on_numbers(self) -> "Plan":
        """The plan for programs of this structure that are given by their numbers, with the same settings."""
        numbers = numbers_program(self.program.structure)
        return self if self.program is numbers else self.resolving_engine.setup(numbers)

    @property
    def is_traceable(self) -> bool:
        """Whether all that the derivative needs is in tensors, so that torch can transform it."""
        return True

    def states(self, solution: Solution) -> tuple[Tensor, ...]:
        """What the engine remembers in a solution for its derivative, as tensors with a row per element."""
        return ()

    def state_shapes(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape, without the batch, and dtype of each of `states`."""
        return []

    def state_of(self, states: Sequence[Tensor]) -> object:
        """What `states` made tensors of."""
        return None

    def answer(self, theta: Sequence[Tensor], start: Point | None = None) -> Solution:
        """Solve; what the forward pass returns and the derivative is taken at.

        That is the solution, unless the derivative strategy is that of another point (`Derivative.moves_solution`); an
        element for which there is no such point is INACCURATE.
        """
        solution = self.solve(theta) if start is None else self.solve(theta, start)
        return self._moved(solution) if self.derivative.moves_solution else solution

    def _moved(self, solution: Solution) -> Solution:
        indices = solution.solved.nonzero().squeeze(-1)
        elements = select_solved(solution, indices)
        point, reached = self.derivative.move(*elements.point, self._context(elements))
        x, s, z = elements.scaling.restore_point(*point)
        status = torch.where(reached, int(Status.SOLVED), int(Status.INACCURATE))
        moved = solution.put(indices, measure(elements.program, *point), x=x, s=s, z=z, status=status)
        return replace(moved, objective=solution.program.objective(moved.x), report=DerivativeReport())

    def adjoint(
        self, theta: Sequence[Tensor], solution: Solution, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Cotangents of the blocks of theta, None where not wanted.

        Elements that were not solved contribute zero, whatever their cotangents hold (NaN included).
        """
        indices = solution.solved.nonzero().squeeze(-1)
        if len(indices) == solution.program.batch:
            grad = self._adjoint_at(solution, cotangents, indices)
        else:
            grad = torch.zeros_like(solution.program.data)
            if len(indices):
                grad.index_copy_(0, indices, self._adjoint_at(solution, cotangents, indices))
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
        chosen = cotangents if len(indices) == solution.program.batch else cotangents.select(indices)
        normalized = elements.scaling.normalize_cotangents(chosen, elements.program)
        part, report = self._data_adjoint(elements, normalized)
        record(solution, indices, report)
        return elements.scaling.scale_data(elements.program.structure, part)

    def _write_tangents_at(
        self, solution: Solution, dtheta: Sequence[Tensor | None], indices: Tensor, out: Tangents
    ) -> None:
        """Tangents of some solved elements into `out`, by the derivative strategy; fills the report."""
        elements = select_solved(solution, indices)
        rows = select_rows(dtheta, indices, solution.program.batch)
        ddata = self.program.map.tangent(rows, len(indices))
        scaled = elements.scaling.scale_data(elements.program.structure, ddata)
        normalized, report = self._data_tangent(elements, scaled)
        record(solution, indices, report)
        found = elements.scaling.restore_tangents(normalized)
        for name in ("dx", "ds", "dz", "objective"):
            getattr(out, name).index_copy_(0, indices, getattr(found, name))

    def _data_adjoint(self, elements: "SolvedElements", cotangents: Cotangents) -> tuple[Tensor, DerivativeReport]:
        """Cotangent of the normalized numbers of solved elements."""
        return self.derivative.adjoint(*elements.point, cotangents, self._context(elements))

    def _data_tangent(self, elements: "SolvedElements", ddata: Tensor) -> tuple[Tangents, DerivativeReport]:
        """Tangent of the normalized solution of solved elements."""
        return self.derivative.tangent(*elements.point, ddata, self._context(elements))

    def _context(self, elements: "SolvedElements") -> Context:
        return Context(elements.scaling.omega.squeeze(-1), self.resolve)


@runtime_checkable
class Remembered(Protocol):
    """What an engine remembers of a batch, in tensors.

    Attributes:
        scaling: the units in which it was solved.
    """

    scaling: Scaling

    def select(self, indices: Tensor) -> Any:
        """Of the elements at these indices."""
        ...


@dataclass(frozen=True, eq=False)
class SolvedElements:
    """The solved elements of a batch in units in which their numbers have size one.

    Attributes:
        program: normalized numbers.
        x, s, z: normalized solution.
        scaling: the units.
        states: what the engine remembers of each: a tuple, or what `Remembered.select` gave.
    """

    program: ConeProgram
    x: Tensor
    s: Tensor
    z: Tensor
    scaling: Scaling
    states: Any

    @property
    def point(self) -> tuple[ConeProgram, Tensor, Tensor, Tensor]:
        """Numbers and solution."""
        return self.program, self.x, self.s, self.z


def select_solved(solution: Solution, indices: Tensor) -> SolvedElements:
    """The elements at `indices`, in ascending order, normalized."""
    everything, state = len(indices) == solution.program.batch, solution.engine_state
    program = solution.program if everything else solution.program.select(indices)
    if isinstance(state, Remembered):
        states = state if everything else state.select(indices)
        scaling = states.scaling
    else:
        states = tuple(state[i] for i in indices.tolist()) if isinstance(state, tuple) else ()
        scaling = find_scaling(program)
    point = (part if everything else part[indices] for part in (solution.x, solution.s, solution.z))
    x, s, z = scaling.normalize_point(*point)
    return SolvedElements(scaling.normalize(program), x, s, z, scaling, states)


def load_package(name: str) -> Any:
    """The module of a solver, imported when it is first needed.

    Raises:
        EngineNotInstalledError: it is missing.
    """
    return import_package(
        name, EngineNotInstalledError(f"Engine {name!r} needs the package {name}: pip install {name}")
    )


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
    unknown = {"residual": torch.full_like(solution.objective, float("nan"))}
    for name in DerivativeReport.PER_ELEMENT:
        found, before = getattr(report, name), getattr(known, name)
        if found is not None:
            before = unknown.get(name, torch.zeros_like(solution.solved)) if before is None else before
            setattr(known, name, before.index_copy(0, indices, found))


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
