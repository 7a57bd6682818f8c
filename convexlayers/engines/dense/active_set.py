"""The first try at a quadratic program: which inequalities hold with equality, found by Newton's method.

With equalities and inequalities only, a set a of active rows determines a point,

    [ P    A_a' ] [x  ]   [-q ]
    [ A_a   0   ] [z_a] = [b_a],      z = 0 on the other rows,      s = b - A x,

which is the solution if z_a >= 0 and s >= 0. If it is not, the next set is {z > 0} of the active rows and {s < 0} of
the others: the primal-dual active-set method (Hintermueller, Ito, Kunisch, "The primal-dual active set strategy as a
semismooth Newton method", 2002), Newton's method on the conditions in (x, s - z), as newton.py has them. From a good
guess it is there after a few steps, each with the matrix of an interior-point step and a third of its right-hand sides;
from another one it may go in circles, and will more often than not where many more rows than variables compete. So it
is tried where nearly all rows can be active at once, and an element goes on only while fewer rows change than in one of
the two steps before. Those whose sets have settled are for newton.py, which refines and checks their points, the others
for the interior-point method.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlayers.cones.base import IdentityBasis, Spectrum
from convexlayers.engines.dense.condensed import Condensed
from convexlayers.engines.dense.elements import Elements
from convexlayers.engines.dense.interior import FINISHED_SHARE, ITERATIONS_PER_LOOK, READY, RUNNING, State
from convexlayers.engines.dense.product import Product
from convexlayers.engines.dense.units import REGULARIZATION, Point, Scaled

MOST_STEPS = 12
# Rows of equalities and inequalities per variable. With as many rows as variables a solve takes half its time or
# less, with one and a half times as many nothing is gained, with twice as many up to a quarter is lost.
MOST_ROWS = 1.1
# Where no more rows than these still change, newton.py is to decide.
FEW = 2
# A row is on the wrong side by more than this, so many times the eps that its equation is solved up to.
MARGIN = 10.0


@dataclass(frozen=True, eq=False)
class Sets(Elements):
    """Active sets of a batch.

    Attributes:
        active: (B, m).
        x: (B, n). v: s - z, (B, m).
        changed, before: rows that the last step changed, and the one before it, (B,).
        steps: taken, (B,).
        going: whether there will be another one, (B,).
    """

    active: Tensor
    x: Tensor
    v: Tensor
    changed: Tensor
    before: Tensor
    steps: Tensor
    going: Tensor

    @classmethod
    def first(cls, numbers: Scaled, guess: Point) -> "Sets":
        """As a guess of x, s and z has them; nobody goes who has no quadratic term."""
        x, s, z = guess
        v = s - z
        count = torch.zeros_like(v[:, :0].sum(-1), dtype=torch.int64)
        everything = count + _everything(v)
        quadratic = (numbers.P.diagonal(dim1=-2, dim2=-1) > 0).any(-1)
        return cls((v < 0) | numbers.equalities, x, v, everything, everything, count, quadratic)

    def state(self, first: State) -> State:
        """Elements whose sets have settled are READY at their points, the others RUNNING."""
        settled = ~self.going & (self.changed <= FEW)
        zeros = torch.zeros_like(self.v)
        return replace(
            first,
            x=self.x,
            s=torch.where(self.active, zeros, self.v),
            z=torch.where(self.active, -self.v, zeros),
            code=torch.where(settled, READY, RUNNING),
            iterations=self.steps,
        )


def is_promising(numbers: Scaled, cones: Product) -> bool:
    """Whether programs of this form are worth the try."""
    m, n = numbers.A.shape[-2:]
    return cones.is_linear and cones.degree > 0 and m <= MOST_ROWS * n


def settle(numbers: Scaled, first: State, guess: Point, most: int) -> State:
    """Step from a guess of the solution, no more than `most` times, until every set has settled or is given up."""
    on_cpu = numbers.P.device.type == "cpu"
    sets = Sets.first(numbers, guess)
    at, work, part = torch.arange(len(sets.x), device=sets.x.device), sets, numbers
    for step in range(min(MOST_STEPS, most)):
        if on_cpu or step % ITERATIONS_PER_LOOK == 0:
            count = int(work.going.sum())
            if count == 0:
                break
            if count <= (1 - FINISHED_SHARE) * len(at):
                sets, kept = sets.put(at, work), work.going.nonzero().squeeze(-1)
                at, work, part = at[kept], work.select(kept), part.select(kept)
        work = work.where(work.going, _step(part, work))
    return sets.put(at, work).state(first)


def _step(numbers: Scaled, sets: Sets) -> Sets:
    """The point of each set, and the next set."""
    inactive = (~sets.active).to(sets.v.dtype)
    system = Condensed.factor(numbers, Spectrum(inactive, 1 - inactive, IdentityBasis()))
    x, w, Ax = system.apply(-numbers.q.unsqueeze(-1), system.from_rows(numbers.b.unsqueeze(-1)))
    v = torch.where(sets.active, -system.to_rows(w).squeeze(-1), numbers.b - Ax.squeeze(-1))
    margin = MARGIN * REGULARIZATION[v.dtype]
    active = (v < torch.where(sets.active, margin, -margin)) | numbers.equalities
    # A point that is not finite has changed everything.
    finite = x.squeeze(-1).isfinite().all(-1) & v.isfinite().all(-1)
    changed = torch.where(finite, (active != sets.active).sum(-1), _everything(v))
    going = (changed > 0) & (changed < torch.maximum(sets.changed, sets.before))
    return Sets(active, x.squeeze(-1), v, changed, sets.changed, sets.steps + 1, going)


def _everything(v: Tensor) -> int:
    """What stands for changes in all rows: more than there can be, and never few."""
    return v.shape[-1] + FEW + 1
