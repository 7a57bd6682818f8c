"""ConvexLayer as a torch module: what any module can do, this one can."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import weakref

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers.derivatives import Exact
from convexlayers.engines import SCS, Clarabel, Engine
from convexlayers.errors import ArgumentError
from convexlayers.solution import Solution

B, n = 4, 3


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_problem():
    """min |x - t|^2 + w |x|^2 st sum(x) = 1, x >= -5, whose solution is known while no bound is active."""
    x, t, w = cp.Variable(n, name="x"), cp.Parameter(n, name="t"), cp.Parameter(nonneg=True, name="w")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t) + w * cp.sum_squares(x)), [cp.sum(x) == 1, x >= -5])
    return problem, [t, w], [x]


def closed_form(t, w):
    y = t / (1 + w)[..., None]
    return y + (1 - y.sum(-1, keepdim=True)) / n


def make_layer(**options):
    return cl.ConvexLayer(*make_problem(), **options)


def make_values():
    return randn(B, n, seed=1).requires_grad_(), randn(B, seed=2).abs().requires_grad_()


@pytest.fixture(scope="module")
def layer():
    """One layer for all tests: none may change it."""
    return make_layer()


class First(torch.nn.Module):
    """A layer returns a tuple; Sequential wants one tensor."""

    def forward(self, outputs):
        return outputs[0]


def test_solution_and_gradient(layer):
    t, w = make_values()
    (x,) = layer(t, w)
    expected = closed_form(t, w)
    torch.testing.assert_close(x, expected, rtol=1e-7, atol=1e-7)
    weight = randn(B, n, seed=3)
    grads, rights = (torch.autograd.grad(value, [t, w], weight) for value in (x, expected))
    torch.testing.assert_close(grads, rights, rtol=1e-6, atol=1e-6)


def test_in_a_sequential():
    x, t = cp.Variable(n), cp.Parameter(n)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0, cp.sum(x) == 1]), [t], [x])
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, n), layer, First(), torch.nn.Linear(n, 2))
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    model(randn(B, 5).float()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters())
    assert (model[0].weight.grad != 0).any()


def test_it_has_no_parameters_or_buffers(layer):
    assert isinstance(layer, torch.nn.Module)
    assert list(layer.parameters()) == list(layer.buffers()) == list(layer.children()) == []
    # What a checkpoint has of it: which problem it was saved with.
    assert list(layer.state_dict()) == ["_extra_state"]


def test_calls_leave_nothing_behind(layer):
    """Forward writes no state to the module, so that it can be called again before backward."""
    before = dict(vars(layer))
    t, w = make_values()
    (first,), (second,) = layer(t, w), layer(2 * t, w)
    assert vars(layer).keys() == before.keys()
    assert all(vars(layer)[name] is value for name, value in before.items())
    weight = randn(B, n, seed=3)
    late = torch.autograd.grad(first, [t, w], weight)
    torch.autograd.grad(second, [t, w], weight)
    torch.testing.assert_close(late, torch.autograd.grad(closed_form(t, w), [t, w], weight), rtol=1e-6, atol=1e-6)


def assert_works_like(layer, other):
    t, w = make_values()
    solution, expected = layer.solve(t, w), other.solve(t, w)
    assert torch.equal(solution.values[0], expected.values[0])
    grads, rights = (torch.autograd.grad(s.values[0].square().sum(), [t, w]) for s in (solution, expected))
    assert all(torch.equal(grad, right) for grad, right in zip(grads, rights, strict=True))
    assert repr(layer) == repr(other)


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def through_torch(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, through_pickle, through_torch])
@pytest.mark.parametrize("solver", ["clarabel", "scs"])
@pytest.mark.parametrize("used", [False, True])
def test_copies(way, solver, used):
    original = make_layer(solver=solver, on_failure="nan", validate=False, tolerance=1e-7)
    if used:
        t, w = make_values()
        original(t, w)[0].sum().backward()
    copied = way(original)
    assert type(copied) is cl.ConvexLayer
    assert copied is not original
    assert (copied.on_failure, copied.validate, copied.engine) == ("nan", False, original.engine)
    assert_works_like(copied, original)


def test_a_copy_knows_the_parameters_by_object_too():
    problem, parameters, variables = make_problem()
    layer = cl.ConvexLayer(problem, parameters, variables)
    t, w = make_values()
    (x,) = copy.deepcopy(layer)({parameters[0]: t, parameters[1]: w})
    assert torch.equal(x, layer(t, w)[0])


def test_a_model_with_a_layer_saves_and_loads_its_weights():
    def make_model():
        return torch.nn.Sequential(torch.nn.Linear(5, n), torch.nn.ModuleDict({"layer": make_layer()}))

    model, other = make_model(), make_model()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_saved_layer_works_where_cvxpy_is_not_installed(tmp_path):
    layer, path = make_layer(), tmp_path / "layer.pt"
    torch.save(layer, path)
    t, w = make_values()
    torch.save((t.detach(), w.detach(), layer(t, w)[0].detach()), tmp_path / "values.pt")
    code = f"""
import sys
sys.modules["cvxpy"] = None
import torch
layer = torch.load({str(path)!r}, weights_only=False)
t, w, expected = torch.load({str(tmp_path / "values.pt")!r})
t.requires_grad_()
x, = layer(t=t, w=w)
assert torch.equal(x.detach(), expected)
x.sum().backward()
assert t.grad is not None
assert not any(name.startswith("cvxpy.") for name in sys.modules)
try:
    import cvxpy
except ImportError:
    print("without cvxpy")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "without cvxpy\n"


def test_from_program():
    program = cl.compile_problem(*make_problem())
    layer = cl.ConvexLayer.from_program(through_pickle(program), solver="clarabel", on_failure="nan", validate=False)
    assert (layer.on_failure, layer.validate, layer.engine.name) == ("nan", False, "clarabel")
    assert_works_like(layer, make_layer(on_failure="nan", solver="clarabel"))


def test_modes_flags_and_moves_change_nothing():
    layer, (t, w) = make_layer(), make_values()
    (expected,) = layer(t, w)
    assert layer.training
    assert not layer.eval().training
    for change in (
        layer.eval,
        layer.train,
        layer.double,
        layer.float,
        layer.half,
        layer.cpu,
        layer.requires_grad_,
        layer.zero_grad,
        lambda: layer.to(torch.float32),
        lambda: layer.apply(lambda module: None),
    ):
        change()
        assert torch.equal(layer(t, w)[0], expected)
        assert layer(t, w)[0].requires_grad


def test_repr():
    layer = make_layer(on_failure="nan", solver="clarabel")
    text = repr(layer)
    assert text.startswith("ConvexLayer(\n  minimize ")
    assert "quad_over_lin" in text
    assert text.endswith("tolerance=1e-08, on_failure='nan'\n)")
    assert all(line.strip() in repr(torch.nn.Sequential(layer)) for line in text.splitlines())
    summary = str(layer.program)
    assert "t (3,), w ()" in summary
    assert "x (3,)" in summary


def test_repr_of_a_large_problem_is_short():
    x = cp.Variable(2)
    total = sum(cp.norm(x - i) for i in range(60))
    layer = cl.ConvexLayer(cp.Problem(cp.Maximize(-total)), [], [x])
    assert repr(layer).startswith("ConvexLayer(\n  maximize ")
    assert max(map(len, repr(layer).splitlines())) < 120
    assert len(repr(layer).splitlines()) < 10


def test_two_layers_from_one_problem():
    problem, parameters, variables = make_problem()
    first = cl.ConvexLayer(problem, parameters, variables)
    second = cl.ConvexLayer(problem, parameters[::-1], variables, solver="scs", tolerance=1e-9)
    t, w = make_values()
    torch.testing.assert_close(first(t, w), second(w, t), rtol=1e-6, atol=1e-6)


def test_fields_of_solve():
    problem, parameters, (x,) = make_problem()
    equality, bound = (constraint.dual_variables[0] for constraint in problem.constraints)
    layer = cl.ConvexLayer(problem, parameters, [equality, x, bound])
    t, w = make_values()
    solution = layer.solve(t, w)
    assert [tuple(value.shape) for value in solution.values] == [(B,), (B, n), (B, n)]
    assert [tuple(value.shape) for value in solution.variables] == [(B, n)]
    assert [tuple(value.shape) for value in solution.duals] == [(B,), (B, n)]
    assert solution.values[1] is solution.variables[0]
    assert solution.values[0] is solution.duals[0]
    for field in ("objective", "status", "iterations", "primal_residual", "dual_residual", "gap", "solved"):
        assert getattr(solution, field).shape == (B,)
    assert solution.objective.requires_grad
    assert all(value.requires_grad for value in solution.values)
    assert not solution.cone_solution.x.requires_grad
    outputs = layer(t, w)
    assert isinstance(outputs, tuple)
    assert all(torch.equal(a, b) for a, b in zip(outputs, solution.values, strict=True))
    with pytest.raises(AttributeError):
        solution.status = None


def test_duals_have_their_signs_and_gradients():
    """min |x - t|^2 st sum(x) = 1: 2 (x - t) + y = 0 with y the multiplier of sum(x) - 1."""
    x, t = cp.Variable(n), cp.Parameter(n)
    constraint = cp.sum(x) == 1
    layer = cl.ConvexLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [constraint]), [t], [constraint.dual_variables[0], x]
    )
    t_value = randn(B, n, seed=1).requires_grad_()
    y, x_value = layer(t_value)
    torch.testing.assert_close(y, 2 * (t_value.sum(-1) - 1) / n, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(2 * (x_value - t_value) + y[:, None], torch.zeros_like(t_value), rtol=0, atol=1e-7)
    (grad,) = torch.autograd.grad(y.sum(), t_value)
    torch.testing.assert_close(grad, torch.full((B, n), 2 / n, dtype=torch.float64), rtol=1e-7, atol=1e-7)


def test_a_variable_may_be_asked_for_twice(layer):
    problem, parameters, (x,) = make_problem()
    first, second = cl.ConvexLayer(problem, parameters, [x, x])(*make_values())
    assert torch.equal(first, second)
    assert torch.equal(first, layer(*make_values())[0])


def test_derivative_report_is_filled_by_backward(layer):
    t, w = make_values()
    solution = layer.solve(t, w)
    assert solution.derivative_report.residual is None
    assert solution.derivative_report.rank_deficient is None
    solution.values[0].sum().backward()
    report = solution.derivative_report
    assert report.residual.shape == report.rank_deficient.shape == (B,)
    assert (report.residual < 1e-10).all()
    assert not report.rank_deficient.any()
    assert layer.solve(t, w).derivative_report.residual is None


def test_derivative_report_of_failed_elements():
    layer = make_layer(on_failure="nan")
    t, w = make_values()
    with torch.no_grad():
        t[1] = float("nan")
    solution = layer.solve(t, w)
    solution.values[0].sum().backward()
    assert solution.derivative_report.residual.isnan().tolist() == [False, True, False, False]
    assert not solution.derivative_report.rank_deficient.any()


def test_no_grad_detach_and_inference_mode(layer):
    t, w = make_values()
    (expected,) = layer(t, w)
    with torch.no_grad():
        (x,) = layer(t, w)
    assert not x.requires_grad
    with torch.inference_mode():
        (y,) = layer(t, w)
    assert not y.requires_grad
    (z,) = layer(t.detach(), w.detach())
    assert not z.requires_grad
    for value in (x, y, z):
        assert torch.equal(value, expected)


def test_backward_twice_gives_the_same(layer):
    t, w = make_values()
    loss = layer(t, w)[0].square().sum()
    first = torch.autograd.grad(loss, [t, w], retain_graph=True)
    second = torch.autograd.grad(loss, [t, w], retain_graph=True)
    loss.backward()
    for a, b, leaf in zip(first, second, (t, w), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, leaf.grad)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_accumulate(layer):
    t, w = make_values()
    for _ in range(2):
        layer(t, w)[0].square().sum().backward()
    (once,) = torch.autograd.grad(layer(t, w)[0].square().sum(), t)
    torch.testing.assert_close(t.grad, 2 * once)


def test_two_threads_on_one_layer(layer):
    inputs = [(randn(B, n, seed=seed), randn(B, seed=seed + 50).abs()) for seed in range(8)]

    def run(values):
        leaves = [value.clone().requires_grad_() for value in values]
        (x,) = layer(*leaves)
        return x.detach(), *torch.autograd.grad(x.square().sum(), leaves)

    expected = [run(values) for values in inputs]
    found, errors = {}, []
    start = threading.Barrier(2)

    def work(mine):
        try:
            start.wait(timeout=60)
            for i in mine:
                found[i] = run(inputs[i])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(order,)) for order in ([0, 1, 2, 3], [7, 6, 5, 4])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for i, right in enumerate(expected):
        for value, other in zip(found[i], right, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", ["Raise", "ignore", "", None, True, 0])
def test_on_failure_must_be_a_policy(value):
    with pytest.raises(ArgumentError, match=r"^on_failure is .*, expected one of 'raise', 'nan'\."):
        make_layer(on_failure=value)
    with pytest.raises(ArgumentError, match="on_failure is"):
        cl.ConvexLayer.from_program(cl.compile_problem(*make_problem()), on_failure=value)


@pytest.mark.parametrize("value", ["mosek", "", "CLARABELS", None, 3, Clarabel])
def test_solver_must_be_known(value):
    with pytest.raises(ArgumentError, match=r"^solver is .*, expected one of 'auto', .* or an engine object"):
        make_layer(solver=value)


def test_solver_names_are_read_in_any_case():
    assert make_layer(solver="Clarabel").engine.name == "clarabel"
    assert make_layer(solver="SCS").engine.name == "scs"


@pytest.mark.parametrize(
    ("name", "value"),
    [("tolerance", 0.0), ("tolerance", 1.0), ("tolerance", -1e-8), ("max_iterations", 0), ("threads", 0)],
)
def test_options_must_be_in_their_range(name, value):
    with pytest.raises(ArgumentError, match=f"^{name} is {value}, expected"):
        make_layer(**{name: value})


def test_options_reach_the_engine():
    derivative = Exact(refinement_steps=1)
    layer = make_layer(solver="clarabel", tolerance=1e-6, max_iterations=7, threads=2, derivative=derivative)
    assert layer.engine == Clarabel(tolerance=1e-6, max_iterations=7, threads=2, derivative=derivative)
    assert layer.solve(*make_values()).iterations.max() <= 7


@pytest.mark.parametrize("engine", [Clarabel(tolerance=1e-10), SCS(tolerance=1e-9, options={"normalize": False})])
def test_an_engine_object_is_used_as_it_is(engine):
    layer = make_layer(solver=engine)
    assert isinstance(engine, Engine)
    assert layer.engine is engine
    t, w = make_values()
    torch.testing.assert_close(layer(t, w)[0], closed_form(t, w), rtol=1e-7, atol=1e-7)


def test_options_of_a_solver_that_it_does_not_have():
    with pytest.raises(ArgumentError, match="Clarabel has no setting 'tol_gap'"):
        make_layer(solver=Clarabel(options={"tol_gap": 1e-9}))


def test_gradcheck():
    layer = make_layer(tolerance=1e-11)
    inputs = make_values()
    assert torch.autograd.gradcheck(lambda t, w: layer(t, w), inputs, atol=1e-5, rtol=1e-5)
    solved = layer.solve
    assert torch.autograd.gradcheck(lambda t, w: solved(t, w).objective, inputs, atol=1e-5, rtol=1e-5)


def test_gradcheck_with_an_active_set_and_duals():
    x, G, h, q = cp.Variable(n), cp.Parameter((4, n)), cp.Parameter(4), cp.Parameter(n)
    constraint = G @ x <= h
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + q @ x), [constraint])
    layer = cl.ConvexLayer(problem, [G, h, q], [x, constraint.dual_variables[0]], tolerance=1e-11)
    inputs = (randn(2, 4, n, seed=1), randn(2, 4, seed=2).abs() + 0.1, 3 * randn(2, n, seed=3))
    inputs = tuple(value.requires_grad_() for value in inputs)
    active = (layer(*inputs)[1] > 1e-3).sum(-1)
    assert (active > 0).all()
    assert (active < 4).all()
    assert torch.autograd.gradcheck(lambda *values: layer(*values), inputs, atol=1e-5, rtol=1e-5)


def test_second_derivatives_are_no_silent_zero(layer):
    t, w = make_values()
    (x,) = layer(t, w)
    (grad,) = torch.autograd.grad(x.square().sum(), t, create_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(layer(t, w)[0].square().sum(), t)[0])

    def loss(t):
        return layer(t, w)[0].square().sum()

    H = torch.autograd.functional.hessian(loss, t)
    assert H.abs().max() > 0.1
    step = 1e-5 * torch.randn(t.shape, generator=torch.Generator().manual_seed(3), dtype=t.dtype)

    def slope(value):
        leaf = value.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    product = (H.reshape(t.numel(), -1) @ step.reshape(-1)).reshape(t.shape)
    torch.testing.assert_close(product, (slope(t + step) - slope(t - step)) / 2, rtol=1e-4, atol=1e-9)


def test_many_calls_keep_nothing_alive(layer):
    """Not even for the garbage collector: nothing that a call makes refers to itself."""
    t, w = make_values()
    layer(t, w)[0].sum().backward()
    alive = []
    gc.collect()
    gc.disable()
    try:
        for i in range(300):
            solution = layer.solve(t, w)
            alive.append(weakref.ref(solution.cone_solution))
            alive.append(weakref.ref(solution.cone_solution.x))
            if i % 3 == 0:
                solution.values[0].square().sum().backward()
            if i % 50 == 0:
                assert alive[-1]() is not None
        del solution
        assert not any(reference() is not None for reference in alive)
    finally:
        gc.enable()


def test_failing_calls_keep_nothing_alive(layer):
    t, w = make_values()
    bad = t.detach().clone()
    bad[0] = float("nan")

    def call():
        with pytest.raises(cl.SolverError):
            layer(bad, w)

    call()
    gc.collect()
    before = sum(type(item) is Solution for item in gc.get_objects())
    for _ in range(50):
        call()
    gc.collect()
    assert sum(type(item) is Solution for item in gc.get_objects()) == before


def test_training_reduces_the_loss():
    """A matrix is learned from the solutions that it leads to."""
    x, t = cp.Variable(n), cp.Parameter(n)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0, cp.sum(x) == 1]), [t], [x])
    features, truth = randn(32, 5, seed=1), 0.3 * randn(5, n, seed=2)
    with torch.no_grad():
        (target,) = layer(features @ truth)
    weight = torch.zeros(5, n, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (layer(features @ weight)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-2 * losses[0]
    assert losses[1] < losses[0]


def test_hooks_fire(layer):
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: seen.append("before")),
        layer.register_forward_hook(lambda module, args, output: seen.append(len(output))),
    ]
    layer(*make_values())
    for handle in handles:
        handle.remove()
    assert seen == ["before", 1]
