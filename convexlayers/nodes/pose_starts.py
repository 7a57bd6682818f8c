"""Where the search for a camera pose starts: the linear solution, and rotations with the translation that fits them."""

import torch
from torch import Tensor

from convexlayers.nodes.rotation import angle_axis, rotation_matrix

# Smallest weight that the mean of all is divided by.
TINY = 1e-30


def _normalized(image: Tensor, intrinsics: Tensor) -> Tensor:
    """Image points (*, N, 2) of the camera with intrinsics (1, 1, 0, 0)."""
    intrinsics = intrinsics.unsqueeze(-2)
    return (image - intrinsics[..., 2:]) / intrinsics[..., :2]


def linear_pose(image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor) -> Tensor:
    """The pose (*, 6) from the weighted linear equations of the camera matrix, made a rotation.

    Source: direct linear transformation (Hartley, Zisserman, "Multiple view geometry", 2004, section 7.1). With [u; v]
    normalized and X homogeneous, P = [A | b] satisfies P_1 X - u P_3 X = 0, P_2 X - v P_3 X = 0. Points are centred and
    scaled first: X = (p - c) / s. Six points or more, not in a plane; otherwise the result is some start.

    Args:
        image: (*, N, 2). space: (*, N, 3). weights: (*, N). intrinsics: (*, 4).
    """
    rays, weights = _normalized(image, intrinsics).nan_to_num(), weights.nan_to_num()
    total = weights.sum(-1, keepdim=True).clamp(min=TINY)
    centre = ((weights.unsqueeze(-1) * space).sum(-2) / total).nan_to_num().unsqueeze(-2)
    spread = (weights * (space - centre).square().sum(-1)).sum(-1, keepdim=True) / total
    size = spread.sqrt().clamp(min=TINY).unsqueeze(-1)
    X = torch.cat([(space - centre) / size, torch.ones_like(space[..., :1])], -1).nan_to_num()
    P = torch.linalg.eigh(_equations(X, rays, weights))[1][..., 0].reshape(*X.shape[:-2], 3, 4)
    P = P * torch.where(P[..., 2:, 3:] < 0, -1.0, 1.0)
    U, values, Vh = torch.linalg.svd(P[..., :3])
    R = _proper(U, Vh)
    away = P[..., 3] * size.squeeze(-1) / values.mean(-1, keepdim=True).clamp(min=TINY)
    return torch.cat([angle_axis(R), away - (R @ centre.mT).squeeze(-1)], -1)


def first_pose(image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor) -> Tensor:
    """The linear pose, (B, 6); where that puts points behind the camera, its rotation with the best translation."""
    pose = linear_pose(image, space, weights, intrinsics)
    vectors = pose[:, None, :3]
    behind = ((space @ rotation_matrix(pose[:, :3]).mT)[..., 2] + pose[:, 5:] <= 0).any(1, keepdim=True)
    moved = _best_translations(vectors, _normalized(image, intrinsics), space, weights).squeeze(1)
    return torch.cat([pose[:, :3], torch.where(behind, moved, pose[:, 3:])], 1)


def _equations(X: Tensor, rays: Tensor, weights: Tensor) -> Tensor:
    """The normal matrix of the camera matrix's equations, (*, 12, 12), in blocks of 4: with S(k) = sum_i k_i X_i X_i',

    [ S(w)     0     -S(w u)              ]
    [   0     S(w)   -S(w v)              ]
    [-S(w u) -S(w v)  S(w (u^2 + v^2))    ]
    """
    u, v = rays.unbind(-1)
    kinds = torch.stack([weights, weights * u, weights * v, weights * (u * u + v * v)], -2)
    squares = (X.unsqueeze(-1) * X.unsqueeze(-2)).flatten(-2)
    one, by_u, by_v, by_both = (kinds @ squares).unflatten(-1, (4, 4)).unbind(-3)
    zero = torch.zeros_like(one)
    rows = [[one, zero, -by_u], [zero, one, -by_v], [-by_u, -by_v, by_both]]
    return torch.cat([torch.cat(row, -1) for row in rows], -2)


def _proper(U: Tensor, Vh: Tensor) -> Tensor:
    """The rotation next to U V'."""
    sign = torch.linalg.det(U @ Vh).sign()
    return (U * torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1).unsqueeze(-2)) @ Vh


class Rotations:
    """Starts at random rotations, each with the translation that is best for it in the linear equations.

    Args:
        count: number of rotations. seed: of their random numbers.
    """

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        quaternions = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        q = quaternions / quaternions.norm(dim=1, keepdim=True)
        length = q[:, 1:].norm(dim=1, keepdim=True)
        self.vectors = 2 * torch.atan2(length, q[:, :1]) * q[:, 1:] / length

    def __call__(self, image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor) -> Tensor:
        """Poses (B, count, 6) for a batch of points (B, N, ...)."""
        vectors = self.vectors.to(space).expand(len(space), -1, 3)
        rays = _normalized(image, intrinsics)
        return torch.cat([vectors, _best_translations(vectors, rays, space, weights)], 2)


def _best_translations(vectors: Tensor, rays: Tensor, space: Tensor, weights: Tensor) -> Tensor:
    """t with X - u Z = 0, Y - v Z = 0 in least squares for (X, Y, Z) = R p + t, all points in front of the camera.

    Args:
        vectors: (B, k, 3). rays: (B, N, 2). space: (B, N, 3). weights: (B, N).

    Returns:
        (B, k, 3)
    """
    moved = space.unsqueeze(1) @ rotation_matrix(vectors).mT
    u, v = rays.unsqueeze(1).unbind(-1)
    w = weights.unsqueeze(1)
    # The equations' rows are (1, 0, -u) and (0, 1, -v); what they are to equal is -x and -y.
    x, y = moved[..., 0] - u * moved[..., 2], moved[..., 1] - v * moved[..., 2]
    one, by_u, by_v = (part.sum(-1).squeeze(1) for part in (w, w * u, w * v))
    zero, by_both = torch.zeros_like(one), (w * (u * u + v * v)).sum(-1).squeeze(1)
    normal = torch.stack([one, zero, -by_u, zero, one, -by_v, -by_u, -by_v, by_both], -1).reshape(-1, 1, 3, 3)
    eye = torch.eye(3, dtype=space.dtype, device=space.device)
    normal = normal + 1e-9 * torch.diagonal(normal, dim1=2, dim2=3).sum(-1)[..., None, None] * eye
    right = -torch.stack([(w * x).sum(-1), (w * y).sum(-1), -(w * (u * x + v * y)).sum(-1)], -1)
    inverse = torch.linalg.inv_ex(normal)[0]
    t = (inverse @ right.unsqueeze(-1)).squeeze(-1)
    depth = moved[..., 2]
    extent = (depth.amax(-1) - depth.amin(-1)).clamp(min=1e-6)
    return torch.cat([t[..., :2], torch.maximum(t[..., 2], 0.1 * extent - depth.amin(-1)).unsqueeze(-1)], -1)
