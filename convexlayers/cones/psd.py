"""The cone of positive semidefinite matrices, as svec vectors. Self-dual.

Proj_K(V) = U max(L, 0) U' for V = U L U'. Its derivative (Malick and Sendov, "Clarke generalized Jacobian of the
projection onto the cone of positive semidefinite matrices", 2006) multiplies entry (i, j) of U' dV U by 1 where both
eigenvalues are positive, 0 where neither is, and l_i / (l_i - l_j) for l_i > 0 > l_j: its eigenvectors are
svec(u_i u_j' + u_j u_i'). Barrier f(S) = -log det S.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.barrier import coupling, smooth_pair
from convexlayers.cones.base import Basis, Cone, Spectrum, cross_ratio
from convexlayers.cones.complementarity import JordanComplementarity
from convexlayers.cones.svec import smat, svec, triangle_indices, triangle_size


@dataclass(frozen=True)
class CongruenceBasis(Basis):
    """Y -> U'YU on svec vectors; orthogonal because U is.

    Attributes:
        U: orthonormal eigenvectors in columns, shape (..., n, n).
    """

    U: Tensor

    def _congruence(self, y: Tensor, U: Tensor) -> Tensor:
        Y = smat(y.transpose(-1, -2), U.shape[-1])
        U = U.unsqueeze(-3)
        return svec(U.transpose(-1, -2) @ Y @ U).transpose(-1, -2)

    def rotate(self, y: Tensor) -> Tensor:
        return self._congruence(y, self.U)

    def unrotate(self, y: Tensor) -> Tensor:
        return self._congruence(y, self.U.transpose(-1, -2))


@dataclass(frozen=True)
class MatrixComplementarity(JordanComplementarity):
    """S o Z = (S Z + Z S) / 2 on svec vectors.

    Attributes:
        order: of the matrices.
    """

    order: int

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        AB = smat(a, self.order) @ smat(b, self.order)
        return svec(0.5 * (AB + AB.mT))

    def divide(self, c: Tensor, a: Tensor) -> Tensor:
        values, U = torch.linalg.eigh(smat(a, self.order))
        rotated = U.mT @ smat(c, self.order) @ U
        return svec(U @ (2 * rotated / (values.unsqueeze(-1) + values.unsqueeze(-2))) @ U.mT)


@dataclass(frozen=True)
class PSD(Cone):
    """Positive semidefinite matrices of the given order; dim = order (order + 1) / 2."""

    order: int

    @property
    def dim(self) -> int:  # type: ignore[override]
        return triangle_size(self.order)

    def project(self, v: Tensor) -> Tensor:
        values, U = torch.linalg.eigh(smat(v, self.order))
        return svec((U * values.clamp(min=0).unsqueeze(-2)) @ U.transpose(-1, -2))

    def spectrum(self, v: Tensor) -> Spectrum:
        values, U = torch.linalg.eigh(smat(v, self.order))
        rows, cols = (torch.as_tensor(i, device=v.device) for i in triangle_indices(self.order))
        # eigh sorts ascending and rows <= cols, so the column's eigenvalue is the larger of each pair.
        mu, nu = cross_ratio(values[..., cols], values[..., rows])
        return Spectrum(mu=mu, nu=nu, basis=CongruenceBasis(U))

    def smooth(self, v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Spectrum]:
        values, U = torch.linalg.eigh(smat(v, self.order))
        sigma, zeta = smooth_pair(values, weight.unsqueeze(-1))
        rows, cols = (torch.as_tensor(i, device=v.device) for i in triangle_indices(self.order))
        mu, nu = coupling(sigma[..., cols], sigma[..., rows], zeta[..., cols], zeta[..., rows])
        s, z = (svec((U * part.unsqueeze(-2)) @ U.transpose(-1, -2)) for part in (sigma, zeta))
        return s, z, Spectrum(mu=mu, nu=nu, basis=CongruenceBasis(U))

    def margin(self, v: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(smat(v, self.order)).abs().amin(-1)

    @property
    def complementarity(self) -> MatrixComplementarity:
        return MatrixComplementarity(self.order)
