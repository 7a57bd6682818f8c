"""The compiled engine: batches of cone programs in SIMD lanes, from parameters to parameters.

Elements of one structure advance together, one per lane of the processor's vector registers; threads share the batch
and the GIL is released. An element's numbers do not depend, to the last bit, on its neighbours or on the number of
threads. The method and its derivation stand beside the code: interior_point.hpp and derivative.hpp in native/src/lanes.

What it cannot finish goes where it can be finished: an element on which the method stalls to Clarabel, a derivative
whose linear system does not converge to `Exact`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from convexlayers.derivatives import Cotangents, Exact, Tangents
from convexlayers.engines.base import Engine, Plan, select_rows, select_solved
from convexlayers.engines.per_problem import thread_count
from convexlayers.engines.rescue import rescue
from convexlayers.errors import ArgumentError
from convexlayers.maps import lasting_tensors
from convexlayers.native import _core
from convexlayers.program import ConeProgram, DeferredProgram, ParametrizedConeProgram
from convexlayers.solution import (
    SMALLEST_TOLERANCE,
    TOLERANCE_FACTOR,
    DerivativeReport,
    Point,
    Residuals,
    Solution,
    measure,
)

MAX_ITERATIONS = 100
# Derivatives whose relative residual stays above this are left to `Exact`.
LARGEST_RESIDUAL = 1e-10

_plans: WeakKeyDictionary[ParametrizedConeProgram, _core.Plan] = WeakKeyDictionary()
_plans_lock = Lock()


@lasting_tensors()
def core_plan(program: ParametrizedConeProgram) -> _core.Plan:
    """The symbolic work for a program, done once however many layers and calls share it."""
    with _plans_lock:
        plan = _plans.get(program)
        if plan is None:
            plan = _plans[program] = _make_plan(program)
        return plan


def _make_plan(program: ParametrizedConeProgram) -> _core.Plan:
    def ints(values: object) -> np.ndarray:
        return np.ascontiguousarray(values, dtype=np.int32)

    structure = program.structure
    cones = structure.cones
    P_indptr, A_indptr = structure.indptr
    blocks = [
        (block.shape[1], ints(block.rows.numpy()), ints(block.cols.numpy()), block.values.numpy())
        for block in program.map.blocks
    ]
    sizes = (
        cones.zero, cones.nonnegative, ints(cones.second_order), ints(cones.psd), cones.exponential,
        np.asarray(cones.power, dtype=np.float64),
    )  # fmt: skip
    return _core.make_plan(
        structure.n, sizes, ints(P_indptr), ints(structure.P_rows), ints(A_indptr), ints(structure.A_rows),
        program.map.constant.numpy(), blocks,
    )  # fmt: skip


@dataclass(frozen=True)
class NativeState:
    """What a solve remembers for its derivative.

    Attributes:
        scales: exponents of the scaling of each element, int16 (B, n + m + 2).
        own: which elements were solved here and not by the rescue, (B,); None for all of them.
        theta, rows, blocks: the parameters of the solve, as they came and as the kernels take them.
        at: addresses of the results.
    """

    scales: Tensor
    own: Tensor | None = None
    theta: Sequence[Tensor] = ()
    rows: Sequence[Tensor] = ()
    blocks: list[tuple[int, int]] = field(default_factory=list)
    at: tuple[int, ...] = ()


class NativeSolution(Solution):
    """A Solution whose smaller parts become tensors of their own when somebody asks for them."""

    def __init__(
        self, program: ConeProgram, point: Sequence[Tensor], codes: Tensor, measures: Tensor, state: NativeState
    ) -> None:
        """Take what the kernels wrote.

        Args:
            program: the numbers.
            point: x (B, n), s (B, m), z (B, m).
            codes: status and iterations, int64 (2, B).
            measures: the three residuals and the objective, (4, B).
            state: for the derivative.
        """
        x, s, z = point
        self.__dict__.update(
            program=program, x=x, s=s, z=z, codes=codes, measures=measures, engine_state=state,
            report=DerivativeReport(),
        )  # fmt: skip

    @cached_property
    def status(self) -> Tensor:  # type: ignore[override]
        return self.__dict__["codes"][0]

    @cached_property
    def iterations(self) -> Tensor:  # type: ignore[override]
        return self.__dict__["codes"][1]

    @cached_property
    def objective(self) -> Tensor:  # type: ignore[override]
        return self.__dict__["measures"][3]

    @cached_property
    def residuals(self) -> Residuals:  # type: ignore[override]
        return Residuals(*self.__dict__["measures"][:3].unbind(0))

    def plain(self) -> Solution:
        return Solution(
            program=self.program, x=self.x, s=self.s, z=self.z, status=self.status, iterations=self.iterations,
            objective=self.objective, residuals=self.residuals, report=self.report, engine_state=self.engine_state,
        )  # fmt: skip


def _as_rows(value: Tensor) -> Tensor:
    """The numbers where the kernels can read them."""
    if value.requires_grad:
        value = value.detach()
    if value.dtype is torch.float64 and value.is_cpu and value.is_contiguous():
        return value
    return value.to(device="cpu", dtype=torch.float64).contiguous()


def _addresses(rows: Sequence[Tensor | None], batch: int) -> list[tuple[int, int]]:
    """Address and stride between elements of each block; stride 0 for one that the batch shares, address 0 for None."""
    return [(0, 0) if row is None else (row.data_ptr(), row.shape[1] if row.shape[0] == batch else 0) for row in rows]


def _batch_of(theta: Sequence[Tensor]) -> int:
    sizes = [value.shape[0] for value in theta]
    return 0 if 0 in sizes else max(sizes, default=1)


class _Elements:
    """The elements of a solution whose derivative the kernels take, and what the kernels need of them."""

    def __init__(self, plan: "NativePlan", theta: Sequence[Tensor], solution: Solution) -> None:
        state = solution.engine_state
        assert isinstance(state, NativeState)
        self.batch = solution.x.shape[0]
        self.device = solution.x.device
        if state.theta is theta and isinstance(solution, NativeSolution):
            self.rows, self.blocks, self.at = state.rows, state.blocks, state.at
        else:
            self.rows = [_as_rows(value) for value in theta]
            self.blocks = _addresses(self.rows, self.batch)
            self._point = [_as_rows(part) for part in (solution.x, solution.s, solution.z)]
            self.at = (*[part.data_ptr() for part in self._point], 0, 0, 0, 0, 0, 0, state.scales.data_ptr())
        self.threads = thread_count(plan.engine)
        self.residual = torch.empty(self.batch, dtype=torch.float64, device="cpu")
        self.singular = torch.empty(self.batch, dtype=torch.bool, device="cpu")
        self.constant = torch.empty(self.batch, dtype=torch.bool, device="cpu")
        self.all = state.own is None and solution.all_solved
        if not self.all:
            solved = solution.solved.cpu()
            own = torch.ones_like(solved) if state.own is None else state.own
            self.indices, self.others = ((solved & part).nonzero().squeeze(-1) for part in (own, ~own))
            self.residual.fill_(float("nan"))
            self.singular.fill_(False)
            self.constant.fill_(False)

    @property
    def list(self) -> tuple[int, int]:
        """Address and length of the list of elements; no address stands for all."""
        return (0, self.batch) if self.all else (self.indices.data_ptr(), len(self.indices))

    @property
    def report(self) -> tuple[int, int, float, int]:
        """The last arguments of the kernels."""
        return self.residual.data_ptr(), self.singular.data_ptr(), LARGEST_RESIDUAL, self.threads

    def left_over(self, largest: float) -> Tensor | None:
        """Elements that are left to `Exact`, given the largest residual; None for none."""
        if self.all and largest <= LARGEST_RESIDUAL:
            return None
        found = (self.residual > LARGEST_RESIDUAL).nonzero().squeeze(-1)
        left = found if self.all else torch.cat([self.others, found])
        return left.to(self.device) if len(left) else None

    def write_report(self, solution: Solution, largest: float) -> None:
        """What the kernels found, for the user."""
        report = solution.report
        report.residual, report.rank_deficient = self.residual, self.singular
        if self.device.type != "cpu":
            report.residual, report.rank_deficient = self.residual.to(self.device), self.singular.to(self.device)
        report.all_accurate = self.all and largest <= LARGEST_RESIDUAL


class NativePlan(Plan):
    """The compiled structure of one program, with the engine's settings."""

    def __init__(self, program: ParametrizedConeProgram, engine: "Native") -> None:
        super().__init__(program, engine.derivative)
        self.engine = engine
        self._core: _core.Plan | None = core_plan(program)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_core": None}

    @property
    def core(self) -> _core.Plan:
        """The symbolic work; after unpickling, of the program that came with it."""
        if self._core is None:
            self._core = core_plan(self.program)
        return self._core

    @property
    def resolving_engine(self) -> "Native":
        return self.engine

    def states(self, solution: Solution) -> tuple[Tensor, ...]:
        state = solution.engine_state
        assert isinstance(state, NativeState)
        own = torch.ones(len(state.scales), dtype=torch.bool, device="cpu") if state.own is None else state.own
        return state.scales, own

    def state_shapes(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        structure = self.program.structure
        return [((structure.n + structure.m + 2,), torch.int16), ((), torch.bool)]

    def state_of(self, states: Sequence[Tensor]) -> NativeState:
        scales, own = (part.contiguous() for part in states)
        return NativeState(scales, None if bool(own.all()) else own)

    def describe(self) -> dict[str, int]:
        """Sizes of the symbolic factor: `nodes`, `nnz_L`, `flops` of one factorization, `groups` of columns."""
        return self.core.describe()

    def solve(self, theta: Sequence[Tensor], start: Point | None = None) -> Solution:
        batch, rows = _batch_of(theta), [_as_rows(value) for value in theta]
        n, m = self.program.structure.n, self.program.structure.m
        blocks, row = _addresses(rows, batch), 8 * batch
        if start is None:
            x, s, z = (torch.empty(batch, width, dtype=torch.float64, device="cpu") for width in (n, m, m))
        else:
            # The kernels begin at what stands where they write.
            x, s, z = (torch.empty(part.shape, dtype=torch.float64, device="cpu").copy_(part) for part in start)
        codes = torch.empty(2, batch, dtype=torch.int64, device="cpu")
        measures = torch.empty(4, batch, dtype=torch.float64, device="cpu")
        scales = torch.empty(batch, n + m + 2, dtype=torch.int16, device="cpu")
        code, measure = codes.data_ptr(), measures.data_ptr()
        at = (
            x.data_ptr(), s.data_ptr(), z.data_ptr(), code, code + row,
            measure, measure + row, measure + 2 * row, measure + 3 * row, scales.data_ptr(),
        )  # fmt: skip
        engine = self.engine
        doubtful = self.core.solve(
            blocks, batch, at, engine.tolerance, engine.max_iterations or MAX_ITERATIONS, thread_count(engine),
            start is not None,
        )  # fmt: skip
        state = NativeState(scales, None, theta, rows, blocks, at)
        program = DeferredProgram(self.program, theta, batch)
        solution = NativeSolution(program, (x, s, z), codes, measures, state)
        if doubtful == 0:
            solution.__dict__["all_solved"] = True
        found = self._rescued(theta, solution.plain()) if doubtful else solution
        return found if not theta or theta[0].is_cpu else _to_device(found, theta[0].device)

    def _rescued(self, theta: Sequence[Tensor], solution: Solution) -> Solution:
        """Clarabel's answer where this method stalled; the kernels differentiate the others."""
        found = rescue(self.engine, self.program, theta, solution, self._contested(solution))
        if found.rescued is None:
            return found
        return replace(found, engine_state=replace(solution.engine_state, own=~found.rescued))  # type: ignore[type-var]

    def _contested(self, solution: Solution) -> Tensor:
        """Elements solved to the tolerance in the kernels' units, geometric means, and not in medians, (B,).

        Where the two differ much, an element has numbers of several sizes, and a residual that is small beside one of
        them says little. Points at which polishing has arrived are not in doubt in any units.
        """
        tolerance = self.engine.tolerance
        indices = (solution.solved & ~(solution.residuals.largest <= 1e-3 * tolerance)).nonzero().squeeze(-1)
        contested = torch.zeros_like(solution.solved)
        if len(indices):
            largest = measure(*select_solved(solution, indices).point).largest
            contested[indices] = largest > TOLERANCE_FACTOR * max(tolerance, SMALLEST_TOLERANCE)
        return contested

    def adjoint(
        self, theta: Sequence[Tensor], solution: Solution, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        if type(self.derivative) is not Exact:
            return super().adjoint(theta, solution, cotangents, wanted)
        elements = _Elements(self, theta, solution)
        parts = (cotangents.x, cotangents.s, cotangents.z, cotangents.objective)
        given = [None if part is None else _as_rows(part) for part in parts]
        make = torch.empty_like if elements.all else torch.zeros_like
        grads: list[Tensor | None] = [
            (make(row) if stride else torch.zeros_like(row)) if wish else None
            for row, (_, stride), wish in zip(elements.rows, elements.blocks, wanted, strict=True)
        ]
        targets = [
            (0, 0) if grad is None else ((grad.data_ptr(), 0) if stride else (0, grad.data_ptr()))
            for grad, (_, stride) in zip(grads, elements.blocks, strict=True)
        ]
        largest = self.core.adjoint(
            elements.blocks, elements.at, *elements.list,
            tuple([0 if part is None else part.data_ptr() for part in given]), targets, elements.constant.data_ptr(),
            *elements.report,
        )  # fmt: skip
        elements.write_report(solution, largest)
        solution.report.locally_constant = elements.constant.to(elements.device)
        if elements.device.type != "cpu":
            grads = [None if grad is None else grad.to(elements.device) for grad in grads]
        left = elements.left_over(largest)
        if left is not None:
            self._add_exact(theta, solution, cotangents, wanted, left, grads)
        return tuple(grads)

    def _add_exact(
        self, theta: Sequence[Tensor], solution: Solution, cotangents: Cotangents, wanted: Sequence[bool],
        indices: Tensor, grads: list[Tensor | None],
    ) -> None:  # fmt: skip
        """Add what `Exact` finds for some elements."""
        batch = solution.program.batch
        numbers = self._adjoint_at(solution, cotangents, indices)
        found = self.program.map.adjoint(numbers, select_rows(theta, indices, batch), wanted)
        for grad, more, value in zip(grads, found, theta, strict=True):
            if grad is not None and more is not None:
                grad.index_add_(0, indices, more) if value.shape[0] == batch else grad.add_(more)

    def tangent(self, theta: Sequence[Tensor], solution: Solution, dtheta: Sequence[Tensor | None]) -> Tangents:
        if type(self.derivative) is not Exact:
            return super().tangent(theta, solution, dtheta)
        elements = _Elements(self, theta, solution)
        rows = [None if d is None else _as_rows(d) for d in dtheta]
        out = [torch.zeros_like(t, device="cpu") for t in (solution.x, solution.s, solution.z, solution.objective)]
        largest = self.core.tangent(
            elements.blocks, elements.at, *elements.list, _addresses(rows, elements.batch),
            tuple([t.data_ptr() for t in out]), *elements.report,
        )  # fmt: skip
        elements.write_report(solution, largest)
        tangents = Tangents(*(t.to(elements.device) for t in out))
        left = elements.left_over(largest)
        if left is not None:
            self._write_tangents_at(solution, dtheta, left, tangents)
        return tangents


def _to_device(solution: Solution, device: torch.device) -> Solution:
    solution = solution.plain()
    names = ("x", "s", "z", "status", "iterations", "objective")
    rescued = None if solution.rescued is None else solution.rescued.to(device)
    parts = {name: getattr(solution, name).to(device) for name in names}
    return replace(solution, **parts, residuals=solution.residuals.to(device), rescued=rescued)


@dataclass(frozen=True)
class Native(Engine):
    """Solve and differentiate with the compiled core."""

    @property
    def name(self) -> str:
        return "native"

    def check_options(self) -> None:
        """There are none.

        Raises:
            ArgumentError: there are some.
        """
        if self.options:
            raise ArgumentError(f"options: the native engine has none, got {', '.join(map(repr, self.options))}.")

    def setup(self, program: ParametrizedConeProgram) -> NativePlan:
        self.check_options()
        return NativePlan(program, self)
