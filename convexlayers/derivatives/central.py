"""The central path: the point that minimizes the objective plus a barrier.

    x_mu = argmin 1/2 x'Px + q'x + mu f(s)   subject to  Ax + s = b

With z = -mu grad f(s) its conditions are those of the cone program but for complementarity,

    P x + A'z + q = 0,    A x + s = b,    s = s(v), z = z(v) = s - v,

where s(v) is the proximal map of mu f (cones/barrier.py), which takes the place of the projection. They are equations
in (x, v), v = s - z, without inequalities: every v gives s and z inside the cones, exactly on the path of mu, and only
the two linear equations remain to be reached. Newton's method on them has the derivative's own matrix (refine.py),
which is regular wherever [P; A] has full column rank and the equalities are independent, so that its direction always
lowers the sum of squares of the residual; halving the step until it does makes the method converge from any start. The
start is the solution itself, on the path of mu = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Spectrum
from convexlayers.derivatives.kkt import chunks
from convexlayers.derivatives.refine import newton_direction
from convexlayers.program import ConeProgram

STEPS = 100
HALVINGS = 25
# Of the decrease that the linearization promises, the share that has to come true.
SUFFICIENT = 1e-4
# Relative residuals: below the first nothing is left to gain, up to the second the point counts as reached.
ROUNDING = 1e-14
REACHED = 1e-9
# Where there is no such point, the residual falls too, along a sequence that runs away: then Newton's steps do not get
# shorter. One longer than this, relative to the point, counts as residual.
SHORT = 1e-3
# Steps without progress after which an element is left where it is.
PATIENCE = 2


@dataclass(frozen=True, eq=False)
class CentralPoint:
    """Points of the central path.

    Attributes:
        x: (B, n). s, z: (B, m), inside K and K*.
        residual: of the two equations, relative, (B,); where Newton's method does not converge, the length of its step.
    """

    x: Tensor
    s: Tensor
    z: Tensor
    residual: Tensor

    @property
    def reached(self) -> Tensor:
        """Which elements are on the path, (B,)."""
        return self.residual <= REACHED


def central_point(program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, weight: Tensor) -> CentralPoint:
    """The points of the central path at mu = weight, (B,), from a start (x, s, z), for instance the solution.

    There is none where the constraints have no interior, or where a set of solutions extends to infinity; what is
    returned there has a large residual, and is finite.
    """
    parts = [_Walk(program.select(i), x[i], s[i] - z[i], weight[i]).run() for i in chunks(program)]
    if not parts:
        return CentralPoint(x, s, z, x.sum(-1))
    return CentralPoint(*(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "s", "z", "residual")))


@dataclass
class _State:
    """Candidate points and what is known of them."""

    x: Tensor
    v: Tensor
    s: Tensor
    z: Tensor
    spectrum: Spectrum
    merit: Tensor
    residual: Tensor


class _Walk:
    """Newton's method for one chunk of the batch; finished elements stay where they are, whatever the others need."""

    def __init__(self, program: ConeProgram, x: Tensor, v: Tensor, weight: Tensor) -> None:
        self.program, self.weight = program, weight
        self.x, self.v = x, v
        self.residual = torch.full_like(weight, float("inf"))
        self.step = torch.zeros_like(weight)

    def run(self) -> CentralPoint:
        """Walk until every element is there or stuck."""
        active = torch.arange(len(self.x), device=self.x.device)
        idle = torch.zeros_like(active)
        for _ in range(STEPS):
            program, weight = self.program.select(active), self.weight[active]
            here = _evaluate(program, self.x[active], self.v[active], weight)
            better = here.residual < 0.5 * self.residual[active]
            self.residual = self.residual.index_copy(0, active, torch.minimum(here.residual, self.residual[active]))
            idle = torch.where(better, torch.zeros_like(idle), idle + 1)
            going = (here.residual > ROUNDING) & ((idle < PATIENCE) | (here.residual > REACHED))
            if not bool(going.any()):
                break
            dx, dv = newton_direction(program, here.x, here.s, here.z, here.spectrum)
            self.step = self.step.index_copy(0, active, _length(here, dx, dv))
            length = _step_length(program, weight, here, dx, dv)
            going = going & (length > 0)
            moved = (going.to(length) * length).unsqueeze(-1)
            self.x = self.x.index_copy(0, active, here.x + moved * dx)
            self.v = self.v.index_copy(0, active, here.v + moved * dv)
            active, idle = active[going], idle[going]
            if len(active) == 0:
                break
        final = _evaluate(self.program, self.x, self.v, self.weight)
        far = (self.step > SHORT).nonzero().squeeze(-1)
        return CentralPoint(final.x, final.s, final.z, self._with_steps(final.residual, far))

    def _with_steps(self, residual: Tensor, far: Tensor) -> Tensor:
        """The residual, or the length of the next step where that is not short; the last one before is known to be."""
        if len(far) == 0:
            return residual
        program = self.program.select(far)
        here = _evaluate(program, self.x[far], self.v[far], self.weight[far])
        step = _length(here, *newton_direction(program, here.x, here.s, here.z, here.spectrum))
        step = torch.where(step > SHORT, step, torch.zeros_like(step))
        return residual.index_copy(0, far, torch.maximum(residual[far], step))


def _evaluate(program: ConeProgram, x: Tensor, v: Tensor, weight: Tensor) -> _State:
    s, z, spectrum = program.structure.cones.smooth(v, weight)
    Px, Atz, Ax = program.P_times(x), program.At_times(z), program.A_times(x)
    dual, primal = Px + Atz + program.q, Ax + s - program.b
    merit = (dual**2).sum(-1) + (primal**2).sum(-1)
    residual = torch.maximum(_relative(dual, Px, Atz, program.q), _relative(primal, Ax, s, program.b))
    return _State(x, v, s, z, spectrum, merit, torch.nan_to_num(residual, nan=float("inf")))


def _length(here: _State, dx: Tensor, dv: Tensor) -> Tensor:
    """Of a step, relative to the point, (B,)."""
    return torch.maximum(_relative(dx, here.x), _relative(dv, here.v))


def _relative(residual: Tensor, *terms: Tensor) -> Tensor:
    if residual.shape[-1] == 0:
        return residual.sum(-1)
    size = sum((term.abs().amax(-1) for term in terms), start=torch.zeros_like(residual[:, 0]))
    return residual.abs().amax(-1) / size.clamp(min=1)


def _step_length(program: ConeProgram, weight: Tensor, here: _State, dx: Tensor, dv: Tensor) -> Tensor:
    """The largest of 1, 1/2, 1/4, ... that lowers the residual by what it promises; 0 where none does, (B,)."""
    length = torch.zeros_like(weight)
    open_elements = torch.arange(len(weight), device=weight.device)
    t = 1.0
    for _ in range(HALVINGS):
        i = open_elements
        there = _evaluate(program.select(i), here.x[i] + t * dx[i], here.v[i] + t * dv[i], weight[i])
        good = there.merit <= (1 - 2 * SUFFICIENT * t) * here.merit[i]
        # Near the end rounding decides; a full step that is not worse is taken.
        good = good | ((there.residual <= here.residual[i]) & (here.residual[i] <= REACHED))
        length = length.index_copy(0, i[good], torch.full_like(weight[i[good]], t))
        open_elements = i[~good]
        if len(open_elements) == 0:
            break
        t *= 0.5
    return length
