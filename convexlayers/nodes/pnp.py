"""Camera pose from weighted correspondences of points in space and in the image (perspective n-point), as a node.

    minimize over (r, t)    sum_i w_i rho(|pi(K, R(r) p_i + t) - u_i|^2)

r is an angle-axis vector, t a translation, pi the projection with intrinsics K = (fx, fy, cx, cy), and rho(s) = s / 2,
or the pseudo-Huber function of a given scale. The objective has several local minima: the solver starts at the linear
solution and at random rotations, and keeps the best. Gradient and Hessian are formulas (`pose_objective`), so that a
call costs a few matrix products per step. The derivative reaches points, weights and intrinsics.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from convexlayers.batching import Value, as_tensor
from convexlayers.errors import ArgumentError
from convexlayers.nodes.node import DeclarativeNode
from convexlayers.nodes.point import Outcome
from convexlayers.nodes.pose_objective import PoseObjective
from convexlayers.nodes.pose_starts import Rotations, first_pose, linear_pose
from convexlayers.nodes.problem import BoundProblem, Problem
from convexlayers.nodes.rotation import angle_axis, rotation_matrix
from convexlayers.nodes.solution import NodeSolution
from convexlayers.nodes.solvers.levenberg_marquardt import minimize
from convexlayers.nodes.starts import Restarts

__all__ = ["PnP", "PoseSolver", "angle_axis", "linear_pose", "project", "rotation_matrix"]

INTRINSICS = (1.0, 1.0, 0.0, 0.0)


def project(pose: Tensor, points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Image points (*, N, 2) and depths (*, N) of points (*, N, 3) for poses (*, 6) and intrinsics (*, 4)."""
    moved = points @ rotation_matrix(pose[..., :3]).mT + pose[..., None, 3:]
    depth = moved[..., 2]
    safe = torch.where(depth > 0, depth, torch.ones_like(depth)).unsqueeze(-1)
    scale, centre = intrinsics[..., None, :2], intrinsics[..., None, 2:]
    return moved[..., :2] / safe * scale + centre, depth


@dataclass(frozen=True)
class PoseSolver:
    """Levenberg-Marquardt with Gauss-Newton's Hessian far from a minimum and the exact one near it.

    Args:
        scale: as of `PnP`.
        tolerance: as of `LevenbergMarquardt`.
        max_iterations: per element.
        damping: at the start, relative to the diagonal of the Hessian.
    """

    constrained: ClassVar[bool] = False

    scale: float | None = None
    tolerance: float = 1e-8
    max_iterations: int = 50
    damping: float = 0.1

    def solve(self, problem: BoundProblem, start: Tensor) -> Outcome:
        """From `start`, (B, 6), for the inputs of `PnP`."""
        image, space, weights, intrinsics = problem.xs
        model = PoseObjective(image, space, weights, intrinsics, self.scale)
        return minimize(model, start, self.tolerance, self.max_iterations, self.damping)


class PnP(DeclarativeNode):
    """Pose (*batch, 6), angle-axis and translation, from correspondences.

    Args:
        scale: of the pseudo-Huber function, in the units of the image; None for squares.
        rotations: number of rotations to start from, besides the linear solution.
        seed: of these rotations.
        max_iterations: of the solver.
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

    def __init__(
        self,
        scale: float | None = None,
        *,
        rotations: int = 2,
        seed: int = 0,
        max_iterations: int = 50,
        **options: Any,
    ) -> None:
        if scale is not None and not scale > 0:
            raise ArgumentError(f"scale is {scale}, expected a positive number or None.")
        self.scale = scale
        super().__init__(
            self._objective, start=first_pose, solver=PoseSolver(scale, max_iterations=max_iterations), batched=True,
            event_dims=(2, 2, 1, 1), restarts=Restarts(points=Rotations(rotations, seed)) if rotations else None,
            **options,
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

    def _objective(self, image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor, pose: Tensor) -> Tensor:
        return PoseObjective(image, space, weights, intrinsics, self.scale).value(pose)

    def _slope(self, image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor, pose: Tensor) -> Tensor:
        return PoseObjective(image, space, weights, intrinsics, self.scale).gradient(pose)

    def _curvature(self, image: Tensor, space: Tensor, weights: Tensor, intrinsics: Tensor, pose: Tensor) -> Tensor:
        return PoseObjective(image, space, weights, intrinsics, self.scale).hessian(pose)

    def _problem(self, shape: tuple[int, ...]) -> Problem:
        return Problem(self._objective, None, None, shape, True, self._slope, self._curvature)


def _filled(image: Value, space: Value, weights: Value | None, intrinsics: Value | None) -> list[Tensor]:
    points, places = as_tensor("image", image), as_tensor("space", space)
    if weights is None:
        weights = torch.ones(points.shape[-2], dtype=points.dtype, device=points.device)
    if intrinsics is None:
        intrinsics = torch.tensor(INTRINSICS, dtype=points.dtype, device=points.device)
    return [points, places, as_tensor("weights", weights), as_tensor("intrinsics", intrinsics)]
