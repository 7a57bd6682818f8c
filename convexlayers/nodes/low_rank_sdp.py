"""Low-rank semidefinite relaxation of MAXSAT, as a layer with learnable clauses.

Source: Wang, Donti, Wilder, Kolter, "SATNet" (arXiv 1905.12149); the solver is the mixing method (Wang, Chang, Kolter,
arXiv 1706.00476). Every variable is a unit vector v_i of dimension k, v_T the one of "true", S (clauses, variables) has
an entry per variable and clause, and the relaxation is

    minimize 1/2 |S V|_F^2   subject to   |v_i| = 1,

with the vectors of inputs held fixed. Over the free vectors Y (n, k) that is, up to a constant,

    minimize 1/2 <Q, Y Y'> + <G, Y>,     Q = S_o'S_o,  G = S_o'(s_T v_T' + S_i V_i).

It is not convex, and with k > sqrt(2 n) its local minima are solutions of the semidefinite program (Burer, Monteiro,
2005; Boumal, Voroninski, Bandeira, 2016), up to rotations that leave v_T and V_i alone: these make the optimality
conditions singular, and products of the vectors, which do not notice rotations, differentiable nevertheless.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convexlayers.errors import ArgumentError, wrong_shape
from convexlayers.nodes.node import DeclarativeNode
from convexlayers.nodes.point import Outcome
from convexlayers.nodes.problem import BoundProblem
from convexlayers.nodes.solvers.base import claim


@dataclass(frozen=True)
class MixingMethod:
    """Coordinate descent over unit vectors: v_i becomes -(sum_{j != i} Q_ij v_j + g_i), made a unit vector.

    Args:
        tolerance: on the largest change of an entry in a sweep, and of the result.
        max_iterations: sweeps.
    """

    constrained: ClassVar[bool] = True

    tolerance: float = 1e-8
    max_iterations: int = 5000

    def solve(self, problem: BoundProblem, start: Tensor) -> Outcome:
        """For a problem whose inputs are Q (B, n, n) and G (B, n, k), from `start`, (B, n k)."""
        Q, G = problem.xs
        Y = start.reshape(G.shape)
        iterations = torch.zeros(len(Y), dtype=torch.int64, device=Y.device)
        done = torch.zeros_like(iterations, dtype=torch.bool)
        stuck = ~torch.cat([Q.flatten(1), G.flatten(1)], 1).isfinite().all(1)
        for _ in range(self.max_iterations):
            moving = ~done & ~stuck
            if not bool(moving.any()):
                break
            iterations += moving
            new = _sweep(Q, G, Y)
            change = (new - Y).abs().amax((1, 2))
            Y = torch.where(moving.reshape(-1, 1, 1), new, Y)
            done = done | (moving & (change <= self.tolerance))
        return Outcome(Y.flatten(1), claim(done, stuck), iterations)


def _sweep(Q: Tensor, G: Tensor, Y: Tensor) -> Tensor:
    rows = list(Y.unbind(1))
    for i in range(len(rows)):
        pull = G[:, i]
        for j, other in enumerate(rows):
            pull = pull if i == j else pull + Q[:, i, j].unsqueeze(1) * other
        length = pull.square().sum(1, keepdim=True).sqrt()
        # A vector that nothing pulls at may stay where it is.
        rows[i] = torch.where(length > 0, -pull / torch.where(length > 0, length, torch.ones_like(length)), rows[i])
    return torch.stack(rows, 1)


def unit_vectors_node(
    n: int, k: int, *, seed: int = 0, solver: MixingMethod | None = None, **options: Any
) -> DeclarativeNode:
    """The node (Q, G) -> Y, (*batch, n, k): minimize 1/2 <Q, Y Y'> + <G, Y> over rows of length one.

    Args:
        n: number of vectors. k: their dimension.
        seed: of the start, the same for all elements.
        solver: the mixing method, with a tolerance of your own.
        options: as of `DeclarativeNode`.
    """
    start = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return DeclarativeNode(
        lambda Q, G, Y: 0.5 * (Q * (Y @ Y.T)).sum() + (G * Y).sum(), lambda Q, G, Y: Y.square().sum(1) - 1,
        start=start / start.norm(dim=1, keepdim=True), solver=solver or MixingMethod(), event_dims=(2, 2), **options,
    )  # fmt: skip


class LowRankMaxSAT(nn.Module):
    """Learnable clauses over some given, some wanted and some auxiliary variables.

    Args:
        inputs, outputs, auxiliary: numbers of variables.
        clauses: number of rows of S.
        rank: dimension of the vectors, by default the least integer above sqrt(2 n) + 1 for n free vectors.
        seed: of S and of the directions of uncertain inputs.
        options: as of `DeclarativeNode`.

    Shape:
        probabilities of the inputs (*batch, inputs) to those of the outputs (*batch, outputs), (1 + v'v_T) / 2 each. An
        input z is the vector -cos(pi z) v_T + sin(pi z) u, with a direction u of its own orthogonal to v_T.
    """

    def __init__(
        self, inputs: int, outputs: int, *, clauses: int, auxiliary: int = 0, rank: int | None = None, seed: int = 0,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        free = outputs + auxiliary
        if inputs < 0 or outputs < 1 or auxiliary < 0 or clauses < 1:
            raise ArgumentError("inputs and auxiliary are 0 or more, outputs and clauses 1 or more.")
        self.inputs, self.outputs = inputs, outputs
        k = math.ceil(math.sqrt(2 * free) + 1) + 1 if rank is None else rank
        generator = torch.Generator().manual_seed(seed)
        S = torch.randn(clauses, 1 + inputs + free, generator=generator, dtype=torch.float64)
        self.S = nn.Parameter((S / math.sqrt(S.shape[1])).to(torch.get_default_dtype()))
        directions = torch.randn(inputs, k, generator=generator, dtype=torch.float64)
        directions[:, 0] = 0
        self.directions: Tensor
        self.register_buffer("directions", directions / directions.norm(dim=1, keepdim=True))
        self.node = unit_vectors_node(free, k, seed=seed, **options)

    def forward(self, z: Tensor) -> Tensor:
        """Probabilities (*batch, outputs)."""
        if z.shape[-1:] != (self.inputs,):
            raise wrong_shape("z", z.shape, f"(*batch, {self.inputs})")
        truth = torch.zeros_like(self.directions[:1]) if self.inputs else self.directions.new_zeros(1, self._rank)
        truth = torch.cat([torch.ones_like(truth[:, :1]), truth[:, 1:]], 1)
        angle = math.pi * z.to(torch.float64).unsqueeze(-1)
        given = -angle.cos() * truth + angle.sin() * self.directions
        S = self.S.to(torch.float64)
        fixed, free = S[:, : 1 + self.inputs], S[:, 1 + self.inputs :]
        known = torch.cat([truth.expand(*given.shape[:-2], 1, -1), given], -2)
        Y = self.node(free.T @ free, free.T @ (fixed @ known))
        return (0.5 * (1 + Y[..., : self.outputs, 0])).to(z.dtype)

    @property
    def _rank(self) -> int:
        return self.directions.shape[1]
