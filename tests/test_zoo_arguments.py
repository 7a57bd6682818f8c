"""What the layers of the zoo say to wrong arguments, and what they do where there is no derivative or no solution."""

import numpy as np
import pytest
import torch

import convexlayers as cl
from convexlayers import zoo
from convexlayers.errors import ArgumentError, SecondDerivativeError

V = torch.tensor([[0.3, -0.2, 1.5, 0.1], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.project_simplex(torch.tensor(1.0)), r"v has shape \(\), expected \(\*batch, n\)"),
        (lambda: zoo.project_simplex(torch.zeros(3, 0)), r"v has shape \(3, 0\), expected .* at least one entry"),
        (lambda: zoo.project_simplex(V, -1.0), "radius is -1.0, expected a positive number"),
        (lambda: zoo.project_simplex(V, float("nan")), "radius is nan, expected a positive number"),
        (lambda: zoo.project_simplex(V, torch.ones(3)), r"do not broadcast: v \(2,\), radius \(3,\)"),
        (lambda: zoo.project_simplex(V.to(torch.complex64)), "v is complex"),
        (lambda: zoo.project_simplex("abc"), "v is a str"),
        (lambda: zoo.project_capped_simplex(V, 1.0, torch.ones(3)), r"cap has shape .*3.*, expected \(\*batch, 4\)"),
        (lambda: zoo.project_box(V, torch.zeros(3)), r"lb has shape .*, expected \(\*batch, 4\)"),
        (lambda: zoo.project_affine(V, torch.ones(2, 3), torch.ones(2)), r"A has shape .*, expected \(\*batch, 2, 4\)"),
        (lambda: zoo.project_psd(V), r"A has shape \(2, 4\), expected \(\*batch, 4, 4\)"),
        (lambda: zoo.top_projector(torch.eye(3), 4), "k is 4, expected a number from 1 to 3"),
        (lambda: zoo.project_second_order_cone(torch.ones(3, 1)), "n >= 2"),
        (lambda: zoo.project_birkhoff(V), r"V has shape \(2, 4\), expected \(\*batch, 4, 4\)"),
        (lambda: zoo.transport_plan(V, torch.ones(3)), r"a has shape \(3,\), expected \(\*batch, 2\): C is"),
        (lambda: zoo.transport_plan(V, eps=0.0), "eps is 0.0, expected a positive number"),
        (lambda: zoo.robust_pool(V, kind="median"), "kind is 'median', expected one of 'quadratic'"),
        (lambda: zoo.entmax(V, 0.5), "alpha is 0.5, expected at least 1"),
        (lambda: zoo.attention(V, V, V, "hard"), "kind is 'hard'"),
        (lambda: zoo.attention(V, V[:, :3], V), r"key has shape .*, expected \(\*batch, 2, 4\)"),
        (lambda: zoo.tv_denoise(V, -1.0), "strength is -1.0, expected a nonnegative number"),
        (lambda: zoo.project_isotonic(V, torch.ones(5)), r"weight has shape .*, expected \(\*batch, 4\)"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda t: zoo.project_simplex(V, t),
        lambda t: zoo.project_l1_ball(V, t),
        lambda t: zoo.project_l2_ball(V, t),
        lambda t: zoo.project_l2_sphere(V, t),
        lambda t: zoo.project_linf_ball(V, t),
        lambda t: zoo.robust_pool(V, t),
        lambda t: zoo.entmax(V, t),
        lambda t: zoo.transport_plan(V[:1].expand(2, 3, 4), eps=t),
        lambda t: zoo.tv_denoise(V, t),
        lambda t: zoo.project_capped_simplex(V, t),
    ],
)
def test_parameters_out_of_range_are_nan_in_their_element(call):
    out = call(torch.tensor([-1.0, 1.5], dtype=torch.float64))
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


def test_infeasible_elements_are_nan():
    assert zoo.project_capped_simplex(V, 5.0, 1.0).isnan().all()
    assert zoo.project_box(V, 1.0, 0.0).isnan().all()
    assert zoo.transport_plan(V, torch.ones(2).double(), torch.ones(4).double()).isnan().all()
    assert zoo.project_transport_polytope(V, 1.0, 1.0).isnan().all()


@pytest.mark.parametrize("layer", [zoo.project_l1_sphere, zoo.project_l2_sphere, zoo.project_linf_sphere])
def test_centre_of_a_sphere(layer):
    v = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    radius = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x = layer(v, radius)
    order = {zoo.project_l1_sphere: 1, zoo.project_l2_sphere: 2, zoo.project_linf_sphere: float("inf")}[layer]
    torch.testing.assert_close(x.norm(order, dim=-1), torch.full((2,), 2.0, dtype=torch.float64))
    grads = torch.autograd.grad(x.square().sum(), (v, radius))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e170, 1e300])
def test_norms_that_overflow(size):
    v = torch.tensor([3.0, 4.0], dtype=torch.float64) * size
    expected = torch.tensor([0.6, 0.8], dtype=torch.float64)
    torch.testing.assert_close(zoo.project_l2_sphere(v), expected)
    torch.testing.assert_close(zoo.project_l2_ball(v), expected if size > 1 else v)


def test_apex_and_equal_eigenvalues():
    v = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(zoo.project_second_order_cone(v).sum(), v)
    assert grad.isfinite().all()
    Q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    A = ((Q * torch.tensor([2.0, 2.0, -1.0, -1.0, -1.0], dtype=torch.float64)) @ Q.T).requires_grad_()
    for layer in (zoo.project_psd, lambda A: zoo.top_projector(A, 2)):
        assert torch.autograd.gradcheck(layer, A)
        assert torch.autograd.gradgradcheck(layer, A, check_fwd_over_rev=True)
    with pytest.raises(SecondDerivativeError, match="third"):
        torch.func.jacrev(torch.func.jacrev(torch.func.jacrev(zoo.project_psd)))(A.detach())


def test_repeated_rows_of_an_affine_subspace():
    A = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    x = zoo.project_affine(v, A, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(x.detach(), torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64))
    (grad,) = torch.autograd.grad(x[0], v)
    torch.testing.assert_close(grad, torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64))


def test_truncated_and_welsch_pools_find_the_global_minimum():
    x = 3 * torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    square = (grid[:, None, None] - x).square()
    for kind, penalty in (("truncated", lambda t: t.clamp(max=1) / 2), ("welsch", lambda t: -torch.expm1(-t / 2))):
        y = zoo.robust_pool(x, kind=kind)
        found = penalty((y[:, None] - x).square()).sum(-1)
        assert (found <= penalty(square).sum(-1).amin(0) + 1e-12).all()


def test_total_variation_is_block_averaging():
    y = torch.tensor([0.0, 0.1, 3.0, 3.2, 2.9], dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda y: zoo.tv_denoise(y, 0.5), y)
    expected = torch.block_diag(torch.full((2, 2), 1 / 2), torch.full((3, 3), 1 / 3)).double()
    torch.testing.assert_close(J, expected)
    torch.testing.assert_close(zoo.tv_denoise(y, 0.0), y)
    torch.testing.assert_close(zoo.tv_denoise(y, 100.0), y.mean().expand(5))


def test_forward_over_forward_mode_is_an_error():
    """torch loses a part of it in custom Functions."""
    with pytest.raises(SecondDerivativeError, match="Forward over forward"):
        torch.func.jacfwd(torch.func.jacfwd(zoo.project_l2_ball))(V[0])


def test_arrays_and_numbers_are_accepted():
    out = zoo.project_simplex(np.array([0.5, 1.0]))
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, torch.tensor([0.25, 0.75], dtype=torch.float64))


def test_modules():
    pool = zoo.RobustPool("huber", alpha=0.5, learned=True)
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool(x), zoo.robust_pool(x.flatten(-2), 0.5, kind="huber"))
    pool(x).sum().backward()
    assert pool.log_alpha.grad is not None
    assert "huber" in repr(pool)
    query = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        cl.zoo.Attention()(query, query, query), torch.nn.functional.scaled_dot_product_attention(query, query, query)
    )
