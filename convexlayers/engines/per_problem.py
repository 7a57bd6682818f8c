"""What the engines have in common that solve one problem at a time: unpacking, threads, packing, status."""

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from convexlayers.derivatives.refine import needs_refinement, refine
from convexlayers.engines.base import Engine, Plan
from convexlayers.program import ConeProgram, ParametrizedConeProgram, Structure
from convexlayers.scaling import find_scaling
from convexlayers.solution import Point, Solution, judge
from convexlayers.status import Status

# At the iteration limit the user asked to stop; everything else may be on top of a solution.
REFINABLE = (Status.SOLVED, Status.INACCURATE, Status.NUMERICAL_ERROR)


@dataclass(frozen=True)
class Problem:
    """One element in the library's own form, as scipy matrices.

    Attributes:
        P: upper triangle, (n, n).
        q: (n,).
        A: (m, n).
        b: (m,).
        start: x (n,), s (m,), z (m,) to begin at, NaN for none.
    """

    P: sp.csc_array
    q: np.ndarray
    A: sp.csc_array
    b: np.ndarray
    start: tuple[np.ndarray, ...] = ()

    @property
    def begins(self) -> bool:
        """Whether there is a point to begin at."""
        return len(self.start) > 0 and all(bool(np.isfinite(part).all()) for part in self.start)


@dataclass(frozen=True)
class Outcome:
    """What a solver said of one element, in the library's own order of rows.

    Attributes:
        x: (n,). s, z: (m,).
        status: the solver's claim.
        iterations: count.
        state: kept for the engine's own derivative.
    """

    x: np.ndarray
    s: np.ndarray
    z: np.ndarray
    status: Status
    iterations: int
    state: object = None


def failure(structure: Structure, status: Status, iterations: int = 0) -> Outcome:
    """An outcome without a point."""
    rows = np.full(structure.m, np.nan)
    return Outcome(np.full(structure.n, np.nan), rows, rows, status, iterations)


class PerProblemPlan(Plan):
    """A plan that hands elements to a solver one by one, over a pool of threads where the solver releases the GIL.

    Attributes:
        refines: whether solutions get Newton steps (derivatives/refine.py).
    """

    refines = True

    def __init__(self, program: ParametrizedConeProgram, engine: Engine, threads: int) -> None:
        super().__init__(program, engine.derivative)
        self.engine = engine
        self.threads = threads

    @property
    def resolving_engine(self) -> Engine:
        return self.engine

    @abstractmethod
    def solve_one(self, problem: Problem) -> Outcome:
        """Solve one element. Called from several threads at once."""

    def solve(self, theta: Sequence[Tensor], start: Point | None = None) -> Solution:
        """Solve every element whose numbers are finite, in normalized units; the others get INVALID_DATA."""
        program = ConeProgram(self.program.structure, self.program.evaluate(theta).data.detach())
        scaling = find_scaling(program)
        normalized = scaling.normalize(program)
        numbers = normalized.data.cpu().numpy()
        finite = np.isfinite(numbers).all(axis=1)
        starts = [] if start is None else [part.cpu().numpy() for part in scaling.normalize_point(*start)]
        outcomes: list[Outcome] = [failure(self.program.structure, Status.INVALID_DATA)] * program.batch
        indices = np.nonzero(finite)[0].tolist()
        problems = ((numbers[i], tuple(part[i] for part in starts)) for i in indices)
        for index, outcome in zip(indices, self._run(list(problems)), strict=True):
            outcomes[index] = outcome
        found = self._collect(normalized, outcomes)
        x, s, z = scaling.restore_point(found.x, found.s, found.z)
        return replace(found, program=program, x=x, s=s, z=z, objective=program.objective(x))

    def _run(self, rows: list[tuple[np.ndarray, tuple[np.ndarray, ...]]]) -> list[Outcome]:
        workers = min(self.threads, len(rows))
        if workers <= 1:
            return [self.solve_one(self._problem(*row)) for row in rows]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda row: self.solve_one(self._problem(*row)), rows))

    def _problem(self, row: np.ndarray, start: tuple[np.ndarray, ...]) -> Problem:
        structure = self.program.structure
        P_indptr, A_indptr = structure.indptr
        values = {name: row[where] for name, where in structure.slices.items()}
        shape_P, shape_A = (structure.n, structure.n), (structure.m, structure.n)
        return Problem(
            P=sp.csc_array((values["P"], structure.P_rows.astype(np.int32), P_indptr), shape=shape_P),
            q=values["q"],
            A=sp.csc_array((values["A"], structure.A_rows.astype(np.int32), A_indptr), shape=shape_A),
            b=values["b"],
            start=start,
        )

    def _collect(self, program: ConeProgram, outcomes: list[Outcome]) -> Solution:
        structure, device = self.program.structure, program.data.device

        def stack(name: str, width: int) -> Tensor:
            values = [getattr(outcome, name) for outcome in outcomes]
            array = np.stack(values) if values else np.zeros((0, width))
            return torch.as_tensor(array, dtype=torch.float64, device=device)

        def integers(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        claimed = integers([int(outcome.status) for outcome in outcomes])
        point = self._refine(
            program, (stack("x", structure.n), stack("s", structure.m), stack("z", structure.m)), claimed
        )
        return judge(
            program,
            *point,
            claimed=claimed,
            iterations=integers([outcome.iterations for outcome in outcomes]),
            tolerance=self.engine.tolerance,
            engine_state=tuple(outcome.state for outcome in outcomes),
        )

    def _refine(self, program: ConeProgram, point: Point, claimed: Tensor) -> Point:
        """Newton steps where they are needed, on points at which a solver stopped for accuracy or the lack of it."""
        close = torch.stack([claimed == int(code) for code in REFINABLE]).any(0)
        close &= torch.cat(point, dim=-1).isfinite().all(-1)
        indices = close.nonzero().squeeze(-1)
        if not self.refines or len(indices) == 0:
            return point
        x, s, z = point
        needed = needs_refinement(program.select(indices), s[indices], z[indices], self.engine.tolerance)
        indices = indices[needed]
        if len(indices) == 0:
            return point
        better = refine(program.select(indices), x[indices], s[indices], z[indices])
        x, s, z = (old.index_copy(0, indices, new) for old, new in zip(point, better, strict=True))
        return x, s, z


def thread_count(engine: Engine) -> int:
    """The engine's `threads`, or torch's number."""
    return engine.threads if engine.threads is not None else torch.get_num_threads()
