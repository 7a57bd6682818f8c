"""Every sample node under every way of differentiating: right, or an error that says why."""

import node_samples as samples
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vjp, vmap

from convexlayers.errors import SecondDerivativeError
from convexlayers.nodes import DeclarativeNode

SAMPLES = pytest.mark.parametrize("sample", samples.ALL, ids=lambda sample: type(sample).__name__)
IGNORE = pytest.mark.filterwarnings("ignore:The derivative of:convexlayers.errors.DerivativeWarning")
BATCH = 2


def inputs(sample, seed=5):
    return sample.inputs(torch.Generator().manual_seed(seed), batch=BATCH)


def node_of(sample, built_in=False):
    """With the closed form as its solver, or with ours."""
    found = {"start": sample.start} if built_in else {"solver": sample.solve, "tolerance": 1e-10}
    return DeclarativeNode(sample.objective, sample.equalities, sample.inequalities, **found)


@IGNORE
@SAMPLES
def test_first_derivatives_by_every_transform(sample):
    """jacrev, jacfwd, vmap of both, jvp, vjp, dual numbers and backward, against the closed form."""
    node, xs = node_of(sample), inputs(sample)
    places = tuple(range(len(xs)))
    expected = sample.derivative(*xs)

    def alone(*x):
        return node(*(part.unsqueeze(0) for part in x))[0]

    for transform in (jacrev, jacfwd):
        for whole, each in zip(transform(node, places)(*xs), expected, strict=True):
            torch.testing.assert_close(torch.stack([whole[i, :, i] for i in range(BATCH)]), each, rtol=1e-9, atol=1e-9)
        found = vmap(transform(alone, places))(*xs)
        torch.testing.assert_close(found, tuple(expected), rtol=1e-9, atol=1e-9)
    generator = torch.Generator().manual_seed(1)
    dxs = tuple(samples.normal(generator, *x.shape) for x in xs)
    moved = sum(torch.einsum("bmn,bn->bm", J, dx) for J, dx in zip(expected, dxs, strict=True))
    torch.testing.assert_close(jvp(node, tuple(xs), dxs)[1], moved, rtol=1e-9, atol=1e-9)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, dx) for x, dx in zip(xs, dxs, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(node(*duals)).tangent, moved, rtol=1e-9, atol=1e-9)
    y, pull = vjp(node, *xs)
    v = samples.normal(generator, *y.shape)
    pulled = tuple(torch.einsum("bmn,bm->bn", J, v) for J in expected)
    torch.testing.assert_close(pull(v), pulled, rtol=1e-9, atol=1e-9)
    leaves = [x.clone().requires_grad_() for x in xs]
    torch.testing.assert_close(torch.autograd.grad(node(*leaves), leaves, v), pulled, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("built_in", [False, True], ids=["own", "built-in"])
@pytest.mark.parametrize("sample", samples.UNIQUE, ids=lambda sample: type(sample).__name__)
def test_gradcheck_and_gradgradcheck(sample, built_in):
    """In both modes, for both ways of solving, in batches of cotangents (`is_grads_batched`), too."""
    node = node_of(sample, built_in)
    leaves = [x.clone().requires_grad_() for x in inputs(sample)]
    assert gradcheck(node, leaves, check_forward_ad=True, check_batched_grad=not built_in)
    if not built_in:
        assert gradgradcheck(node, leaves, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("sample", samples.UNIQUE, ids=lambda sample: type(sample).__name__)
def test_hessians_by_every_transform(sample):
    """Forward over reverse, reverse over reverse, reverse over forward; per element by vmap."""
    if isinstance(sample, samples.PseudoHuber):
        pytest.skip("its closed form is a derivative by formula, of first order")
    node, x = node_of(sample), inputs(sample)[0]

    def loss(function):
        return lambda x: function(x.unsqueeze(0)).pow(3).sum()

    expected = vmap(jacrev(jacrev(loss(sample.solve))))(x)
    for transform in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
        torch.testing.assert_close(vmap(transform(loss(node)))(x), expected, rtol=1e-8, atol=1e-8)


@IGNORE
def test_second_derivatives_where_solutions_are_not_unique_are_an_error_in_every_mode():
    sample = samples.CosineDistance()
    node, (x,) = node_of(sample), inputs(sample)

    def loss(x):
        return node(x.unsqueeze(0)).pow(3).sum()

    for transform in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
        with pytest.raises(SecondDerivativeError, match="not unique"):
            transform(loss)(x[0])
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(node(leaf).pow(3).sum(), leaf, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="not unique"):
        first.sum().backward()
