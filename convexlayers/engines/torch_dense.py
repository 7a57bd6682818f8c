"""The method of the native engine in plain torch: batched, dense, on any device.

The reference that the compiled core is tested against, and the engine for data that live on a GPU: they stay there. The
method stands in engines/dense; here is what makes an engine of it. Elements on which it stalls go to Clarabel on the
CPU, derivatives whose linear system does not converge to `Exact`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.derivatives import Cotangents, Exact, Tangents
from convexlayers.derivatives.implicit import join_reports
from convexlayers.engines.base import Engine, Plan, SolvedElements
from convexlayers.engines.dense.condensed import Condensed
from convexlayers.engines.dense.derivative import Differentiated
from convexlayers.engines.dense.interior import Limits
from convexlayers.engines.dense.matrices import DenseProgram
from convexlayers.engines.dense.method import Found, solve
from convexlayers.engines.dense.units import Scaled, Scales
from convexlayers.engines.rescue import rescue
from convexlayers.errors import ArgumentError
from convexlayers.program import ConeProgram, ParametrizedConeProgram, Structure
from convexlayers.scaling import Scaling, find_scaling
from convexlayers.solution import DerivativeReport, Point, Residuals, Solution, finite_rows, judge, put

MAX_ITERATIONS = 100
# Matrices of order n by n and m by n that an element needs at the same time.
SQUARE, TALL = 6, 6
# What the dense matrices of a chunk of the batch may take: bytes on the CPU, a share of the memory elsewhere.
CPU_BYTES, SHARE = 256 * 2**20, 0.25


def bytes_per_element(structure: Structure) -> int:
    """Memory that the dense matrices of one element take while it is solved or differentiated."""
    n, m = structure.n, structure.m
    return 8 * (SQUARE * n * n + TALL * n * m + 64 * (n + m))


@dataclass(frozen=True, eq=False)
class TorchState:
    """What a solve remembers for its derivative.

    Attributes:
        scaling: the units of size one.
        scales: those of the equilibrated matrices.
        numbers: in both, where the batch was one chunk; what does not fit at once is not kept.
        system: factored, where active sets solved the whole batch, as one chunk.
    """

    scaling: Scaling
    scales: Scales
    numbers: Scaled | None = None
    system: Condensed | None = None

    def select(self, indices: Tensor) -> "TorchState":
        """Of the elements at these indices."""
        numbers = None if self.numbers is None else self.numbers.select(indices)
        return TorchState(self.scaling.select(indices), self.scales.select(indices), numbers)


class TorchPlan(Plan):
    """A program with the engine's settings."""

    def __init__(self, program: ParametrizedConeProgram, engine: "Torch") -> None:
        super().__init__(program, engine.derivative)
        self.engine = engine

    @property
    def resolving_engine(self) -> "Torch":
        return self.engine

    def solve(self, theta: Sequence[Tensor], start: Point | None = None) -> Solution:
        """Solve every element whose numbers are finite, in normalized units; the others get INVALID_DATA."""
        program = ConeProgram(self.program.structure, self.program.evaluate(theta).data.detach())
        scaling = find_scaling(program)
        normalized = scaling.normalize(program)
        found, residuals, objective = self._solve_chunks(normalized)
        x, s, z = scaling.restore_point(*found.point)
        solution = Solution(
            program=program, x=x, s=s, z=z, status=found.code, iterations=found.iterations,
            objective=scaling.omega.squeeze(-1) * objective, residuals=residuals,
            engine_state=TorchState(scaling, found.scales, found.numbers, found.system),
        )  # fmt: skip
        return solution if solution.all_solved else rescue(self.engine, self.program, theta, solution)

    def _solve_chunks(self, program: ConeProgram) -> tuple[Found, Residuals, Tensor]:
        """The elements whose numbers are finite, a chunk at a time: what was found, its residuals and objectives."""
        limits = Limits(self.engine.tolerance, self.engine.max_iterations or MAX_ITERATIONS)
        finite = finite_rows(program.data)
        found = Found.nothing(program)
        nothing = torch.full_like(program.offset, float("nan"))
        residuals, objective = Residuals(nothing, nothing, nothing), nothing
        for i in finite.nonzero().squeeze(-1).split(self.chunk_size(program.data.device)):
            chunk = DenseProgram.of(program if len(i) == program.batch else program.select(i))
            part = solve(chunk, limits, self.engine.dtype)
            judged = judge(chunk, *part.point, part.code, part.iterations, limits.tolerance)
            part = part.judged(judged.status)
            found = part if len(i) == program.batch else found.put(i, part)
            residuals, objective = residuals.put(i, judged.residuals), put(objective, i, judged.objective)
        return found, residuals, objective

    def _data_adjoint(self, elements: SolvedElements, cotangents: Cotangents) -> tuple[Tensor, DerivativeReport]:
        if type(self.derivative) is not Exact:
            return super()._data_adjoint(elements, cotangents)
        parts = [at.adjoint(cotangents.select(i)) for i, at in self._differentiated(elements)]
        grad, report = torch.cat([part[0] for part in parts]), join_reports([part[1] for part in parts])
        left = (~torch.cat([part[2] for part in parts])).nonzero().squeeze(-1)
        if len(left):
            others, known = self.derivative.adjoint(*_point(elements, left), cotangents.select(left))
            grad, report = grad.index_copy(0, left, others), _put(report, left, known)
        return grad, report

    def _data_tangent(self, elements: SolvedElements, ddata: Tensor) -> tuple[Tangents, DerivativeReport]:
        if type(self.derivative) is not Exact:
            return super()._data_tangent(elements, ddata)
        parts = [at.tangent(ddata[i]) for i, at in self._differentiated(elements)]
        found = [torch.cat(columns) for columns in zip(*(_fields(part[0]) for part in parts), strict=True)]
        report = join_reports([part[1] for part in parts])
        left = (~torch.cat([part[2] for part in parts])).nonzero().squeeze(-1)
        if len(left):
            others, known = self.derivative.tangent(*_point(elements, left), ddata[left])
            found = [old.index_copy(0, left, new) for old, new in zip(found, _fields(others), strict=True)]
            report = _put(report, left, known)
        return Tangents(*found), report

    def _differentiated(self, elements: SolvedElements) -> Iterator[tuple[Tensor, Differentiated]]:
        """The factored systems of solved elements, a chunk at a time, with their indices."""
        # Points that come as tensors, without what the solve remembered, get their units anew.
        states = elements.states if isinstance(elements.states, TorchState) else None
        everything = torch.arange(elements.program.batch, device=elements.x.device)
        if states is not None and states.numbers is not None:
            program, *point = elements.point
            yield everything, Differentiated.at(program, (point[0], point[1], point[2]), states.numbers, states.system)
            return
        for i in everything.split(self.chunk_size(elements.x.device)):
            program, x, s, z = _point(elements, i)
            scales = None if states is None else states.scales.select(i)
            yield i, Differentiated.at(program, (x, s, z), Scaled.of(DenseProgram.of(program), scales))

    def chunk_size(self, device: torch.device) -> int:
        """How many elements are worked on at a time."""
        budget = self.engine.chunk_bytes or _memory(device)
        return max(1, int(budget // bytes_per_element(self.program.structure)))


def _point(elements: SolvedElements, indices: Tensor) -> tuple[ConeProgram, Tensor, Tensor, Tensor]:
    """Numbers and solutions of some elements."""
    return elements.program.select(indices), elements.x[indices], elements.s[indices], elements.z[indices]


def _fields(tangents: Tangents) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tangents.dx, tangents.ds, tangents.dz, tangents.objective


def _put(report: DerivativeReport, indices: Tensor, other: DerivativeReport) -> DerivativeReport:
    """A report with what is known otherwise of some elements."""
    for name in DerivativeReport.PER_ELEMENT:
        old, new = getattr(report, name), getattr(other, name)
        if old is not None and new is not None:
            setattr(report, name, old.index_copy(0, indices, new))
    return report


def _memory(device: torch.device) -> float:
    """Bytes that a chunk may take."""
    if device.type == "cuda":
        return SHARE * torch.cuda.get_device_properties(device).total_memory
    return CPU_BYTES


@dataclass(frozen=True)
class Torch(Engine):
    """Solve with plain torch, on the device of the data; `threads` is for elements that go to Clarabel.

    Args:
        chunk_bytes: memory that the matrices of a chunk of the batch may take; None for 256 MiB on the CPU and a
            quarter of a GPU's memory.
        dtype: of the iterations. With torch.float32 those down to a residual of 1e-3 are in float32, the last ones in
            float64; elements that do not get there begin again in float64. Solutions and derivatives are in float64
            either way, and as accurate.
    """

    chunk_bytes: int | None = None
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_bytes is not None and self.chunk_bytes < 1:
            raise ArgumentError(f"chunk_bytes is {self.chunk_bytes}, expected at least 1.")
        if self.dtype not in (torch.float32, torch.float64):
            raise ArgumentError(f"dtype is {self.dtype}, expected torch.float32 or torch.float64.")

    @property
    def name(self) -> str:
        return "torch"

    def setup(self, program: ParametrizedConeProgram) -> TorchPlan:
        if self.options:
            raise ArgumentError(f"options: the torch engine has none, got {', '.join(map(repr, self.options))}.")
        return TorchPlan(program, self)
