"""SCS (O'Donoghue, "Operator splitting for a homogeneous embedding of the linear complementarity problem", 2021).

A first-order method: for cross-checks, and for problems too large to factor. Its rows come in the library's order
except inside a PSD cone, where it stacks the lower triangle by columns; `row_order` is the only place that knows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from convexlayers.cones import Cones
from convexlayers.cones.svec import svec_index
from convexlayers.engines.base import Engine, load_package
from convexlayers.engines.per_problem import Outcome, PerProblemPlan, Problem, failure, thread_count
from convexlayers.errors import ArgumentError
from convexlayers.program import ParametrizedConeProgram
from convexlayers.status import Status

DEFAULT_ITERATIONS = 100_000

# SCS's info["status_val"]. Inaccurate certificates (-6, -7) prove nothing.
STATUS = {
    1: Status.SOLVED,
    2: Status.MAX_ITERATIONS,
    -1: Status.DUAL_INFEASIBLE,
    -2: Status.PRIMAL_INFEASIBLE,
    -6: Status.INACCURATE,
    -7: Status.INACCURATE,
}


def row_order(cones: Cones) -> np.ndarray:
    """For each row of SCS's order, the row of the library's order that stands there, (m,)."""
    order = [np.arange(cones.zero + cones.nonnegative + sum(cones.second_order))]
    row = len(order[0])
    for size in cones.psd:
        cols, rows = np.triu_indices(size)  # the lower triangle by columns: (rows, cols) with cols outermost
        order.append(row + svec_index(size)[rows, cols])
        row += len(rows)
    order.append(np.arange(row, cones.rows))
    return np.concatenate(order)


def cone_dict(cones: Cones) -> dict[str, Any]:
    """The cones under SCS's keys."""
    return {
        "z": cones.zero,
        "l": cones.nonnegative,
        "q": list(cones.second_order),
        "s": list(cones.psd),
        "ep": cones.exponential,
        "p": list(cones.power),
    }


# SCS ignores what it does not know.
SETTINGS = frozenset(
    [
        "use_indirect",
        "mkl",
        "gpu",
        "cudss",
        "normalize",
        "scale",
        "rho_x",
        "max_iters",
        "eps_abs",
        "eps_rel",
        "eps_infeas",
    ]
    + ["alpha", "time_limit_secs", "verbose", "warm_start", "acceleration_lookback", "acceleration_interval"]
    + ["adaptive_scale", "write_data_filename", "log_csv_filename"]
)


class SCSPlan(PerProblemPlan):
    """Row order and cones, made once."""

    def __init__(self, program: ParametrizedConeProgram, engine: Engine, threads: int) -> None:
        super().__init__(program, engine, threads)
        self.order = row_order(program.structure.cones)
        self.cones = cone_dict(program.structure.cones)

    def _settings(self) -> dict[str, Any]:
        settings = {
            "verbose": False,
            "eps_abs": self.engine.tolerance,
            "eps_rel": self.engine.tolerance,
            "max_iters": self.engine.max_iterations or DEFAULT_ITERATIONS,
        }
        return settings | dict(self.engine.options)

    def solve_one(self, problem: Problem) -> Outcome:
        """Solve one element."""
        A, b, cones = problem.A[self.order], problem.b[self.order], self.cones
        if len(b) == 0:
            # SCS wants at least one row; 0'x + s = 1, s >= 0 changes nothing.
            A, b, cones = sp.csc_array((1, len(problem.q))), np.ones(1), {"l": 1}
        data = {"P": sp.csc_matrix(problem.P), "A": sp.csc_matrix(A), "b": b, "c": problem.q}
        start: dict[str, Any] = {"warm_start": False}
        if problem.begins and len(self.order):
            x, s, z = problem.start
            start = {"warm_start": True, "x": x, "y": z[self.order], "s": s[self.order]}
        result = load_package("scs").SCS(data, cones, **self._settings()).solve(**start)
        info = result["info"]
        status = STATUS.get(info["status_val"], Status.NUMERICAL_ERROR)
        if status in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE):
            return failure(self.program.structure, status, info["iter"])
        rows = len(self.order)
        s, z = np.empty(rows), np.empty(rows)
        s[self.order], z[self.order] = result["s"][:rows], result["y"][:rows]
        return Outcome(np.asarray(result["x"]), s, z, status, info["iter"])


@dataclass(frozen=True)
class SCS(Engine):
    """Solve with SCS, one problem at a time; `options` are its settings."""

    @property
    def name(self) -> str:
        return "scs"

    def setup(self, program: ParametrizedConeProgram) -> SCSPlan:
        load_package("scs")
        unknown = set(self.options) - SETTINGS
        if unknown:
            raise ArgumentError(f"options: SCS has no setting {', '.join(map(repr, sorted(unknown)))}.")
        return SCSPlan(program, self, thread_count(self))
