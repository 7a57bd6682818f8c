"""An engine on the package moreau, for those who have it and ask for it: `CvxpyLayer(..., solver="MOREAU")`.

One problem at a time, through its numpy interface. Its cones, its order of rows and its signs are the library's own;
of P it wants both triangles. Where PSD rows stand among those of exponential and power cones is not documented, so
programs with both are refused.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import scipy.sparse as sp

from convexlayers.cones import Cones
from convexlayers.engines import Engine
from convexlayers.engines.base import load_package
from convexlayers.engines.clarabel import STATUS
from convexlayers.engines.per_problem import Outcome, PerProblemPlan, Problem, failure
from convexlayers.errors import ArgumentError, UnsupportedProblemError
from convexlayers.program import ParametrizedConeProgram
from convexlayers.status import Status


def is_installed() -> bool:
    """Whether the package is there."""
    return find_spec("moreau") is not None


def translate_cones(moreau: Any, cones: Cones) -> Any:
    """The cones as an object of the package's, in the same order of rows.

    Raises:
        UnsupportedProblemError: the package's order of rows is not known.
    """
    if cones.psd and (cones.exponential or cones.power):
        raise UnsupportedProblemError("Engine 'moreau' takes no PSD cones beside exponential or power cones.")
    if 1 in cones.second_order:
        raise UnsupportedProblemError("Engine 'moreau' takes no second-order cones of one row.")
    return moreau.Cones(
        num_zero_cones=cones.zero,
        num_nonneg_cones=cones.nonnegative,
        so_cone_dims=list(cones.second_order),
        psd_dims=list(cones.psd),
        num_exp_cones=cones.exponential,
        power_alphas=list(cones.power),
    )


class MoreauPlan(PerProblemPlan):
    """Solve with a solver object for each element, in one thread: moreau says nothing of several."""

    def _settings(self, moreau: Any) -> Any:
        tolerance, options = self.engine.tolerance, dict(self.engine.options)
        inner = moreau.IPMSettings(tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance)
        given = {"device": "cpu", "solver": "ipm", "ipm_settings": inner}
        if self.engine.max_iterations is not None:
            given["max_iter"] = self.engine.max_iterations
        try:
            return moreau.Settings(**(given | options))
        except ValueError as error:
            raise ArgumentError(f"options: moreau takes other ones: {error}") from error

    def solve_one(self, problem: Problem) -> Outcome:
        """Solve one element."""
        moreau, structure = load_package("moreau"), self.program.structure
        A, b, cones = problem.A, problem.b, structure.cones
        if len(b) == 0:
            # moreau wants at least one row; 0'x + s = 1, s >= 0 changes nothing.
            A, b, cones = sp.csc_array((1, structure.n)), np.ones(1), Cones(nonnegative=1)
        P = problem.P + sp.triu(problem.P, 1).T
        solver = moreau.Solver(
            sp.csr_array(P), problem.q, sp.csr_array(A), b, translate_cones(moreau, cones), self._settings(moreau)
        )
        found = solver.solve()
        status, iterations = STATUS.get(str(solver.info.status), Status.NUMERICAL_ERROR), int(solver.info.iterations)
        if status in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE):
            return failure(structure, status, iterations)
        x, s, z = (np.asarray(part, dtype=np.float64) for part in (found.x, found.s, found.z))
        return Outcome(x, s[: structure.m], z[: structure.m], status, iterations)


@dataclass(frozen=True)
class Moreau(Engine):
    """Solve with moreau, one problem at a time; `options` are fields of its Settings. The derivative is ours."""

    @property
    def name(self) -> str:
        return "moreau"

    def setup(self, program: ParametrizedConeProgram) -> MoreauPlan:
        moreau, plan = load_package("moreau"), MoreauPlan(program, self, 1)
        translate_cones(moreau, program.structure.cones)
        plan._settings(moreau)
        return plan
