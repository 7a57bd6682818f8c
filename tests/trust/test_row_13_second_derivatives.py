"""Second derivatives are right or an error, never a silent zero; a graph that is not used does no harm."""

import pytest
import torch
from torch.autograd import forward_ad

import convexlayers as cl
from convexlayers.errors import ArgumentError, SecondDerivativeError
from trust.engines import ENGINES
from trust.families import FAMILIES, assert_same, leaves, randn, weights_like

B, n = 3, 4
# Curved in their parameters, so that a zero would be wrong; of cones that every engine has.
NAMES = ["dense_qp", "socp", "logistic_regression"]


def make_layer(name, solver):
    family = FAMILIES[name]
    problem, parameters, variables = family.make()
    return cl.ConvexLayer(problem, parameters, variables, solver=solver, **family.options)


def gradients(layer, inputs, create_graph):
    outputs = layer(*inputs)
    return torch.autograd.grad(outputs, inputs, weights_like(outputs), create_graph=create_graph)


def scalar(solver):
    """h -> sum of the solution of min 1/2 x'diag(h)x + 1'x, which is -sum 1/h: its Hessian is -2 diag(h^-3)."""
    ones = torch.ones(n, dtype=torch.float64)
    return lambda h: cl.solve_qp(torch.diag_embed(h), ones, solver=solver).x.sum()


def point():
    return torch.linspace(0.5, 2.0, n, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_create_graph_alone_changes_nothing(solver, name):
    layer, values = make_layer(name, solver), FAMILIES[name].sample(B)
    with_graph, without = (gradients(layer, leaves(values), create_graph) for create_graph in (True, False))
    for grad, expected in zip(with_graph, without, strict=True):
        assert grad.requires_grad
        assert_same(grad.detach(), expected, 0.0)


def test_a_graph_that_is_not_used_for_the_solution(solver):
    """A gradient may go into a loss, as long as nobody differentiates it: here it is detached."""
    h = point().requires_grad_()
    (grad,) = torch.autograd.grad(scalar(solver)(h), h, create_graph=True)
    loss = (grad.detach() * h).sum() + scalar(solver)(h)
    (found,) = torch.autograd.grad(loss, h)
    assert_same(found, 2 * grad.detach(), 1e-12)


def differentiated(solver, attempt):
    """The second derivative that an attempt finds, None where the engine has none and says so."""
    if ENGINES[solver].exact:
        return attempt()
    with pytest.raises((SecondDerivativeError, ArgumentError), match="engine"):
        attempt()
    return None


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_a_gradient(solver, name, figure):
    """Along a direction, against differences of first derivatives."""
    layer, values = make_layer(name, solver), FAMILIES[name].sample(B)
    directions = [randn(*v.shape, seed=5 + i) * (v != 0) for i, v in enumerate(values)]
    weights = weights_like(make_layer(name, "native")(*values))

    def slope(t, create_graph=False):
        moved = [v + t * d for v, d in zip(values, directions, strict=True)]
        outputs = layer(*moved)
        return torch.autograd.grad(outputs, t, weights, create_graph=create_graph)[0]

    def attempt():
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(slope(t, True), t)[0]

    found = differentiated(solver, attempt)
    if found is None:
        return
    near, far = ([slope(torch.tensor(s * k * 1e-4).double().requires_grad_()) for s in (1, -1)] for k in (1, 2))
    expected = (8 * (near[0] - near[1]) - (far[0] - far[1])) / 12e-4
    error = float((found - expected).abs() / expected.abs().clamp(min=1))
    figure(error, "relative error of a second derivative")
    # Differences magnify the error of first derivatives by the inverse of the step.
    assert error <= max(1e-6, ENGINES[solver].accuracy / 1e-4)


def test_in_the_upstream_gradient_alone(solver):
    """The gradient is linear in it, so its derivative in it is the tangent."""
    inputs = leaves(FAMILIES["dense_qp"].sample(B))
    (x,) = make_layer("dense_qp", solver)(*inputs)
    weight, direction = randn(*x.shape, seed=3).requires_grad_(), randn(*inputs[0].shape, seed=4)

    def attempt():
        (grad,) = torch.autograd.grad(x, inputs[0], weight, create_graph=True)
        return torch.autograd.grad(grad, weight, direction)[0]

    found = differentiated(solver, attempt)
    if found is not None:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(inputs[0].detach(), direction)
            (y,) = make_layer("dense_qp", solver)(dual, *[v.detach() for v in inputs[1:]])
            assert_same(found, forward_ad.unpack_dual(y).tangent, ENGINES[solver].accuracy)


def test_gradient_penalty_in_a_sum(solver):
    """Beside terms that can be differentiated, where a zero would go unnoticed."""
    h = point().requires_grad_()

    def attempt():
        (grad,) = torch.autograd.grad(scalar(solver)(h), h, create_graph=True)
        return torch.autograd.grad(h.square().sum() + grad.square().sum(), h)[0]

    found = differentiated(solver, attempt)
    if found is not None:
        assert_same(found, 2 * point() - 4 * point() ** -5, ENGINES[solver].accuracy)


def test_of_the_objective(solver):
    """Its gradient is known without a linear system, and its second derivative needs one all the same: -1/h."""
    h = point().requires_grad_()
    ones = torch.ones(n, dtype=torch.float64)

    def attempt():
        objective = cl.solve_qp(torch.diag_embed(h), ones, solver=solver).objective
        (grad,) = torch.autograd.grad(objective, h, create_graph=True)
        return torch.autograd.grad(grad.sum(), h)[0]

    found = differentiated(solver, attempt)
    if found is not None:
        assert_same(found, -(point() ** -3), ENGINES[solver].accuracy)


def test_gradgradcheck(solver):
    function, h = scalar(solver), point().requires_grad_()
    found = differentiated(solver, lambda: torch.autograd.gradgradcheck(function, (h,), check_fwd_over_rev=True))
    assert found in (True, None)


def jvp(function, v):
    return lambda h: torch.func.jvp(function, (h,), (v,))[1]


HESSIANS = {
    "functional.hessian": lambda f, h: torch.autograd.functional.hessian(f, h),
    "functional.hessian, vectorized": lambda f, h: torch.autograd.functional.hessian(f, h, vectorize=True),
    "func.hessian": lambda f, h: torch.func.hessian(f)(h),
    "reverse over reverse": lambda f, h: torch.func.jacrev(torch.func.jacrev(f))(h),
    "reverse over forward": lambda f, h: torch.func.jacrev(torch.func.jacfwd(f))(h),
    "forward over forward": lambda f, h: torch.func.jacfwd(torch.func.jacfwd(f))(h),
}
PRODUCTS = {
    "functional.hvp": lambda f, h, v: torch.autograd.functional.hvp(f, h, v)[1],
    "functional.vhp": lambda f, h, v: torch.autograd.functional.vhp(f, h, v)[1],
    "gradient of a tangent": lambda f, h, v: torch.func.grad(jvp(f, v))(h),
    "tangent of a gradient": lambda f, h, v: jvp(torch.func.grad(f), v)(h),
}


@pytest.mark.parametrize("name", HESSIANS)
def test_hessian(solver, name, figure):
    found = differentiated(solver, lambda: HESSIANS[name](scalar(solver), point()))
    if found is not None:
        expected = torch.diag(-2 * point() ** -3)
        figure(float((found - expected).abs().max()), "error of a Hessian")
        assert_same(found, expected, ENGINES[solver].accuracy)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_the_hessian(solver, name):
    v = randn(n, seed=6)
    found = differentiated(solver, lambda: PRODUCTS[name](scalar(solver), point(), v))
    if found is not None:
        assert_same(found, -2 * point() ** -3 * v, ENGINES[solver].accuracy)


def test_reverse_over_forward(solver):
    """The gradient of a tangent, in a sum whose other terms can be differentiated."""
    h = point().requires_grad_()
    with forward_ad.dual_level():
        out = scalar(solver)(forward_ad.make_dual(h, torch.ones_like(h)))
        tangent = forward_ad.unpack_dual(out).tangent
        assert_same(tangent.detach(), (1 / point().square()).sum(), 1e-6)
        found = differentiated(solver, lambda: torch.autograd.grad(tangent + h.square().sum(), h)[0])
    if found is not None:
        assert_same(found, 2 * point() - 2 * point() ** -3, ENGINES[solver].accuracy)


@pytest.mark.parametrize("create_graph", [False, True])
def test_forward_over_reverse(solver, create_graph):
    """torch carries tangents through a backward pass whether or not it keeps a graph of it."""
    h = point().requires_grad_()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(h, torch.ones_like(h))
        out = scalar(solver)(dual)
        found = differentiated(solver, lambda: torch.autograd.grad(out, dual, create_graph=create_graph)[0])
        if found is not None:
            assert_same(forward_ad.unpack_dual(found).tangent, -2 * point() ** -3, ENGINES[solver].accuracy)


def test_forward_mode_alone_is_no_second_derivative(solver):
    h, v = point(), randn(n, seed=4)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(scalar(solver)(forward_ad.make_dual(h, v))).tangent
    assert_same(tangent, (v / h.square()).sum(), 1e-6)


def test_a_backward_pass_of_others_inside_a_dual_level(solver):
    """Forward mode elsewhere does not disturb a gradient that holds no tangent."""
    h, other = point().requires_grad_(), torch.ones(2, dtype=torch.float64)
    with forward_ad.dual_level():
        forward_ad.make_dual(other, other)
        (grad,) = torch.autograd.grad(scalar(solver)(h), h)
    assert_same(grad, 1 / point().square(), 1e-6)
