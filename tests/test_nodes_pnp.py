"""Camera poses: synthetic cameras, wrong matches, derivatives."""

import copy
import math
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from convexlayers.errors import ArgumentError
from convexlayers.nodes import PnP
from convexlayers.nodes.pnp import angle_axis, linear_pose, project, rotation_matrix

CAMERA = torch.tensor([500.0, 520.0, 320.0, 240.0], dtype=torch.float64)
PLAIN = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)


def scene(seed, batch, count, noise=0.0, intrinsics=PLAIN):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pose = torch.cat([normal(batch, 3), 0.5 * normal(batch, 3) + torch.tensor([0.0, 0.0, 6.0])], 1)
    space = normal(batch, count, 3)
    image = torch.stack([project(one, points, intrinsics)[0] for one, points in zip(pose, space, strict=True)])
    return pose, image + noise * normal(batch, count, 2) * intrinsics[0], space


def rotations(poses):
    return torch.stack([rotation_matrix(pose[:3]) for pose in poses])


def assert_same_pose(found, expected, tolerance):
    torch.testing.assert_close(rotations(found), rotations(expected), rtol=0, atol=tolerance)
    torch.testing.assert_close(found[:, 3:], expected[:, 3:], rtol=0, atol=tolerance)


@pytest.mark.parametrize("intrinsics", [PLAIN, CAMERA], ids=["plain", "camera"])
def test_exact_correspondences_give_the_pose(intrinsics):
    pose, image, space = scene(0, 10, 12, intrinsics=intrinsics)
    solution = PnP(rotations=2).solve(image, space, None, intrinsics)
    assert_same_pose(solution.y, pose, 1e-9)
    assert not bool(solution.negative_curvature.any())


def test_from_rotations_alone():
    """Four points in a plane are too few for the linear equations; the best of several starts finds them."""
    pose, _, space = scene(1, 4, 4)
    space[..., 2] = 0
    image = torch.stack([project(one, points, PLAIN)[0] for one, points in zip(pose, space, strict=True)])
    solution = PnP(rotations=8).solve(image, space)
    assert float(solution.objective.max()) < 1e-16


def test_weights_reject_wrong_matches():
    pose, image, space = scene(2, 4, 16)
    image[:, :6] += 1 + torch.arange(6.0).unsqueeze(1)
    weights = torch.ones(4, 16, dtype=torch.float64)
    weights[:, :6] = 0
    assert_same_pose(PnP(rotations=0)(image, space, weights), pose, 1e-8)


def test_a_robust_scale_bounds_wrong_matches():
    """Two of sixteen are wrong: squares are dragged away, pseudo-Huber is not."""
    pose, image, space = scene(3, 4, 16)
    image[:, :2] += 0.5
    squares, robust = PnP(rotations=0)(image, space), PnP(1e-3, rotations=0)(image, space)
    assert bool((rotations(robust) - rotations(pose)).abs().amax((1, 2)).max() < 0.02)
    assert bool((rotations(squares) - rotations(pose)).abs().amax((1, 2)).min() > 0.05)


@pytest.mark.parametrize("scale", [None, 0.05])
def test_derivatives(scale):
    """In points, weights and intrinsics, at residuals that do not vanish."""
    _, image, space = scene(4, 1, 7, noise=0.02)
    weights = torch.linspace(0.5, 1.5, 7, dtype=torch.float64).unsqueeze(0)
    inputs = [image, space, weights, PLAIN.unsqueeze(0)]
    node = PnP(scale, rotations=0)
    leaves = [part.expand(6, *part.shape[1:]).clone().requires_grad_() for part in inputs]
    found = torch.autograd.grad(torch.diagonal(node(*leaves)).sum(), leaves)
    for i, (part, mine) in enumerate(zip(inputs, found, strict=True)):
        # One element of a batch for every entry and side.
        step = 1e-5 * torch.eye(part.numel(), dtype=part.dtype).reshape(-1, *part.shape[1:])
        sides = [node(*(x + sign * step if j == i else x for j, x in enumerate(inputs))) for sign in (1, -1)]
        slopes = (sides[0] - sides[1]) / 2e-5
        torch.testing.assert_close(mine.reshape(6, -1), slopes.T, rtol=1e-5, atol=1e-6)


def test_shared_intrinsics_get_the_sum():
    _, image, space = scene(5, 3, 8, noise=0.01, intrinsics=CAMERA)
    node = PnP(rotations=0)
    shared = CAMERA.clone().requires_grad_()
    (total,) = torch.autograd.grad(node(image, space, None, shared).sum(), shared)
    each = CAMERA.expand(3, 4).clone().requires_grad_()
    (parts,) = torch.autograd.grad(node(image, space, None, each).sum(), each)
    torch.testing.assert_close(total, parts.sum(0))


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.03, 0.0317, 1.0, 3.0])
def test_rotations_are_smooth(size):
    """Through the border between series and formula, which is at 0.0316."""
    v = size * torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    R = rotation_matrix(v)
    torch.testing.assert_close(R @ R.T, torch.eye(3, dtype=torch.float64))
    cross = torch.tensor([[0, 0.8, 0], [-0.8, 0, -0.6], [0, 0.6, 0]], dtype=torch.float64) * size
    torch.testing.assert_close(R, torch.linalg.matrix_exp(cross))
    v.requires_grad_()
    assert gradcheck(rotation_matrix, (v,))
    assert gradgradcheck(rotation_matrix, (v,))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1.0, math.pi - 1e-9])
def test_angle_axis_is_the_inverse(angle):
    v = angle * torch.tensor([2 / 3, -1 / 3, 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(angle_axis(rotation_matrix(v)), v, rtol=1e-9, atol=1e-12)


def test_the_linear_solution():
    pose, image, space = scene(6, 3, 9)
    found = torch.stack(
        [linear_pose(u, p, torch.ones(9, dtype=p.dtype), PLAIN) for u, p in zip(image, space, strict=True)]
    )
    assert_same_pose(found, pose, 1e-7)


def test_a_pose_node_can_be_copied_and_stored():
    _, image, space = scene(7, 2, 8)
    node = PnP(0.1, rotations=1)
    for again in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert torch.equal(again(image, space), node(image, space))
        assert again.objective.__self__ is again


def test_a_wrong_scale_is_an_error():
    with pytest.raises(ArgumentError, match="scale"):
        PnP(-1.0)
