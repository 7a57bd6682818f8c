"""Derivatives of derivatives: every cone, every way that torch has of taking them, and where there are none."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp

import convexlayers as cl
from convexlayers.cones import Cones
from convexlayers.errors import SecondDerivativeError
from convexlayers.testing import random_program
from convexlayers.testing.problems import cone_cases

ENGINES = ["native", "torch", "clarabel"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def along(problem, seed=0, solver="native", objective=False):
    """g(t) = <w, (x, s, z)> of the program whose numbers have moved by t times a direction."""
    numbers = [problem.P, problem.q, problem.A, problem.b]
    direction = [normal(*v.shape, seed=seed + i) for i, v in enumerate(numbers)]
    direction[0] = 0.5 * (direction[0] + direction[0].mT)
    weights = [normal(*v.shape, seed=seed + 10 + i) for i, v in enumerate((problem.x, problem.s, problem.z))]

    def g(t):
        moved = [value + t * change for value, change in zip(numbers, direction, strict=True)]
        solution = cl.solve_cone_program(*moved, problem.cones, solver=solver, validate=False)
        if objective:
            return solution.objective.sum()
        parts = (solution.x, solution.s, solution.z)
        return sum((weight * part).sum() for weight, part in zip(weights, parts, strict=True))

    return g


def second_derivatives(g):
    """d2g/dt2 at 0 in the four orders of forward and reverse mode, and by torch.autograd's own two passes."""
    zero = torch.zeros((), dtype=torch.float64)
    one = torch.ones_like(zero)
    found = {
        "reverse, reverse": grad(grad(g))(zero),
        "forward over reverse": jvp(grad(g), (zero,), (one,))[1],
        "reverse over forward": grad(lambda t: jvp(g, (t,), (one,))[1])(zero),
        "forward, forward": jvp(lambda t: jvp(g, (t,), (one,))[1], (zero,), (one,))[1],
    }
    leaf = zero.clone().requires_grad_()
    (first,) = torch.autograd.grad(g(leaf), leaf, create_graph=True)
    (found["create_graph"],) = torch.autograd.grad(first, leaf)
    return found


def by_differences(g, step):
    """d2g/dt2 at 0 from first derivatives, to the fourth order."""

    def slope(t):
        return grad(g)(torch.tensor(t, dtype=torch.float64))

    near, far = slope(step) - slope(-step), slope(2 * step) - slope(-2 * step)
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize("name", cone_cases())
def test_every_cone(name):
    problem = random_program(cone_cases()[name])
    g = along(problem)
    found = second_derivatives(g)
    expected = found["reverse, reverse"]
    size = max(1.0, abs(float(expected)))
    for way, value in found.items():
        assert abs(float(value - expected)) <= 1e-8 * size, way
    # The error of the differences is step^4 times a fifth derivative, which is large near programs with other faces.
    errors = [abs(float(by_differences(g, step) - expected)) / size for step in (1e-3, 3e-4, 1e-4)]
    assert min(errors) <= 1e-6


@pytest.mark.parametrize("objective", [False, True])
@pytest.mark.parametrize("solver", ENGINES)
@pytest.mark.parametrize(
    "cones", [Cones(zero=1, nonnegative=4), Cones(second_order=(3, 3)), Cones(psd=(3,)), Cones(exponential=1)]
)
def test_gradgradcheck(cones, solver, objective):
    problem = random_program(cones, batch=(2,))
    leaves = [v.clone().requires_grad_() for v in (problem.P, problem.q, problem.A, problem.b)]

    def solve(P, q, A, b):
        P = 0.5 * (P + P.mT)
        solution = cl.solve_cone_program(P, q, A, b, cones, solver=solver, validate=False)
        return solution.objective if objective else (solution.x, solution.z)

    assert torch.autograd.gradgradcheck(solve, leaves, atol=1e-4, rtol=1e-4, fast_mode=True)


def test_hessian_against_the_closed_form():
    """x = P^-1 (A'y - q) with y = (A P^-1 A')^-1 (b + A P^-1 q), differentiated by torch."""
    L, A = normal(6, 6, seed=1), normal(2, 6, seed=2)
    P, b, w = L @ L.mT + torch.eye(6, dtype=torch.float64), normal(2, seed=3), normal(6, seed=4)

    def loss(x):
        return (w * x).sum() + (x**4).sum()

    def closed(q, A):
        inverse = torch.linalg.inv(P)
        y = torch.linalg.solve(A @ inverse @ A.mT, b + A @ inverse @ q)
        return loss(inverse @ (A.mT @ y - q))

    def layer(q, A):
        return loss(cl.solve_qp(P, q, A=A, b=b).x)

    q = normal(6, seed=5)
    expected, found = hessian(closed, argnums=(0, 1))(q, A), hessian(layer, argnums=(0, 1))(q, A)
    for row, expected_row in zip(found, expected, strict=True):
        for block, expected_block in zip(row, expected_row, strict=True):
            assert torch.allclose(block, expected_block, rtol=1e-8, atol=1e-8)
    by_autograd = torch.autograd.functional.hessian(layer, (q, A))
    assert torch.allclose(by_autograd[1][0], expected[1][0], rtol=1e-8, atol=1e-8)


def test_active_inequalities_count_as_equalities():
    """Projection onto {x <= 1}: the second derivative of sum x^3 is that of the free entries."""
    q = torch.tensor([-2.0, -0.5, 0.3], dtype=torch.float64)
    H = hessian(lambda q: (cl.solve_qp(torch.eye(3).double(), q, ub=1.0).x ** 3).sum())(q)
    expected = torch.diag(torch.tensor([0.0, 6 * 0.5, 6 * -0.3], dtype=torch.float64))
    assert torch.allclose(H, expected, rtol=0, atol=1e-10)


def test_third_derivatives():
    problem = random_program(Cones(nonnegative=3, second_order=(3,)))
    g = along(problem)
    zero = torch.zeros((), dtype=torch.float64)
    third, mixed = grad(grad(grad(g)))(zero), jacfwd(jacrev(jacfwd(g)))(zero)
    step = 1e-4
    expected = (grad(grad(g))(zero + step) - grad(grad(g))(zero - step)) / (2 * step)
    assert torch.allclose(third, mixed, rtol=1e-7)
    assert torch.allclose(third, expected, rtol=1e-4, atol=1e-6)


def test_shared_parameters():
    """The Hessian in a q that the batch shares is the sum of the elements'."""
    h = normal(4, 3, seed=1).abs() + 0.1
    G, P, q = normal(3, 4, seed=2), torch.eye(4, dtype=torch.float64), normal(4, seed=3)

    def loss(q, h):
        return (cl.solve_qp(P, q, G, h).x ** 4).sum()

    whole = hessian(loss)(q, h)
    assert torch.allclose(whole, sum(hessian(loss)(q, row) for row in h), rtol=1e-9, atol=1e-10)


def test_failed_elements_have_zero_second_derivatives():
    G, q = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64)
    h = torch.tensor([[1.0, 1.0], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)

    def solve(h):
        return cl.solve_qp(torch.ones(1, 1).double(), q, G, h, on_failure="nan").x

    x = solve(h)
    (first,) = torch.autograd.grad((x**3).nansum(), h, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), h)
    assert torch.allclose(second, torch.tensor([[6.0, 0.0], [0.0, 0.0]]).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("reason", "arguments"),
    [
        # 1/2 x^2 over x <= 0: x = 0 with multiplier 0.
        ("weakly active", {"P": [[1.0]], "q": [0.0], "G": [[1.0]], "h": [0.0]}),
        # The same equality twice.
        ("not unique", {"P": [[1.0]], "q": [1.0], "A": [[1.0], [1.0]], "b": [0.5, 0.5]}),
    ],
)
def test_where_there_is_none(reason, arguments):
    arguments = {name: torch.tensor(value, dtype=torch.float64) for name, value in arguments.items()}
    q = arguments.pop("q").requires_grad_()
    x = cl.solve_qp(q=q, **arguments).x
    (first,) = torch.autograd.grad((x**2).sum() + x.sum(), q, create_graph=True)
    with pytest.raises(SecondDerivativeError, match=reason):
        first.sum().backward()


@pytest.mark.parametrize("derivative", [cl.Smoothed(1e-2), cl.Perturbed(1e-2)])
def test_other_strategies_say_that_they_have_none(derivative):
    q = normal(3).requires_grad_()
    x = cl.solve_qp(torch.eye(3).double(), q, lb=0.0, derivative=derivative).x
    (first,) = torch.autograd.grad((x**2).sum(), q, create_graph=True)
    with pytest.raises(SecondDerivativeError, match=type(derivative).__name__):
        first.sum().backward()


def test_diffcp_says_that_it_cannot():
    q = normal(3).requires_grad_()

    def loss(q):
        return (cl.solve_qp(torch.eye(3).double(), q, lb=0.0, solver="diffcp").x ** 2).sum()

    (first,) = torch.autograd.grad(loss(q), q, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="another engine"):
        first.sum().backward()
    with pytest.raises(cl.errors.ArgumentError, match="another engine"):
        grad(loss)(q.detach())
