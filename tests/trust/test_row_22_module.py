"""A layer goes wherever a torch module goes: copies, files, processes, threads, hooks, contexts, averages."""

import copy
import gc
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from torch_threads import threads

import convexlayers as cl
from convexlayers.engines import make_engine
from trust import ranks
from trust.families import FAMILIES, assert_same, layer_of, leaves, solve_and_differentiate, weights_like

B = 4
RANKS = Path(ranks.__file__)
NAMES = ["dense_qp", "socp", "nearest_correlation", "simplex", "exponential", "power", "geometric"]


def sample(name="dense_qp", count=B):
    return FAMILIES[name].sample(count)


def new_layer(solver, name="dense_qp", **options):
    """A layer of one's own, to be changed."""
    return cl.ConvexLayer(*FAMILIES[name].make(), solver=solver, on_failure="nan", **FAMILIES[name].options, **options)


def assert_like(layer, other, name="dense_qp"):
    """The same bits, forward and backward."""
    found, grads = solve_and_differentiate(layer, sample(name))
    expected, rights = solve_and_differentiate(other, sample(name))
    assert_same(found.values, expected.values, 0.0)
    assert_same(grads, rights, 0.0)


# Copies and files.


def by_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def by_torch(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_save(layer):
    file = io.BytesIO()
    layer.save(file)
    file.seek(0)
    return cl.ConvexLayer.load(file)


WAYS = [copy.copy, copy.deepcopy, by_pickle, by_torch, by_save]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_copies(solver, way, name):
    assert_like(way(layer_of(name, solver)), layer_of(name, solver), name)


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_copies_that_were_used(solver, way):
    layer = new_layer(solver)
    for _ in range(2):
        solve_and_differentiate(layer, sample())
        layer = way(layer)
    assert_like(layer, layer_of("dense_qp", solver))


def test_the_state_of_a_model(solver):
    def make():
        return torch.nn.Sequential(torch.nn.Linear(5, 5), new_layer(solver, "simplex"))

    model, other, file = make(), make(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(list(other.parameters()), list(model.parameters()), 0.0)
    with pytest.raises(cl.errors.CheckpointError, match="another problem"):
        torch.nn.Sequential(torch.nn.Linear(5, 5), new_layer(solver)).load_state_dict(model.state_dict())


def test_moves_and_conversions_change_nothing(solver):
    layer = new_layer(solver)
    for change in (
        layer.half, layer.bfloat16, layer.double, layer.float, layer.eval, layer.train, layer.zero_grad, layer.cpu,
        layer.requires_grad_, layer.share_memory, lambda: layer.to(torch.float16), lambda: layer.to("cpu"),
        lambda: layer.apply(lambda module: None), lambda: layer.to_empty(device="cpu"),
    ):  # fmt: skip
        change()
        assert_like(layer, layer_of("dense_qp", solver))


@pytest.mark.parametrize("context", [lambda: torch.device("meta"), torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", NAMES)
def test_it_does_not_matter_where_a_layer_was_made(solver, context, name):
    """As when a model is built under `with torch.device("cuda")`."""
    with context():
        layer = new_layer(solver, name)
        loaded = by_save(layer)
    for made in (layer, loaded):
        assert_like(made, layer_of(name, solver), name)
        made.load_state_dict(layer_of(name, solver).state_dict())


def test_a_layer_that_was_made_and_first_called_in_inference_mode_is_trained(solver):
    with torch.inference_mode():
        layer = new_layer(solver)
        layer(*sample())
    assert_like(layer, layer_of("dense_qp", solver))
    assert layer.solve(*sample()).margin.isfinite().all()


def test_the_closest_feasible_problem_after_inference_mode(solver):
    """Its derivative is torch's own through what the layer keeps."""
    values = sample()
    FAMILIES["dense_qp"].breaks[cl.Status.PRIMAL_INFEASIBLE](values, 1)
    expected = solve_and_differentiate(new_layer(solver, relax="closest_feasible"), values)
    with torch.inference_mode():
        layer = new_layer(solver, relax="closest_feasible")
        layer(*values)
    solution, grads = solve_and_differentiate(layer, values)
    assert solution.relaxed.tolist() == [False, True, False, False]
    assert_same(solution.values, expected[0].values)
    assert_same(grads, expected[1])


class Model(torch.nn.Module):
    """A network in front of a layer."""

    def __init__(self, solver):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(3, 5).double()
        self.layer = new_layer(solver, "simplex")

    def forward(self, inputs):
        return self.layer(self.net(inputs), 1.0)[0]


def inputs_of(count, seed=0):
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_averages_of_a_model(solver):
    model = Model(solver)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(model)
    before = model.net.weight.detach().clone()
    with torch.no_grad():
        model.net.weight.add_(1.0)
    average.update_parameters(model)
    assert_same(average.module.net.weight, before + 0.5)
    expected = model.layer(torch.nn.functional.linear(inputs_of(B), before + 0.5, model.net.bias), 1.0)[0]
    assert_same(average(inputs_of(B)), expected)
    average.load_state_dict(average.state_dict())


def test_functional_call(solver):
    model, weight = Model(solver), torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    x = torch.func.functional_call(model, {"net.weight": weight}, (inputs_of(B),))
    (expected,) = model.layer(model.net.bias.expand(B, 5), 1.0)
    assert_same(x, expected)
    (grad,) = torch.autograd.grad(x[:, 0].sum(), weight)
    assert grad.abs().max() > 0
    assert_same(torch.func.functional_call(model.layer, {}, tuple(sample("simplex"))), model.layer(*sample("simplex")))


def test_an_optimizer_step(solver):
    model = Model(solver)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(inputs_of(B))[:, 0].sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


# The graph.


def test_backward_twice(solver):
    inputs = leaves(sample())
    (x,) = layer_of("dense_qp", solver)(*inputs)
    weights = weights_like([x])
    first = torch.autograd.grad(x, inputs, weights, retain_graph=True)
    assert_same(torch.autograd.grad(x, inputs, weights, retain_graph=True), first, 0.0)
    double = torch.autograd.grad(x, inputs, [2 * weights[0]])
    assert_same(double, [2 * grad for grad in first])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(x, inputs, weights)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(solver, use_reentrant):
    layer, inputs = layer_of("dense_qp", solver), leaves(sample())
    expected = solve_and_differentiate(layer, sample())
    outputs = checkpoint(lambda *values: layer.solve(*values).values, *inputs, use_reentrant=use_reentrant)
    assert_same(outputs, expected[0].values, 0.0)
    torch.autograd.backward(outputs, weights_like(outputs))
    assert_same([value.grad for value in inputs], expected[1], 0.0)


def test_nothing_is_kept_without_a_graph(solver):
    """Neither a graph nor the values."""
    for context in (torch.no_grad, torch.inference_mode):
        values = leaves(sample())
        with context():
            outputs = layer_of("dense_qp", solver)(*values)
            inner = [value * 1.0 for value in values]
            again = layer_of("dense_qp", solver)(*inner)
        assert_same(outputs, layer_of("dense_qp", solver)(*sample()), 0.0)
        assert_same(again, outputs, 0.0)
        assert all(value.grad_fn is None and not value.requires_grad for value in (*outputs, *again))
        assert outputs[0].is_inference() == (context is torch.inference_mode)
        kept = [weakref.ref(value) for value in inner]
        del inner
        gc.collect()
        assert [ref() for ref in kept] == [None] * 3


def test_a_call_is_forgotten_with_its_results(solver):
    inputs = leaves(sample())
    (x,) = layer_of("dense_qp", solver)(*inputs)
    x.sum().backward()
    kept = [weakref.ref(value) for value in (x, *inputs)]
    del x, inputs
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


@pytest.mark.parametrize("derivative", [cl.Exact(), cl.Smoothed(), cl.Perturbed()])
@pytest.mark.parametrize("name", NAMES)
def test_autocast(solver, derivative, name):
    """Solved in float64; what comes out has the dtype that came in, bfloat16 if autocast made it that before."""
    layer, values = new_layer(solver, name, derivative=derivative), [value.float() for value in sample(name)]
    expected, rights = solve_and_differentiate(layer, values)
    with torch.autocast("cpu", torch.bfloat16):
        found, grads = solve_and_differentiate(layer, values)
    assert found.values[0].dtype == torch.float32
    assert_same(found.values, expected.values, 0.0)
    assert_same(grads, rights, 0.0)


def test_autocast_of_the_network_in_front(solver):
    model = Model(solver).float()
    inputs = inputs_of(B).float()
    with torch.autocast("cpu", torch.bfloat16):
        scores, x = model.net(inputs), model(inputs)
        loss = x.float().square().sum()
    assert scores.dtype == x.dtype == torch.bfloat16
    assert_same(x, model.layer(scores.double(), 1.0)[0].bfloat16(), 0.0)
    loss.backward()
    assert model.net.weight.grad.dtype == torch.float32
    assert model.net.weight.grad.abs().max() > 0


def test_hooks(solver):
    layer, seen = new_layer(solver), []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, outputs: seen.append("after"))
    layer.register_full_backward_pre_hook(lambda module, grads: seen.append("back"))
    layer.register_full_backward_hook(lambda module, into, out: seen.append([g.shape for g in into]))
    inputs = leaves(sample())
    (x,) = layer(*inputs)
    assert seen == ["before", "after"]
    weights = weights_like([x])
    grads = torch.autograd.grad(x, inputs, weights)
    assert seen[2:] == ["back", [value.shape for value in inputs]]
    plain = leaves(sample())
    assert_same(grads, torch.autograd.grad(layer_of("dense_qp", solver)(*plain), plain, weights), 0.0)


def test_hooks_that_change_what_passes(solver):
    layer, inputs = new_layer(solver), leaves(sample())
    layer.register_forward_pre_hook(lambda module, args: tuple(2 * value for value in args))
    layer.register_forward_hook(lambda module, args, outputs: (outputs[0] + 1,))
    layer.register_full_backward_pre_hook(lambda module, grads: tuple(3 * grad for grad in grads))
    (x,) = layer(*inputs)
    doubled = leaves(sample())
    (expected,) = layer_of("dense_qp", solver)(*[2 * value for value in doubled])
    assert_same(x, expected + 1)
    weights = weights_like([x])
    right = torch.autograd.grad(expected, doubled, [3 * weights[0]])
    assert_same(torch.autograd.grad(x, inputs, weights), right)


def test_hooks_by_keyword(solver):
    layer, seen = new_layer(solver), []
    names = [info.name for info in layer.program.parameters]
    layer.register_forward_hook(lambda module, args, named, outputs: seen.append((args, list(named))), with_kwargs=True)
    assert_same(layer(**dict(zip(names, sample(), strict=True))), layer_of("dense_qp", solver)(*sample()), 0.0)
    assert seen == [((), names)]


def test_hooks_of_tensors(solver):
    inputs, seen = leaves(sample()), []
    (x,) = layer_of("dense_qp", solver)(*inputs)
    x.register_hook(lambda grad: 2 * grad)
    x.retain_grad()
    inputs[0].register_hook(lambda grad: seen.append(grad.shape))
    x.sum().backward()
    assert seen == [inputs[0].shape]
    assert_same(x.grad, 2 * torch.ones_like(x))


# Threads and processes.


def test_threads_share_a_layer(solver):
    """Forward and backward at once, each with values of its own."""
    layer, jobs = layer_of("dense_qp", solver), [sample(count=2 + i % 5) for i in range(12)]
    expected = [solve_and_differentiate(layer, values) for values in jobs]
    barrier = threading.Barrier(3)

    def work(start):
        barrier.wait()
        return [(i, solve_and_differentiate(layer, jobs[i])) for _ in range(3) for i in range(start, len(jobs), 3)]

    with ThreadPoolExecutor(3) as pool:
        found = [item for part in pool.map(work, range(3)) for item in part]
    assert len(found) == 36
    for i, (solution, grads) in found:
        assert_same(solution.values, expected[i][0].values)
        assert_same(grads, expected[i][1])


class Solved(Dataset):
    """Solutions of problems, computed by a worker, with their gradients."""

    def __init__(self, layer, values):
        self.layer, self.values = layer, values

    def __len__(self):
        return len(self.values[0])

    def __getitem__(self, index):
        inputs = leaves([value[index : index + 3] for value in self.values])
        (x,) = self.layer(*inputs)
        return index, os.getpid(), x.detach(), torch.autograd.grad(x.sum(), inputs)[0]


def assert_loads(layer, expected, method, workers):
    data = Solved(layer, sample(count=7))
    loader = DataLoader(data, num_workers=workers, multiprocessing_context=method, timeout=60, batch_size=None)
    found = list(loader)
    assert [int(index) for index, *_ in found] == list(range(7))
    processes = {int(process) for _, process, _, _ in found}
    assert len(processes) == workers
    assert os.getpid() not in processes
    for index, _, x, grad in found:
        _, _, right, right_grad = expected[int(index)]
        assert_same(x, right)
        assert_same(grad, right_grad)


@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("parent_used_threads", [False, True])
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork")
def test_workers_by_fork(solver, count, parent_used_threads):
    """A child has none of its parent's threads; it must neither wait for them nor lack them."""
    layer = cl.ConvexLayer.from_program(layer_of("dense_qp", solver).program, solver=make_engine(solver, threads=count))
    expected = [Solved(layer, sample(count=7))[i] for i in range(7)]
    with threads(2):
        if parent_used_threads:
            solve_and_differentiate(layer, sample(count=64))
        assert_loads(layer, expected, "fork", 2)
        solve_and_differentiate(layer, sample(count=64))


def test_workers_by_spawn(solver):
    layer = new_layer(solver)
    expected = [Solved(layer, sample(count=7))[i] for i in range(7)]
    with threads(2):
        solve_and_differentiate(layer, sample(count=64))
        assert_loads(layer, expected, "spawn", 1)
    # What was sent to the worker lies in shared memory now, for both.
    assert_like(layer, layer_of("dense_qp", solver))


def test_distributed_data_parallel(solver, tmp_path):
    """Two ranks have the gradients of one process on the whole batch."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    distributed = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *distributed, str(RANKS), solver, str(tmp_path / "rank0.pt")]
    environment |= {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    count, grads, state = torch.load(tmp_path / "rank0.pt", weights_only=True)
    expected, expected_state = ranks.gradients(solver, 0, 1)
    assert count == 2
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert grad.abs().max() > 0
        assert_same(grad, expected[name], 1e-12)
    assert list(state) == [f"module.{name}" for name in expected_state]
