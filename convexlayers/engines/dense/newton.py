"""Polishing: once the residuals are small, Newton steps on the conditions in (x, v), s = Proj_K(v), z = s - v,

    P dx + A'dz = -r_x,   A dx + ds = -r_z,   ds = M dv,  dz = -(I - M) dv,   M = D Proj_K(v)

(Busseti, Moursi, Boyd, "Solution refinement at regular points of conic problems", 2019), with the same linear system as
an interior-point step. With only zero and nonnegative cones one step solves the active set to machine precision. An
element whose residual does not fall to rounding goes back to where it was and iterates on.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlayers.engines.dense.condensed import Condensed
from convexlayers.engines.dense.elements import Elements
from convexlayers.engines.dense.interior import POLISH_FACTOR, READY, RUNNING, Limits, State
from convexlayers.engines.dense.measures import Measures, Products, measure
from convexlayers.engines.dense.units import Scaled
from convexlayers.status import Status

REFINEMENT_STEPS = 4
# Relative residual of a step, a thousand roundings: of residuals of at most 1e-3, with which polishing begins, it
# leaves less than one.
ENOUGH = 2.0**-42
# What polishing has to reach, relative, or what counts as reached after all its steps.
POLISHED, NEARLY = 1e-12, 1e-3
# Relative residuals of a step's linear system and of the point, one of which has to be reached from a point of which
# nothing is known: nearly dependent rows leave small residuals far from the solution.
SOUND, ROUNDED = 1e-9, 1e-13
# A first try; the last one, of an element that is already within the tolerance, gets more.
STEPS, LAST_STEPS = 3, 6


@dataclass(frozen=True, eq=False)
class _Walk(Elements):
    """Points (x, v) of a batch, what they leave of the equations' rows, and the best that each has seen.

    sound: whether the linear system that led to the best one was solved.
    """

    x: Tensor
    v: Tensor
    rx: Tensor
    rz: Tensor
    best_x: Tensor
    best_v: Tensor
    residual: Tensor
    sound: Tensor
    steps: Tensor


def polish(numbers: Scaled, state: State, limits: Limits, is_near: bool = True) -> tuple[State, Condensed | None]:
    """Polish the READY elements: they become SOLVED, or go back to RUNNING.

    is_near: whether iterations led to where they are.

    Returns:
        The state, and the system of the last step if that was one of the whole batch.
    """
    at = (state.code == READY).nonzero().squeeze(-1)
    if len(at) == 0:
        return state, None
    part, kept = numbers.keep(at), _normalized(state.select(at))
    walk, system = _walk(part, kept, limits)
    s = numbers.cones.project(walk.best_v)
    good = walk.residual <= min(POLISHED, limits.tolerance)
    good = good | (walk.residual <= torch.clamp(0.1 * kept.residual, max=NEARLY * limits.tolerance))
    good = good if is_near else good & walk.sound
    # What is within the tolerance stays the answer where nothing better was found.
    within = kept.residual <= limits.tolerance
    better = good | (within & (walk.residual < kept.residual))
    code = torch.where(good | within, int(Status.SOLVED), RUNNING)
    out_of_time = kept.iterations + walk.steps >= limits.max_iterations
    code = torch.where((code == RUNNING) & out_of_time, int(Status.MAX_ITERATIONS), code)
    rows = better.unsqueeze(-1)
    done = replace(
        kept,
        x=torch.where(rows, walk.best_x, kept.x),
        s=torch.where(rows, s, kept.s),
        z=torch.where(rows, s - walk.best_v, kept.z),
        code=code,
        iterations=kept.iterations + walk.steps,
        polish_at=torch.minimum(kept.polish_at, kept.residual) * POLISH_FACTOR,
        residual=torch.where(better, walk.residual, kept.residual),
    )
    return state.put(at, done), system if len(at) == len(state.code) else None


def _normalized(state: State) -> State:
    """With tau = 1."""
    tau = state.tau.unsqueeze(-1)
    return replace(
        state,
        x=state.x / tau,
        s=state.s / tau,
        z=state.z / tau,
        tau=state.tau / state.tau,
        kappa=state.kappa / state.tau,
    )


def _walk(numbers: Scaled, kept: State, limits: Limits) -> tuple[_Walk, Condensed | None]:
    """Newton's method from the kept iterates; and the system of the last step if that was one of them all."""
    infinite = torch.full_like(kept.residual, float("inf"))
    start = kept.s - kept.z
    found = _measured(numbers, kept.x, start)
    count = torch.zeros_like(kept.iterations)
    walk = _Walk(kept.x, start, found.rx, found.rz, kept.x, start, infinite, count > 0, count)
    allowed = torch.where(kept.residual <= limits.tolerance, LAST_STEPS, STEPS)
    at, system = torch.arange(len(start), device=start.device), None
    for _ in range(LAST_STEPS):
        step, system = _newton_step(numbers, walk.select(at))
        walk = walk.put(at, step)
        # Finished elements stay where they are, whatever their neighbours need.
        open_ = (step.residual > min(POLISHED, limits.tolerance)) & (step.steps < allowed[at])
        open_ = open_ & step.v.isfinite().all(-1) & step.x.isfinite().all(-1)
        left = open_.nonzero().squeeze(-1)
        if len(left) == 0:
            break
        if len(left) < len(at):
            at, numbers = at[left], numbers.select(left)
    return walk, system if len(at) == len(start) else None


def _newton_step(numbers: Scaled, walk: _Walk) -> tuple[_Walk, Condensed]:
    system = Condensed.factor(numbers, numbers.cones.spectrum(walk.v))
    rows = system.from_rows(-walk.rz.unsqueeze(-1))
    found = system.solve(-walk.rx.unsqueeze(-1), rows, REFINEMENT_STEPS, ENOUGH)
    dx, dz = found.dx.squeeze(-1), system.to_rows(found.w).squeeze(-1)
    # ds from the row itself: finite where H is infinite.
    dv = -walk.rz - system.spectrum.basis.unrotate(found.Adx).squeeze(-1) - dz
    x, v = walk.x + dx, walk.v + dv
    # One point that is not finite must not be an error for the whole batch.
    finite = (x.isfinite().all(-1) & v.isfinite().all(-1)).unsqueeze(-1)
    x, v = torch.where(finite, x, walk.x), torch.where(finite, v, walk.v)
    measured = _measured(numbers, x, v)
    residual = measured.residual
    residual = torch.where(finite.squeeze(-1), residual, torch.full_like(residual, float("inf")))
    better = residual < walk.residual
    rows = better.unsqueeze(-1)
    after = _Walk(
        x=x,
        v=v,
        rx=measured.rx,
        rz=measured.rz,
        best_x=torch.where(rows, x, walk.best_x),
        best_v=torch.where(rows, v, walk.best_v),
        residual=torch.where(better, residual, walk.residual),
        sound=torch.where(better, (found.residual.squeeze(-1) <= SOUND) | (residual <= ROUNDED), walk.sound),
        steps=walk.steps + 1,
    )
    return after, system


def _measured(numbers: Scaled, x: Tensor, v: Tensor) -> Measures:
    s = numbers.cones.project(v)
    ones = torch.ones_like(x[:, :0].sum(-1))
    return measure(numbers, Products.of(numbers, x, s - v), x, s, s - v, ones, torch.zeros_like(ones))
