"""Camera pose from weighted correspondences of points in space and in the image (perspective n-point), as a node.

    minimize over (r, t)    sum_i w_i rho(|pi(K, R(r) p_i + t) - u_i|^2)

r is an angle-axis vector, t a translation, pi the projection with intrinsics K = (fx, fy, cx, cy), and rho(s) = s / 2,
or the pseudo-Huber function of a given scale. The objective has several local minima: the solver starts at the linear
solution (direct linear transformation: Hartley, Zisserman, "Multiple view geometry", 2004, section 7.1) and at random
rotations, and keeps the best. The derivative reaches points, weights and intrinsics.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value, as_tensor
from convexlayers.errors import ArgumentError
from convexlayers.nodes.node import DeclarativeNode
from convexlayers.nodes.solution import NodeSolution
from convexlayers.nodes.solvers import LevenbergMarquardt
from convexlayers.nodes.starts import Restarts

# Below this squared angle, series: the next term is below 1e-17.
SMALL = 1e-3
# What a point behind the camera is said to be off by, in place of its projection.
BEHIND = 1e6
INTRINSICS = (1.0, 1.0, 0.0, 0.0)


def rotation_matrix(angle_axis: Tensor) -> Tensor:
    """Rotation by |v| about v, (3, 3) from (3,), by Rodrigues' formula; smooth at zero, too."""
    squared = angle_axis @ angle_axis
    is_small = squared < SMALL
    safe = torch.where(is_small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    t = torch.where(is_small, squared, torch.zeros_like(squared))
    sine = torch.where(is_small, 1 - t / 6 * (1 - t / 20 * (1 - t / 42)), angle.sin() / angle)
    versine = torch.where(is_small, 0.5 - t / 24 * (1 - t / 30 * (1 - t / 56)), (1 - angle.cos()) / safe)
    x, y, z = angle_axis.unbind()
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    return torch.eye(3, dtype=angle_axis.dtype, device=angle_axis.device) + sine * cross + versine * (cross @ cross)


def project(pose: Tensor, points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Image points (N, 2) and depths (N,) of points (N, 3) for a pose (6,) and intrinsics (4,)."""
    moved = points @ rotation_matrix(pose[:3]).T + pose[3:]
    depth = moved[:, 2]
    safe = torch.where(depth > 0, depth, torch.ones_like(depth))
    return moved[:, :2] / safe.unsqueeze(1) * intrinsics[:2] + intrinsics[2:], depth


class PnP(DeclarativeNode):
    """Pose (*batch, 6), angle-axis and translation, from correspondences.

    Args:
        scale: of the pseudo-Huber function, in the units of the image; None for squares.
        rotations: number of rotations to start from, besides the linear solution.
        seed: of these rotations.
        options: as of `DeclarativeNode`: on_failure, block, damping.

    Shape:
        points (*batch, N, 2) in the image and (*batch, N, 3) in space, weights (*batch, N), nonnegative, intrinsics
        (*batch, 4) or (4,).

    Examples:
        >>> import torch
        >>> from convexlayers.nodes import PnP
        >>> space = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> pose = torch.tensor([0.1, -0.2, 0.3, 0.0, 0.5, 6.0], dtype=torch.float64)
        >>> image, _ = project(pose, space, torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
        >>> bool((PnP()(image, space) - pose).abs().max() < 1e-9)
        True
    """

    def __init__(self, scale: float | None = None, *, rotations: int = 6, seed: int = 0, **options: Any) -> None:
        if scale is not None and not scale > 0:
            raise ArgumentError(f"scale is {scale}, expected a positive number or None.")
        self.scale = scale
        super().__init__(
            self._objective, start=linear_pose, solver=LevenbergMarquardt(self._residuals),
            restarts=Restarts(points=_Rotations(rotations, seed)), event_dims=(2, 2, 1, 1), **options,
        )  # fmt: skip

    def forward(  # type: ignore[override]
        self, image: Value, space: Value, weights: Value | None = None, intrinsics: Value | None = None
    ) -> Tensor:
        """The pose, (*batch, 6). Weights are one and intrinsics (1, 1, 0, 0) by default."""
        return super().forward(*_filled(image, space, weights, intrinsics))

    def solve(  # type: ignore[override]
        self, image: Value, space: Value, weights: Value | None = None, intrinsics: Value | None = None
    ) -> NodeSolution:
        """The pose with everything that is known of it."""
        return super().solve(*_filled(image, space, weights, intrinsics))

    def _errors(self, image: Tensor, space: Tensor, intrinsics: Tensor, pose: Tensor) -> Tensor:
        found, depth = project(pose, space, intrinsics)
        behind = (depth <= 0).unsqueeze(1)
        return torch.where(behind, torch.full_like(found, BEHIND), found - image)

    def _objective(self, image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor, pose: Tensor) -> Tensor:
        squared = self._errors(image, space, intrinsics, pose).square().sum(1)
        return 0.5 * (weights * squared * self._robust(squared)).sum()

    def _residuals(self, image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor, pose: Tensor) -> Tensor:
        errors = self._errors(image, space, intrinsics, pose)
        factor = (weights * self._robust(errors.square().sum(1))).sqrt()
        return factor.unsqueeze(1) * errors

    def _robust(self, squared: Tensor) -> Tensor:
        """2 rho(s) / s: for a^2 (sqrt(1 + s / a^2) - 1) that is 2 / (1 + sqrt(1 + s / a^2)), smooth at zero."""
        if self.scale is None:
            return torch.ones_like(squared)
        return 2 / (1 + (1 + squared / self.scale**2).sqrt())


def _filled(image: Value, space: Value, weights: Value | None, intrinsics: Value | None) -> list[Tensor]:
    points, places = as_tensor("image", image), as_tensor("space", space)
    if weights is None:
        weights = torch.ones(points.shape[-2], dtype=points.dtype, device=points.device)
    if intrinsics is None:
        intrinsics = torch.tensor(INTRINSICS, dtype=points.dtype, device=points.device)
    return [points, places, as_tensor("weights", weights), as_tensor("intrinsics", intrinsics)]


def _normalized(image: Tensor, intrinsics: Tensor) -> Tensor:
    return (image - intrinsics[2:]) / intrinsics[:2]


def linear_pose(image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor) -> Tensor:
    """The pose (6,) from the weighted linear equations of the camera matrix, made a rotation.

    With [u; v] normalized and X homogeneous, P = [A | b] satisfies P_1 X - u P_3 X = 0, P_2 X - v P_3 X = 0. Points are
    centred and scaled first: X = (p - c) / s. Six points or more, not in a plane; otherwise the result is some start.
    """
    rays = _normalized(image, intrinsics).nan_to_num()
    total = weights.sum().clamp(min=1e-30)
    centre = ((weights.unsqueeze(1) * space).sum(0) / total).nan_to_num()
    size = ((weights * (space - centre).square().sum(1)).sum() / total).sqrt().clamp(min=1e-30)
    X = torch.cat([(space - centre) / size, torch.ones_like(space[:, :1])], 1).nan_to_num()
    zero = torch.zeros_like(X)
    rows = torch.cat([torch.cat([X, zero, -rays[:, :1] * X], 1), torch.cat([zero, X, -rays[:, 1:] * X], 1)])
    doubled = torch.cat([weights, weights]).nan_to_num().unsqueeze(1)
    P = torch.linalg.eigh(rows.T @ (doubled * rows))[1][:, 0].reshape(3, 4)
    P = P * torch.where(P[2, 3] < 0, -1.0, 1.0)
    U, values, Vh = torch.linalg.svd(P[:, :3])
    R = _proper(U, Vh)
    return torch.cat([angle_axis(R), P[:, 3] * size / values.mean().clamp(min=1e-30) - R @ centre])


def _proper(U: Tensor, Vh: Tensor) -> Tensor:
    """The rotation next to U V'."""
    sign = torch.linalg.det(U @ Vh).sign()
    return U @ torch.diag(torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign])) @ Vh


def angle_axis(R: Tensor) -> Tensor:
    """The vector of a rotation matrix, (3,), at most pi long; by its quaternion, which has no singular case.

    The quaternion is the leading eigenvector of a symmetric matrix in the entries of R (Bar-Itzhack, 2000).
    """
    a, b, c = R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]
    trace = R[0, 0] + R[1, 1] + R[2, 2]
    S = R + R.T - trace * torch.eye(3, dtype=R.dtype, device=R.device)
    v = torch.stack([a, b, c])
    M = torch.cat([torch.cat([S, v.unsqueeze(1)], 1), torch.cat([v, trace.unsqueeze(0)]).unsqueeze(0)])
    q = torch.linalg.eigh(M)[1][:, 3]
    q = q * torch.where(q[3] < 0, -1.0, 1.0)
    length = q[:3].norm()
    angle = 2 * torch.atan2(length, q[3])
    return q[:3] * torch.where(length > 0, angle / length.clamp(min=1e-30), torch.full_like(length, 2.0))


class _Rotations:
    """Starts at random rotations, each with the translation that is best for it in the linear equations."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        quaternions = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        q = quaternions / quaternions.norm(dim=1, keepdim=True)
        length = q[:, 1:].norm(dim=1, keepdim=True)
        self.vectors = 2 * torch.atan2(length, q[:, :1]) * q[:, 1:] / length

    def __call__(self, image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor) -> Tensor:
        vectors = self.vectors.to(space)
        if len(vectors) == 0:
            return space.new_zeros(0, 6)
        rays = _normalized(image, intrinsics)
        found = [_best_translation(vector, rays, space, weights) for vector in vectors]
        return torch.stack([torch.cat([vector, t]) for vector, t in zip(vectors, found, strict=True)])


def _best_translation(vector: Tensor, rays: Tensor, space: Tensor, weights: Tensor) -> Tensor:
    """t with X - u Z = 0, Y - v Z = 0 in least squares for (X, Y, Z) = R p + t, all points in front of the camera."""
    moved = space @ rotation_matrix(vector).T
    one, zero = torch.ones_like(rays[:, 0]), torch.zeros_like(rays[:, 0])
    rows = torch.cat([torch.stack([one, zero, -rays[:, 0]], 1), torch.stack([zero, one, -rays[:, 1]], 1)])
    right = -torch.cat([moved[:, 0] - rays[:, 0] * moved[:, 2], moved[:, 1] - rays[:, 1] * moved[:, 2]])
    doubled = torch.cat([weights, weights]).unsqueeze(1)
    normal = rows.T @ (doubled * rows)
    normal = normal + 1e-9 * torch.diagonal(normal).sum() * torch.eye(3, dtype=space.dtype, device=space.device)
    t = torch.linalg.solve_ex(normal, rows.T @ (doubled.squeeze(1) * right))[0]
    nearest = -moved[:, 2].amin()
    extent = (moved[:, 2].amax() - moved[:, 2].amin()).clamp(min=1e-6)
    return torch.cat([t[:2], torch.maximum(t[2], nearest + 0.1 * extent).unsqueeze(0)])
