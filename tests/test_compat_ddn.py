"""Nodes in the form of ddn.pytorch.node, as its users write them."""

import math
import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from convexlayers.compat.ddn import (
    AbstractDeclarativeNode,
    AbstractNode,
    DeclarativeLayer,
    EqConstDeclarativeNode,
    IneqConstDeclarativeNode,
    LinEqConstDeclarativeNode,
)
from convexlayers.errors import ArgumentError, DerivativeWarning, SecondDerivativeError


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Polynomial(AbstractDeclarativeNode):
    def objective(self, x, y):
        return (x * y**2 + 2 * x**2 * y - 12) * y**2

    def solve(self, x):
        root = (9 * x**4 + 96 * x).sqrt()
        return (-3 * x**2 - root) / (4 * x), None


class UnitCircle(EqConstDeclarativeNode):
    """Multipliers in the context, with that package's sign."""

    def objective(self, x, y):
        return y[:, 0] + y[:, 1] * x[:, 0]

    def equality_constraints(self, x, y):
        return torch.einsum("bm,bm->b", y, y) - 1

    def solve(self, x):
        t = (1 + x**2).sqrt()
        return -torch.cat((torch.ones_like(x), x), dim=-1) / t, {"nu": -0.5 * t}


class Sphere(EqConstDeclarativeNode):
    def objective(self, x, y):
        return 0.5 * torch.einsum("bm,bm->b", y, y) - torch.einsum("bm,bm->b", y, x)

    def equality_constraints(self, x, y):
        return torch.einsum("bm,bm->b", y, y) - 1

    def solve(self, x):
        return x / x.norm(dim=1, keepdim=True), None


class Ball(IneqConstDeclarativeNode):
    def objective(self, x, y):
        return 0.5 * torch.einsum("bm,bm->b", y, y) - torch.einsum("bm,bm->b", y, x)

    def inequality_constraints(self, x, y):
        return torch.einsum("bm,bm->b", y, y) - 1

    def solve(self, x):
        return x / x.norm(dim=1, keepdim=True).clamp(min=1), None


class MinKL(LinEqConstDeclarativeNode):
    """The tutorial's: the nearest probability vector, with an iterative solver's error."""

    error = 0.0

    def objective(self, x, y):
        return -torch.einsum("bn,bn->b", x, y.log())

    def linear_constraint_parameters(self, y):
        return y.new_ones(1, y.size(-1)), y.new_ones(1)

    def solve(self, x):
        y = x / x.sum(dim=-1, keepdim=True)
        return y * (1 + self.error * torch.linspace(-1, 1, x.size(-1), dtype=x.dtype)), None


class PseudoHuberPool(AbstractDeclarativeNode):
    """Pooling of an image, by torch's L-BFGS; a scalar output."""

    def objective(self, x, alpha, y):
        z = y.unsqueeze(-1).unsqueeze(-1) - x
        alpha2 = (alpha * alpha).unsqueeze(-1)
        return (alpha2 * ((1 + z**2 / alpha2).sqrt() - 1)).sum(dim=(-2, -1))

    def solve(self, x, alpha):
        x, alpha = x.detach(), alpha.detach()
        y = x.mean([-2, -1]).clone().requires_grad_()
        with torch.enable_grad():
            optimizer = torch.optim.LBFGS([y], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

            def evaluate():
                optimizer.zero_grad()
                value = self.objective(x, alpha, y=y).sum()
                value.backward()
                return value

            optimizer.step(evaluate)
        return y.detach(), {"z": None}


class Box(IneqConstDeclarativeNode):
    """Equalities and inequalities together: the projection onto the simplex."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum(-1)

    def equality_constraints(self, x, y):
        return y.sum(-1) - 1

    def inequality_constraints(self, x, y):
        return -y

    def solve(self, x):
        ordered, _ = x.sort(dim=1, descending=True)
        count = torch.arange(1, x.shape[1] + 1)
        shift = (ordered.cumsum(1) - 1) / count
        last = (ordered > shift).sum(1, keepdim=True)
        return (x - shift.gather(1, last - 1)).clamp(min=0), None


CASES = {
    "polynomial": (Polynomial(), lambda seed: (0.25 + normal(seed, 2, 1).abs(),)),
    "circle": (UnitCircle(), lambda seed: (normal(seed, 3, 1),)),
    "sphere": (Sphere(), lambda seed: (normal(seed, 2, 3),)),
    "ball": (Ball(), lambda seed: (normal(seed, 2, 3) * torch.tensor([0.1, 2.0]).unsqueeze(1),)),
    "min_kl": (MinKL(), lambda seed: (0.1 + normal(seed, 2, 3).abs(),)),
    "pseudo_huber": (PseudoHuberPool(), lambda seed: (normal(seed, 2, 2, 2), 0.5 + normal(seed, 2, 1).abs())),
    "box": (Box(), lambda seed: (normal(seed, 2, 3),)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_over_ten_seeds(name):
    node, inputs = CASES[name]
    for seed in range(10):
        xs = [x.requires_grad_() for x in inputs(seed)]
        assert gradcheck(DeclarativeLayer(node), xs)


@pytest.mark.parametrize("name", ["polynomial", "circle", "sphere", "ball", "min_kl", "box"])
def test_second_derivatives(name):
    node, inputs = CASES[name]
    assert gradgradcheck(DeclarativeLayer(node), [x.requires_grad_() for x in inputs(0)])


def test_gradient_and_jacobian_are_those_of_the_closed_form():
    x = normal(0, 3, 1).requires_grad_()
    node = UnitCircle()
    expected = torch.cat([x, -torch.ones_like(x)], 1) / (1 + x**2) ** 1.5
    (found,) = node.gradient(x)
    torch.testing.assert_close(found, expected.sum(1, keepdim=True).detach())
    y, ctx = node.solve(x.detach())
    (J,) = node.jacobian(x, y=y, ctx=ctx)
    assert J.shape == (3, 2, 1)
    torch.testing.assert_close(J.squeeze(2), expected.detach())
    v = normal(1, 3, 2)
    torch.testing.assert_close(node.gradient(x, y=y, v=v, ctx=ctx)[0].squeeze(1), (v * expected).sum(1).detach())
    fixed = x.detach()
    assert node.gradient(fixed) == (None,)
    assert PseudoHuberPool().gradient(normal(0, 2, 3, 3).requires_grad_(), normal(1, 2, 1).abs())[1] is None


def test_a_linear_equality_is_respected():
    """The tutorial's bi-level step: y stays on the simplex, so the gradient of its sum is zero."""
    x = (0.1 + normal(0, 4, 5).abs()).requires_grad_()
    (found,) = torch.autograd.grad(DeclarativeLayer(MinKL())(x).sum(), x)
    torch.testing.assert_close(found, torch.zeros_like(x), rtol=0, atol=1e-12)


def test_a_solver_that_is_not_exact_keeps_the_constraint_active():
    class Rough(Ball):
        def solve(self, x):
            return super().solve(x)[0] * (1 - 1e-8), None

    x = (2 + normal(0, 3, 4).abs()).requires_grad_()
    (found,) = torch.autograd.grad(DeclarativeLayer(Rough())(x)[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(DeclarativeLayer(Ball())(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_poor_solution_is_announced_and_differentiated():
    node = MinKL()
    node.error = 0.01
    x = (0.1 + normal(0, 4, 5).abs()).requires_grad_()
    with pytest.warns(DerivativeWarning, match="not a solution"):
        y = DeclarativeLayer(node)(x)
    assert bool(torch.autograd.grad(y[:, 0].sum(), x)[0].isfinite().all())


def test_float32():
    x = normal(0, 3, 4).float().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DerivativeWarning)
        y = DeclarativeLayer(Sphere())(x)
    (found,) = torch.autograd.grad(y[:, 0].sum(), x)
    closed = Sphere().solve(x)[0]
    (expected,) = torch.autograd.grad(closed[:, 0].sum(), x)
    assert (y.dtype, found.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class SquaredError(AbstractNode):
    """A node that minimizes nothing, with a gradient of its own."""

    def __init__(self, target):
        super().__init__()
        self.target = target

    def solve(self, x):
        return 0.5 * (x - self.target).square().sum(dim=-1), None

    def gradient(self, x, y=None, v=None, ctx=None):
        v = x.new_ones(x.size(0)) if v is None else v
        return (torch.einsum("b,bm->bm", v, x - self.target),)


def test_gradients_of_ones_own_are_used():
    class Analytic(Sphere):
        def gradient(self, x, y=None, v=None, ctx=None):
            length = x.norm(dim=1, keepdim=True)
            return ((v - y * (y * v).sum(1, keepdim=True)) / length * 3,)  # three times, to be told apart

    x = normal(0, 3, 4).requires_grad_()
    (mine,) = torch.autograd.grad(DeclarativeLayer(Analytic())(x)[:, 0].sum(), x)
    (general,) = torch.autograd.grad(DeclarativeLayer(Sphere())(x)[:, 0].sum(), x)
    torch.testing.assert_close(mine, 3 * general)
    assert gradcheck(DeclarativeLayer(SquaredError(torch.ones(4, dtype=torch.float64))), (x,))
    y = DeclarativeLayer(Analytic())(x)
    with pytest.raises(SecondDerivativeError, match="gradient of its own"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    # The idiom of that package's tests: the general gradient in place of the analytic one.
    node = Analytic()
    node.gradient = super(Analytic, node).gradient
    assert gradcheck(DeclarativeLayer(node), (x,))


def test_layers_compose_into_a_bilevel_problem():
    """Descend on x until the second node's output is what is wanted."""
    model = torch.nn.Sequential(DeclarativeLayer(Ball()), DeclarativeLayer(UnitRow()), DeclarativeLayer(Sphere()))
    target = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    x = torch.tensor([[2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(model, (x,))
    optimizer = torch.optim.SGD([x], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-6


class UnitRow(AbstractDeclarativeNode):
    """A strongly convex node without constraints: y = x / 2."""

    def objective(self, x, y):
        return (y - x).square().sum(-1) + y.square().sum(-1)

    def solve(self, x):
        return x / 2, None


def test_inputs_that_are_no_tensors():
    """Constants such as a missing camera matrix go through."""

    class Scaled(AbstractDeclarativeNode):
        def objective(self, x, scale, offset, y):
            shift = 0.0 if offset is None else offset
            return (y - scale * x - shift).square().sum(-1)

        def solve(self, x, scale, offset):
            return scale * x + (0.0 if offset is None else offset), None

    x = normal(0, 3, 2).requires_grad_()
    (found,) = torch.autograd.grad(DeclarativeLayer(Scaled())(x, 3.0, None).sum(), x)
    torch.testing.assert_close(found, torch.full_like(x, 3.0))


def test_damping():
    """gamma is added to the Hessian: 2 / (4 + gamma) instead of 1/2."""
    x = normal(0, 3, 2).requires_grad_()
    (found,) = torch.autograd.grad(DeclarativeLayer(UnitRow(gamma=1.0))(x).sum(), x)
    torch.testing.assert_close(found, torch.full_like(x, 2 / 5))


def test_what_is_missing_is_named():
    with pytest.raises(NotImplementedError, match="solve"):
        DeclarativeLayer(EqConstDeclarativeNode())(torch.ones(1, 2))

    class NoObjective(Sphere):
        def objective(self, x, y):
            return super(Sphere, self).objective(x, y=y)

    with pytest.raises(NotImplementedError, match="objective"):
        DeclarativeLayer(NoObjective())(torch.ones(1, 2))
    with pytest.raises(ArgumentError, match="as the output"):
        DeclarativeLayer(UnitRowOfTwo())(torch.ones(3, 2, dtype=torch.float64), torch.ones(2))


class UnitRowOfTwo(UnitRow):
    def objective(self, x, other, y):
        return super().objective(x, y)

    def solve(self, x, other):
        return super().solve(x)


def test_the_centre_of_the_sphere_is_finite():
    class Centred(Sphere):
        def solve(self, x):
            return torch.full_like(x, 1 / math.sqrt(x.shape[1])), None

    x = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    with pytest.warns(DerivativeWarning, match="not unique"):
        (found,) = torch.autograd.grad(DeclarativeLayer(Centred())(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, torch.zeros_like(x), rtol=0, atol=1e-9)
