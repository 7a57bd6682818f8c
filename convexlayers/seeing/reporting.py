"""The report of a layer: the problem, who solves it and why, what a factorization costs, what a batch came to.

Every figure is one that somebody else has counted or that follows from sizes: of the factor from the engine's symbolic
analysis, of the matrix from its pattern, of memory from the tensors that a call keeps.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from convexlayers.batching import Value
from convexlayers.calling import collect_values
from convexlayers.engines import Engine, make_engine
from convexlayers.engines.base import Plan
from convexlayers.engines.native import MAX_ITERATIONS, NativePlan
from convexlayers.engines.per_problem import thread_count
from convexlayers.engines.select import Auto
from convexlayers.engines.torch_dense import CPU_BYTES, TorchPlan, bytes_per_element
from convexlayers.execute import BatchSolution, execute
from convexlayers.native import info
from convexlayers.program import ParametrizedConeProgram, Structure
from convexlayers.seeing.elements import BatchReport
from convexlayers.seeing.pattern import kkt_pattern
from convexlayers.seeing.render import Section, as_html, as_text, byte_size

# Factorizations of more operations are done for one element at a time: kLargeFlops in native/src/plan/panels.hpp.
LARGE_FLOPS = 20_000_000
# Numbers per element besides x, s, z: status, iterations, objective, three residuals.
MEASURES = 6


@dataclass(frozen=True)
class Work:
    """What the native engine factors in every iteration, and once more for the derivative.

    Attributes:
        nodes: order of the KKT matrix.
        kkt_entries, factor_entries: entries of the matrix, and of its factor, strictly below the diagonal.
        flops: operations of one factorization, as the symbolic analysis counts them.
        lanes: how many elements advance together in the vector registers of one thread.
    """

    nodes: int
    kkt_entries: int
    factor_entries: int
    flops: int
    lanes: int

    @property
    def fill(self) -> float:
        """Entries of the factor per entry of the matrix, 1 without fill-in."""
        return self.factor_entries / self.kkt_entries if self.kkt_entries else 1.0


@dataclass(frozen=True)
class Memory:
    """Bytes per element of the batch.

    Attributes:
        kept: by the solution, as long as a backward pass may come.
        working: while the element is solved or differentiated, at least; None where the solver does not say.
    """

    kept: int
    working: int | None


@dataclass(frozen=True, eq=False)
class Report:
    """What there is to know of a layer; `print` it, or let a notebook show it.

    Attributes:
        program: compiled.
        engine: who solves.
        reason: why it is that one.
        work: of the native engine; None for another one.
        memory: per element.
        settings: of the layer, by name.
        batch: what a batch came to; None where none was given.
    """

    program: ParametrizedConeProgram
    engine: Engine
    reason: str
    work: Work | None
    memory: Memory
    settings: Mapping[str, str]
    batch: BatchReport | None = None

    @property
    def sections(self) -> list[Section]:
        """What is printed."""
        found = [_problem_section(self.program), self._engine_section(), self._cost_section()]
        return found if self.batch is None else [*found, self.batch.section()]

    def __str__(self) -> str:
        return as_text(self.program.title, self.sections)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(self.program.title, self.sections)

    def _engine_section(self) -> Section:
        engine = self.engine
        lines = [("engine", engine.name), ("why", self.reason)]
        if self.work is not None:
            lanes = f"up to {self.work.lanes} elements side by side" if self.work.lanes > 1 else "one element at a time"
            lines.append(("kernels", f"{info()['instruction_set']}, {lanes}, at most {_threads(engine)}"))
        lines += [
            ("accuracy", f"tolerance {engine.tolerance:g}, {_limit(engine)}"),
            ("derivative", repr(engine.derivative)),
            *self.settings.items(),
        ]
        return Section("engine", tuple(lines))

    def _cost_section(self) -> Section:
        lines = []
        if self.work is not None:
            work = self.work
            lines += [
                ("KKT matrix", f"order {work.nodes:,}, {work.kkt_entries:,} entries below the diagonal"),
                ("factor", f"{work.factor_entries:,} entries below the diagonal, fill {work.fill:.2f}"),
                (
                    "operations",
                    f"{work.flops:,} per factorization, at most one for each iteration, polishing step and derivative",
                ),
            ]
        lines.append(("memory", _memory_line(self)))
        lines.append(("compiled in", f"{1e3 * self.program.compile_seconds:.1f} ms"))
        return Section("cost", tuple(lines))


class ReportedModule(torch.nn.Module):
    """A layer that can be reported on.

    Attributes:
        program, engine, on_failure, validate, relax: see `ConvexLayer`.
    """

    program: ParametrizedConeProgram
    engine: Engine
    on_failure: str
    validate: bool
    relax: str | None
    _plan: Plan
    _relax_with: Engine | None

    def report(self, *values: Value | Mapping[Any, Value], **named: Value) -> Report:
        """Say what the layer solves, who solves it and why, and what it costs; with values, what they came to.

        Args:
            *values, **named: as in a call, or none. They are solved, and the report also has the statuses, iterations
                and residuals of the batch and the elements to look at. Elements that are not solved are in it, whatever
                `on_failure` is.

        Returns:
            to be printed, or shown by a notebook; its attributes have the figures.
        """
        settings = {"on failure": self.on_failure, "checks values": "yes" if self.validate else "no"}
        if self.relax is not None:
            settings["relax"] = self.relax
        found = None if not (values or named) else self._look(collect_values(self.program.parameters, values, named))
        return _make_report(self._plan, self.engine, settings, found)

    def _look(self, values: list[Value]) -> BatchReport:
        """Solve without a derivative, and without raising for what data hold."""
        start = time.perf_counter()
        with torch.no_grad():
            run = execute(self._plan, values, on_failure="nan", check_values=self.validate, relax=self._relax_with)
        seconds = time.perf_counter() - start
        return BatchReport(BatchSolution(**run.common()), seconds)  # type: ignore[arg-type]


def report(program: ParametrizedConeProgram, solver: str | Engine = "auto") -> Report:
    """The report of a compiled program, as a layer of it would give.

    Args:
        program: from `compile_problem`, or `layer.program`.
        solver: as in `ConvexLayer`.

    Examples:
        >>> import cvxpy as cp, convexlayers as cl
        >>> x, t = cp.Variable(3, name="x"), cp.Parameter(3, name="t")
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.sum(x) == 1, x >= 0])
        >>> found = cl.report(cl.compile_problem(problem, [t], [x]))
        >>> found.work.nodes, found.work.fill >= 1
        (13, True)
    """
    engine = make_engine(solver)
    return _make_report(engine.setup(program), engine, {}, None)


def _make_report(plan: Plan, engine: Engine, settings: Mapping[str, str], batch: BatchReport | None) -> Report:
    work = _work(plan) if isinstance(plan, NativePlan) else None
    return Report(plan.program, engine, _reason(engine, plan.program), work, _memory(plan, work), settings, batch)


def _reason(engine: Engine, program: ParametrizedConeProgram) -> str:
    if isinstance(engine, Auto):
        return engine.explain(program)
    return f'asked for by name or as an object; solver="auto" would take {Auto().explain(program)}'


def _work(plan: NativePlan) -> Work:
    sizes = plan.describe()
    lanes = 1 if sizes["flops"] > LARGE_FLOPS else int(info()["lanes"])
    entries = kkt_pattern(plan.program.structure).entries
    return Work(sizes["nodes"], entries, sizes["nnz_L"], sizes["flops"], lanes)


def _memory(plan: Plan, work: Work | None) -> Memory:
    structure = plan.program.structure
    kept = 8 * (structure.n + 2 * structure.m + MEASURES)
    if work is not None:
        # The units of the solve, 16 bits each; the factor with its diagonal.
        return Memory(kept + 2 * (structure.n + structure.m + 2), 8 * (work.factor_entries + work.nodes))
    if isinstance(plan, TorchPlan):
        # The numbers of the program are written out.
        return Memory(kept + 8 * structure.size, bytes_per_element(structure))
    return Memory(kept + 8 * structure.size, None)


def _memory_line(found: Report) -> str:
    kept = f"{byte_size(found.memory.kept)} per element for its solution"
    if found.memory.working is None:
        return f"{kept}; what {found.engine.name} takes while it solves is its own"
    working = byte_size(found.memory.working)
    if found.work is not None:
        return f"{kept}; {working} for the factor of each element at work"
    at_once = f"at most {byte_size(CPU_BYTES)} of them at a time on the CPU"
    return f"{kept}; about {working} for its dense matrices, some of them kept for the backward pass, {at_once}"


def _limit(engine: Engine) -> str:
    limit = engine.max_iterations or (MAX_ITERATIONS if engine.name in ("auto", "native", "torch") else None)
    return "the solver's own limit of iterations" if limit is None else f"at most {limit} iterations"


def _threads(engine: Engine) -> str:
    count = thread_count(engine)
    return f"{count} threads" if count > 1 else "one thread"


def _problem_section(program: ParametrizedConeProgram) -> Section:
    structure = program.structure
    kind = "geometric program" if program.objective_exponential else _kind(structure)
    entries = f"P {len(structure.P_rows):,} (upper triangle), A {len(structure.A_rows):,}, parameter map "
    lines = (
        ("kind", kind),
        ("size", f"{structure.n:,} variables, {structure.m:,} rows"),
        ("cones", structure.cones.describe()),
        ("nonzeros", f"{entries}{program.map.nnz:,}"),
        ("parameters", _listing([(info.name, info.shape) for info in program.parameters])),
        ("returns", _listing([(info.name, info.shape) for info in program.outputs])),
    )
    return Section("problem", lines)


def _kind(structure: Structure) -> str:
    """The class of problems that a cone program belongs to, by its cones and its P."""
    cones = structure.cones
    quadratic = "a quadratic" if len(structure.P_rows) else "a linear"
    if cones.exponential or cones.power:
        return f"cone program with {quadratic} objective"
    if cones.psd:
        return f"semidefinite program with {quadratic} objective"
    if any(dim > 1 for dim in cones.second_order):
        return f"second-order cone program with {quadratic} objective"
    return "quadratic program" if len(structure.P_rows) else "linear program"


def _listing(items: list[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in items) or "none"
