"""Strict complementarity, measured: which constraints hold with equality, and by how much they do or do not.

With v = s - z the solution is s = Proj_K(v), and it has a derivative where v is not on a kink of the projection: for an
inequality where s_i > 0 or z_i > 0. The margin is the distance to the nearest kink, with the numbers in units of size
one (scaling.py), so that slacks and multipliers can be compared.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.scaling import find_scaling
from convexlayers.solution import Solution

# A constraint with a smaller margin is weakly active. An interior-point method leaves s_i = z_i = sqrt(gap) there, 1e-5
# or so at the default tolerance where nothing refines it.
WEAK = 2e-5


@dataclass(frozen=True, eq=False)
class Activity:
    """Of every cone, where each row of the zero and the nonnegative cone counts as one; see `Cones.heads`.

    Attributes:
        margin: distance to the nearest kink, (B, cones); infinite for equalities, NaN where the element is not solved.
        active: whether the multiplier is not zero, (B, cones).
    """

    margin: Tensor
    active: Tensor

    @property
    def weak(self) -> Tensor:
        """Which cones are weakly active, (B, cones): the solution may have one-sided derivatives only."""
        return self.margin <= WEAK

    @property
    def smallest(self) -> Tensor:
        """The smallest margin of each element, (B,); infinite without inequalities."""
        infinite = torch.full_like(self.margin[:, :1].sum(-1, keepdim=True), float("inf"))
        return torch.cat([self.margin, infinite], dim=-1).amin(-1)


def find_activity(solution: Solution) -> Activity:
    """Measure the solved elements."""
    cones = solution.program.structure.cones
    solved = solution.solved.nonzero().squeeze(-1)
    _, s, z = find_scaling(solution.program.select(solved)).normalize_point(
        solution.x[solved], solution.s[solved], solution.z[solved]
    )
    margin = solution.x.new_full((len(solution.x), len(cones.heads)), float("nan"))
    active = torch.zeros_like(margin, dtype=torch.bool)
    margin = margin.index_copy(0, solved, cones.margin(s - z))
    return Activity(margin, active.index_copy(0, solved, cones.largest(z) > WEAK))
