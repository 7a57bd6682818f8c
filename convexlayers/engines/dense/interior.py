"""The iteration: steps until every element is near its solution, has a certificate, or is given up.

Elements do not wait for each other and do not see each other: a finished one stays where it is, and leaves the batch at
the next look, every iteration on the CPU, where looking costs nothing, every few on a device that would have to stop
for it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlayers.engines.dense.elements import Elements
from convexlayers.engines.dense.embedding import Embedding
from convexlayers.engines.dense.measures import Measures, Products, measure
from convexlayers.engines.dense.product import Product
from convexlayers.engines.dense.units import Point, Scaled
from convexlayers.solution import CERTIFICATE_TOLERANCE, SMALLEST_TOLERANCE, TOLERANCE_FACTOR
from convexlayers.status import Status

# Besides the codes of `Status`: on the way, and near enough to be polished.
RUNNING, READY = -1, -2
# First try of polishing, without and with curved cones.
POLISH_LINEAR, POLISH_CURVED = 1e-3, 1e-5
# Where it fails, the next try comes when the residual has fallen by this factor.
POLISH_FACTOR = 1e-2
# Certificates are believed at once at this share of their tolerance, at all of it from an element that is given up.
CERTAIN = 1e-2
# Steps shorter than this make no progress; so many in a row end the iteration.
SHORT_STEP, MOST_SHORT_STEPS = 1e-3, 10
# An element that has not reduced its residual by this factor in so many steps is damped.
PROGRESS, MOST_IDLE_STEPS = 0.9, 4
# Iterations between two looks at which elements are finished, on a device other than the CPU.
ITERATIONS_PER_LOOK = 4
# Finished elements leave the batch when they are this share of it.
FINISHED_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class State(Elements):
    """Iterates of a batch and their history, one row per element.

    Attributes:
        x, s, z, tau, kappa: the iterate.
        code: RUNNING, READY or a `Status`.
        iterations: steps taken.
        polish_at: the residual at which polishing is tried.
        residual: of the iterate.
        best: the smallest residual so far. idle: steps since. short: short steps in a row.
        infeasible, unbounded: the best certificates so far.
    """

    x: Tensor
    s: Tensor
    z: Tensor
    tau: Tensor
    kappa: Tensor
    code: Tensor
    iterations: Tensor
    polish_at: Tensor
    residual: Tensor
    best: Tensor
    idle: Tensor
    short: Tensor
    infeasible: Tensor
    unbounded: Tensor

    @classmethod
    def first(cls, cones: Product, guess: Point) -> "State":
        """From the first guess; that of equalities alone is the solution, up to regularization."""
        x, s, z = guess
        # Centers of cones are inside.
        if not cones.starts_central:
            s, z = cones.move_inside(s), cones.move_inside(z)
        ones = torch.ones_like(x[:, :0].sum(-1))
        count = torch.zeros_like(ones, dtype=torch.int64)
        infinite = torch.full_like(ones, float("inf"))
        polish_at = ones * (POLISH_LINEAR if cones.is_linear else POLISH_CURVED)
        code = torch.full_like(count, RUNNING if cones.degree else READY)
        return cls(x, s, z, ones, ones, code, count, polish_at, infinite, infinite, count, count, infinite, infinite)

    def again(self, cones: Product) -> "State":
        """What was READY for another precision goes on there, with the history of a first iterate."""
        infinite, count = torch.full_like(self.residual, float("inf")), torch.zeros_like(self.idle)
        return replace(
            self,
            # With curved cones polishing begins nearer to the solution.
            code=self.code if cones.is_linear else torch.where(self.code == READY, RUNNING, self.code),
            polish_at=torch.full_like(self.polish_at, POLISH_LINEAR if cones.is_linear else POLISH_CURVED),
            residual=infinite,
            best=infinite,
            idle=count,
            short=count,
            infeasible=infinite,
            unbounded=infinite,
        )

    @property
    def running(self) -> Tensor:
        """Mask of the elements on the way."""
        return self.code == RUNNING


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        tolerance: relative residual.
        max_iterations: of each element.
    """

    tolerance: float
    max_iterations: int


def iterate(numbers: Scaled, cones: Product, state: State, limits: Limits) -> State:
    """Step until no element is RUNNING."""
    per_look = 1 if state.x.device.type == "cpu" else ITERATIONS_PER_LOOK
    at = state.running.nonzero().squeeze(-1)
    work, part = state.select(at), numbers.keep(at)
    found, all_running = _measure(part, Products.of(part, work.x, work.z), work) if len(at) else None, True
    while found is not None and len(at):
        for _ in range(per_look):
            moved, found = _advance(part, cones, work, found, limits)
            work = moved if all_running else work.where(work.running, moved)
            all_running = False
        running = work.running
        count = int(running.sum())
        all_running = count == len(at)
        if count > (1 - FINISHED_SHARE) * len(at):
            continue
        state = state.put(at, work)
        kept = running.nonzero().squeeze(-1)
        all_running = True
        at, work, part, found = at[kept], work.select(kept), part.select(kept), found.select(kept)
    return state


def _advance(numbers: Scaled, cones: Product, state: State, found: Measures, limits: Limits) -> tuple[State, Measures]:
    """One step, what is measured where it leads, and what to make of that."""
    at = Embedding(numbers, cones, state.x, state.s, state.z, state.tau, state.kappa, found)
    step, products = at.direction(state.idle >= MOST_IDLE_STEPS, state.iterations == 0)
    length = step.length.unsqueeze(-1)
    moved = replace(
        state,
        x=state.x + length * step.dx,
        s=state.s + length * step.ds,
        z=state.z + length * step.dz,
        tau=state.tau + step.length * step.dtau,
        kappa=state.kappa + step.length * step.dkappa,
        iterations=state.iterations + 1,
        short=torch.where(step.length > SHORT_STEP, 0, state.short + 1),
    )
    # What the linear solver multiplied to check its solution is not multiplied again.
    found = _measure(numbers, found.products.plus(step.length, products), moved)
    return _decide(moved, found, limits), found


def _measure(numbers: Scaled, products: Products, state: State) -> Measures:
    return measure(numbers, products, state.x, state.s, state.z, state.tau, state.kappa)


def _decide(state: State, found: Measures, limits: Limits) -> State:
    """Who is ready, certified, or given up."""
    residual, tolerance = found.residual, limits.tolerance
    escaping = state.kappa > state.tau
    infeasible = torch.where(escaping, torch.minimum(state.infeasible, found.infeasible), state.infeasible)
    unbounded = torch.where(escaping, torch.minimum(state.unbounded, found.unbounded), state.unbounded)
    better = residual < PROGRESS * state.best
    state = replace(
        state,
        residual=residual,
        best=torch.where(better, residual, state.best),
        idle=torch.where(better, 0, state.idle + 1),
        infeasible=infeasible,
        unbounded=unbounded,
    )
    usable = (state.tau > 0) & (state.kappa >= 0) & residual.isfinite() & state.x.isfinite().all(-1)
    lost = ~usable | (state.short >= MOST_SHORT_STEPS)
    given_up = lost | (state.iterations >= limits.max_iterations)
    near = residual <= state.polish_at.clamp(min=tolerance)
    if residual.device.type == "cpu" and not bool((given_up | near | escaping).any()):
        return state
    outcome = _given_up(residual, infeasible, unbounded, lost, tolerance)
    code = torch.where(given_up, outcome, RUNNING)
    certain = CERTAIN * CERTIFICATE_TOLERANCE
    code = torch.where(escaping & (found.unbounded <= certain), int(Status.DUAL_INFEASIBLE), code)
    code = torch.where(escaping & (found.infeasible <= certain), int(Status.PRIMAL_INFEASIBLE), code)
    # After so many tries of polishing the iterate itself is the answer.
    tried = (residual <= tolerance) & (state.polish_at < tolerance * POLISH_FACTOR)
    return replace(state, code=torch.where(near, torch.where(tried, int(Status.SOLVED), READY), code))


def _given_up(residual: Tensor, infeasible: Tensor, unbounded: Tensor, lost: Tensor, tolerance: float) -> Tensor:
    """An iterate that will not get better is what its residuals say; rounding may have lost a certificate again."""
    code = torch.where(lost, int(Status.NUMERICAL_ERROR), int(Status.MAX_ITERATIONS))
    code = torch.where(unbounded <= CERTIFICATE_TOLERANCE, int(Status.DUAL_INFEASIBLE), code)
    code = torch.where(infeasible <= CERTIFICATE_TOLERANCE, int(Status.PRIMAL_INFEASIBLE), code)
    enough = residual <= TOLERANCE_FACTOR * max(tolerance, SMALLEST_TOLERANCE)
    return torch.where(enough, int(Status.SOLVED), code)
