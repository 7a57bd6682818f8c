"""Put the strips of an image back in order, with a layer whose output is a soft permutation.

The images of handwritten digits of scikit-learn are cut into 6 strips, a column each, which are shuffled. A
transformer looks at the set of strips and scores every strip for every place. What is trained on top of the scores S:

    softmax     rows exp(S_ij) / sum_j exp(S_ij): every strip chooses its place by itself
    transport   argmin <-S, P> + eps sum P (log P - 1)    over doubly stochastic P (Sinkhorn)
    Birkhoff    argmin 1/2 |P - S|^2                      over doubly stochastic P, a quadratic program

(Santa Cruz, Fernando, Cherian and Gould, "DeepPermNet: Visual Permutation Learning", 2017; Mena, Belanger, Linderman
and Snoek, "Learning Latent Permutations with Gumbel-Sinkhorn Networks", 2018.) The network and the number of steps
are the same; the loss is not: log-likelihood for softmax and transport, squared error for Birkhoff, because the
log-likelihood of a projection with exact zeros has no finite value. A strip's place is the largest entry of its row,
with no repair after it. Figure: the share of strips of unseen digits put at their place, and the share of images for
which the choices are a permutation at all.

Usage: python examples/permutation.py [--fast] [--seed N] [--output FOLDER]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import convexlayers as cl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STRIPS, SIDE, WIDTH, BATCH = 6, 8, 64, 64
LAYERS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores.softmax(dim=-1),
    "Birkhoff": lambda scores: cl.zoo.project_birkhoff(scores),
    "transport": lambda scores: cl.zoo.transport_plan(-scores, 1.0, 1.0, eps=1.0),
}


def load_strips() -> tuple[Tensor, Tensor]:
    """Training and test images, each (N, STRIPS, SIDE): the columns, without the outermost, which are blank."""
    images = torch.as_tensor(load_digits(return_X_y=True)[0] / 8.0 - 1.0, dtype=torch.float32).reshape(-1, 8, 8)
    images = images[torch.randperm(len(images))]
    strips = images.mT[:, 1:-1].contiguous()
    return strips[:1297], strips[1297:]


def shuffle(strips: Tensor) -> tuple[Tensor, Tensor]:
    """Shuffled strips and the place of each, (B, STRIPS)."""
    places = torch.rand(strips.shape[:2]).argsort(dim=1)
    return strips.gather(1, places.unsqueeze(-1).expand_as(strips)), places


class Sorter(torch.nn.Module):
    """A transformer without positions, so that it sees a set of strips, and a layer on its scores."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = torch.nn.Linear(SIDE, WIDTH)
        self.blocks = torch.nn.Sequential(
            *(torch.nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.1, batch_first=True) for _ in range(2))
        )
        self.scores = torch.nn.Linear(WIDTH, STRIPS)
        self.layer = layer

    def forward(self, strips: Tensor) -> Tensor:
        """(B, STRIPS, SIDE) -> soft permutations (B, STRIPS, STRIPS); row: strip, column: place."""
        return self.layer(self.scores(self.blocks(self.embedding(strips))))


@torch.no_grad()
def quality(model: Sorter, strips: Tensor, places: Tensor) -> tuple[float, float]:
    """Share of strips at their place, and of images whose strips all choose different places."""
    chosen = model(strips).argmax(dim=-1)
    valid = (chosen.sort(dim=1).values == torch.arange(STRIPS)).all(dim=1)
    return float((chosen == places).float().mean()), float(valid.float().mean())


def train(name: str, training: Tensor, steps: int, seed: int) -> Sorter:
    """Minus the log-likelihood of the right places, or the squared error of the soft permutation; AdamW."""
    torch.manual_seed(seed)
    model = Sorter(LAYERS[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    bar = tqdm(range(steps), desc=f"{name:>9}")
    for _ in bar:
        strips, places = shuffle(training[torch.randint(len(training), (BATCH,))])
        P = model(strips)
        if name == "Birkhoff":  # it has exact zeros, whose log-likelihood is infinite
            loss = (P - torch.nn.functional.one_hot(places, STRIPS)).square().sum((1, 2)).mean()
        else:
            loss = -P.gather(2, places.unsqueeze(-1)).clamp(min=1e-9).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def draw(
    models: dict[str, Sorter], strips: Tensor, places: Tensor, figures: dict[str, tuple[float, float]], path: Path
) -> None:
    """Shuffled digits, what each model makes of them, and the figures."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    rows = [strips, *(strips.gather(1, hard_order(model, strips)) for model in models.values())]
    rows.append(strips.gather(1, places.argsort(dim=1).unsqueeze(-1).expand_as(strips)))
    tiles = [np.hstack([np.pad(image.T.numpy(), 1, constant_values=-1.0) for image in row]) for row in rows]
    left.imshow(np.vstack(tiles), cmap="gray_r")
    left.set(xticks=[], yticks=[5 + 10 * i for i in range(len(rows))])
    left.set_yticklabels(["shuffled", *models, "truth"])
    for offset, label, part in ((-0.2, "strips at their place", 0), (0.2, "valid permutations", 1)):
        right.bar(np.arange(len(models)) + offset, [figures[name][part] for name in models], 0.4, label=label)
    right.set(xticks=range(len(models)), xticklabels=list(models), ylim=(0, 1.2))
    right.legend(loc="upper left", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def hard_order(model: Sorter, strips: Tensor) -> Tensor:
    """For every place the strip that wants it most, as an index for gather."""
    return model(strips).argmax(dim=1).unsqueeze(-1).expand_as(strips)


def main() -> None:
    """Train with each layer, compare, draw, and hold the result against its claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few seconds, two layers, with a looser claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    training, held_out = load_strips()
    test = shuffle(held_out)
    names, steps = (("softmax", "transport"), 50) if options.fast else (tuple(LAYERS), 800)
    models = {name: train(name, training, steps, options.seed) for name in names}
    figures = {name: quality(model, *test) for name, model in models.items()}
    picture = options.output / "permutation.png"
    draw(models, test[0][:8], test[1][:8], figures, picture)
    print(f"picture: {picture}")
    shown = (f"{name} {placed:.3f} ({valid:.2f})" for name, (placed, valid) in figures.items())
    print("figure: strips at their place (valid permutations): " + ", ".join(shown))
    placed, valid = (0.0, 0.1) if options.fast else (0.01, 0.25)
    for name in names[1:]:
        gains = [new - old for new, old in zip(figures[name], figures["softmax"], strict=True)]
        assert gains[0] > placed, f"{name} puts {gains[0]:+.3f} more strips at their place than the softmax"
        assert gains[1] > valid, f"{name} makes {gains[1]:+.3f} more valid permutations than the softmax"


if __name__ == "__main__":
    main()
