"""The objective of a camera pose, its gradient and its Hessians, by formula.

    f(r, t) = sum_i w_i rho(|e_i|^2),    e_i = pi(X_i) - u_i,
    X_i = R(r) p_i + t = M q_i,    M = [R | t],  q_i = [p_i; 1]

With J_i = de_i/dX_i, j_i = J_i'e_i and the weights k = 2 w rho', l = 4 w rho'',

    df/dX_i   = k j_i
    d2f/dX_i2 = k (J_i'J_i + C_i) + l j_i j_i',    C_i = sum of e_i times the second derivatives of pi,

M is linear in the pose except through R, so with D = dM/d(r, t) and G = sum_i (df/dX_i) q_i'

    gradient  = D'G,    Hessian = D' (sum_i d2f/dX_i2 (x) q_i q_i') D + <G, d2R/dr2>.

The sums over points are two matrix products per element; what follows does not depend on their number. Gauss-Newton's
Hessian is D' (sum_i k J_i'J_i (x) q_i q_i') D.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.nodes.rotation import Rodrigues, contracted, rodrigues, rotation_derivative, rotation_from

# What a point behind the camera is said to be off by, in place of its projection.
BEHIND = 1e6


@dataclass(frozen=True, eq=False)
class _Seen:
    """Points as the camera sees them: X / Z, Y / Z, Z, errors e, 2 rho', 4 rho'' and rho, (B, N) each."""

    a: Tensor
    b: Tensor
    depth: Tensor
    front: Tensor
    ex: Tensor
    ey: Tensor
    slope: Tensor
    bend: Tensor
    cost: Tensor


@dataclass(frozen=True, eq=False)
class PoseObjective:
    """f at given correspondences.

    Attributes:
        image: (B, N, 2). space: (B, N, 3). weights: (B, N). intrinsics: fx, fy, cx, cy, (B, 4).
        scale: of the pseudo-Huber function, or None for rho(s) = s / 2.
    """

    image: Tensor
    space: Tensor
    weights: Tensor
    intrinsics: Tensor
    scale: float | None

    def value(self, pose: Tensor) -> Tensor:
        """f, (B,), at (B, 6)."""
        return (self.weights * self._see(pose, _turn(pose)).cost).sum(1)

    def gradient(self, pose: Tensor) -> Tensor:
        """(B, 6)."""
        f = _turn(pose)
        return _pulled(pose, f, self._slope(self._see(pose, f)))[0]

    def hessian(self, pose: Tensor) -> Tensor:
        """(B, 6, 6)."""
        everywhere = torch.ones_like(pose[:, 0], dtype=torch.bool)
        return self.quadratic(pose, everywhere)[2]

    def quadratic(self, pose: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f, (B,), its gradient, (B, 6), and the Hessian, (B, 6, 6): exact in the mask (B,), else Gauss-Newton's."""
        f, r = _turn(pose), pose[:, :3]
        seen = self._see(pose, f)
        gradient, bent = _pulled(pose, f, self._slope(seen))
        q = _homogeneous(self.space)
        squares = (q.unsqueeze(3) * q.unsqueeze(2)).reshape(*q.shape[:2], 16)
        T = (self._curvature(seen, exact.unsqueeze(1)) @ squares).reshape(-1, 3, 3, 4, 4)
        T = T.transpose(2, 3).reshape(-1, 12, 12)
        turns = torch.cat([rotation_derivative(r, f), torch.zeros_like(bent).unsqueeze(2)], 2).reshape(-1, 12, 3)
        shifts = torch.zeros(12, 3, dtype=r.dtype, device=r.device)
        shifts[[3, 7, 11], [0, 1, 2]] = 1.0
        D = torch.cat([turns, shifts.expand_as(turns)], 2)
        bent = bent * exact.to(bent.dtype).reshape(-1, 1, 1)
        return (self.weights * seen.cost).sum(1), gradient, D.mT @ T @ D + torch.nn.functional.pad(bent, (0, 3, 0, 3))

    def _see(self, pose: Tensor, f: Rodrigues) -> _Seen:
        X, Y, Z = (self.space @ rotation_from(pose[:, :3], f).mT + pose[:, None, 3:]).unbind(2)
        front = Z > 0
        depth = torch.where(front, Z, torch.ones_like(Z))
        a, b = X / depth, Y / depth
        fx, fy, cx, cy = (part.unsqueeze(1) for part in self.intrinsics.unbind(1))
        off = torch.full_like(a, BEHIND)
        ex = torch.where(front, fx * a + cx - self.image[..., 0], off)
        ey = torch.where(front, fy * b + cy - self.image[..., 1], off)
        squared = ex * ex + ey * ey
        if self.scale is None:
            return _Seen(a, b, depth, front, ex, ey, torch.ones_like(a), torch.zeros_like(a), 0.5 * squared)
        # rho = a^2 (sqrt(1 + s / a^2) - 1) = s / (1 + root)
        root = (1 + squared / self.scale**2).sqrt()
        return _Seen(a, b, depth, front, ex, ey, 1 / root, -1 / (self.scale**2 * root**3), squared / (1 + root))

    def _stretch(self, seen: _Seen) -> tuple[Tensor, Tensor]:
        """fx / Z and fy / Z; zero behind the camera, where the error is constant."""
        inverse = seen.front.to(seen.depth.dtype) / seen.depth
        return self.intrinsics[:, :1] * inverse, self.intrinsics[:, 1:2] * inverse

    def _pulls(self, seen: _Seen) -> tuple[Tensor, Tensor, Tensor]:
        """j = J'e, entry by entry, with J = [p 0 -pa; 0 q -qb]."""
        p, q = self._stretch(seen)
        jx, jy = p * seen.ex, q * seen.ey
        return jx, jy, -(jx * seen.a + jy * seen.b)

    def _slope(self, seen: _Seen) -> Tensor:
        """G, (B, 3, 4)."""
        k = self.weights * seen.slope
        by_point = torch.stack([k * j for j in self._pulls(seen)], 1)
        return by_point @ _homogeneous(self.space)

    def _curvature(self, seen: _Seen, exact: Tensor) -> Tensor:
        """d2f/dX2 of every point, (B, 9, N)."""
        p, q = self._stretch(seen)
        jx, jy, jz = self._pulls(seen)
        more = exact.to(jx.dtype) / seen.depth
        k, bend = self.weights * seen.slope, self.weights * seen.bend * exact.to(jx.dtype)
        # C: the second derivatives of X / Z are -1 / Z^2 in (X, Z), 2 X / Z^3 in (Z, Z); alike for Y.
        pp, qq = p * p, q * q
        xx = k * pp + bend * jx * jx
        xy = bend * jx * jy
        xz = -k * (pp * seen.a + jx * more) + bend * jx * jz
        yy = k * qq + bend * jy * jy
        yz = -k * (qq * seen.b + jy * more) + bend * jy * jz
        zz = k * (pp * seen.a * seen.a + qq * seen.b * seen.b - 2 * jz * more) + bend * jz * jz
        return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], 1)


def _turn(pose: Tensor) -> Rodrigues:
    return rodrigues(pose[:, :3].square().sum(1))


def _homogeneous(space: Tensor) -> Tensor:
    return torch.cat([space, torch.ones_like(space[..., :1])], -1)


def _pulled(pose: Tensor, f: Rodrigues, G: Tensor) -> tuple[Tensor, Tensor]:
    """D'G, (B, 6), and <G, d2R/dr2>, (B, 3, 3)."""
    turn, bent = contracted(pose[:, :3], f, G[:, :, :3])
    return torch.cat([turn, G[:, :, 3]], 1), bent
