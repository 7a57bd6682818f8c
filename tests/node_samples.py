"""Nodes with known solutions and derivatives: the classical samples of declarative networks, written anew."""

import math

import torch
from torch.func import jacrev, vmap


class Sample:
    """A node's functions of one element, its solution over a batch, and random inputs."""

    name, equalities, inequalities = "", None, None

    def inputs(self, generator, batch=3):
        raise NotImplementedError

    def solve(self, *xs):
        raise NotImplementedError

    def start(self, *xs):
        raise NotImplementedError

    def derivative(self, *xs):
        """dy/dx of every input, from the closed form."""
        alone = lambda *x: self.solve(*(part.unsqueeze(0) for part in x))[0]  # noqa: E731
        return vmap(jacrev(alone, argnums=tuple(range(len(xs)))))(*xs)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


class Polynomial(Sample):
    """minimize x y^4 + 2 x^2 y^3 - 12 y^2 (Gould and others, 2016): two local minima."""

    def objective(self, x, y):
        return (x[0] * y[0] ** 2 + 2 * x[0] ** 2 * y[0] - 12) * y[0] ** 2

    def inputs(self, generator, batch=3):
        return (0.25 + uniform(generator, batch, 1),)

    def solve(self, x):
        return (-3 * x**2 - (9 * x**4 + 96 * x).sqrt()) / (4 * x)

    def start(self, x):
        return -3 / x


class PseudoHuber(Sample):
    """Robust mean with a learnable scale."""

    def objective(self, x, alpha, y):
        return (alpha[0] ** 2 * ((1 + (y[0] - x).square() / alpha[0] ** 2).sqrt() - 1)).sum()

    def inputs(self, generator, batch=3):
        return normal(generator, batch, 7), 0.5 + uniform(generator, batch, 1)

    def solve(self, x, alpha):
        y = x.detach().median(1, keepdim=True).values
        for _ in range(60):
            z, scale = y - x.detach(), alpha.detach()
            weight = (1 + z.square() / scale**2).pow(-0.5)
            y = (weight * x.detach()).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        for _ in range(3):
            z = y - x.detach()
            root = (1 + z.square() / alpha.detach() ** 2).sqrt()
            y = y - (z / root).sum(1, keepdim=True) / root.pow(-3).sum(1, keepdim=True)
        return y

    def start(self, x, alpha):
        return x.mean().reshape(1)

    def derivative(self, x, alpha):
        # With r = z / sqrt(1 + z^2 / a^2): dy = sum(r_z dx) / sum(r_z) - sum(r_a) da / sum(r_z).
        z = self.solve(x, alpha) - x
        root = (1 + z.square() / alpha**2).sqrt()
        slope, by_scale = root.pow(-3), z.pow(3) / alpha**3 * root.pow(-3)
        total = slope.sum(1, keepdim=True)
        return (slope / total).unsqueeze(1), (-by_scale.sum(1, keepdim=True) / total).unsqueeze(1)


class UnitCircle(Sample):
    """minimize (1, x)'y on the unit circle."""

    def objective(self, x, y):
        return y[0] + x[0] * y[1]

    def equalities(self, x, y):
        return y @ y - 1

    def inputs(self, generator, batch=3):
        return (normal(generator, batch, 1),)

    def solve(self, x):
        return -torch.cat([torch.ones_like(x), x], 1) / (1 + x.square()).sqrt()

    def start(self, x):
        return torch.stack([torch.full_like(x[0], -1.0), -torch.sign(x[0])])


class ParametrizedCircle(UnitCircle):
    """minimize (1, x_1)'y on the circle of radius |x_2|."""

    def equalities(self, x, y):
        return y @ y - x[1] ** 2

    def inputs(self, generator, batch=3):
        x = normal(generator, batch, 2)
        return (x + torch.tensor([0.0, 0.5]) * x.sign(),)

    def solve(self, x):
        return -x[:, 1:].abs() * torch.stack([torch.ones_like(x[:, 0]), x[:, 0]], 1) / (1 + x[:, :1] ** 2).sqrt()

    def start(self, x):
        return torch.stack([-x[1].abs(), -torch.sign(x[0]) * x[1].abs()])


class ConstantOnCircle(Sample):
    """minimize (1, 1)'y on the circle of radius |x|."""

    def objective(self, x, y):
        return y.sum()

    def equalities(self, x, y):
        return y @ y - x[0] ** 2

    def inputs(self, generator, batch=3):
        x = normal(generator, batch, 1)
        return (x + 0.5 * x.sign(),)

    def solve(self, x):
        return -x.abs().expand(-1, 2) / math.sqrt(2)

    def start(self, x):
        return torch.stack([-x[0].abs(), -0.5 * x[0].abs()])


class Sphere(Sample):
    """Projection onto the sphere."""

    def objective(self, x, y):
        return 0.5 * y @ y - x @ y

    def equalities(self, x, y):
        return y @ y - 1

    def inputs(self, generator, batch=3):
        return (normal(generator, batch, 4),)

    def solve(self, x):
        return x / x.norm(dim=1, keepdim=True)

    def start(self, x):
        return x


class Ball(Sphere):
    """Projection onto the ball: active in some elements only."""

    equalities = None

    def inequalities(self, x, y):
        return y @ y - 1

    def inputs(self, generator, batch=3):
        x = normal(generator, batch, 4)
        radius = torch.where(torch.arange(batch) % 2 == 0, 0.7, 1.4).unsqueeze(1)
        return (radius * x / x.norm(dim=1, keepdim=True),)

    def solve(self, x):
        return x / x.norm(dim=1, keepdim=True).clamp(min=1)


class MinKL(Sample):
    """minimize -sum x_i log y_i on the simplex: y = x / sum x."""

    def objective(self, x, y):
        return -(x * y.log()).sum()

    def equalities(self, x, y):
        return y.sum() - 1

    def inputs(self, generator, batch=3):
        return (0.1 + uniform(generator, batch, 5),)

    def solve(self, x):
        return x / x.sum(1, keepdim=True)

    def start(self, x):
        return torch.full_like(x, 1 / 5)


class CosineDistance(Sample):
    """minimize -x'y / |y|: any multiple of x; the derivative of minimum norm has no part along x."""

    def objective(self, x, y):
        return -(x @ y) / (y @ y).sqrt()

    def inputs(self, generator, batch=3):
        return (normal(generator, batch, 2),)

    def solve(self, x):
        return x.clone()

    def start(self, x):
        return x + 0.3 * x.flip(0).abs()

    def derivative(self, x):
        eye = torch.eye(2, dtype=x.dtype)
        return (eye - x.unsqueeze(2) * x.unsqueeze(1) / x.square().sum(1).reshape(-1, 1, 1),)


UNIQUE = [
    Polynomial(),
    PseudoHuber(),
    UnitCircle(),
    ParametrizedCircle(),
    ConstantOnCircle(),
    Sphere(),
    Ball(),
    MinKL(),
]
ALL = [*UNIQUE, CosineDistance()]
