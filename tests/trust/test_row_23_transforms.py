"""A layer goes through torch's transforms like an operator of torch: torch.func, forward mode, compile, export."""

import copy
import gc

import cvxpy as cp
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.library import opcheck

import convexlayers as cl
from convexlayers.errors import ArgumentError, ConvexLayersError, SolverError
from trust.families import FAMILIES, assert_same, randn

B = 3
# Of every kind of cone, one with several variables, one with exponentials around it.
NAMES = ["dense_qp", "mpc", "socp", "logistic_regression", "nearest_correlation", "power", "geometric"]
TOLERANCE = 1e-9


def make_layer(name, solver, **options):
    problem, parameters, variables = FAMILIES[name].make()
    return cl.ConvexLayer(problem, parameters, variables, solver=solver, **FAMILIES[name].options, **options)


def scalar(layer):
    """A function of one element with values in the reals, curved in the outputs."""

    def loss(*values):
        return sum((out * out + out).sum() for out in layer(*values))

    return loss


def gradients(layer, values):
    leaves = [value.clone().requires_grad_() for value in values]
    return torch.autograd.grad(scalar(layer)(*leaves), leaves)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_a_batch(solver, name):
    layer, values = make_layer(name, solver), FAMILIES[name].sample(B)
    for found, expected in zip(vmap(layer)(*values), layer(*values), strict=True):
        assert_same(found, expected, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_of_one_argument_and_along_any_dimension(solver, name):
    layer, values = make_layer(name, solver), FAMILIES[name].sample(B)
    first = values[0].movedim(0, -1).contiguous()
    rest = [value[0] for value in values[1:]]
    found = vmap(layer, in_dims=(-1, *[None] * len(rest)))(first, *rest)
    for out, expected in zip(found, layer(values[0], *rest), strict=True):
        assert_same(out, expected, 1e-12)


def test_vmap_over_a_batch_and_over_vmap(solver):
    layer = make_layer("dense_qp", solver)
    q, G, b = FAMILIES["dense_qp"].sample(6)
    stacked = [value.reshape(2, 3, *value.shape[1:]) for value in (q, G, b)]
    (expected,) = layer(*stacked)
    (inner,), (nested,) = vmap(layer)(*stacked), vmap(vmap(layer))(*stacked)
    (shared,) = vmap(vmap(layer, in_dims=(0, None, None)), in_dims=(None, 0, 0))(q[:2], G[:3], b[:3])
    assert_same(inner, expected, 1e-12)
    assert_same(nested, expected, 1e-12)
    assert_same(shared, layer(q[:2], G[:3, None], b[:3, None])[0], 1e-12)


def test_vmap_without_elements(solver):
    layer = make_layer("dense_qp", solver)
    (out,) = vmap(layer)(*[value[:0] for value in FAMILIES["dense_qp"].sample(1)])
    assert out.shape == (0, 4)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_per_sample(solver, name):
    layer, values = make_layer(name, solver), FAMILIES[name].sample(B)
    every = tuple(range(len(values)))
    found = vmap(grad(scalar(layer), argnums=every))(*values)
    for i in range(B):
        alone = gradients(layer, [value[i] for value in values])
        for one, expected in zip(found, alone, strict=True):
            assert_same(one[i], expected, TOLERANCE)


def test_gradients_per_sample_of_a_shared_parameter(solver):
    """Every element has its own gradient; without vmap they are summed."""
    layer = make_layer("dense_qp", solver)
    q, G, b = FAMILIES["dense_qp"].sample(B)
    each = vmap(grad(scalar(layer), argnums=1), in_dims=(0, None, 0))(q, G[0], b)
    assert each.shape == (B, *G.shape[1:])
    assert_same(each.sum(0), gradients(layer, [q, G[0], b])[1], TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_jacobians(solver, name):
    """Reverse and forward mode, by torch.func and by torch.autograd, one row at a time and all at once."""
    layer, values = make_layer(name, solver), [value[0] for value in FAMILIES[name].sample(1)]

    def outputs(*given):
        return torch.cat([out.reshape(-1) for out in layer(*given)])

    every = tuple(range(len(values)))
    ways = {
        "jacfwd": jacfwd(outputs, argnums=every)(*values),
        "functional": torch.autograd.functional.jacobian(outputs, tuple(values)),
        "functional, vectorized": torch.autograd.functional.jacobian(outputs, tuple(values), vectorize=True),
        "functional, forward": torch.autograd.functional.jacobian(
            outputs, tuple(values), vectorize=True, strategy="forward-mode"
        ),
    }
    expected = jacrev(outputs, argnums=every)(*values)
    for way, found in ways.items():
        for block, expected_block in zip(found, expected, strict=True):
            error = float((block - expected_block).abs().max())
            assert error <= TOLERANCE * max(1.0, float(expected_block.abs().max())), way


@pytest.mark.parametrize("name", NAMES)
def test_tangents(solver, name):
    layer, values = make_layer(name, solver), FAMILIES[name].sample(B)
    directions = [randn(*value.shape, seed=7 + i) for i, value in enumerate(values)]
    if name == "nearest_correlation":
        directions[0] = directions[0] + directions[0].mT
    _, found = jvp(layer, tuple(values), tuple(directions))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(value, d) for value, d in zip(values, directions, strict=True)]
        expected = [forward_ad.unpack_dual(out).tangent for out in layer(*duals)]
    outputs, pull = vjp(layer, *values)
    weights = tuple(randn(*out.shape, seed=20 + i) for i, out in enumerate(outputs))
    pulled = sum((grad * d).sum() for grad, d in zip(pull(weights), directions, strict=True))
    pushed = sum((weight * tangent).sum() for weight, tangent in zip(weights, found, strict=True))
    assert_same(pulled, pushed, TOLERANCE * 10)
    for tangent, other in zip(found, expected, strict=True):
        assert_same(tangent, other, 1e-10)


@pytest.mark.parametrize("name", ["dense_qp", "socp", "logistic_regression"])
def test_hessians_per_sample(solver, name):
    layer, values = make_layer(name, solver), FAMILIES[name].sample(2)
    found = vmap(hessian(scalar(layer)))(*values)
    for i in range(2):
        alone = jacrev(jacfwd(scalar(layer)))(*[value[i] for value in values])
        assert_same(found[i], alone, 1e-8)


def test_inside_of_a_model(solver):
    """Per-sample gradients of a network's weights, as ensembles and influence functions take them."""
    layer = make_layer("dense_qp", solver)
    _, G, b = (value[0] for value in FAMILIES["dense_qp"].sample(1))
    net = torch.nn.Linear(2, 4).double()
    inputs = randn(B, 2, seed=8)

    def loss(weights, sample):
        (x,) = layer(functional_call(net, weights, (sample,)), G, b)
        return (x**2).sum()

    weights = {name: value.detach() for name, value in net.named_parameters()}
    each = vmap(grad(loss), in_dims=(None, 0))(weights, inputs)
    total = grad(lambda w: vmap(loss, in_dims=(None, 0))(w, inputs).sum())(weights)
    for name, value in total.items():
        assert_same(each[name].sum(0), value, TOLERANCE)


def test_everything_the_solver_knows(solver):
    layer, values = make_layer("dense_qp", solver), FAMILIES["dense_qp"].sample(B)
    expected = layer.solve(*values)

    def solve(*given):
        solution = layer.solve(*given)
        return solution.objective, solution.status, solution.iterations, solution.gap

    objective, status, iterations, gap = vmap(solve)(*values)
    assert_same(objective, expected.objective, 1e-12)
    assert status.tolist() == [0] * B
    assert torch.equal(iterations, expected.iterations)
    assert gap.shape == (B,)


def test_failed_elements(solver):
    values = FAMILIES["dense_qp"].sample(B)
    FAMILIES["dense_qp"].breaks[cl.Status.PRIMAL_INFEASIBLE](values, 1)
    with pytest.raises(SolverError):
        vmap(make_layer("dense_qp", solver))(*values)
    layer = make_layer("dense_qp", solver, on_failure="nan")
    (x,) = vmap(layer)(*values)
    assert x.isnan().all(-1).tolist() == [False, True, False]

    def loss(*given):
        return layer(*given)[0].nansum()

    for found in vmap(grad(loss, argnums=(0, 1, 2)))(*values):
        assert (found[1] == 0).all()
        assert found[[0, 2]].isfinite().all()
        assert (found[[0, 2]] != 0).any()


def test_values_are_checked(solver):
    layer, values = make_layer("mpc", solver), FAMILIES["mpc"].sample(B)
    with pytest.raises(ArgumentError, match="nonneg"):
        vmap(layer)(values[0], -values[1])


def test_single_precision(solver):
    layer = make_layer("dense_qp", solver)
    values = [value.float() for value in FAMILIES["dense_qp"].sample(B)]
    found = vmap(grad(scalar(layer), argnums=(0, 1)))(*values)
    assert all(part.dtype == torch.float32 for part in found)
    for part, expected in zip(found, gradients(layer, values), strict=False):
        assert_same(part, expected, 1e-5)


# ------------------------------------------------------------------------------------------------ compile and export


def train(module, step, inputs):
    """Loss and gradients of one training step."""
    module.zero_grad()
    loss = step(*inputs)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in module.parameters()]


class Model(torch.nn.Module):
    """A network with a layer inside, and the layer's other parameters learned."""

    def __init__(self, solver, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        values = [value[0] for value in FAMILIES["dense_qp"].sample(1)]
        self.layer = make_layer("dense_qp", solver)
        self.weight = torch.nn.Parameter(torch.randn(2, 4, generator=generator, dtype=torch.float64).to(dtype))
        self.G, self.b = (torch.nn.Parameter(value.to(dtype)) for value in values[1:])

    def forward(self, inputs):
        (x,) = self.layer(torch.tanh(inputs @ self.weight), self.G, self.b)
        return (x**2).sum() + x.sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_training_steps_without_a_break(solver, dtype):
    torch._dynamo.reset()
    model = Model(solver, dtype)
    inputs = randn(5, 2, seed=3).to(dtype)
    expected = train(model, model, [inputs])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss, grads = train(model, compiled, [inputs])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert_same(loss, expected[0], tolerance)
    for found, other in zip(grads, expected[1], strict=True):
        assert_same(found, other, tolerance)
    # Another batch size, and one element.
    for batch in (7, 1):
        more = randn(batch, 2, seed=4).to(dtype)
        assert_same(train(model, compiled, [more])[0], train(model, model, [more])[0], tolerance)


def test_compiled_geometric_program(solver):
    torch._dynamo.reset()
    layer, values = make_layer("geometric", solver), FAMILIES["geometric"].sample(B)
    leaves = [value.clone().requires_grad_() for value in values]
    outputs = torch.compile(layer, fullgraph=True, backend="aot_eager")(*leaves)
    found = torch.autograd.grad(sum((out * out + out).sum() for out in outputs), leaves)
    for one, expected in zip(found, gradients(layer, values), strict=True):
        assert_same(one, expected, 1e-12)


def test_compiled_calls_by_name(solver):
    torch._dynamo.reset()
    x, t, u = cp.Variable(2), cp.Parameter(2, name="t"), cp.Parameter(name="u")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x <= u]), [t, u], [x], solver=solver)

    def call(value):
        return layer(u=0.5, t=value)[0] + layer({"t": value, "u": torch.ones((), dtype=torch.float64)})[0]

    value = randn(3, 2, seed=9)
    found = torch.compile(call, fullgraph=True, backend="aot_eager")(value)
    assert_same(found, value.clamp(max=0.5) + value.clamp(max=1.0), 1e-9)


def test_compiled_failures(solver):
    torch._dynamo.reset()
    values = FAMILIES["dense_qp"].sample(B)
    FAMILIES["dense_qp"].breaks[cl.Status.PRIMAL_INFEASIBLE](values, 1)
    compiled = torch.compile(make_layer("dense_qp", solver), fullgraph=True, backend="aot_eager")
    with pytest.raises(SolverError):
        compiled(*values)
    layer = make_layer("dense_qp", solver, on_failure="nan")
    (x,) = torch.compile(layer, fullgraph=True, backend="aot_eager")(*values)
    assert x.isnan().all(-1).tolist() == [False, True, False]


def test_exported_with_any_batch(solver):
    model = Model(solver)
    program = torch.export.export(
        model, (randn(5, 2, seed=3),), dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}}
    )
    for batch in (5, 9):
        inputs = randn(batch, 2, seed=batch)
        assert_same(program.module()(inputs), model(inputs), 1e-12)


def test_a_graph_whose_layer_is_gone_says_so(solver):
    layer, values = make_layer("dense_qp", solver), FAMILIES["dense_qp"].sample(B)
    name = layer._name
    del layer
    gc.collect()
    with pytest.raises(ConvexLayersError, match="deleted"):
        torch.ops.convexlayers.solve(name, values)


def test_copies_are_compiled_on_their_own(solver):
    layer = make_layer("dense_qp", solver)
    other = copy.deepcopy(layer)
    assert other._name != layer._name
    values = FAMILIES["dense_qp"].sample(B)
    del layer
    gc.collect()
    torch._dynamo.reset()
    assert_same(torch.compile(other, fullgraph=True, backend="aot_eager")(*values)[0], other(*values)[0], 0.0)


@pytest.mark.parametrize("name", ["dense_qp", "geometric"])
def test_operators_keep_torch_rules(solver, name):
    layer, values = make_layer(name, solver), FAMILIES[name].sample(B)
    leaves = [value.clone().requires_grad_() for value in values]
    results = opcheck(torch.ops.convexlayers.solve, (layer._name, leaves))
    outputs = torch.ops.convexlayers.solve(layer._name, values)
    count = len(layer.program.outputs)
    arguments = (layer._name, [True] * len(values), values, list(outputs[count:]), list(outputs[:count]))
    results |= opcheck(torch.ops.convexlayers.adjoint, arguments)
    assert set(results.values()) == {"SUCCESS"}
