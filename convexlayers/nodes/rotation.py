"""Rotations as angle-axis vectors r, with first and second derivatives by formula.

With q = |r|^2, K the cross product by r, and Rodrigues' formula in terms of entire functions of q,

    R(r) = c(q) I + s(q) K + v(q) r r',    c = cos sqrt(q),  s = sin sqrt(q) / sqrt(q),  v = (1 - cos sqrt(q)) / q,

so everything is smooth at r = 0, too. Derivatives in q follow from the definitions:

    c' = -s / 2,   s' = (c - s) / (2 q),   v' = (s / 2 - v) / q,
    s'' = -(s / 2 + 3 s') / (2 q),   v'' = (s' / 2 - 2 v') / q,   c'' = -s' / 2

and for q < 1, where these cancel, from the power series c = sum (-q)^k / (2k)!, s = sum (-q)^k / (2k + 1)!,
v = sum (-q)^k / (2k + 2)!.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The first term left out is below 1e-30 at q = 1. A power of two, for `_powers`.
TERMS = 16


@dataclass(frozen=True, eq=False)
class Rodrigues:
    """The functions of q and their derivatives, (*,) each; see the module."""

    c: Tensor
    s: Tensor
    v: Tensor
    ds: Tensor
    dv: Tensor
    dds: Tensor
    ddv: Tensor


def _series() -> list[list[float]]:
    """Coefficients of q^k in c, s, v, s', v', s'', v'', one row per k."""

    def coefficient(shift: int, derivative: int, k: int) -> float:
        power = k + derivative
        return (-1) ** power * math.perm(power, derivative) / math.factorial(2 * power + shift)

    kinds = [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)]
    return [[coefficient(shift, derivative, k) for shift, derivative in kinds] for k in range(TERMS)]


SERIES = _series()


def rodrigues(squared: Tensor) -> Rodrigues:
    """At q = `squared`, (*,)."""
    near = squared < 1
    q = torch.where(near, squared, torch.zeros_like(squared))
    powers = _powers(q)
    table = torch.tensor(SERIES, dtype=q.dtype, device=q.device)
    series = (powers.unsqueeze(-2) * table.mT).sum(-1).unbind(-1)
    far = torch.where(near, torch.ones_like(squared), squared)
    root = far.sqrt()
    c, s = root.cos(), root.sin() / root
    v = (1 - c) / far
    ds, dv = (c - s) / (2 * far), (0.5 * s - v) / far
    dds, ddv = -(0.5 * s + 3 * ds) / (2 * far), (0.5 * ds - 2 * dv) / far
    closed = (c, s, v, ds, dv, dds, ddv)
    return Rodrigues(*(torch.where(near, one, other) for one, other in zip(series, closed, strict=True)))


def _powers(q: Tensor) -> Tensor:
    """q^k for k < TERMS, (*, TERMS), by products: torch's power has no second derivative at zero."""
    found, square = torch.stack([torch.ones_like(q), q], -1), (q * q).unsqueeze(-1)
    while found.shape[-1] < TERMS:
        found, square = torch.cat([found, found * square], -1), square * square
    return found


def cross_matrix(r: Tensor) -> Tensor:
    """K with K p = r x p, (*, 3, 3) from (*, 3)."""
    x, y, z = r.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*r.shape, 3)


def rotation_matrix(angle_axis: Tensor) -> Tensor:
    """Rotation by |r| about r, (*, 3, 3) from (*, 3); smooth at zero, too."""
    return rotation_from(angle_axis, rodrigues((angle_axis * angle_axis).sum(-1)))


def rotation_from(r: Tensor, f: Rodrigues) -> Tensor:
    """R(r), (*, 3, 3), with f at |r|^2."""
    eye = torch.eye(3, dtype=r.dtype, device=r.device)
    return _wide(f.c) * eye + _wide(f.s) * cross_matrix(r) + _wide(f.v) * r.unsqueeze(-1) * r.unsqueeze(-2)


def rotation_derivative(r: Tensor, f: Rodrigues) -> Tensor:
    """dR / dr_a as the last dimension, (B, 3, 3, 3):  2 r_a (c' I + s' K + v' rr') + s E_a + v (e_a r' + r e_a').

    Args:
        r: (B, 3). f: at |r|^2.
    """
    eye = torch.eye(3, dtype=r.dtype, device=r.device)
    outer = r.unsqueeze(2) * r.unsqueeze(1)
    common = _wide(-0.5 * f.s) * eye + _wide(f.ds) * cross_matrix(r) + _wide(f.dv) * outer
    # E_a is K at r = e_a; (e_a r' + r e_a')_jk = d_ja r_k + d_ka r_j.
    generators = cross_matrix(eye).permute(1, 2, 0)
    mixed = torch.einsum("ja,bk->bjka", eye, r)
    mixed = mixed + mixed.transpose(1, 2)
    s, v = f.s.reshape(-1, 1, 1, 1), f.v.reshape(-1, 1, 1, 1)
    return 2 * common.unsqueeze(3) * r[:, None, None, :] + s * generators + v * mixed


def contracted(r: Tensor, f: Rodrigues, G: Tensor) -> tuple[Tensor, Tensor]:
    """<G, dR/dr>, (B, 3), and <G, d2R/dr2>, (B, 3, 3).

    With g_a = <G, E_a>, S = G + G', h = S r, and  common = tr(G) c + (g'r) s + (r'Gr) v  with c, s, v differentiated
    once or twice,

        first_a   = 2 r_a common' + s g_a + v h_a
        second_ab = 2 d_ab common' + 4 r_a r_b common'' + 2 s' (r_a g_b + r_b g_a) + 2 v' (r_a h_b + r_b h_a) + v S_ab

    Args:
        r: (B, 3). f: at |r|^2. G: (B, 3, 3).
    """
    S = G + G.mT
    g = torch.stack([G[:, 2, 1] - G[:, 1, 2], G[:, 0, 2] - G[:, 2, 0], G[:, 1, 0] - G[:, 0, 1]], 1)
    h = (S * r.unsqueeze(1)).sum(2)
    trace, along, bent = G[:, 0, 0] + G[:, 1, 1] + G[:, 2, 2], (g * r).sum(1), 0.5 * (h * r).sum(1)
    once = -0.5 * f.s * trace + f.ds * along + f.dv * bent
    twice = -0.5 * f.ds * trace + f.dds * along + f.ddv * bent
    first = 2 * once.unsqueeze(1) * r + f.s.unsqueeze(1) * g + f.v.unsqueeze(1) * h
    pull = 2 * twice.unsqueeze(1) * r + 2 * f.ds.unsqueeze(1) * g + 2 * f.dv.unsqueeze(1) * h
    mixed = r.unsqueeze(2) * pull.unsqueeze(1)
    eye = torch.eye(3, dtype=r.dtype, device=r.device)
    return first, 2 * _wide(once) * eye + mixed + mixed.mT + _wide(f.v) * S


def _wide(value: Tensor) -> Tensor:
    return value.unsqueeze(-1).unsqueeze(-1)


def angle_axis(R: Tensor) -> Tensor:
    """The vector of a rotation matrix, (*, 3), at most pi long; by its quaternion, which has no singular case.

    The quaternion is the leading eigenvector of a symmetric matrix in the entries of R (Bar-Itzhack, 2000).
    """
    v = torch.stack([R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]], -1)
    trace = R[..., 0, 0] + R[..., 1, 1] + R[..., 2, 2]
    S = R + R.mT - _wide(trace) * torch.eye(3, dtype=R.dtype, device=R.device)
    below = torch.cat([v, trace.unsqueeze(-1)], -1)
    M = torch.cat([torch.cat([S, v.unsqueeze(-1)], -1), below.unsqueeze(-2)], -2)
    q = torch.linalg.eigh(M)[1][..., 3]
    q = q * torch.where(q[..., 3:] < 0, -1.0, 1.0)
    length = q[..., :3].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(length, q[..., 3:])
    return q[..., :3] * torch.where(length > 0, angle / length.clamp(min=1e-30), torch.full_like(length, 2.0))
