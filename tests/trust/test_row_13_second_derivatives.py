"""Second derivatives are an error that says so, never a silent zero; a graph that is not used does no harm."""

import pytest
import torch
from torch.autograd import forward_ad

import convexlayers as cl
from convexlayers.errors import SecondDerivativeError
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


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_a_gradient(solver, name):
    layer, inputs = make_layer(name, solver), leaves(FAMILIES[name].sample(B))
    for grad, value in zip(gradients(layer, inputs, True), inputs, strict=True):
        with pytest.raises(SecondDerivativeError, match="create_graph=True"):
            torch.autograd.grad(grad.square().sum(), value, retain_graph=True)


def test_in_the_upstream_gradient_alone(solver):
    """The gradient is linear in it, and its derivative in it is refused too rather than left out."""
    inputs = leaves(FAMILIES["dense_qp"].sample(B))
    (x,) = make_layer("dense_qp", solver)(*inputs)
    weight = randn(*x.shape, seed=3).requires_grad_()
    (grad,) = torch.autograd.grad(x, inputs[0], weight, create_graph=True)
    with pytest.raises(SecondDerivativeError):
        torch.autograd.grad(grad.sum(), weight)


def test_gradient_penalty_in_a_sum(solver):
    """Beside terms that can be differentiated, where a zero would go unnoticed."""
    h = point().requires_grad_()
    (grad,) = torch.autograd.grad(scalar(solver)(h), h, create_graph=True)
    with pytest.raises(SecondDerivativeError):
        (h.square().sum() + grad.square().sum()).backward()
    assert h.grad is None


def test_of_the_objective(solver):
    """Its gradient is known without a linear system, and its second derivative needs one all the same."""
    inputs = leaves(FAMILIES["dense_qp"].sample(B))
    objective = make_layer("dense_qp", solver).solve(*inputs).objective
    (grad,) = torch.autograd.grad(objective.sum(), inputs[0], create_graph=True)
    with pytest.raises(SecondDerivativeError):
        grad.sum().backward()


def test_gradgradcheck(solver):
    function, h = scalar(solver), point().requires_grad_()
    with pytest.raises(SecondDerivativeError):
        torch.autograd.gradgradcheck(function, (h,))


FUNCTIONAL = {
    "hessian": lambda function, h: torch.autograd.functional.hessian(function, h),
    "hvp": lambda function, h: torch.autograd.functional.hvp(function, h, torch.ones_like(h)),
    "vhp": lambda function, h: torch.autograd.functional.vhp(function, h, torch.ones_like(h)),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional(solver, name):
    with pytest.raises(SecondDerivativeError):
        FUNCTIONAL[name](scalar(solver), point())


def jvp(function, v):
    return lambda h: torch.func.jvp(function, (h,), (v,))[1]


NESTED = {
    "hessian": lambda f, h: torch.func.hessian(f)(h),
    "reverse over reverse": lambda f, h: torch.func.grad(lambda g: torch.func.grad(f)(g).sum())(h),
    "reverse over forward": lambda f, h: torch.func.grad(jvp(f, torch.ones_like(h)))(h),
    "forward over forward": lambda f, h: jvp(jvp(f, torch.ones_like(h)), torch.ones_like(h))(h),
}


@pytest.mark.parametrize("name", NESTED)
def test_transforms_of_torch_func(solver, name):
    """An error, whoever raises it: torch does where a transform is not supported at all."""
    with pytest.raises(RuntimeError):
        NESTED[name](scalar(solver), point())


def test_reverse_over_forward(solver):
    """The gradient of a tangent, in a sum whose other terms can be differentiated."""
    h = point().requires_grad_()
    with forward_ad.dual_level():
        out = scalar(solver)(forward_ad.make_dual(h, torch.ones_like(h)))
        tangent = forward_ad.unpack_dual(out).tangent
        assert_same(tangent.detach(), (1 / point().square()).sum(), 1e-6)
        with pytest.raises(SecondDerivativeError):
            torch.autograd.grad(tangent + h.square().sum(), h)


@pytest.mark.parametrize("create_graph", [False, True])
def test_forward_over_reverse(solver, create_graph):
    """torch carries tangents through a backward pass whether or not it keeps a graph of it."""
    h = point().requires_grad_()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(h, torch.ones_like(h))
        out = scalar(solver)(dual)
        with pytest.raises(SecondDerivativeError):
            torch.autograd.grad(out, dual, create_graph=create_graph)


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
