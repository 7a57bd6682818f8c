"""The compiled loops of the zoo beside the torch operations they stand in for, and each row beside itself alone."""

import pytest
import torch
from torch.autograd import forward_ad

from convexlayers import zoo
from convexlayers.zoo import _kernels

F64 = torch.float64


def transport(C, a, b, eps):
    return zoo.transport_plan(C, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True), eps)


# Layer, shapes of one element, positions of positive arguments.
CASES = {
    "simplex": (zoo.project_simplex, ((67,), ()), (1,)),
    "sparsemax": (zoo.sparsemax, ((67,),), ()),
    "capped simplex": (zoo.project_capped_simplex, ((67,), (), (67,)), (1, 2)),
    "l1 ball": (zoo.project_l1_ball, ((67,), ()), (1,)),
    "l1 sphere": (zoo.project_l1_sphere, ((67,), ()), (1,)),
    "l2 ball": (zoo.project_l2_ball, ((67,), ()), (1,)),
    "l2 sphere": (zoo.project_l2_sphere, ((67,), ()), (1,)),
    "linf ball": (zoo.project_linf_ball, ((67,), ()), (1,)),
    "linf sphere": (zoo.project_linf_sphere, ((67,), ()), (1,)),
    "second-order cone": (zoo.project_second_order_cone, ((67,),), ()),
    "PSD cone": (zoo.project_psd, ((9, 9),), ()),
    "PSD cone, larger": (zoo.project_psd, ((20, 20),), ()),
    "top projector": (lambda A: zoo.top_projector(A, 3), ((9, 9),), ()),
    "isotonic": (zoo.project_isotonic, ((67,), (67,)), (1,)),
    "total variation": (zoo.tv_denoise, ((67,), ()), (1,)),
    "entmax": (zoo.entmax, ((67,),), ()),
    "pseudo-Huber pool": (zoo.robust_pool, ((67,), ()), (1,)),
    "Huber pool": (lambda x, a: zoo.robust_pool(x, a, kind="huber"), ((67,), ()), (1,)),
    "tridiagonal": (zoo.tridiagonal_solve, ((66,), (67,), (66,), (67,)), ()),
    "least squares": (zoo.least_squares, ((23, 9), (23,), (23,), ()), (2, 3)),
    "transport": (transport, ((5, 9), (5,), (9,), ()), (1, 2, 3)),
    "transport, turned": (transport, ((9, 5), (9,), (5,), ()), (1, 2, 3)),
    "least squares with bias": (
        lambda *values: torch.cat(
            [part.reshape(*values[3].shape, -1) for part in zoo.least_squares(*values, bias=True)], -1
        ),
        ((23, 9), (23,), (23,), ()),
        (2, 3),
    ),
}
cases = pytest.mark.parametrize("name", CASES)


def draw(name, *batch, seed=0, dtype=F64):
    _, shapes, positive = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    normals = [torch.randn(*batch, *shape, generator=generator, dtype=F64) for shape in shapes]
    return [(v.abs() + 0.3 if i in positive else v).to(dtype) for i, v in enumerate(normals)]


def values_and_gradients(name, values):
    inputs = [value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for value in values]
    output = CASES[name][0](*inputs)
    weights = torch.randn(
        output.shape[values[-1].ndim - len(CASES[name][1][-1]) :], generator=torch.Generator().manual_seed(1), dtype=F64
    )
    grads = torch.autograd.grad((output * weights.to(output)).sum(), inputs)
    return [output.detach(), *grads]


def by_torch(monkeypatch, name, values):
    with monkeypatch.context() as patch:
        patch.setattr(_kernels, "usable", lambda *_: False)
        return values_and_gradients(name, values)


@cases
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_kernels_are_the_torch_operations(monkeypatch, name, dtype):
    values = draw(name, 40, dtype=dtype)
    found, expected = values_and_gradients(name, values), by_torch(monkeypatch, name, values)
    # Orders of summation differ; condition numbers of these systems are below a thousand.
    tolerance = 1e5 * torch.finfo(dtype).eps
    for f, e in zip(found, expected, strict=True):
        assert f.dtype is dtype
        assert (f - e).abs().max() <= tolerance * max(1.0, float(e.abs().max()))


@cases
def test_layout_does_not_matter(name):
    values = draw(name, 6)
    expected = values_and_gradients(name, values)
    # The same numbers with the batch as the dimension that is contiguous, and every second one of a longer array.
    turned = [value.movedim(0, -1).contiguous().movedim(-1, 0) for value in values]
    strided = [torch.stack([value, value + 1], dim=1)[:, 0] for value in values]
    for other in (turned, strided):
        for found, wanted in zip(values_and_gradients(name, other), expected, strict=True):
            assert torch.equal(found, wanted)


@cases
def test_an_element_is_the_same_alone_and_beside_nan(name):
    """To the last bit."""
    values = draw(name, 11)
    together = values_and_gradients(name, values)
    spoiled = [value.clone() for value in values]
    spoiled[0][4] = float("nan")
    beside = values_and_gradients(name, spoiled)
    for i in (0, 3, 5, 10):
        alone = values_and_gradients(name, [value[i] for value in values])
        for found, whole, other in zip(alone, together, beside, strict=True):
            assert torch.equal(found, whole[i])
            assert torch.equal(found, other[i])
    assert beside[0][4].isnan().any()


@pytest.mark.parametrize("name", ["simplex", "isotonic", "tridiagonal", "PSD cone", "least squares"])
def test_threads_change_nothing(name):
    values = draw(name, 1200)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(name, values))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@cases
def test_tangents_of_a_backward_pass_are_not_lost(name):
    """Forward over reverse mode without create_graph: the kernel must not be taken."""
    values = draw(name, 2)
    direction = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(3), dtype=F64)

    def gradient(first, create_graph):
        output = CASES[name][0](first, *values[1:])
        return torch.autograd.grad(output.square().sum(), first, create_graph=create_graph)[0]

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(values[0].clone().requires_grad_(), direction)
        tangent = forward_ad.unpack_dual(gradient(dual, create_graph=False)).tangent
    first = values[0].clone().requires_grad_()
    product = (gradient(first, create_graph=True) * direction).sum()
    (expected,) = torch.autograd.grad(product, first)
    assert tangent is not None
    assert (tangent - expected).abs().max() <= 1e-9 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("layer", [zoo.project_simplex, zoo.sparsemax, zoo.entmax])
def test_entries_at_minus_infinity_are_left_out(layer):
    scores = torch.tensor([0.3, -torch.inf, 0.5, -torch.inf], dtype=F64, requires_grad=True)
    x = layer(scores)
    torch.testing.assert_close(x[::2], layer(scores[::2]))
    assert torch.equal(x[1::2], torch.zeros(2, dtype=F64))
    (grad,) = torch.autograd.grad(x[0], scores)
    assert torch.equal(grad[1::2], torch.zeros(2, dtype=F64))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 40, 200])
@pytest.mark.parametrize("strength", [1e-3, 0.3, 4.0, 100.0])
def test_the_taut_string_is_the_solution_of_the_dual(monkeypatch, size, strength):
    generator = torch.Generator().manual_seed(size)
    noise = torch.randn(6, size, generator=generator, dtype=F64)
    # Noise, a walk, and equal neighbours.
    y = torch.cat([noise, noise.cumsum(-1), noise.round()])
    x = zoo.tv_denoise(y, strength)
    # Optimality: |u| <= strength, and at its bound where x steps, with x = y - D'u and u = 0 beyond the ends.
    u = (x - y).cumsum(-1)
    assert u[:, -1].abs().max() <= 1e-10
    step = x.diff(dim=-1)
    allowed = 1e-10 * max(1.0, strength)
    assert u.abs().max() <= strength + allowed
    stepping = step.abs() > 1e-9
    assert ((u[:, :-1] - strength * step.sign()).abs() <= allowed)[stepping].all()


def test_pivots():
    """Systems whose elimination needs an exchange of rows in every step, beside ones that do not."""
    n = 8
    diagonal = torch.stack([torch.zeros(n), torch.full((n,), 4.0), torch.full((n,), 1e-12)]).to(F64)
    beside = torch.ones(3, n - 1, dtype=F64)
    b = torch.randn(3, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    A = torch.diag_embed(diagonal) + torch.diag_embed(beside, offset=1) + torch.diag_embed(beside, offset=-1)
    x = zoo.tridiagonal_solve(beside, diagonal, beside, b)
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-12, atol=1e-12)


def test_singular_least_squares_leave_their_neighbours_alone():
    A, b, w, ridge = draw("least squares", 5)
    ridge = torch.zeros_like(ridge)
    expected = values_and_gradients("least squares", [A, b, w, ridge])
    A[2, :, 1] = A[2, :, 0]
    found = values_and_gradients("least squares", [A, b, w, ridge])
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f[[0, 1, 3, 4]], e[[0, 1, 3, 4]])
        assert f[2].isfinite().all()
    root = w[2].sqrt()
    torch.testing.assert_close(found[0][2], torch.linalg.pinv(A[2] * root.unsqueeze(-1)) @ (root * b[2]))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_units_of_matrices(size):
    """Squares of the entries over- and underflow."""
    A = draw("PSD cone", 3)[0]
    torch.testing.assert_close(zoo.project_psd(A * size) / size, zoo.project_psd(A), rtol=1e-12, atol=1e-12)


def test_half_precision_takes_the_torch_operations():
    v = draw("simplex", 4)[0]
    for dtype in (torch.float16, torch.bfloat16):
        found = zoo.project_simplex(v.to(dtype))
        assert found.dtype is dtype
        assert (found.double() - zoo.project_simplex(v)).abs().max() <= 64 * torch.finfo(dtype).eps
