"""Positive semidefinite matrices in an interior-point step (Todd, Toh, Tutuncu, "On the Nesterov-Todd direction in
semidefinite programming", 1998).

With Cholesky factors S = L_s L_s', Z = L_z L_z' and singular values L_z'L_s = Q diag(lambda) V',

    R = L_s V diag(lambda)^-1/2,   R^-1 = diag(lambda)^-1/2 Q'L_z',   R^-1 S R^-T = R'Z R = diag(lambda),

and G = R R' has G Z G = S: H y = svec(G Y G). With the singular values of R, G = U diag(g) U', and H is diagonal after
the congruence with U, entries g_i g_j.

Corrector: d_s = s + R (lambda \\ (weight ds~ o dz~ - sigma mu I)) R', ds~ = R^-1 ds R^-T, dz~ = R'dz R, where A o B =
(AB + BA) / 2 and (lambda \\ B)_ij = 2 B_ij / (lambda_i + lambda_j).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Spectrum
from convexlayers.cones.psd import CongruenceBasis
from convexlayers.cones.svec import smat, svec, triangle_indices, triangle_size
from convexlayers.engines.dense.steps import Local, Steps, spectrum_of, usable, worst


@dataclass(frozen=True, eq=False)
class SemidefiniteLocal(Local):
    """Semidefinite cones at (s, z).

    Attributes:
        order: of the matrices.
        R, R_inverse: (B, count, order, order).
        values: lambda, (B, count, order).
    """

    s: Tensor
    order: int
    R: Tensor
    R_inverse: Tensor
    values: Tensor
    spectrum: Spectrum

    def _scaled(self, ds: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
        """R^-1 ds R^-T and R'dz R."""
        dS, dZ = smat(ds, self.order), smat(dz, self.order)
        return self.R_inverse @ dS @ self.R_inverse.mT, self.R.mT @ dZ @ self.R

    def corrector(self, ds: Tensor, dz: Tensor, weight: Tensor, sigma_mu: Tensor) -> Tensor:
        dS, dZ = self._scaled(ds, dz)
        identity = torch.eye(self.order, dtype=ds.dtype, device=ds.device)
        product = 0.5 * weight.unsqueeze(-1) * (dS @ dZ + dZ @ dS) - sigma_mu.unsqueeze(-1) * identity
        divided = 2 * product / (self.values.unsqueeze(-1) + self.values.unsqueeze(-2))
        return self.s + svec(self.R @ divided @ self.R.mT)

    def exit_rate(self, ds: Tensor, dz: Tensor, rate: Tensor) -> Tensor:
        root = self.values.rsqrt()
        for part in self._scaled(ds, dz):
            # In coordinates in which s, and then z, is the identity.
            (scaled,) = usable(root.unsqueeze(-1) * part * root.unsqueeze(-2))
            rate = worst(-torch.linalg.eigvalsh(scaled)[..., 0], rate)
        return rate


@dataclass(frozen=True)
class SemidefiniteSteps(Steps):
    """Positive semidefinite matrices of the given order."""

    order: int

    @property
    def degree(self) -> int:  # type: ignore[override]
        return self.order

    def at(self, s: Tensor, z: Tensor) -> SemidefiniteLocal:
        lower_s, _ = torch.linalg.cholesky_ex(smat(s, self.order))
        lower_z, _ = torch.linalg.cholesky_ex(smat(z, self.order))
        lower_s, lower_z = usable(lower_s, lower_z)
        left, values, right = torch.linalg.svd(lower_z.mT @ lower_s)
        root = values.rsqrt()
        R = lower_s @ right.mT * root.unsqueeze(-2)
        R_inverse = root.unsqueeze(-1) * (left.mT @ lower_z.mT)
        U, roots, _ = torch.linalg.svd(usable(R)[0])
        rows, cols = (torch.as_tensor(i, device=s.device) for i in triangle_indices(self.order))
        g = roots**2
        spectrum = spectrum_of(g[..., rows] * g[..., cols], CongruenceBasis(U))
        return SemidefiniteLocal(s, self.order, R, R_inverse, values, spectrum)

    def center(self, like: Tensor) -> Tensor:
        return svec(torch.eye(self.order, dtype=like.dtype, device=like.device)).expand_as(like)

    def depth(self, s: Tensor) -> Tensor:
        assert s.shape[-1] == triangle_size(self.order)
        return torch.linalg.eigvalsh(usable(smat(s, self.order))[0])[..., 0]
