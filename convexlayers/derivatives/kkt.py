"""The symmetric linear system of the derivative: assembled dense and batched, factored, solved and refined.

With M = D Proj_K(v) = Q diag(mu) Q', nu = 1 - mu and S = diag(sqrt(nu)), write dz = Q S w. The differentiated
conditions (exact.py) become

    [ P    A~'       ] [dx]   [ r1      ]
    [ A~  -diag(mu)  ] [w ] = [ S Q' r2 ],      A~ = S Q' A.

Against the textbook form with H = M (I - M)^-1 in the corner this one is bounded: where mu = 1 the row reads -w = 0,
where mu = 0 it reads q'A dx = q'r2, and nothing is clipped. It is quasi-definite (P, diag(mu) >= 0), and its null space
is null(P) n null(A~) for x times null(diag(mu)) n null(A~') for w.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Spectrum
from convexlayers.program import ConeProgram

# Pivots below this share of the largest, after equilibration, call for the rank-revealing path.
SMALL_PIVOT = 1e-13
# Eigenvalues below this share of the largest, after equilibration, are zero.
SMALL_EIGENVALUE = 1e-12
EQUILIBRATION_STEPS = 8


@dataclass(frozen=True)
class KKTSystem:
    """The matrix of one batch.

    Attributes:
        K: (B, n + m, n + m).
        A: dense A, (B, m, n).
        root_nu: sqrt(nu), (B, m, 1).
        spectrum: of D Proj_K.
    """

    K: Tensor
    A: Tensor
    root_nu: Tensor
    spectrum: Spectrum

    def to_rows(self, w: Tensor) -> Tensor:
        """Q S w, (B, m) to (B, m)."""
        return self.spectrum.basis.unrotate(self.root_nu * w.unsqueeze(-1)).squeeze(-1)

    def from_rows(self, r: Tensor) -> Tensor:
        """S Q' r, (B, m) to (B, m)."""
        return (self.root_nu * self.spectrum.basis.rotate(r.unsqueeze(-1))).squeeze(-1)


def assemble(program: ConeProgram, s: Tensor, z: Tensor) -> KKTSystem:
    """The system at a solution.

    Args:
        program: the numbers, batch B.
        s, z: (B, m).
    """
    A = program.dense_A()
    spectrum = program.structure.cones.spectrum(s - z)
    root_nu = spectrum.nu.sqrt().unsqueeze(-1)
    rotated = root_nu * spectrum.basis.rotate(A)
    upper = torch.cat([program.dense_P(), rotated.transpose(-1, -2)], dim=-1)
    lower = torch.cat([rotated, torch.diag_embed(-spectrum.mu)], dim=-1)
    return KKTSystem(torch.cat([upper, lower], dim=-2), A, root_nu, spectrum)


@dataclass(frozen=True)
class Factor:
    """A factored system D K D with D from equilibration.

    Attributes:
        scaled: D K D, (B, N, N).
        D: (B, N, 1).
        lu, pivots: its factorization.
        singular: (B,), elements that need `null_space`.
        null: orthonormal basis of the null space of K, one matrix (N, d) per singular element, in their order.
        inverse: pseudo-inverse of D K D for the singular elements, (number of them, N, N).
    """

    scaled: Tensor
    D: Tensor
    lu: Tensor
    pivots: Tensor
    singular: Tensor
    null: list[Tensor]
    inverse: Tensor | None


def equilibrate(K: Tensor) -> Tensor:
    """D with rows of D K D of maximum norm about 1 (Ruiz, 2001), (B, N, 1)."""
    D = torch.ones(*K.shape[:-1], 1, dtype=K.dtype, device=K.device)
    for _ in range(EQUILIBRATION_STEPS):
        largest = (D * K * D.transpose(-1, -2)).abs().amax(-1, keepdim=True)
        D = D / torch.where(largest > 0, largest, torch.ones_like(largest)).sqrt()
    return D


def factor(K: Tensor) -> Factor:
    """Factor a batch of symmetric matrices, (B, N, N), singular ones included."""
    D = equilibrate(K)
    scaled = D * K * D.transpose(-1, -2)
    lu, pivots, _ = torch.linalg.lu_factor_ex(scaled)
    diagonal = lu.diagonal(dim1=-2, dim2=-1).abs()
    singular = ~(diagonal.amin(-1) > SMALL_PIVOT * diagonal.amax(-1))
    null, inverse = [], None
    if bool(singular.any()):
        indices = singular.nonzero().squeeze(-1)
        inverse, null, really = pseudo_inverse(scaled[indices], D[indices])
        singular = singular.clone()
        singular[indices] = really
        inverse, null = inverse[really], [basis for basis, flag in zip(null, really.tolist(), strict=True) if flag]
    return Factor(scaled, D, lu, pivots, singular, null, inverse)


def pseudo_inverse(scaled: Tensor, D: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """Pseudo-inverse of the scaled matrices, null space of the unscaled ones, and which have one."""
    values, vectors = torch.linalg.eigh(scaled)
    small = values.abs() <= SMALL_EIGENVALUE * values.abs().amax(-1, keepdim=True)
    inverted = torch.where(small, torch.zeros_like(values), 1 / torch.where(small, torch.ones_like(values), values))
    inverse = (vectors * inverted.unsqueeze(-2)) @ vectors.transpose(-1, -2)
    # D K D u = 0 says that D u is in the null space of K.
    null = [torch.linalg.qr(d * u[:, flags])[0] for d, u, flags in zip(D, vectors, small, strict=True)]
    return inverse, null, small.any(-1)


def solve(factored: Factor, rhs: Tensor, refinement_steps: int) -> tuple[Tensor, Tensor]:
    """Solve K u = rhs, by minimum norm and least squares where K is singular.

    For singular K the result is pinv(K) rhs, the limit of the solutions of the regularized system
    K + eps diag(I, -I): its x and w parts are each of minimum norm, since the null space splits along them.

    Args:
        factored: of K, (B, N, N).
        rhs: (B, N).
        refinement_steps: of iterative refinement; a step is kept only where it reduces the residual.

    Returns:
        u (B, N) and the relative residual |D (rhs - K u)| / |D rhs| in the maximum norm, (B,).
    """
    D, singular = factored.D, factored.singular
    indices = singular.nonzero().squeeze(-1)
    scaled_rhs = D * _without_null(factored, indices, rhs).unsqueeze(-1)

    def approximate(r: Tensor) -> Tensor:
        u = torch.linalg.lu_solve(factored.lu, factored.pivots, r)
        if factored.inverse is None or len(indices) == 0:
            return u
        return u.index_copy(0, indices, factored.inverse @ r[indices])

    u = approximate(scaled_rhs)
    residual = scaled_rhs - factored.scaled @ u
    for _ in range(refinement_steps):
        better = u + approximate(residual)
        new_residual = scaled_rhs - factored.scaled @ better
        improved = (new_residual.abs().amax(1) < residual.abs().amax(1)).unsqueeze(-1)
        u, residual = torch.where(improved, better, u), torch.where(improved, new_residual, residual)
    # What was projected away from an inconsistent right-hand side counts as residual.
    full_residual = (residual + D * rhs.unsqueeze(-1) - scaled_rhs).abs().amax((1, 2))
    size = (D * rhs.unsqueeze(-1)).abs().amax((1, 2))
    relative = torch.where(size > 0, full_residual / torch.where(size > 0, size, torch.ones_like(size)), size)
    return _without_null(factored, indices, (D * u).squeeze(-1)), relative


def _without_null(factored: Factor, indices: Tensor, r: Tensor) -> Tensor:
    """Remove the components in the null space of K from the singular elements of r, (B, N)."""
    if len(indices) == 0:
        return r
    projected = [r[i] - N @ (N.T @ r[i]) for i, N in zip(indices.tolist(), factored.null, strict=True)]
    return r.index_copy(0, indices, torch.stack(projected))
