"""Clarabel (Goulart and Chen, arXiv 2405.12762): an interior-point method for every cone of the library.

Its conventions are the library's own: s = b - Ax in K, upper triangle of P, svec by columns of the upper triangle,
exponential cone y exp(x / y) <= z. So this adapter translates only settings and statuses.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from convexlayers.cones import Cones
from convexlayers.engines.base import Engine, load_package
from convexlayers.engines.per_problem import Outcome, PerProblemPlan, Problem, failure, thread_count
from convexlayers.errors import ArgumentError
from convexlayers.program import ParametrizedConeProgram
from convexlayers.solution import CERTIFICATE_TOLERANCE
from convexlayers.status import Status

STATUS = {
    "Solved": Status.SOLVED,
    "AlmostSolved": Status.INACCURATE,
    "PrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "DualInfeasible": Status.DUAL_INFEASIBLE,
    # A certificate at loose tolerance proves nothing: the element is neither solved nor known to be infeasible.
    "AlmostPrimalInfeasible": Status.INACCURATE,
    "AlmostDualInfeasible": Status.INACCURATE,
    "MaxIterations": Status.MAX_ITERATIONS,
    "MaxTime": Status.MAX_ITERATIONS,
    "InsufficientProgress": Status.INACCURATE,
}


# Clarabel's own is 1e-8.
RESCUE_REGULARIZATION = 1e-7
CERTIFIED = (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE)
# A certificate that does not prove what it should is looked for again with this factor to its tolerance, so many times.
DOUBTED, DOUBTS = 1e-8, 3


def translate_cones(clarabel: Any, cones: Cones) -> list[Any]:
    """The cones as Clarabel's objects, in row order."""
    out = []
    if cones.zero:
        out.append(clarabel.ZeroConeT(cones.zero))
    if cones.nonnegative:
        out.append(clarabel.NonnegativeConeT(cones.nonnegative))
    out += [clarabel.SecondOrderConeT(dim) for dim in cones.second_order]
    out += [clarabel.PSDTriangleConeT(order) for order in cones.psd]
    out += [clarabel.ExponentialConeT() for _ in range(cones.exponential)]
    out += [clarabel.PowerConeT(alpha) for alpha in cones.power]
    return out


def _proves(problem: Problem, result: Any, status: Status) -> bool:
    """Whether Clarabel's ray is a certificate as `certificates` in solution.py defines it; it lies in its cone.

    Clarabel's own test depends on the size of its iterates, and one large entry of b or q passes it.
    """
    x, s, z = (np.asarray(part, dtype=np.float64) for part in (result.x, result.s, result.z))
    if status == Status.PRIMAL_INFEASIBLE:
        off, ray, slope = [problem.A.T @ z], z, -problem.b @ z
    else:
        Px = problem.P @ x + problem.P.T @ x - problem.P.diagonal() * x
        off, ray, slope = [Px, problem.A @ x + s], x, -problem.q @ x
    largest = max(float(np.abs(part).max(initial=0.0)) for part in off)
    return largest < CERTIFICATE_TOLERANCE * min(float(np.abs(ray).max(initial=0.0)), float(slope))


class ClarabelPlan(PerProblemPlan):
    """Settings and cones, made once."""

    @cached_property
    def _module(self) -> Any:
        return load_package("clarabel")

    def _settings(self) -> Any:
        settings = self._module.DefaultSettings()
        settings.verbose = False
        # One problem is one thread's work; the batch is what runs in parallel.
        settings.max_threads = 1
        for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas"):
            setattr(settings, name, self.engine.tolerance)
        if self.engine.max_iterations is not None:
            settings.max_iter = self.engine.max_iterations
        for name, value in self.engine.options.items():
            if not hasattr(settings, name):
                raise ArgumentError(f"options: Clarabel has no setting {name!r}.")
            setattr(settings, name, value)
        return settings

    def solve_one(self, problem: Problem) -> Outcome:
        """Solve one element with a solver object of its own, so that no element depends on another."""
        settings = self._settings()
        result, status = self._run_solver(problem, settings)
        if status in (Status.NUMERICAL_ERROR, Status.INACCURATE):
            # A heavier regularization costs iterations and rescues most of the factorizations that broke down.
            settings.static_regularization_constant = RESCUE_REGULARIZATION
            again, rescued = self._run_solver(problem, settings)
            result, status = (again, rescued) if rescued == Status.SOLVED else (result, status)
        for _ in range(DOUBTS):
            if status not in CERTIFIED or _proves(problem, result, status):
                break
            settings.tol_infeas_rel *= DOUBTED
            result, status = self._run_solver(problem, settings)
        if status in CERTIFIED and _proves(problem, result, status):
            return failure(self.program.structure, status, result.iterations)
        x, s, z = (np.asarray(part, dtype=np.float64) for part in (result.x, result.s, result.z))
        status = Status.NUMERICAL_ERROR if status in CERTIFIED else status
        return Outcome(x, s, z, status, result.iterations)

    def _run_solver(self, problem: Problem, settings: Any) -> tuple[Any, Status]:
        cones = translate_cones(self._module, self.program.structure.cones)
        result = self._module.DefaultSolver(problem.P, problem.q, problem.A, problem.b, cones, settings).solve()
        return result, STATUS.get(str(result.status), Status.NUMERICAL_ERROR)

    def __getstate__(self) -> dict[str, object]:
        # The module is loaded again where the plan is unpickled.
        return {name: value for name, value in self.__dict__.items() if name != "_module"}


@dataclass(frozen=True)
class Clarabel(Engine):
    """Solve with Clarabel, one problem at a time; `options` are fields of its DefaultSettings."""

    @property
    def name(self) -> str:
        return "clarabel"

    def setup(self, program: ParametrizedConeProgram) -> ClarabelPlan:
        plan = ClarabelPlan(program, self, thread_count(self))
        plan._settings()
        return plan
