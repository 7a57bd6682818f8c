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
from convexlayers.nodes.pose_objective import PoseObjective
from convexlayers.nodes.pose_starts import first_pose
from convexlayers.nodes.problem import row_jacobian
from convexlayers.nodes.rotation import contracted, rodrigues, rotation_derivative

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


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.03, 0.999, 1.001, 3.0])
def test_rotations_are_smooth(size):
    v = size * torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    R = rotation_matrix(v)
    torch.testing.assert_close(R @ R.T, torch.eye(3, dtype=torch.float64))
    cross = torch.tensor([[0, 0.8, 0], [-0.8, 0, -0.6], [0, 0.6, 0]], dtype=torch.float64) * size
    torch.testing.assert_close(R, torch.linalg.matrix_exp(cross))
    v.requires_grad_()
    assert gradcheck(rotation_matrix, (v,))
    assert gradgradcheck(rotation_matrix, (v,))


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.999, 1.001, 2.5])
def test_derivatives_of_rotations_are_those_of_automatic_differentiation(size):
    """Through the border between series and formula, which is at 1."""
    r = size * torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    G = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f = rodrigues((r @ r).unsqueeze(0))
    first, second = contracted(r.unsqueeze(0), f, G.unsqueeze(0))

    def weighted(r):
        return (G * rotation_matrix(r)).sum()

    torch.testing.assert_close(first[0], torch.func.grad(weighted)(r), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second[0], torch.func.hessian(weighted)(r), rtol=1e-11, atol=1e-11)
    expected = torch.func.jacrev(rotation_matrix)(r)
    torch.testing.assert_close(rotation_derivative(r.unsqueeze(0), f)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("behind", [False, True])
def test_formulas_of_the_objective_are_those_of_automatic_differentiation(scale, behind):
    pose, image, space = scene(8, 5, 7, noise=0.05, intrinsics=CAMERA)
    pose = pose + 0.1
    if behind:
        space[:, 0] = -20 * rotations(pose)[:, 2]
    weights = torch.linspace(0, 1.5, 7, dtype=torch.float64).expand(5, 7)
    objective = PoseObjective(image, space, weights, CAMERA.expand(5, 4), scale)
    slope = torch.func.grad(lambda pose: objective.value(pose).sum())(pose)
    torch.testing.assert_close(objective.gradient(pose), slope, rtol=1e-11, atol=1e-9)
    exact = row_jacobian(objective.gradient, pose)
    torch.testing.assert_close(objective.hessian(pose), exact, rtol=1e-10, atol=1e-6)
    value, gradient, gauss_newton = objective.quadratic(pose, torch.zeros(5, dtype=torch.bool))
    torch.testing.assert_close(value, objective.value(pose))
    torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-9)
    if scale is None and not behind:
        errors = row_jacobian(
            lambda pose: (weights.sqrt().unsqueeze(2) * (project(pose, space, CAMERA)[0] - image)).flatten(1), pose
        )
        torch.testing.assert_close(gauss_newton, errors.mT @ errors)


def test_the_first_pose_sees_every_point():
    """With wrong matches the linear solution may put points behind the camera, whence no descent leads out."""
    generator = torch.Generator().manual_seed(9)
    pose, image, space = scene(9, 32, 20)
    image[:, :12] = image[:, torch.randperm(12, generator=generator)]
    weights = torch.rand(32, 20, generator=generator, dtype=torch.float64)
    intrinsics = PLAIN.expand(32, 4)
    lowest = [
        project(start(image, space, weights, intrinsics), space, PLAIN)[1].amin(1)
        for start in (linear_pose, first_pose)
    ]
    assert bool((lowest[0] < 0).any())
    assert bool((lowest[1] > 0).all())
    solution = PnP(rotations=0).solve(image, space, weights)
    assert bool((solution.objective <= PoseObjective(image, space, weights, intrinsics, None).value(pose)).all())


def test_second_derivatives_forward_mode_and_maps():
    _, image, space = scene(10, 2, 7, noise=0.02)
    node, weights = PnP(rotations=0), torch.linspace(0.5, 1.5, 7, dtype=torch.float64).repeat(2, 1).requires_grad_()

    def pose(weights):
        return node(image, space, weights)

    assert gradcheck(pose, (weights,), check_forward_ad=True, atol=1e-6)
    assert gradgradcheck(pose, (weights,), atol=1e-5, rtol=1e-3)
    each = torch.func.vmap(torch.func.jacrev(lambda u, p, w: node(u, p, w), argnums=2))(image, space, weights.detach())
    whole = torch.func.jacfwd(pose)(weights.detach())
    torch.testing.assert_close(each, torch.stack([whole[i, :, i] for i in range(2)]), rtol=1e-9, atol=1e-11)


def test_a_pose_is_the_same_to_the_last_bit_in_any_batch():
    _, image, space = scene(11, 9, 8, noise=0.05)
    node = PnP(rotations=1, block=4, on_failure="nan")
    weights = torch.linspace(0.1, 1, 72, dtype=torch.float64).reshape(9, 8)

    def everything(chosen):
        parts = [part[chosen].clone().requires_grad_() for part in (image, space, weights)]
        y = node(*parts)
        return [y.detach(), *torch.autograd.grad(y.nan_to_num().square().sum(), parts)]

    together = everything(torch.arange(9))
    for chosen in (torch.tensor([4]), torch.tensor([8, 1, 4, 0, 5, 2])):
        for mine, other in zip(together, everything(chosen), strict=True):
            assert torch.equal(mine[chosen], other)


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
