"""The face of `diffcp.cone_program`: cone programs and their derivatives, numpy and scipy in and out.

    minimize    1/2 x'Px + c'x            dual:  y in K*,  Px + A'y + c = 0
    subject to  Ax + s = b,  s in K

with rows and cones as SCS has them (`convexlayers.compat.conic`).

What differs: P is taken in every mode, with its derivative (`return_dP=True`). "lsqr", "lsmr" and "dense" are the one
exact derivative. The modes of LPGD are `Perturbed`, whose tau and rho are relative to the problem's numbers.
`solve_method` does not choose a solver. An inaccurate solution is a `SolverError` and not a warning. A is not
written to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexlayers.assembly import cone_program
from convexlayers.compat.conic import Program, Vector, read_program
from convexlayers.compat.settings import EXACT_MODES, Settings, read_mode, read_settings
from convexlayers.cones import Cones
from convexlayers.derivatives import Cotangents
from convexlayers.engines import make_engine
from convexlayers.engines.base import Plan
from convexlayers.errors import ArgumentError, SolverError
from convexlayers.solution import Solution
from convexlayers.sparse import Pattern
from convexlayers.status import raise_for_status

__all__ = [
    "SolverError",
    "solve_and_derivative",
    "solve_and_derivative_batch",
    "solve_only",
    "solve_only_batch",
]

METHODS = ("SCS", "ECOS", "CLARABEL")

Point = tuple[Vector, Vector, Vector]


@dataclass(frozen=True, eq=False)
class Solved:
    """Programs of one structure, solved as one batch.

    Attributes:
        programs: the elements.
        plan: who solved them. theta: from which blocks (B, k).
        solution: of all.
    """

    programs: Sequence[Program]
    plan: Plan
    theta: list[Tensor]
    solution: Solution

    def point(self, i: int) -> Point:
        """x, y, s of one element in the user's rows."""
        translation, solution = self.programs[i].translation, self.solution
        x, z, s = (part[i].numpy().copy() for part in (solution.x, solution.z, solution.s))
        if not bool(solution.solved[i]):
            x, z, s = (np.full_like(part, np.nan) for part in (x, z, s))
        return x, translation.user_dual(z), translation.user_slack(s)

    def tangents(self, rows: Sequence[Sequence[Vector]], plan: Plan) -> list[Point]:
        """dx, dy, ds of every element from tangents of its theta."""
        dtheta = [torch.as_tensor(np.stack(parts)) for parts in zip(*rows, strict=True)]
        found = plan.tangent(self.theta, self.solution, dtheta)
        return [
            (dx.numpy(), program.translation.user_dual(dz.numpy()), program.translation.user_slack(ds.numpy()))
            for program, dx, dz, ds in zip(self.programs, found.dx, found.dz, found.ds, strict=True)
        ]

    def adjoints(self, rows: Sequence[Point], plan: Plan) -> list[tuple[Any, ...]]:
        """dA, db, dc, dP of every element from cotangents of its x, y, s."""
        parts: list[list[Vector]] = [[], [], []]
        for program, (dx, dy, ds) in zip(self.programs, rows, strict=True):
            translation = program.translation
            dx, dy, ds = (np.asarray(part, dtype=float) for part in (dx, dy, ds))
            mapped = (dx, translation.dual(ds), translation.slack(dy))
            for part, value in zip(parts, mapped, strict=True):
                part.append(value)
        x, s, z = (torch.as_tensor(np.stack(part)) for part in parts)
        found = plan.adjoint(self.theta, self.solution, Cotangents(x, s, z), [True] * len(self.theta))
        grads = [part.numpy() for part in found if part is not None]
        return [program.cotangents([grad[i] for grad in grads]) for i, program in enumerate(self.programs)]


def solve_programs(programs: Sequence[Program], starts: Sequence[Point | None], settings: Settings) -> Solved:
    """Solve programs of one structure.

    Args:
        programs: with equal keys.
        starts: x, y, s to begin at, or None, for each.
        settings: of the solver.
    """
    first = programs[0]
    plan = _plan(settings, len(first.values[-3]), first.translation.cones, first.P_pattern, first.A_pattern)
    rows = [program.theta(program.values) for program in programs]
    theta = [torch.as_tensor(np.stack(parts)) for parts in zip(*rows, strict=True)]
    start = _start(programs, starts)
    return Solved(programs, plan, theta, plan.answer(theta) if start is None else plan.answer(theta, start))


# Loops solve programs of one structure again and again.
@lru_cache(maxsize=16)
def _plan(settings: Settings, n: int, cones: Cones, P: Pattern | None, A: Pattern) -> Plan:
    return settings.apply(make_engine()).setup(cone_program(n, P is not None, cones, P, A))


def _start(programs: Sequence[Program], starts: Sequence[Point | None]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Points of the plan, NaN for elements without one."""
    if all(start is None for start in starts):
        return None
    points = []
    for program, start in zip(programs, starts, strict=True):
        translation, rows = program.translation, program.translation.cones.rows
        if start is None:
            points.append(tuple(np.full(size, np.nan) for size in (len(program.values[-3]), rows, rows)))
            continue
        x, y, s = (np.asarray(part, dtype=float) for part in start)
        points.append((x, translation.slack(s), translation.dual(y)))
    x, s, z = (torch.as_tensor(np.stack(part)) for part in zip(*points, strict=True))
    return x, s, z


@dataclass(frozen=True, eq=False)
class Batch:
    """Programs of any structures: those of one structure are solved, and differentiated, together.

    Attributes:
        groups: the solved programs of each structure. where: the indices of their elements in the batch.
        mode: of the derivative. options: of the modes of LPGD.
    """

    groups: Sequence[Solved]
    where: Sequence[Sequence[int]]
    mode: str
    options: Mapping[str, Any]

    def points(self) -> list[Point]:
        """x, y, s of every element."""
        return self._each(lambda group, where: [group.point(i) for i in range(len(where))])

    def derivative(
        self,
        dAs: Sequence[Any],
        dbs: Sequence[Vector],
        dcs: Sequence[Vector],
        dPs: Sequence[Any] | None = None,
        **options: Any,
    ) -> tuple[list[Vector], ...]:
        """dxs, dys, dss from tangents of the data; dAs and dPs are sparse, without entries outside the patterns."""
        given = [None] * len(dAs) if dPs is None else dPs

        def tangents(group: Solved, where: Sequence[int]) -> list[Point]:
            rows = [
                program.tangents(dAs[i], dbs[i], dcs[i], given[i])
                for program, i in zip(group.programs, where, strict=True)
            ]
            return group.tangents(rows, self._plan(group, options))

        return _columns(self._each(tangents))

    def adjoint(
        self,
        dxs: Sequence[Vector],
        dys: Sequence[Vector],
        dss: Sequence[Vector],
        return_dP: bool = False,
        **options: Any,
    ) -> tuple[list[Any], ...]:
        """dAs, dbs, dcs, and dPs if asked for, from cotangents of the solutions."""

        def adjoints(group: Solved, where: Sequence[int]) -> list[tuple[Any, ...]]:
            return group.adjoints([(dxs[i], dys[i], dss[i]) for i in where], self._plan(group, options))

        found = _columns(self._each(adjoints))
        return found if return_dP else found[:3]

    def _plan(self, group: Solved, options: Mapping[str, Any]) -> Plan:
        """The group's plan, or one with other options of LPGD."""
        if self.mode in EXACT_MODES or not options:
            return group.plan
        derivative = read_mode(self.mode, {**self.options, **options})
        engine = Settings(derivative=derivative).apply(group.plan.resolving_engine)
        return engine.setup(group.plan.program)

    def _each(self, work: Callable[[Solved, Sequence[int]], Sequence[Any]]) -> list[Any]:
        """What `work` finds for the elements of every group, in the order of the batch."""
        found: dict[int, Any] = {}
        for group, where in zip(self.groups, self.where, strict=True):
            found |= dict(zip(where, work(group, where), strict=True))
        return [found[i] for i in range(len(found))]

    def maps(self) -> tuple[Callable[..., tuple[Any, ...]], Callable[..., tuple[Any, ...]]]:
        """D and DT of a batch of one element."""

        def derivative(dA: Any, db: Vector, dc: Vector, dP: Any = None, **options: Any) -> tuple[Vector, ...]:
            """dx, dy, ds."""
            return tuple(part[0] for part in self.derivative([dA], [db], [dc], [dP], **options))

        def adjoint_derivative(
            dx: Vector, dy: Vector, ds: Vector, return_dP: bool = False, **options: Any
        ) -> tuple[Any, ...]:
            """dA, db, dc, and dP if asked for."""
            return tuple(part[0] for part in self.adjoint([dx], [dy], [ds], return_dP, **options))

        return derivative, adjoint_derivative


def _columns(rows: Sequence[Sequence[Any]]) -> tuple[list[Any], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def solve_batch(
    As: Sequence[Any], bs: Sequence[Vector], cs: Sequence[Vector], cone_dicts: Sequence[Mapping[str, Any]],
    Ps: Sequence[Any] | None, warm_starts: Sequence[Point | None] | None, mode: str, given: Mapping[str, Any],
) -> Batch:  # fmt: skip
    """Solve a batch of programs; arguments as in `solve_and_derivative_batch`, `given` holding the keyword arguments.

    Raises:
        ArgumentError: an argument is wrong; lists of different lengths too.
        SolverError: an element was not solved, unless raise_on_error is False.
    """
    options = {name: value for name, value in given.items() if name != "raise_on_error"}
    method = options.pop("solve_method", None)
    if method is not None and str(method).upper() not in METHODS:
        raise ArgumentError(f"solve_method is {method!r}, expected one of {', '.join(map(repr, METHODS))}.")
    settings = read_settings({**options, "mode": mode})
    settings.warn(stacklevel=4)
    count = len(As)
    lists = {"bs": bs, "cs": cs, "cone_dicts": cone_dicts}
    lists["Ps"] = Ps = [None] * count if Ps is None else Ps
    lists["warm_starts"] = starts = [None] * count if warm_starts is None else warm_starts
    for name, values in lists.items():
        if len(values) != count:
            raise ArgumentError(f"{name} has {len(values)} entries, expected {count} as As has.")
    programs = [read_program(*data) for data in zip(As, bs, cs, cone_dicts, Ps, strict=True)]
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, program in enumerate(programs):
        groups.setdefault(program.key, []).append(i)
    where = list(groups.values())
    solved = [solve_programs([programs[i] for i in part], [starts[i] for i in part], settings) for part in where]
    if given.get("raise_on_error", True) and count:
        status = torch.empty(count, dtype=torch.int64)
        for part, group in zip(where, solved, strict=True):
            status[part] = group.solution.status
        raise_for_status(status)
    return Batch(solved, where, mode, options.get("derivative_kwargs") or {})


def solve_and_derivative_batch(
    As: Sequence[Any], bs: Sequence[Vector], cs: Sequence[Vector], cone_dicts: Sequence[Mapping[str, Any]],
    n_jobs_forward: int = -1, n_jobs_backward: int = -1, mode: str = "lsqr",  # noqa: ARG001
    warm_starts: Sequence[Point | None] | None = None, Ps: Sequence[Any] | None = None, **kwargs: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Solve a batch of cone programs; those of one structure are solved together.

    Args:
        As, bs, cs, cone_dicts, warm_starts, Ps: lists of the arguments of `solve_and_derivative`.
        n_jobs_forward, n_jobs_backward: accepted; the number of threads is torch's.
        mode, **kwargs: as in `solve_and_derivative`.

    Returns:
        xs, ys, ss, and D_batch(dAs, dbs, dcs, dPs=None) -> dxs, dys, dss and DT_batch(dxs, dys, dss, return_dP=False)
        -> dAs, dbs, dcs (and dPs).

    Raises:
        ArgumentError, SolverError: as in `solve_and_derivative`.
    """
    batch = solve_batch(As, bs, cs, cone_dicts, Ps, warm_starts, mode, kwargs)
    xs, ys, ss = _columns(batch.points()) if len(As) else ([], [], [])
    return xs, ys, ss, batch.derivative, batch.adjoint


def solve_and_derivative(
    A: Any, b: Vector, c: Vector, cone_dict: Mapping[str, Any], warm_start: Point | None = None, mode: str = "lsqr",
    solve_method: str | None = "SCS", P: Any = None, **kwargs: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Solve a cone program, with its derivative as a pair of linear maps.

    Args:
        A: (m, n), sparse matrix of scipy. b: (m,). c: (n,).
        cone_dict: sizes under SCS's keys "z" (or "f"), "l", "q", "s", "ep", "ed", "p", in this order of rows; a
            negative exponent under "p" is a dual power cone.
        warm_start: x, y, s to begin at.
        mode: "lsqr", "lsmr", "dense", or "lpgd", "lpgd_right", "lpgd_left"; see the module.
        solve_method: accepted; see the module.
        P: (n, n), sparse, symmetric or its upper triangle; None for zero.
        **kwargs: settings of a solver: accuracies and limits are heeded, others named in a warning.
            raise_on_error=False returns NaN where there is no solution. derivative_kwargs: tau and rho of LPGD.

    Returns:
        x (n,), y (m,), s (m,), D(dA, db, dc, dP=None) -> dx, dy, ds and DT(dx, dy, ds, return_dP=False) -> dA, db, dc
        (and dP); dA and dP have the patterns of A and P, where they are zero elsewhere.

    Raises:
        ArgumentError: an argument is wrong.
        SolverError: the program was not solved.

    Examples:
        >>> import numpy as np, scipy.sparse as sp
        >>> A = sp.csc_matrix([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> b, c = np.array([1.0, 0.0, 0.0]), np.array([1.0, 2.0])
        >>> x, y, s, D, DT = solve_and_derivative(A, b, c, {"z": 1, "l": 2})
        >>> [abs(round(float(entry), 6)) for entry in x]
        [1.0, 0.0]
    """
    options = {"solve_method": solve_method, **kwargs}
    batch = solve_batch([A], [b], [c], [cone_dict], [P], [warm_start], mode, options)
    return *batch.points()[0], *batch.maps()


def solve_only_batch(
    As: Sequence[Any], bs: Sequence[Vector], cs: Sequence[Vector], cone_dicts: Sequence[Mapping[str, Any]],
    n_jobs_forward: int = -1, warm_starts: Sequence[Point | None] | None = None, Ps: Sequence[Any] | None = None,  # noqa: ARG001
    **kwargs: Any,
) -> tuple[list[Vector], list[Vector], list[Vector]]:  # fmt: skip
    """xs, ys, ss. Arguments as in `solve_and_derivative_batch`."""
    batch = solve_batch(As, bs, cs, cone_dicts, Ps, warm_starts, "lsqr", kwargs)
    xs, ys, ss = _columns(batch.points()) if len(As) else ([], [], [])
    return xs, ys, ss


def solve_only(
    A: Any, b: Vector, c: Vector, cone_dict: Mapping[str, Any], warm_start: Point | None = None,
    solve_method: str | None = "SCS", P: Any = None, **kwargs: Any,
) -> Point:  # fmt: skip
    """x, y, s. Arguments as in `solve_and_derivative`."""
    options = {"solve_method": solve_method, **kwargs}
    return solve_batch([A], [b], [c], [cone_dict], [P], [warm_start], "lsqr", options).points()[0]
