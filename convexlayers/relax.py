"""The closest feasible problem, for elements that have no feasible point; zero, nonnegative and second-order cones.

Of all shifts r of the right-hand side that leave a point, the one of least Euclidean norm is taken, and then the
objective is minimized over what it leaves:

    (1)  r* = argmin 1/2 |r|^2            subject to Ax + s = b + r, s in K
    (2)  x* = argmin 1/2 x'Px + q'x       subject to Ax + s = b + r*, s in K.

Bambade, Schramm, Taylor, Carpentier, "Leveraging augmented Lagrangian techniques for differentiating over infeasible
quadratic programs in machine learning" (ICLR 2024), define it for QPs and find it as the limit of a penalty. Here it is
solved as it stands, in two stages without a parameter that would have to be small.

The multiplier of (1) is r* itself: A'r = 0, r in K*, r's = 0 (K* is K, for the zero cone everything). Every point of
(2) has r*'s = r*'(b + r*) - r*'Ax = 0, so its s lies in the face of K orthogonal to r*, and (2) has no interior: its
multipliers are unbounded, which solvers do not like. In the face it does have one, as a rule:

    rows of the zero cone, violated inequalities (r_i > 0), second-order cones with r in the interior:  s = 0
    second-order cones with r on the boundary:    s = tau w, tau >= 0, w = (r_t, -r_u) / |r|
    all others (r = 0):                           as they were.

What says s = 0 is the system A_E x = b_E + r_E, whose rows are dependent (A_E'r_E = 0 with r_E not zero). With
A_E = U S V' of rank k it is replaced by k independent rows:

  - no cone on its boundary: A_E'r_E = 0 makes it the least squares A_E'(A_E x - b_E) = 0, whence
    W A_E x = W b_E with W = S^-2 V'A_E'. Here S^-2 V' is a constant and A_E' is differentiated: an invertible
    combination of the normal equations stays one nearby, as long as the rank does. r* is not needed beyond its signs.
  - else: W A_E x = W (b_E + r_E) with W = S^-1 U' constant, and r*, w differentiated as the solution of (1). For a
    cone on its boundary the rows are (I - ww') A x = (I - ww')(b + r), and w'Ax + tau = w'b, tau >= 0, since w'r = 0.

The rows W A_E are V', so the face costs no conditioning. Both stages are ordinary cone programs and have ordinary
derivatives; the chain rule through them, W and w is torch's. What comes out is held to the conditions of both stages
by measurement: those of (2) by its solver's plan, A'r = 0, r in K*, r's = 0 with r = Ax + s - b here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlayers.assembly import dense_cone_program
from convexlayers.autograd import differentiable_solve
from convexlayers.batching import Batch
from convexlayers.cones import Cones
from convexlayers.engines import Engine
from convexlayers.errors import ArgumentError, UnsupportedProblemError
from convexlayers.program import ConeProgram, ParametrizedConeProgram
from convexlayers.solution import SMALLEST_TOLERANCE, TOLERANCE_FACTOR, Residuals, Solution, put
from convexlayers.status import Status

CLOSEST_FEASIBLE = "closest_feasible"
# Shifts below this share of the largest are none.
SMALL_SHIFT = 1e-7
# Singular values of A_E below this share of the largest are zero.
SMALL_SINGULAR_VALUE = 1e-10
# Sums that are smaller than this share of their terms are zero.
ROUNDING = 1e-14


def check_relax(relax: str | None, engine: Engine, program: ParametrizedConeProgram) -> Engine | None:
    """The engine to relax with; None if that was not asked for.

    Raises:
        ArgumentError: `relax` is neither None nor "closest_feasible".
        UnsupportedProblemError: the program has other cones than zero, nonnegative and second-order ones.
    """
    if relax is None:
        return None
    if relax != CLOSEST_FEASIBLE:
        raise ArgumentError(f"relax is {relax!r}, expected None or {CLOSEST_FEASIBLE!r}.")
    cones = program.structure.cones
    if cones.psd or cones.exponential or cones.power:
        raise UnsupportedProblemError(
            f"relax={CLOSEST_FEASIBLE!r} has zero, nonnegative and second-order cones; this program has "
            f"{cones.describe()}. Add slacks with a penalty to the constraints that may be violated."
        )
    return engine


@dataclass(frozen=True)
class Relaxed:
    """Closest feasible problems of some elements, solved.

    Attributes:
        x: (R, n). s, z: (R, m). objective: (R,). Differentiable, NaN where a stage failed.
        status: of the stage that failed, or of the second one, (R,).
        iterations: of both stages, (R,).
        residuals: of both stages.
        violation: |r|, (R,), detached.
    """

    x: Tensor
    s: Tensor
    z: Tensor
    objective: Tensor
    status: Tensor
    iterations: Tensor
    residuals: Residuals
    violation: Tensor

    def merge(self, solution: Solution, indices: Tensor) -> Solution:
        """The solution of the whole batch with these elements in their places."""
        names = ("x", "s", "z", "objective", "status", "iterations")
        merged = solution.put(indices, self.residuals, **{name: getattr(self, name) for name in names})
        solved = self.status == int(Status.SOLVED)
        return replace(
            merged,
            relaxed=put(torch.zeros_like(solution.solved), indices, solved),
            violation=put(torch.zeros_like(solution.objective), indices, self.violation),
        )


@dataclass(frozen=True)
class Face:
    """Which face of the cone the slacks of (2) lie in, for elements that share it.

    Attributes:
        cones: of the program.
        violated: per nonnegative row.
        kinds: per second-order cone, one of the following.
    """

    cones: Cones
    violated: tuple[bool, ...]
    kinds: tuple[str, ...]

    @property
    def is_flat(self) -> bool:
        """Whether no second-order cone is on its boundary: the face does not turn with the data."""
        return BOUNDARY not in self.kinds

    def blocks(self, kind: str) -> list[slice]:
        """Rows of the second-order cones of a kind."""
        row, found = self.cones.zero + self.cones.nonnegative, []
        for size, own in zip(self.cones.second_order, self.kinds, strict=True):
            if own == kind:
                found.append(slice(row, row + size))
            row += size
        return found

    def equal(self) -> list[int]:
        """Rows with s = 0."""
        rows = [*range(self.cones.zero)]
        rows += [self.cones.zero + i for i, violated in enumerate(self.violated) if violated]
        return rows + [row for block in self.blocks(INTERIOR) for row in range(block.start, block.stop)]

    def free(self) -> list[int]:
        """Inequality rows that are not violated."""
        return [self.cones.zero + i for i, violated in enumerate(self.violated) if not violated]


# Where r is in a second-order cone.
ZERO, BOUNDARY, INTERIOR = "zero", "boundary", "interior"


def closest_feasible(engine: Engine, program: ParametrizedConeProgram, theta: Sequence[Tensor], count: int) -> Relaxed:
    """Relax and solve elements.

    Args:
        engine: for both stages.
        program: zero, nonnegative and second-order cones.
        theta: blocks (R or 1, k_i), float64, differentiable.
        count: R.
    """
    numbers = ConeProgram(program.structure, program.map.apply(theta).expand(count, -1))
    A, b = numbers.dense_A(), numbers.b
    P = numbers.dense_P() if len(program.structure.P_rows) else None
    first, shift = _least_shift(engine, program.structure.cones, A, b)
    x, s, z = (torch.zeros_like(part) for part in (numbers.q, b, b))
    # A failed first stage is all there is to say of an element.
    status, iterations = first.status.clone(), first.iterations.clone()
    residuals = first.residuals
    reduced = [
        (i, _reduce(_face(program.structure.cones, first.s[i], shift[i].detach()), A[i], b[i], shift[i]))
        for i in first.solved.nonzero().squeeze(-1).tolist()
    ]
    for cones in dict.fromkeys(part.cones for _, part in reduced):
        members = [(i, part) for i, part in reduced if part.cones == cones]
        i = torch.tensor([i for i, _ in members], device=b.device)
        point, second = _solve_in_faces(engine, cones, None if P is None else P[i], numbers.q[i], members)
        x, s, z = (old.index_copy(0, i, new) for old, new in zip((x, s, z), point, strict=True))
        status[i], iterations[i] = second.status, iterations[i] + second.iterations
        residuals = residuals.put(i, second.residuals)
    return _judge(engine, numbers, A, (x, s, z), status, iterations, residuals)


def _least_shift(engine: Engine, cones: Cones, A: Tensor, b: Tensor) -> tuple[Solution, Tensor]:
    """Stage (1) in the variables (x, r): the solution, and r, (R, m)."""
    (count, m, n), options = A.shape, {"dtype": A.dtype, "device": A.device}
    P = torch.diag(torch.cat([torch.zeros(n, **options), torch.ones(m, **options)]))
    wide = torch.cat([A, -torch.eye(m, **options).expand(count, m, m)], dim=-1)
    (x, _, _), found = _solve(engine, cones, P, torch.zeros(n + m, **options), wide, b)
    return found, x[:, n:]


def _solve(
    engine: Engine, cones: Cones, P: Tensor | None, q: Tensor, A: Tensor, b: Tensor
) -> tuple[tuple[Tensor, ...], Solution]:
    """An ordinary cone program with dense data, differentiable; the batch is that of A."""
    program = dense_cone_program(A.shape[-1], P is not None, cones)
    values = [q] if P is None else [P, q]
    if cones.rows:
        values += [A, b]
    batch = Batch((len(A),), torch.float64, A.device, (torch.float64,) * len(values))
    return differentiable_solve(engine.setup(program), values, batch, with_objective=False)


def _face(cones: Cones, s: Tensor, r: Tensor) -> Face:
    """The face of one element, from its slack and its shift, (m,)."""
    small = SMALL_SHIFT * float(r.abs().amax())
    start = cones.zero + cones.nonnegative
    rows = slice(cones.zero, start)
    violated = tuple(((r[rows] > small) & (r[rows] > s[rows])).tolist())
    return Face(cones, violated, tuple(_kind(part, small) for part in r[start:].split(list(cones.second_order))))


def _kind(r: Tensor, small: float) -> str:
    """Where a shift is in its second-order cone."""
    height, radius = float(r[0]), float(r[1:].norm())
    if height <= small:
        return ZERO
    return INTERIOR if height - radius > SMALL_SHIFT * height else BOUNDARY


@dataclass(frozen=True)
class Reduced:
    """Stage (2) of one element in its face: R A x + s' = R (b + r), s' in `cones`; s = R's', z = R'z'. Differentiable.

    Attributes:
        cones: of the m' reduced rows.
        R: (m', m).
        A: R A, (m', n).
        right: R (b + r), (m',).
    """

    cones: Cones
    R: Tensor
    A: Tensor
    right: Tensor


def _reduce(face: Face, A: Tensor, b: Tensor, r: Tensor) -> Reduced:
    """The rows of one element in its face; A (m, n), b and r (m,)."""
    identity = torch.eye(len(b), dtype=b.dtype, device=b.device)
    equal, free, kept = [identity[face.equal()]], [identity[face.free()]], face.blocks(ZERO)
    for block in face.blocks(BOUNDARY):
        part = r[block]
        w = torch.cat([part[:1], -part[1:]]) / part.norm()
        equal.append(identity[block] - torch.outer(w, w @ identity[block]))
        free.append((w @ identity[block]).unsqueeze(0))
    D, inequalities = torch.cat(equal), torch.cat(free)
    A_E = D @ A
    U, S, Vt = torch.linalg.svd(A_E.detach(), full_matrices=False)
    k = int((S / S[0] > SMALL_SINGULAR_VALUE).sum()) if len(S) else 0
    U, S, Vt = U[:, :k], S[:k].unsqueeze(-1), Vt[:k]
    flat = face.is_flat
    equalities = (Vt / S**2) @ A_E.T @ D if flat else (U.T / S) @ D
    R = torch.cat([equalities, inequalities, *(identity[block] for block in kept)])
    sizes = tuple(block.stop - block.start for block in kept)
    cones = Cones(zero=k, nonnegative=len(inequalities), second_order=sizes)
    # In exact arithmetic r does nothing to the other rows, and nothing at all where the face is flat.
    right = torch.cat([_product(equalities, b if flat else b + r), R[k:] @ b])
    return Reduced(cones, R, torch.cat([_product(equalities, A), R[k:] @ A]), right)


def _product(W: Tensor, v: Tensor) -> Tensor:
    """W v with zeros for what is rounding: units are found from the sizes of nonzero numbers. Its derivative stays."""
    product = W @ v
    rounding = product.detach().abs() <= ROUNDING * (W.abs() @ v.abs()).detach()
    return product - torch.where(rounding, product.detach(), 0.0)


def _solve_in_faces(
    engine: Engine, cones: Cones, P: Tensor | None, q: Tensor, members: list[tuple[int, Reduced]]
) -> tuple[tuple[Tensor, Tensor, Tensor], Solution]:
    """Stage (2) of elements whose faces have the same cones: (x, s, z) of the program, and what the solver found."""
    rows, right = (torch.stack([getattr(part, name) for _, part in members]) for name in ("A", "right"))
    (x, s, z), found = _solve(engine, cones, P, q, rows, right)
    # NaN would travel backwards through what is made of it here, zeros do not; `_judge` puts it back.
    x, s, z = (part.masked_fill(~found.solved.unsqueeze(-1), 0.0) for part in (x, s, z))
    # Element by element: how a batched product rounds depends on the batch.
    s, z = (
        torch.stack([part.R.T @ own for (_, part), own in zip(members, vectors, strict=True)]) for vectors in (s, z)
    )
    return (x, s, z), found


def _judge(
    engine: Engine, numbers: ConeProgram, A: Tensor, point: tuple[Tensor, Tensor, Tensor], status: Tensor,
    iterations: Tensor, residuals: Residuals,
) -> Relaxed:  # fmt: skip
    """Hold the points to the conditions of stage (1), relative to the size of the terms."""
    x, s, z = point
    with torch.no_grad():
        b, cones = numbers.b, numbers.structure.cones
        r = numbers.A_times(x) + s - b
        size = r.abs() + s.abs() + b.abs()
        stationary = numbers.At_times(r).abs().amax(-1) / (A.abs() * size.unsqueeze(-1)).sum(1).amax(-1)
        complementary = (r - cones.project_dual(r - s)).abs().amax(-1) / size.amax(-1)
        # A is zero where no x changes anything.
        primal = torch.maximum(torch.where((A == 0).all(-1).all(-1), 0.0, stationary), complementary)
        solved = status == int(Status.SOLVED)
        primal = torch.where(solved, torch.maximum(primal, residuals.primal), residuals.primal)
        limit = TOLERANCE_FACTOR * max(engine.tolerance, SMALLEST_TOLERANCE)
        status = torch.where(solved & ~(primal <= limit), int(Status.INACCURATE), status)
    failed, parts = status != int(Status.SOLVED), (x, s, z, numbers.objective(x))
    x, s, z, objective = (part.masked_fill(failed.reshape(-1, *[1] * (part.ndim - 1)), float("nan")) for part in parts)
    violation = r.norm(dim=-1).masked_fill(failed, 0.0)
    return Relaxed(x, s, z, objective, status, iterations, replace(residuals, primal=primal), violation)
