"""diffcp (Agrawal et al., "Differentiating through a cone program", 2019): solution and derivative both by diffcp.

A second opinion on derivatives. diffcp differentiates linear objectives only, so a quadratic one becomes, with P = F'F,

    minimize q'x + t    subject to    |F x|^2 <= 2 t,    that is    |(t - 1/2, F x)| <= t + 1/2,

one second-order cone more. Its multipliers belong to t alone: x, s, z of the other rows are those of the original
problem, and so are their cotangents. What remains is the derivative in P. P enters the optimality
conditions only through P x, so dP acts as dq = dP x does:

    grad_P = 1/2 (grad_q x' + x grad_q').
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from convexlayers.derivatives import Cotangents, Exact, Tangents
from convexlayers.derivatives.implicit import lagrangian_gradient
from convexlayers.engines.base import Engine, SolvedElements, load_package
from convexlayers.engines.per_problem import Outcome, PerProblemPlan, Problem, failure, thread_count
from convexlayers.engines.scs import DEFAULT_ITERATIONS, SCS, SCSPlan, cone_dict, row_order
from convexlayers.errors import ArgumentError, ConvexLayersError, UnsupportedProblemError
from convexlayers.program import ConeProgram, ParametrizedConeProgram
from convexlayers.solution import DerivativeReport, Point, Solution
from convexlayers.status import Status

# Eigenvalues of P below this share of the largest are zero.
SMALL_EIGENVALUE = 1e-14


@dataclass(frozen=True)
class Maps:
    """diffcp's linear maps at one solution, in its own order of rows and with the epigraph's column and cone.

    Attributes:
        D: (dA, db, dc) -> (dx, dy, ds).
        DT: (dx, dy, ds) -> (dA, db, dc).
        order: for each of diffcp's rows the library's row, -1 for rows of the epigraph.
        columns: number of diffcp's columns, n or n + 1.
    """

    D: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
    DT: Callable[..., tuple[Any, np.ndarray, np.ndarray]]
    order: np.ndarray
    columns: int


def factor_quadratic(P: sp.csc_array) -> np.ndarray:
    """F with P = F'F from the upper triangle of P, one row per positive eigenvalue, (r, n)."""
    upper = P.toarray()
    values, vectors = np.linalg.eigh(upper + np.triu(upper, 1).T)
    kept = values > SMALL_EIGENVALUE * max(values.max(initial=0.0), 0.0)
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


class DiffCPPlan(PerProblemPlan):
    """Solve with diffcp and keep its derivative maps in the solution.

    The solution is not refined: the derivative maps belong to the point that diffcp found.
    """

    refines = False

    @property
    def is_traceable(self) -> bool:
        return False

    def solve(self, theta: Sequence[Tensor], start: Point | None = None) -> Solution:
        found = super().solve(theta, start)
        states = found.engine_state
        assert isinstance(states, tuple)
        # What SCS found where diffcp gave up is good for a certificate; as a solution it would have no derivative.
        foreign = torch.tensor([state is None for state in states], dtype=torch.bool, device=found.status.device)
        return replace(found, status=torch.where(found.solved & foreign, int(Status.INACCURATE), found.status))

    def states(self, solution: Solution) -> tuple[Tensor, ...]:
        raise ArgumentError(
            "Engine 'diffcp' keeps its derivative in functions, which torch.func's transforms, torch.compile and "
            "second derivatives cannot carry: use another engine for them."
        )

    def solve_one(self, problem: Problem) -> Outcome:
        """Solve one element; what diffcp raises becomes a status."""
        diffcp = load_package("diffcp")
        A, b, c, cones, order = self._translate(problem)
        options = {"mode": "dense", "solve_method": "SCS"} | dict(self.engine.options)
        if options["solve_method"] == "SCS":
            options |= {"eps": self.engine.tolerance, "max_iters": self.engine.max_iterations or DEFAULT_ITERATIONS}
        try:
            x, y, s, D, DT = diffcp.solve_and_derivative(A, b, c, cones, **options)
        except diffcp.SolverError:
            # diffcp keeps neither the point nor the ray. SCS gives both, and they say what the element is.
            outcome = SCSPlan(self.program, SCS(self.engine.tolerance, self.engine.max_iterations), 1).solve_one(
                problem
            )
            solved = outcome.status == Status.SOLVED
            return failure(self.program.structure, Status.NUMERICAL_ERROR) if solved else outcome
        own = order >= 0
        z_own, s_own = np.empty(own.sum()), np.empty(own.sum())
        z_own[order[own]], s_own[order[own]] = y[own], s[own]
        n = self.program.structure.n
        # diffcp does not say how many iterations it took.
        return Outcome(x[:n], s_own, z_own, Status.SOLVED, 0, Maps(D, DT, order, len(c)))

    def _translate(self, problem: Problem) -> tuple[sp.csc_matrix, np.ndarray, np.ndarray, dict[str, Any], np.ndarray]:
        """Data and cones as diffcp wants them, with the quadratic objective as one more second-order cone."""
        cones = self.program.structure.cones
        order, keys = row_order(cones), cone_dict(cones)
        A, b, c = problem.A[order], problem.b[order], problem.q
        F = factor_quadratic(problem.P)
        if len(F):
            n, r = len(c), len(F)
            # Rows of s = b - A (x, t): t + 1/2, t - 1/2, F x.
            column = np.concatenate([[-1.0, -1.0], np.zeros(r)])[:, None]
            cone = np.hstack([np.vstack([np.zeros((2, n)), -F]), column])
            at = cones.zero + cones.nonnegative
            A = sp.vstack([_widen(A[:at]), sp.csr_array(cone), _widen(A[at:])])
            b = np.concatenate([b[:at], [0.5, -0.5], np.zeros(r), b[at:]])
            c = np.append(c, 1.0)
            keys["q"] = [r + 2, *keys["q"]]
            order = np.concatenate([order[:at], np.full(r + 2, -1), order[at:]])
        if len(order) == 0:
            # diffcp wants at least one row; 0'x + s = 1, s >= 0 changes nothing.
            A, b, keys, order = sp.csc_array((1, len(c))), np.ones(1), {"l": 1}, np.full(1, -1)
        kept = {key: value for key, value in keys.items() if value}
        return sp.csc_matrix(A), b, c, kept, order

    def _data_adjoint(self, elements: SolvedElements, cotangents: Cotangents) -> tuple[Tensor, DerivativeReport]:
        """Cotangents of the numbers by diffcp's DT; diffcp reports no residual."""
        if type(self.derivative) is not Exact:
            return super()._data_adjoint(elements, cotangents)
        rows = range(elements.program.batch)
        grad = torch.as_tensor(np.stack([self._adjoint_one(elements, row, cotangents) for row in rows]))
        grad = grad.to(elements.x.device)
        if cotangents.objective is not None:
            value = lagrangian_gradient(elements.program, elements.x, elements.z)
            grad = grad + cotangents.objective.unsqueeze(-1) * value
        return grad, DerivativeReport()

    def _adjoint_one(self, elements: SolvedElements, row: int, cotangents: Cotangents) -> np.ndarray:
        maps = _maps(elements, row)
        structure = self.program.structure
        own = maps.order >= 0
        dx, dy, ds = np.zeros(maps.columns), np.zeros(len(own)), np.zeros(len(own))
        grad_x, grad_s, grad_z = (part[row].cpu().numpy() for part in cotangents.dense(elements.program))
        dx[: structure.n] = grad_x
        dy[own] = grad_z[maps.order[own]]
        ds[own] = grad_s[maps.order[own]]
        # diffcp treats cotangents below 1e-8 as zero; the map is linear, so it is given one of size 1.
        size = max(np.abs(dx).max(initial=0), np.abs(dy).max(initial=0), np.abs(ds).max(initial=0))
        if size == 0:
            return np.zeros(structure.size)
        dA, db, dc = maps.DT(dx / size, dy / size, ds / size)
        grad_A, grad_b = np.zeros((structure.m, structure.n)), np.zeros(structure.m)
        grad_A[maps.order[own]] = dA.toarray()[own][:, : structure.n]
        grad_b[maps.order[own]] = db[own]
        grad_q, x = dc[: structure.n], elements.x[row].cpu().numpy()
        i, j = structure.P_rows, structure.P_cols
        grad_P = np.where(i == j, 0.5, 1.0) * (grad_q[i] * x[j] + x[i] * grad_q[j])
        return size * np.concatenate([grad_P, grad_q, grad_A[structure.A_rows, structure.A_cols], grad_b, [0.0]])

    def _data_tangent(self, elements: SolvedElements, ddata: Tensor) -> tuple[Tangents, DerivativeReport]:
        """Tangents of the solution by diffcp's D."""
        if type(self.derivative) is not Exact:
            return super()._data_tangent(elements, ddata)
        d, x, z = ConeProgram(self.program.structure, ddata), elements.x, elements.z
        dq, dA, db = (part.cpu().numpy() for part in (d.q + d.P_times(x), d.dense_A(), d.b))
        rows = [self._tangent_one(_maps(elements, row), dq[row], dA[row], db[row]) for row in range(len(x))]
        dx, ds, dz = (torch.as_tensor(np.stack(part), device=x.device) for part in zip(*rows, strict=True))
        objective = (x * (0.5 * d.P_times(x) + d.q)).sum(-1) + (z * (d.A_times(x) - d.b)).sum(-1) + d.offset
        return Tangents(dx, ds, dz, objective), DerivativeReport()

    def _tangent_one(
        self, maps: Maps, dq: np.ndarray, dA: np.ndarray, db: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n, own = self.program.structure.n, maps.order >= 0
        full_A, full_b, full_q = np.zeros((len(own), maps.columns)), np.zeros(len(own)), np.zeros(maps.columns)
        full_A[own, :n], full_b[own], full_q[:n] = dA[maps.order[own]], db[maps.order[own]], dq
        size = max(np.abs(full_A).max(initial=0), np.abs(full_b).max(initial=0), np.abs(full_q).max(initial=0))
        scale = size if size > 0 else 1.0
        dx, dy, ds = maps.D(sp.csc_matrix(full_A / scale), full_b / scale, full_q / scale)
        ds_own, dz_own = np.empty(own.sum()), np.empty(own.sum())
        ds_own[maps.order[own]], dz_own[maps.order[own]] = ds[own], dy[own]
        return scale * dx[:n], scale * ds_own, scale * dz_own


def _maps(elements: SolvedElements, row: int) -> Maps:
    maps = elements.states[row]
    if not isinstance(maps, Maps):
        raise ConvexLayersError("diffcp did not solve this element, so it has no derivative of it: use another engine.")
    return maps


def _widen(A: Any) -> sp.csr_array:
    """One more column, of zeros."""
    return sp.csr_array(sp.hstack([A, sp.csc_array((A.shape[0], 1))]))


@dataclass(frozen=True)
class DiffCP(Engine):
    """Solve and differentiate with diffcp; `options` are keyword arguments of its solve_and_derivative.

    In place of `Exact` diffcp's own derivative is used, which is the point of this engine; other strategies are ours.
    """

    @property
    def name(self) -> str:
        return "diffcp"

    def setup(self, program: ParametrizedConeProgram) -> DiffCPPlan:
        load_package("diffcp")
        if program.structure.cones.power:
            raise UnsupportedProblemError("Engine 'diffcp' is not used for power cones: choose 'native' or 'clarabel'.")
        return DiffCPPlan(program, self, thread_count(self))
