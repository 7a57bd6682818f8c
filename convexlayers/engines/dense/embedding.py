"""One step of the interior-point method.

Homogeneous embedding with a quadratic objective (Goulart, Chen, "Clarabel: An interior-point solver for conic programs
with quadratic objectives", arXiv 2405.12762): find (x, s, z, tau, kappa) with s in K, z in K*, tau, kappa >= 0,

    r_x   = P x + A'z + q tau                     = 0
    r_z   = A x + s - b tau                       = 0
    r_tau = kappa + q'x + b'z + x'Px / tau        = 0,      s'z = 0, tau kappa = 0.

tau > 0 gives a solution (x, s, z) / tau; kappa > 0 a proof that there is none. A step with centering sigma solves

    P dx + A'dz + q dtau   = -(1 - sigma) r_x
    A dx + ds - b dtau     = -(1 - sigma) r_z,               ds + H dz = -d_s
    dkappa + (q + 2 P xi)'dx + b'dz - xi'P xi dtau = -(1 - sigma) r_tau,   tau dkappa + kappa dtau = -d_kappa

with xi = x / tau, by right-hand sides for K = [P A'; A -H]: K (dx1, dz1) = (-(1-sigma) r_x, -(1-sigma) r_z + d_s) and
K (dx2, dz2) = (-q, b), dx = dx1 + dtau dx2,

    dtau = ((1-sigma) r_tau - d_kappa / tau + (q + 2 P xi)'dx1 + b'dz1) / (kappa / tau + |dx2 - xi|_P^2 + |dz2|_H^2).

(The denominator is (q + 2 P xi)'dx2 + b'dz2 - xi'P xi with the sign changed, rewritten by K's own rows. Where they do
not hold, it has r1'dx2 - r2'dz2 of their residuals besides: equalities that contradict each other leave r2 = -eps dz2
of the regularized system, whatever is refined, and eps |dz2|^2 is most of the denominator then.)
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlayers.cones.base import IdentityBasis, Spectrum
from convexlayers.engines.dense.condensed import Condensed, Solved
from convexlayers.engines.dense.measures import Measures, Products
from convexlayers.engines.dense.product import Product, ProductLocal
from convexlayers.engines.dense.units import Point, Scaled

REFINEMENT_STEPS = 2
# Relative residual of a direction: what is left of it is for the next one.
ENOUGH = {torch.float64: 1e-7, torch.float32: 1e-3}
# A step goes this far towards the boundary.
STEP_SHARE = 0.99
# Least centering of an element that has not got better for a while.
DAMPED_CENTERING = 0.3


@dataclass(frozen=True, eq=False)
class Direction:
    """A step of all parts, and its length.

    Attributes:
        dx: (B, n). ds, dz: (B, m). dtau, dkappa, length: (B,).
    """

    dx: Tensor
    ds: Tensor
    dz: Tensor
    dtau: Tensor
    dkappa: Tensor
    length: Tensor


@dataclass(frozen=True, eq=False)
class Embedding:
    """A batch of iterates, strictly inside their cones.

    Attributes:
        numbers: of the programs.
        cones: of their rows.
        x: (B, n). s, z: (B, m). tau, kappa: (B,).
        found: what `measure` says of them.
    """

    numbers: Scaled
    cones: Product
    x: Tensor
    s: Tensor
    z: Tensor
    tau: Tensor
    kappa: Tensor
    found: Measures

    def direction(self, damped: Tensor, is_first: Tensor) -> tuple[Direction, Products]:
        """Mehrotra's predictor, then the combined direction, with the products that checking it took.

        Args:
            damped: elements to take with care, (B,).
            is_first: elements at their first step, (B,).
        """
        local = self.cones.at(self.s, self.z)
        solver = _Solver(self, local)
        product = self.tau * self.kappa
        affine = solver.predictor()
        reached = 1 / self._exit_rate(local, affine).clamp(min=1)
        sigma = (1 - reached) ** 3
        sigma = torch.where(damped, sigma.clamp(min=DAMPED_CENTERING), sigma)
        # The full second-order correction is fastest, and may cycle (Salahi, Peng, Terlaky, "On Mehrotra-type
        # predictor-corrector algorithms", 2007); and a first point far from the central path has a predictor that says
        # little of second order. (With curved cones the full correction is the faster one.)
        weight = torch.where(damped, reached**2, torch.ones_like(reached))
        if self.cones.is_linear:
            weight = torch.where(is_first, reached, weight)
        mu = (product + (self.s * self.z).sum(-1)) / (self.cones.degree + 1)
        target = local.corrector(affine.ds, affine.dz, weight, sigma * mu)
        d_kappa = product + weight * affine.dtau * affine.dkappa - sigma * mu
        step, products = solver.combined(sigma, target, d_kappa)
        length = STEP_SHARE / self._exit_rate(local, step).clamp(min=1)
        return replace(step, length=length), products

    def _exit_rate(self, local: ProductLocal, d: Direction) -> Tensor:
        return local.exit_rate(d.ds, d.dz, torch.maximum(-d.dtau / self.tau, -d.dkappa / self.kappa))


class _Solver:
    """The linear system of one iteration, factored, with the direction of tau and the predictor."""

    def __init__(self, at: Embedding, local: ProductLocal) -> None:
        self.at, numbers = at, at.numbers
        self.system = Condensed.factor(numbers, local.spectrum(at.z))
        Px = at.found.products.Px
        self.slope = numbers.q + 2 * Px / at.tau.unsqueeze(-1)
        # d_s of the predictor is s itself, 0 for equalities.
        found = self._solve((-numbers.q, -at.found.rx), (numbers.b, at.s - at.found.rz))
        self.dx2, w2 = found.dx[..., 0], found.w[..., :1]
        self.rows2 = self._rows(w2)
        self.first, self.products2 = (found.dx[..., 1], found.w[..., 1:]), self._products(found)
        tau = at.tau.unsqueeze(-1)
        away, P_away = self.dx2 - at.x / tau, found.Pdx[..., 0] - Px / tau
        quadratic = (away * P_away).sum(-1).clamp(min=0)
        # |dz2|_H^2 = w2' diag(mu) w2.
        self.kappa_rate = at.kappa / at.tau
        w2 = w2.squeeze(-1)
        H_norm = (w2 * self.system.spectrum.mu * w2).sum(-1)
        self.bottom = self.kappa_rate + quadratic + H_norm + found.defect[..., 0].clamp(min=0)

    def _solve(self, r1: tuple[Tensor, ...], r2: tuple[Tensor, ...]) -> Solved:
        rows = self.system.from_rows(torch.stack(r2, dim=-1))
        return self.system.solve(torch.stack(r1, dim=-1), rows, REFINEMENT_STEPS, ENOUGH[rows.dtype])

    def predictor(self) -> Direction:
        """The step without centering."""
        at = self.at
        return self._combine(*self.first, torch.zeros_like(at.tau), at.s, at.tau * at.kappa)

    def combined(self, sigma: Tensor, target: Tensor, d_kappa: Tensor) -> tuple[Direction, Products]:
        """The step for centering sigma (B,), d_s = target (B, m) and d_kappa (B,)."""
        rest, found = (1 - sigma).unsqueeze(-1), self.at.found
        main = self._solve((-rest * found.rx,), (target - rest * found.rz,))
        step = self._combine(main.dx.squeeze(-1), main.w, sigma, target, d_kappa)
        return step, self._products(main).plus(step.dtau, self.products2)

    def _products(self, found: Solved) -> Products:
        """With the first of some solutions."""
        Adx = self.system.spectrum.basis.unrotate(found.Adx[..., :1])
        return Products(found.Pdx[..., 0], found.Atdz[..., 0], Adx[..., 0])

    def _rows(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """dz and H dz, (B, m) each, from w (B, m, 1)."""
        return self.system.to_rows(w).squeeze(-1), self.system.slack(w).squeeze(-1)

    def _combine(self, dx1: Tensor, w1: Tensor, sigma: Tensor, target: Tensor, d_kappa: Tensor) -> Direction:
        """The whole direction; its length is not yet known."""
        at, (dz1, slack1), (dz2, slack2) = self.at, self._rows(w1), self.rows2
        along = (self.slope * dx1).sum(-1) + (at.numbers.b * dz1).sum(-1)
        rate = d_kappa / at.tau
        dtau = ((1 - sigma) * at.found.rtau - rate + along) / self.bottom
        column = dtau.unsqueeze(-1)
        return Direction(
            dx=dx1 + column * self.dx2,
            ds=-(target + slack1 + column * slack2),
            dz=dz1 + column * dz2,
            dtau=dtau,
            dkappa=-rate - self.kappa_rate * dtau,
            length=torch.ones_like(dtau),
        )


def first_guess(numbers: Scaled, cones: Product) -> Point:
    """Near the point where the iteration begins: s and z are still to be moved into the cones.

    From K (x, z) = (-q, b) with H = I, s = -z. Without P, x and s come from (0, b) and z from
    (-q, 0): then a large b does not make z large, from where steps are short. Exponential and power cones have no axis
    to move along: there the first point is x = 0 and the centers of the cones.
    """
    x, s = torch.zeros_like(numbers.q), torch.zeros_like(numbers.b)
    if cones.starts_central:
        return x, cones.center(s), cones.center(s)
    # H = I on the rows of cones, 0 on equalities.
    equality = numbers.equalities.to(s.dtype).expand_as(s)
    mu = 0.5 * (1 - equality)
    system = Condensed.factor(numbers, Spectrum(mu, 1 - mu, IdentityBasis()))
    r1 = torch.stack([-numbers.q, torch.zeros_like(numbers.q)], dim=-1)
    r2 = torch.stack([torch.zeros_like(numbers.b), numbers.b], dim=-1)
    # Of equalities alone this is the solution.
    enough = ENOUGH[s.dtype] if cones.degree else 0.0
    found = system.solve(r1, system.from_rows(r2), REFINEMENT_STEPS, enough)
    dx, dz = found.dx, system.to_rows(found.w)
    # A positive semidefinite matrix whose diagonal is zero is zero.
    apart = (numbers.P.diagonal(dim1=-2, dim2=-1) == 0).all(-1, keepdim=True)
    x = torch.where(apart, dx[..., 1], dx.sum(-1))
    z, slack = torch.where(apart, dz[..., 0], dz.sum(-1)), torch.where(apart, dz[..., 1], dz.sum(-1))
    return x, -slack * (1 - equality), z
