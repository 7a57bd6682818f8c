"""The whole method on a batch of programs: scale, try active sets, iterate, polish, iterate on where that failed."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from convexlayers.engines.dense.active_set import is_promising, settle
from convexlayers.engines.dense.condensed import Condensed
from convexlayers.engines.dense.embedding import first_guess
from convexlayers.engines.dense.interior import READY, RUNNING, Limits, State, iterate
from convexlayers.engines.dense.matrices import DenseProgram
from convexlayers.engines.dense.newton import STEPS, polish
from convexlayers.engines.dense.product import Product
from convexlayers.engines.dense.room import Room
from convexlayers.engines.dense.units import Point, Scaled, Scales
from convexlayers.program import ConeProgram
from convexlayers.status import Status

# Where iterations in a shorter dtype end and polishing begins.
ROUGH = 1e-3


@dataclass(frozen=True, eq=False)
class Found:
    """What became of a batch.

    Attributes:
        x: (B, n). s, z: (B, m).
        code: `Status`, (B,).
        iterations: (B,).
        scales: the units that were used.
        numbers: in these units; None for those of several batches.
        system: of the last step, where active sets solved the whole batch.
    """

    x: Tensor
    s: Tensor
    z: Tensor
    code: Tensor
    iterations: Tensor
    scales: Scales
    numbers: Scaled | None = None
    system: Condensed | None = None

    @classmethod
    def nothing(cls, program: ConeProgram) -> "Found":
        """INVALID_DATA everywhere."""
        n, m = program.structure.n, program.structure.m
        x, s, z = (program.data.new_full((program.batch, width), float("nan")) for width in (n, m, m))
        count = torch.zeros(program.batch, dtype=torch.int64, device=program.data.device)
        code = torch.full_like(count, int(Status.INVALID_DATA))
        return cls(x, s, z, code, count, Scales.ones(program.data, n, m))

    def put(self, indices: Tensor, other: "Found") -> "Found":
        """These, with what was found of other elements at these indices."""
        names = ("x", "s", "z", "code", "iterations")
        x, s, z, code, iterations = (getattr(self, name).index_copy(0, indices, getattr(other, name)) for name in names)
        return Found(x, s, z, code, iterations, self.scales.put(indices, other.scales))

    def judged(self, status: Tensor) -> "Found":
        """The same with statuses by measurement; an element with a certificate has no point."""
        certified = (status == int(Status.PRIMAL_INFEASIBLE)) | (status == int(Status.DUAL_INFEASIBLE))
        x, s, z = (part.masked_fill(certified.unsqueeze(-1), float("nan")) for part in self.point)
        return replace(self, x=x, s=s, z=z, code=status)

    @property
    def point(self) -> Point:
        """x, s, z."""
        return self.x, self.s, self.z


def solve(program: DenseProgram, limits: Limits, dtype: torch.dtype = torch.float64) -> Found:
    """Solve programs whose numbers are finite and of size one (scaling.py); see `Torch` for dtype."""
    numbers, cones = Scaled.of(program), Product(program.structure.cones)
    short = numbers if dtype == torch.float64 else numbers.to(dtype)
    state, system = _begin(numbers, short, cones, limits)
    run = _run if short is numbers else partial(_run_rough, short=short)
    state = run(numbers, cones, state, limits)
    x, s, z = numbers.scales.restore_point(*(part / state.tau.unsqueeze(-1) for part in (state.x, state.s, state.z)))
    # The next to use the numbers makes room for itself: what an iteration writes is not kept with them.
    return Found(x, s, z, state.code, state.iterations, numbers.scales, replace(numbers, room=Room()), system)


def _begin(numbers: Scaled, short: Scaled, cones: Product, limits: Limits) -> tuple[State, Condensed | None]:
    """Elements that their active sets solve, the others at the first point; the last system if that solves them all.

    short: numbers to search with.
    """
    guess = first_guess(short, cones)
    first = State.first(cones, guess).to(numbers.P.dtype)
    if not is_promising(numbers, cones):
        return first, None
    # With room for the steps of polishing. Those who begin anew after it have the whole limit.
    tried = settle(short, first, guess, limits.max_iterations - STEPS).to(numbers.P.dtype)
    tried, system = polish(numbers, tried, limits, is_near=False)
    solved = tried.code == int(Status.SOLVED)
    return first.where(solved, tried), system if bool(solved.all()) else None


def _run(numbers: Scaled, cones: Product, state: State, limits: Limits) -> State:
    """Until every element has a status; each round of polishing that fails asks for a smaller residual."""
    while bool(((state.code == RUNNING) | (state.code == READY)).any()):
        state = iterate(numbers, cones, state, limits)
        state, _ = polish(numbers, state, limits)
    return state


def _run_rough(numbers: Scaled, cones: Product, state: State, limits: Limits, short: Scaled) -> State:
    """Iterate in a shorter dtype, go on in float64; elements that do not get there begin again in float64."""
    at = state.running.nonzero().squeeze(-1)
    if len(at):
        start = state.select(at).to(short.P.dtype)
        start = replace(start, polish_at=torch.full_like(start.polish_at, ROUGH))
        rough = iterate(short.keep(at), cones, start, Limits(ROUGH, limits.max_iterations)).to(numbers.P.dtype)
        state = state.put(at, rough.again(cones))
    state = _run(numbers, cones, state, limits)
    left = (state.code != int(Status.SOLVED)).nonzero().squeeze(-1)
    if len(left) == 0:
        return state
    others = numbers.select(left)
    return state.put(left, _run(others, cones, State.first(cones, first_guess(others, cones)), limits))
