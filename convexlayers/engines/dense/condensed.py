"""The linear system of every step, condensed to the variables: one Cholesky factorization of order n.

With H = M (I - M)^-1 given by the spectrum of M = Q diag(mu) Q', nu = 1 - mu, the system

    [ P   A' ] [dx]   [r1]
    [ A  -H  ] [dz] = [r2]

is solved in (dx, w), dz = Q sqrt(nu) w (derivatives/kkt.py):

    [ P    A~'      ] [dx]   [ r1             ]
    [ A~  -diag(mu) ] [w ] = [ sqrt(nu) Q' r2 ],      A~ = sqrt(nu) Q'A,

in which nothing is infinite: a Nesterov-Todd scaling H has mu = h / (1 + h), an equality mu = 0, and an inactive
inequality nu = 0. With eps added to P and to mu, w is eliminated,

    (P + eps I + A~' diag(mu + eps)^-1 A~) dx = r1 + A~' diag(mu + eps)^-1 r2~,

a positive definite matrix; iterative refinement against the system without eps takes its effect away. A pivot of eps
alone, as equalities have, costs 1e-16 / eps of accuracy before refinement, and eps over the smallest eigenvalue that is
not zero is what each step of refinement leaves of the error: 1e-8 balances the two.

On a GPU the inverse of the Cholesky factor is formed: its products with a few vectors are cheap, triangular solves are
not, and it is as accurate as they are. (The inverse of the matrix is not.) On the CPU forming it costs as much as
factoring, and a triangular solve with a few columns no more than a product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Spectrum
from convexlayers.derivatives.inverse import product
from convexlayers.engines.dense.room import Room
from convexlayers.engines.dense.units import REGULARIZATION, Scaled

# What a matrix and its weighted rows may take while they are multiplied and factored.
CACHED_BYTES = 2 * 2**20


@dataclass(frozen=True, eq=False)
class Solved:
    """Solutions for k right-hand sides, with products that were needed to check them.

    Attributes:
        dx: (B, n, k). w: (B, m, k).
        Pdx: (B, n, k). Adx: Q'A dx, (B, m, k). Atdz: A'dz, (B, n, k).
        left1, left2: what they leave of the two rows, (B, n, k) and (B, m, k).
        error: the maximum norm of that, and size: of the right-hand side, (B, k).
    """

    dx: Tensor
    w: Tensor
    Pdx: Tensor
    Adx: Tensor
    Atdz: Tensor
    left1: Tensor
    left2: Tensor
    error: Tensor
    size: Tensor

    @property
    def residual(self) -> Tensor:
        """The error relative to the right-hand side, (B, k)."""
        return self.error / torch.where(self.size > 0, self.size, torch.ones_like(self.size))

    @property
    def defect(self) -> Tensor:
        """left1'dx - left2'w, (B, k)."""
        return (self.left1 * self.dx).sum(-2) - (self.left2 * self.w).sum(-2)

    def where(self, better: Tensor, new: "Solved") -> "Solved":
        """Other solutions in some columns, (B, k)."""
        column = better.unsqueeze(-2)
        names = ("dx", "w", "Pdx", "Adx", "Atdz", "left1", "left2")
        parts = [torch.where(column, getattr(new, name), getattr(self, name)) for name in names]
        return Solved(*parts, error=torch.where(better, new.error, self.error), size=self.size)


@dataclass(frozen=True, eq=False)
class Condensed:
    """A factored system.

    Attributes:
        P: (B, n, n).
        A: Q'A, (B, m, n).
        root_nu: sqrt(nu), (B, m, 1).
        spectrum: of M, entries (B, m).
        cholesky: the condensed matrix's upper Cholesky factor, on a GPU the inverse of that, (B, n, n).
        failed: where there is none, (B, 1, 1).
        weight: 1 / (mu + eps), (B, m, 1).
    """

    P: Tensor
    A: Tensor
    root_nu: Tensor
    spectrum: Spectrum
    cholesky: Tensor
    failed: Tensor
    weight: Tensor

    @classmethod
    def factor(cls, numbers: Scaled, spectrum: Spectrum) -> "Condensed":
        """Factor the systems of the numbers' P (B, n, n), A (B, m, n) and M, in the room that the previous one left."""
        P, A, room = numbers.P, numbers.A, numbers.room
        eps = REGULARIZATION[P.dtype]
        rotated, root_nu = spectrum.basis.rotate(A), spectrum.nu.sqrt().unsqueeze(-1)
        weight = 1 / (spectrum.mu + eps).unsqueeze(-1)
        root_weight = root_nu * weight.sqrt()
        # Column by column as LAPACK has it; symmetric, a matrix is the same either way.
        cholesky = room.take("matrix", P, *P.shape).mT
        failed = torch.empty(len(P), dtype=torch.int32, device=P.device)
        group = _group_size(P, A)
        for i in range(0, len(P), group):
            part = slice(i, i + group)
            weighted = torch.mul(rotated[part], root_weight[part], out=_like(rotated[part], room))
            # In its own place.
            place = cholesky[part], failed[part]
            torch.baddbmm(P[part], weighted.mT, weighted, out=place[0].mT)
            place[0].diagonal(dim1=-2, dim2=-1).add_(eps)
            torch.linalg.cholesky_ex(place[0], upper=True, out=place)
        # A matrix that is not positive definite is no error for the batch, but a NaN for its element.
        failed = (failed != 0).reshape(-1, 1, 1)
        if cholesky.device.type != "cpu":
            identity = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device).expand_as(P)
            cholesky = torch.linalg.solve_triangular(cholesky, identity, upper=True)
        return cls(P, rotated, root_nu, spectrum, cholesky, failed, weight)

    def from_rows(self, r: Tensor) -> Tensor:
        """sqrt(nu) Q' r, (B, m, k) to (B, m, k)."""
        return self.root_nu * self.spectrum.basis.rotate(r)

    def to_rows(self, w: Tensor) -> Tensor:
        """dz = Q sqrt(nu) w, (B, m, k) to (B, m, k)."""
        return self.spectrum.basis.unrotate(self.root_nu * w)

    def slack(self, w: Tensor) -> Tensor:
        """H dz = Q mu / sqrt(nu) w, (B, m, k); finite nu only."""
        return self.spectrum.basis.unrotate((self.spectrum.mu * self.spectrum.nu.rsqrt()).unsqueeze(-1) * w)

    def solve(self, r1: Tensor, r2: Tensor, steps: int, enough: float | Tensor = 0.0) -> Solved:
        """Solve for k right-hand sides.

        Args:
            r1: (B, n, k).
            r2: sqrt(nu) Q' r2, (B, m, k), see `from_rows`.
            steps: of iterative refinement, at most; one is kept where it makes the residual smaller.
            enough: relative residual below which a right-hand side is left alone, one for all or (k,).
        """
        size = _size(r1, r2)
        found = self._checked(r1, r2, size, *self.apply(r1, r2))
        open_ = found.error > enough * size
        for _ in range(steps):
            # Where the device would have to stop for an answer, nobody asks.
            if r1.device.type == "cpu" and not bool(open_.any()):
                break
            step_x, step_w, _ = self.apply(found.left1, found.left2)
            dx = found.dx + step_x
            new = self._checked(r1, r2, size, dx, found.w + step_w, product(self.A, dx))
            better = open_ & (new.error < found.error)
            found = found.where(better, new)
            open_ = better & (found.error > enough * size)
        return found

    def apply(self, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The solution dx, w of the regularized system, and Q'A dx."""
        condensed = r1 + product(self.A.mT, self.root_nu * self.weight * r2)
        dx = self._condensed_solve(condensed).masked_fill(self.failed, float("nan"))
        Adx = product(self.A, dx)
        return dx, self.weight * (self.root_nu * Adx - r2), Adx

    def _condensed_solve(self, r: Tensor) -> Tensor:
        """The condensed matrix's inverse times r, (B, n, k)."""
        if self.cholesky.device.type != "cpu":
            return product(self.cholesky, product(self.cholesky.mT, r))
        forward = torch.linalg.solve_triangular(self.cholesky.mT, r, upper=False)
        return torch.linalg.solve_triangular(self.cholesky, forward, upper=True)

    def _checked(self, r1: Tensor, r2: Tensor, size: Tensor, dx: Tensor, w: Tensor, Adx: Tensor) -> Solved:
        """A solution with its products, and what it leaves of the equations."""
        Pdx, Atdz = product(self.P, dx), product(self.A.mT, self.root_nu * w)
        left1 = r1 - Pdx - Atdz
        left2 = r2 - self.root_nu * Adx + self.spectrum.mu.unsqueeze(-1) * w
        return Solved(dx, w, Pdx, Adx, Atdz, left1, left2, _size(left1, left2), size)


def _group_size(P: Tensor, A: Tensor) -> int:
    """How many elements are formed and factored at a time: on the CPU as many as stay in its caches meanwhile."""
    if P.device.type != "cpu":
        return max(1, len(P))
    return max(1, CACHED_BYTES // (P.element_size() * P.shape[-1] * (P.shape[-1] + A.shape[-2])))


def _like(matrix: Tensor, room: Room) -> Tensor:
    """Room for a matrix, row by row or column by column as that is."""
    if matrix.mT.is_contiguous():
        return room.take("weighted", matrix, *matrix.mT.shape).mT
    return room.take("weighted", matrix, *matrix.shape)


def _size(first: Tensor, second: Tensor) -> Tensor:
    """Maximum norm of each column, (B, k)."""
    # Along the last dimension: along another it takes three times as long.
    return torch.cat([first.mT, second.mT], dim=-1).abs().amax(-1)
