"""Declarative nodes: derivatives of every kind against closed forms and differences."""

import copy

import node_samples as samples
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from convexlayers.errors import ArgumentError, MissingArgumentError, SecondDerivativeError, SolverError
from convexlayers.nodes import DeclarativeNode, Parallel, Select, declarative_node
from convexlayers.status import Status

NAMES = [type(sample).__name__ for sample in samples.ALL]
UNIQUE = [type(sample).__name__ for sample in samples.UNIQUE]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def own(sample, **options):
    """The node with the sample's closed form as its solver: only the derivative is ours."""
    return DeclarativeNode(
        sample.objective, sample.equalities, sample.inequalities, solver=sample.solve, **{"tolerance": 1e-10, **options}
    )


def built_in(sample, **options):
    return DeclarativeNode(sample.objective, sample.equalities, sample.inequalities, start=sample.start, **options)


def leaves(xs):
    return tuple(x.clone().requires_grad_() for x in xs)


@pytest.mark.filterwarnings("ignore:The derivative of:convexlayers.errors.DerivativeWarning")
@pytest.mark.parametrize("sample", samples.ALL, ids=NAMES)
def test_the_derivative_is_that_of_the_closed_form(sample):
    """Ten seeds, every input, with a random cotangent."""
    xs = [torch.cat(parts) for parts in zip(*(sample.inputs(seeded(seed)) for seed in range(10)), strict=True)]
    given = leaves(xs)
    y = own(sample)(*given)
    v = samples.normal(seeded(1), *y.shape)
    found = torch.autograd.grad(y, given, v)
    for mine, J in zip(found, sample.derivative(*xs), strict=True):
        torch.testing.assert_close(mine, torch.einsum("bm,bmn->bn", v, J), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sample", samples.UNIQUE, ids=UNIQUE)
def test_gradcheck_over_ten_seeds(sample):
    for seed in range(10):
        xs = leaves(sample.inputs(seeded(seed), batch=2 if seed == 0 else 1))
        assert gradcheck(own(sample), xs, check_forward_ad=seed == 0)


@pytest.mark.parametrize("sample", samples.UNIQUE, ids=UNIQUE)
def test_second_derivatives(sample):
    xs = leaves(sample.inputs(seeded(3), batch=2))
    assert gradgradcheck(own(sample), xs)


@pytest.mark.parametrize("sample", samples.UNIQUE, ids=UNIQUE)
def test_built_in_solvers_find_the_closed_form(sample):
    xs = [torch.cat(parts) for parts in zip(*(sample.inputs(seeded(seed)) for seed in range(10)), strict=True)]
    solution = built_in(sample).solve(*xs)
    torch.testing.assert_close(solution.y, sample.solve(*xs), rtol=1e-9, atol=1e-9)
    assert bool((solution.status == int(Status.SOLVED)).all())
    assert float(torch.maximum(solution.stationarity, solution.violation).max()) < 1e-10
    assert not bool(solution.negative_curvature.any())
    assert not bool(solution.rank_deficient.any())


def test_multipliers_and_objective_are_differentiable():
    sample = samples.Ball()
    node = own(sample)
    (x,) = leaves(sample.inputs(seeded(0), batch=4))
    solution = node.solve(x)
    # At the boundary y - x + 2 mu y = 0, so mu = (|x| - 1) / 2; inside it is zero.
    expected = (x.detach().norm(dim=1, keepdim=True) - 1).clamp(min=0) / 2
    torch.testing.assert_close(solution.inequality_multipliers, expected)
    assert solution.active.squeeze(1).tolist() == [False, True, False, True]
    assert gradcheck(lambda x: node.solve(x).inequality_multipliers, (x,))
    assert gradcheck(lambda x: node.solve(x).objective, (x,))
    assert gradgradcheck(lambda x: node.solve(x).objective, (x,))


def test_given_multipliers_are_used():
    node = DeclarativeNode(
        samples.Sphere().objective, samples.Sphere().equalities, tolerance=1e-10,
        solver=lambda x: (x / x.norm(dim=1, keepdim=True), (x.norm(dim=1) - 1) / 2),
    )  # fmt: skip
    (x,) = leaves(samples.Sphere().inputs(seeded(0)))
    torch.testing.assert_close(node.solve(x).equality_multipliers[:, 0], (x.norm(dim=1) - 1) / 2)
    assert gradcheck(node, (x,))


@pytest.mark.parametrize(
    "sample", [samples.Ball(), samples.PseudoHuber(), samples.MinKL()], ids=lambda s: type(s).__name__
)
def test_transforms_of_torch_func(sample):
    node, xs = own(sample), sample.inputs(seeded(2), batch=4)
    expected = sample.derivative(*xs)[0]

    def alone(*x):
        return node(*(part.unsqueeze(0) for part in x))[0]

    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(vmap(transform(alone))(*xs), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(vmap(alone)(*xs), node(*xs), rtol=0, atol=0)
    whole = jacrev(node)(*xs)
    torch.testing.assert_close(torch.stack([whole[i, :, i] for i in range(4)]), expected, rtol=1e-9, atol=1e-9)


def test_hessians_of_torch_func():
    sample = samples.Ball()
    (x,) = sample.inputs(seeded(2), batch=4)

    def loss(x):
        return own(sample)(x.unsqueeze(0)).pow(3).sum()

    def closed(x):
        return sample.solve(x.unsqueeze(0)).pow(3).sum()

    torch.testing.assert_close(vmap(hessian(loss))(x), vmap(hessian(closed))(x))
    torch.testing.assert_close(vmap(grad(loss))(x), vmap(grad(closed))(x))
    sphere = samples.Sphere()
    third = jacrev(hessian(lambda x: own(sphere)(x.unsqueeze(0)).pow(3).sum()))(x[1])
    torch.testing.assert_close(third, jacrev(hessian(lambda x: (x / (x @ x).sqrt()).pow(3).sum()))(x[1]))


@pytest.mark.filterwarnings("ignore:The derivative of:convexlayers.errors.DerivativeWarning")
def test_second_derivatives_where_there_are_none_are_an_error():
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    y = own(samples.CosineDistance())(x)
    (first,) = torch.autograd.grad(y[0, 0], x, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="not unique"):
        first.sum().backward()


def test_shared_inputs_get_the_sum():
    """Batch dimensions broadcast where event_dims says which dimensions are an element's own."""

    def objective(W, x, y):
        return 0.5 * (y - W @ x).square().sum() + (y**4).sum() / 4

    node = DeclarativeNode(objective, start=torch.zeros(2), event_dims=(2, 1))
    W = samples.normal(seeded(0), 2, 3).requires_grad_()
    x = samples.normal(seeded(1), 2, 4, 3).requires_grad_()
    v = samples.normal(seeded(2), 2, 4, 2)
    y = node(W, x)
    assert y.shape == (2, 4, 2)
    shared, each = torch.autograd.grad(y, (W, x), v)
    copies = W.detach().expand(8, 2, 3).clone().requires_grad_()
    flat = x.detach().reshape(8, 3).requires_grad_()
    apart, same = torch.autograd.grad(
        DeclarativeNode(objective, start=torch.zeros(2))(copies, flat), (copies, flat), v.reshape(8, 2)
    )
    torch.testing.assert_close(shared, apart.sum(0))
    torch.testing.assert_close(each, same.reshape(2, 4, 3))
    assert node(W, x[0, 0]).shape == (2,)


def test_several_constraints_of_both_kinds():
    """Projection onto the simplex, whose derivative is that of the support: I_S - 11'/|S|."""
    node = DeclarativeNode(
        lambda x, y: 0.5 * (y - x).square().sum(),
        lambda x, y: y.sum() - 1,
        lambda x, y: -y,
        start=torch.full((5,), 0.2),
    )
    (x,) = leaves((samples.normal(seeded(0), 8, 5),))
    y = node(x)
    support = (y > 1e-9).double()
    assert sorted(set(support.sum(1).tolist())) != [5.0]
    v = samples.normal(seeded(1), 8, 5)
    (found,) = torch.autograd.grad(y, x, v)
    mean = (support * v).sum(1, keepdim=True) / support.sum(1, keepdim=True)
    torch.testing.assert_close(found, support * (v - mean))
    assert gradcheck(node, (x[:2],), atol=1e-5)


def test_functions_of_a_batch():
    node = DeclarativeNode(
        lambda x, y: 0.5 * (y - x).square().sum(1), lambda x, y: y.square().sum(1) - 1, batched=True,
        start=lambda x: x, tolerance=1e-10,
    )  # fmt: skip
    (x,) = leaves(samples.Sphere().inputs(seeded(0)))
    torch.testing.assert_close(node(x), samples.Sphere().solve(x))
    assert gradcheck(node, (x,))


def test_matrices_and_scalars_as_output():
    """The nearest matrix with trace one, and a scalar minimizer."""
    matrix = DeclarativeNode(
        lambda X, Y: 0.5 * (Y - X).square().sum(), lambda X, Y: torch.trace(Y) - 1, start=torch.zeros(2, 2)
    )
    (X,) = leaves((samples.normal(seeded(0), 3, 2, 2),))
    expected = X + (1 - torch.einsum("bii->b", X)).reshape(-1, 1, 1) * torch.eye(2) / 2
    torch.testing.assert_close(matrix(X), expected)
    scalar = DeclarativeNode(lambda x, y: (y - x.sum()) ** 2, start=torch.tensor(0.0))
    torch.testing.assert_close(scalar(X), X.sum((1, 2)))


def test_dtype_follows_the_inputs():
    node = built_in(samples.Sphere())
    x = torch.randn(3, 4, generator=seeded(0), requires_grad=True)
    y = node(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (torch.float32, torch.float32)


def test_an_empty_batch():
    for node in (
        own(samples.Sphere()),
        built_in(samples.Sphere()),
        DeclarativeNode(samples.Ball().objective, start=torch.zeros(4)),
    ):
        x = torch.zeros(0, 4, requires_grad=True)
        y = node(x)
        y.sum().backward()
        assert (y.shape, y.dtype, x.grad.shape) == ((0, 4), torch.float32, (0, 4))
        with pytest.raises(ArgumentError, match="empty"):
            node.solve(x)


def test_integers_among_the_inputs():
    """A label that picks the target."""
    node = DeclarativeNode(
        lambda x, label, y: 0.5 * (y - x[label]).square().sum() + (y**4).sum() / 4,
        start=torch.zeros(2),
        event_dims=(2, 0),
    )
    x = samples.normal(seeded(0), 3, 3, 2).requires_grad_()
    label = torch.tensor([2, 0, 1])
    y = node(x, label)
    torch.testing.assert_close(y + y**3, x[torch.arange(3), label])
    (found,) = torch.autograd.grad(y.sum(), x)
    expected = torch.zeros_like(x).index_put((torch.arange(3), label), 1 / (1 + 3 * y**2))
    torch.testing.assert_close(found, expected.detach())


def test_an_input_that_does_not_matter():
    node = DeclarativeNode(lambda x, unused, y: 0.5 * (y - x).square().sum(), start=torch.zeros(2))
    x, unused = samples.normal(seeded(0), 3, 2).requires_grad_(), samples.normal(seeded(1), 3).requires_grad_()
    found = torch.autograd.grad(node(x, unused).sum(), (x, unused))
    torch.testing.assert_close(found, (torch.ones_like(x), torch.zeros_like(unused)))


def test_nodes_compose():
    """One after the other, side by side, and parts of the result; with other modules in between."""
    sphere, ball = built_in(samples.Sphere()), built_in(samples.Ball())
    linear = torch.nn.Linear(4, 4).double()
    module = torch.nn.Sequential(linear, Parallel(sphere, ball), Select(2, 6), sphere)
    (x,) = leaves((samples.normal(seeded(0), 3, 4),))
    z = linear(x)
    both = torch.cat([samples.Sphere().solve(z), samples.Ball().solve(z)], 1)
    torch.testing.assert_close(module(x), samples.Sphere().solve(both[:, 2:6]))
    assert gradcheck(module, (x[:1],))


def test_a_node_can_be_copied():
    node = copy.deepcopy(built_in(samples.Sphere()))
    x = samples.normal(seeded(0), 2, 4)
    torch.testing.assert_close(node(x), samples.Sphere().solve(x))


def test_the_decorator():
    @declarative_node(samples.Sphere().objective, samples.Sphere().equalities)
    def project(x):
        return x / x.norm(dim=1, keepdim=True)

    (x,) = leaves(samples.Sphere().inputs(seeded(0)))
    assert gradcheck(project, (x,))


def test_a_wrong_solve_is_noticed():
    """A solve of one's own that stops early is not differentiated as if it had not."""
    sample = samples.Sphere()
    wrong = DeclarativeNode(sample.objective, sample.equalities, solver=lambda x: sample.solve(x + 0.1))
    (x,) = sample.inputs(seeded(0))
    with pytest.raises(SolverError, match="not solved"):
        wrong(x)
    infeasible = DeclarativeNode(sample.objective, sample.equalities, solver=lambda x: 1.01 * sample.solve(x))
    with pytest.raises(SolverError, match="not solved"):
        infeasible(x)
    # Newton's steps on the optimality conditions repair it on request.
    repaired = DeclarativeNode(
        sample.objective, sample.equalities, solver=lambda x: 1.01 * sample.solve(x), refinement=6, tolerance=1e-10
    )
    torch.testing.assert_close(repaired(x), sample.solve(x))


def test_a_saddle_is_flagged():
    """The farthest point of the sphere is stationary, and no minimum."""
    sample = samples.Sphere()
    (x,) = sample.inputs(seeded(0))
    node = DeclarativeNode(sample.objective, sample.equalities, solver=lambda x: -sample.solve(x))
    assert bool(node.solve(x).negative_curvature.all())
    assert not bool(own(sample).solve(x).negative_curvature.any())


def test_a_captured_parameter_is_an_error():
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    node = DeclarativeNode(lambda x, y: (y - weight * x).square().sum(), start=torch.zeros(4))
    with pytest.raises(ArgumentError, match="not an input"):
        node(torch.ones(1, 4))


def test_a_captured_tangent_is_an_error():
    """And one that comes with an input is not."""
    w, x = torch.tensor([2.0, 3.0], dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(w, torch.ones_like(w))
        captured = DeclarativeNode(lambda x, y: (y - dual * x).square().sum(), start=torch.zeros(2))
        with pytest.raises(ArgumentError, match="tangent"):
            captured(x)
        node = DeclarativeNode(lambda w, x, y: (y - w * x).square().sum(), start=torch.zeros(2), event_dims=(1, 1))
        torch.testing.assert_close(forward_ad.unpack_dual(node(dual, x)).tangent, torch.ones_like(x))


def test_wrong_arguments():
    def f(x, y):
        return (y - x).square().sum()

    with pytest.raises(ArgumentError, match="start"):
        DeclarativeNode(f)
    with pytest.raises(ArgumentError, match="start"):
        DeclarativeNode(f, solver=lambda x: x, start=torch.zeros(2))
    with pytest.raises(ArgumentError, match="on_failure"):
        DeclarativeNode(f, start=torch.zeros(2), on_failure="ignore")
    with pytest.raises(ArgumentError, match="one"):
        DeclarativeNode(lambda x, y: y - x, start=torch.zeros(2))(torch.zeros(1, 2))
    node = DeclarativeNode(f, start=torch.zeros(2), event_dims=(1,))
    with pytest.raises(MissingArgumentError, match="2 inputs"):
        node(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ArgumentError, match="broadcast"):
        DeclarativeNode(lambda a, b, y: y @ y, start=torch.zeros(2))(torch.zeros(2, 2), torch.zeros(3, 2))
    with pytest.raises(ArgumentError, match="result of the solve"):
        DeclarativeNode(f, solver=lambda x: x[:1])(torch.zeros(3, 2))
