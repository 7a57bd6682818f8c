"""Declarative nodes beside plain torch, differentiated through its steps or its loop, and beside hand-written layers.

Usage: python benchmarks/nodes.py [--cases NAME ...] [--repeats N] [--threads N] [--output FILE]

Forward and backward of a weighted sum, in all arguments, float64; medians of turns, contenders in turn. A generic node
pays for what it measures and for every element's own end; the table says how much. "torch" is what one would write
without it: the unrolled method for the whole batch, with a fixed number of steps, or a loop over elements. "zoo" is the
hand-written layer, where there is one. Errors are those of our output against theirs, relative to its largest entry.
"""

from dataclasses import dataclass

import torch
from beside import Layer, compare, run
from families import randn
from torch import Tensor
from zoo import plain_pool, pseudo_huber, uniform

from convexlayers import zoo
from convexlayers.nodes import SQP, AugmentedLagrangian, DeclarativeNode, PnP, declarative_node, least_squares_node
from convexlayers.nodes.pnp import project

FIELDS = ["case", "batch", "ours_ms", "torch_ms", "zoo_ms", "times_torch", "times_zoo", "error", "zoo_error"]
STEPS = 15


@dataclass(frozen=True)
class Case:
    """A node.

    Attributes:
        ours: the node.
        values: arguments.
        plain: straightforward version in torch, or None.
        twin: layer of the zoo, or None.
    """

    ours: Layer
    values: list[Tensor]
    plain: Layer | None = None
    twin: Layer | None = None


# ------------------------------------------------------------------------------------------- plain torch


def gauss_newton(residuals: Layer, start: Layer, damping: float = 1e-6) -> Layer:
    """Unrolled: residuals of one element, Jacobians by torch.func, the same number of steps for all."""

    def solve(*xs: Tensor) -> Tensor:
        y = start(*xs)
        eye = damping * torch.eye(y.shape[1], dtype=y.dtype)
        for _ in range(STEPS):
            r = torch.func.vmap(residuals)(*xs, y)
            J = torch.func.vmap(torch.func.jacfwd(residuals, argnums=len(xs)))(*xs, y)
            y = y - torch.linalg.solve(J.mT @ J + eye, (J.mT @ r.unsqueeze(2)).squeeze(2))
        return y

    return solve


def looped_lbfgs(objective: Layer, start: Layer) -> Layer:
    """torch's L-BFGS for one element after the other, and the implicit derivative by two Jacobians each."""

    def one(*x: Tensor) -> Tensor:
        y = start(*(part.detach() for part in x)).clone().requires_grad_()
        optimizer = torch.optim.LBFGS([y], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14)
        fixed = [part.detach() for part in x]

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            value = objective(*fixed, y)
            value.backward()
            return value

        optimizer.step(evaluate)  # type: ignore[arg-type]
        found = y.detach()
        slope = torch.func.grad(objective, argnums=len(x))
        H = torch.func.jacrev(slope, argnums=len(x))(*fixed, found)
        return found - torch.linalg.solve(H, slope(*x, found))

    return lambda *xs: torch.stack([one(*row) for row in zip(*xs, strict=True)])


# ------------------------------------------------------------------------------------------- the cases


def huber_objective(x: Tensor, alpha: Tensor, y: Tensor) -> Tensor:
    """Pseudo-Huber, of one element."""
    return (alpha**2 * ((1 + (y[0] - x).square() / alpha**2).sqrt() - 1)).sum()


def decay(times: Tensor) -> Layer:
    """Residuals of an exponential."""
    return lambda d, y: y[0] * torch.exp(y[1] * times) - d


def pose_residuals(image: Tensor, space: Tensor, weights: Tensor, pose: Tensor) -> Tensor:
    """Of one scene."""
    plain = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=pose.dtype)
    return (weights.sqrt().unsqueeze(1) * (project(pose, space, plain)[0] - image)).flatten()


def scenes(batch: int, count: int) -> tuple[Tensor, list[Tensor]]:
    """Poses, and image, space, weights; four of ten matches wrong, and known as such to a factor of 20."""
    pose = torch.cat([0.5 * randn(batch, 3, seed=1), 0.5 * randn(batch, 3, seed=2)], 1)
    pose[:, 5] += 6
    space, weights = randn(batch, count, 3, seed=3), uniform(batch, count, seed=4)
    image = project(pose, space, torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=pose.dtype))[0]
    image = image + 0.005 * randn(batch, count, 2, seed=5)
    wrong = 2 * count // 5
    image[:, :wrong] = image[:, :wrong].roll(1, 1)
    weights[:, :wrong] *= 0.05
    return pose, [image, space, weights]


def chain(n: int, solver: SQP | AugmentedLagrangian) -> Layer:
    """n points in the plane, each in its unit disc, near given ones and near their neighbours."""
    return DeclarativeNode(
        lambda x, y: 0.5 * (y - x).square().sum() + (1 + (y[1:] - y[:-1]).square().sum(1)).log().sum(),
        None, lambda x, y: y.square().sum(1) - 1,
        start=torch.zeros(n, 2, dtype=torch.float64), solver=solver, block=4,
    )  # fmt: skip


def cases() -> dict[str, Case]:
    """By name."""
    x, alpha, v = randn(64, 20, seed=1), uniform(64, seed=2), 2 * randn(64, 10, seed=3)
    times = torch.linspace(0, 1, 16, dtype=torch.float64)
    data = 2 * torch.exp(-1.5 * times) + 0.02 * randn(64, 16, seed=4)
    pose, matches = scenes(32, 64)

    def norm(v: Tensor) -> Tensor:
        return v.norm(dim=1, keepdim=True)

    @declarative_node(lambda v, y: 0.5 * (y - v).square().sum(), lambda v, y: y @ y - 1)
    def sphere(v: Tensor) -> Tensor:
        return v / norm(v)

    def ball_objective(v: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - v).square().sum()

    ball = DeclarativeNode(ball_objective, None, lambda v, y: y @ y - 1, start=torch.zeros(10, dtype=torch.float64))
    pool = DeclarativeNode(huber_objective, start=lambda x, alpha: x.mean().reshape(1), event_dims=(1, 0))
    pool_plain = plain_pool(pseudo_huber, "mean")
    exponential = least_squares_node(decay(times), start=torch.tensor([1.0, 0.0], dtype=torch.float64))
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return {
        "sphere, own solve": Case(sphere, [v], lambda v: v / norm(v), lambda v: zoo.project_l2_sphere(v, 1.0)),
        "ball, SQP": Case(ball, [v], lambda v: v / norm(v).clamp(min=1), lambda v: zoo.project_l2_ball(v, 1.0)),
        "pseudo-Huber, Newton": Case(
            pool, [x, alpha], lambda x, alpha: pool_plain(x, alpha).unsqueeze(1),
            lambda x, alpha: zoo.robust_pool(x, alpha).unsqueeze(1)),
        "pseudo-Huber, against a loop": Case(
            pool, [x, alpha], looped_lbfgs(huber_objective, lambda x, alpha: x.mean().reshape(1))),
        "exponential, LM": Case(exponential, [data], gauss_newton(decay(times), lambda d: first.expand(len(d), 2))),
        "pose, 64 matches": Case(
            PnP(rotations=0, block=32), matches, gauss_newton(pose_residuals, lambda *_: pose)),
        "pose, 64 matches, 3 starts": Case(PnP(block=32), matches),
        "20 discs, SQP": Case(chain(20, SQP()), [2 * randn(4, 20, 2, seed=6)]),
        "20 discs, multipliers": Case(chain(20, AugmentedLagrangian()), [2 * randn(4, 20, 2, seed=6)]),
        "60 discs, SQP": Case(chain(60, SQP()), [2 * randn(4, 60, 2, seed=6)]),
        "60 discs, multipliers": Case(chain(60, AugmentedLagrangian()), [2 * randn(4, 60, 2, seed=6)]),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- measuring


def measure(name: str, case: Case, repeats: int) -> dict[str, object]:
    """One row."""
    return compare(name, {"ours": case.ours, "torch": case.plain, "zoo": case.twin}, case.values, repeats)


def main() -> None:
    """Run, print a table, write a CSV file."""
    run(__doc__, "nodes", cases, measure, FIELDS, repeats=9)


if __name__ == "__main__":
    main()
