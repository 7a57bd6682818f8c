"""Find where a camera stands although two matches of five are wrong: a network weights them, a layer computes the pose.

A scene has 64 points in space and where each is said to be in the image; for 40 % of them that is the place of another
point. The pose (R, t) is a solution of

    minimize over (R, t)    sum_i w_i |pi(R p_i + t) - u_i|^2,    pi the projection of a camera,

which is not convex: `cl.nodes.PnP` starts at the linear solution, improves it by Levenberg-Marquardt's method, and
differentiates the minimum by the implicit function theorem (Campbell, Liu and Gould, "Solving the blind perspective-n-
point problem end-to-end with robust differentiable geometric optimization", ECCV 2020). The weights w come from a
network that sees all matches of a scene as a set (Yi et al., "Learning to find good correspondences", CVPR 2018). It is
told only the right pose, never which matches are wrong.

On held-out scenes the learned weights are compared with equal ones; with no learning at all but a robust loss
(pseudo-Huber, its scale twice the noise) and four more starts; with both, weights and loss, from the one start; and
with the weights of an oracle, 0 and 1. The robust loss alone is more accurate than the weights alone: single wrong
matches are what it is for. The example is about the gradient through a problem that is not convex.

Usage: python examples/pnp.py [--fast] [--seed N] [--output FOLDER]
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import convexlayers as cl
from convexlayers.nodes.pnp import project, rotation_matrix

matplotlib.use("Agg")
import matplotlib.pyplot as plt

POINTS, WRONG, NOISE = 64, 25, 0.005
BATCH, WIDTH = 32, 64
CAMERA = torch.tensor([1.0, 1.0, 0.0, 0.0])


@dataclass(frozen=True)
class Scenes:
    """Points in the image (B, 64, 2) and in space (B, 64, 3), the first 25 matches wrong, and poses (B, 6)."""

    image: Tensor
    space: Tensor
    pose: Tensor

    @staticmethod
    def draw(count: int, generator: torch.Generator) -> "Scenes":
        """A cloud of points around the origin, seen from a distance of about 6, at rotations of about 70 degrees."""
        rotation, shift = (torch.randn(count, 3, generator=generator) for _ in range(2))
        pose = torch.cat([0.8 * rotation, 0.5 * shift + torch.tensor([0.0, 0.0, 6.0])], dim=1)
        space = torch.randn(count, POINTS, 3, generator=generator)
        image = project(pose, space, CAMERA)[0] + NOISE * torch.randn(count, POINTS, 2, generator=generator)
        image[:, :WRONG] = image[:, :WRONG].roll(1, dims=1)  # each has the place of its neighbour
        return Scenes(image, space, pose)

    def rotation_errors(self, pose: Tensor) -> Tensor:
        """Angles between rotations in degrees, (B,): |R - Q|_F = 2 sqrt(2) sin(angle / 2)."""
        gap = rotation_matrix(pose[:, :3]) - rotation_matrix(self.pose[:, :3])
        return 2 * (gap.flatten(1).norm(dim=1) / 8**0.5).clamp(max=1).asin().rad2deg()


class Weights(nn.Module):
    """A weight for every match of a scene, equivariant to their order: layers see the others as mean and spread."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, image: Tensor, space: Tensor) -> Tensor:
        """(B, N, 2) and (B, N, 3) -> (B, N), between 0.001 and 1.001: not 0, so that a pose is always determined."""
        x = torch.relu(self.first(torch.cat([3 * image, space], dim=-1)))
        for block in self.blocks:
            y = block(x)
            y = (y - y.mean(dim=1, keepdim=True)) / (y.std(dim=1, keepdim=True) + 1e-3)
            x = x + torch.relu(y)
        return self.last(x).squeeze(-1).sigmoid() + 1e-3


def train(steps: int, generator: torch.Generator) -> tuple[Weights, list[float], float]:
    """Squared errors of rotation and translation, cut at 4, Adam; median errors, and seconds of the processor."""
    model, node = Weights(), cl.nodes.PnP(rotations=0, max_iterations=10, on_failure="nan")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    curve, start = [], process_time()
    for _ in (bar := tqdm(range(steps), desc="weights")):
        scenes = Scenes.draw(BATCH, generator)
        found = node.solve(scenes.image, scenes.space, model(scenes.image, scenes.space))
        # What has not converged is left out: a point that is no minimum has no derivative, and waiting for it costs.
        pose, true = found.y[found.solved], scenes.pose[found.solved]
        turned = (rotation_matrix(pose[:, :3]) - rotation_matrix(true[:, :3])).square().sum((1, 2))
        moved = (pose[:, 3:] - true[:, 3:]).square().sum(1)
        loss = (turned + 0.05 * moved).clamp(max=4).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        curve.append(scenes.rotation_errors(found.y.detach()).nanmedian().item())
        bar.set_postfix(loss=f"{loss.item():.3f}", median=f"{curve[-1]:.1f} degrees")
    return model, curve, process_time() - start


@torch.no_grad()
def compare(model: Weights, test: Scenes) -> dict[str, Tensor]:
    """Rotation errors in degrees of each way to the pose; a pose that was not found counts as 180."""

    def errors(node: cl.nodes.PnP, weights: Tensor | None = None) -> Tensor:
        return test.rotation_errors(node(test.image, test.space, weights)).nan_to_num(180.0)

    squares = cl.nodes.PnP(rotations=0, on_failure="nan")
    robust, local = (cl.nodes.PnP(2 * NOISE, rotations=n, on_failure="nan") for n in (4, 0))
    oracle = torch.ones(test.image.shape[:2])
    oracle[:, :WRONG] = 0
    return {
        "equal weights": errors(squares),
        "learned weights": errors(squares, model(test.image, test.space)),
        "robust loss": errors(robust),
        "both": errors(local, model(test.image, test.space)),
        "oracle": errors(squares, oracle),
    }


@torch.no_grad()
def draw(model: Weights, curve: list[float], test: Scenes, errors: dict[str, Tensor], path: Path) -> None:
    """The weights of a scene, the error during training, and how the errors are distributed."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    weights = model(test.image, test.space)
    right_place = project(test.pose, test.space, CAMERA)[0]
    for ours, true in zip(test.image[0, :WRONG], right_place[0, :WRONG], strict=True):
        left.plot(*torch.stack([ours, true]).T, color="tab:red", linewidth=0.5)
    left.scatter(*test.image[0].T, s=40 * weights[0] + 1, c=["tab:red"] * WRONG + ["tab:blue"] * (POINTS - WRONG))
    left.set(title="learned weights; red: wrong, with\na line to the right place", xticks=[], yticks=[])
    middle.semilogy(curve)
    middle.set(xlabel="step", ylabel="median rotation error, degrees")
    for name, values in errors.items():
        right.semilogx(values.sort().values.clamp(min=0.03), np.linspace(0, 1, len(values)), label=name)
    right.set(xlabel="rotation error, degrees", ylabel="share of held-out scenes")
    right.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def main() -> None:
    """Train, compare, draw, and hold the result against its claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few seconds, with a looser claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)

    test = Scenes.draw(50 if options.fast else 500, generator)
    model, curve, seconds = train(50 if options.fast else 300, generator)
    errors = compare(model, test)
    for name, values in errors.items():
        print(f"{name:>16}: rotation error mean {values.mean():6.2f} degrees, median {values.median():6.2f}")
    picture = options.output / "pnp.png"
    draw(model, curve, test, errors, picture)
    print(f"picture: {picture}")
    means = {name: float(values.mean()) for name, values in errors.items()}
    print("figure: mean rotation error, " + ", ".join(f"{k} {v:.1f}" for k, v in means.items()) + f"; {seconds:.1f} s")
    gain = means["learned weights"] / means["equal weights"]
    # Seed 0: 0.31; 60 steps, seeds 0 to 2: 0.65, 0.70, 0.71; untrained networks: 1.07 to 1.11.
    assert gain < (0.85 if options.fast else 0.4), f"the learned weights leave {gain:.0%} of the error"


if __name__ == "__main__":
    main()
