"""The same inputs give the same results: again, on any number of threads, beside any neighbours, anywhere in a batch.

To the last bit on the native engine. The others take derivatives and Newton steps in batched kernels of torch, whose
order of summation depends on the size of the batch: there a repetition is bitwise the same, everything else up to
rounding.
"""

from functools import cache

import pytest
import torch

import convexlayers as cl
from convexlayers.engines import make_engine
from trust.engines import ENGINES
from trust.families import FAMILIES, SAME, assert_same, layer_of, leaves, solve_and_differentiate, weights_like
from trust.measured import record

B = 19  # not a multiple of any number of lanes
BITWISE = {name for name, claims in ENGINES.items() if claims.bitwise}
# With dependent equalities, what the multipliers have along the null space is rounding divided by a regularization.
TOLERANCES = {"transport": 1e-10, "wide_transport": 1e-10}
families = pytest.mark.parametrize("name", FAMILIES)


def same_bits(a, b):
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    )


def results(layer, values, weights=None):
    """What a user can read of a solve and its gradients, by name."""
    solution, grads = solve_and_differentiate(layer, values, weights)
    named = {f"value {i}": value.detach() for i, value in enumerate(solution.values)}
    named |= {f"gradient {i}": grad for i, grad in enumerate(grads)}
    figures = ("status", "iterations", "objective", "primal_residual", "dual_residual", "gap")
    return named | {figure: getattr(solution, figure).detach() for figure in figures}


def assert_equal(solver, name, found, expected):
    assert found.keys() == expected.keys()
    for what, value in found.items():
        if solver in BITWISE:
            assert same_bits(value, expected[what]), what
            record(0.0, "difference")
        else:
            assert_same(value, expected[what], TOLERANCES.get(name, SAME))


def all_weights(name, solver):
    outputs = layer_of(name, solver).program.outputs
    return weights_like([torch.empty(B, *info.shape, dtype=torch.float64) for info in outputs])


@cache
def together(name, solver):
    """Results for the whole batch."""
    return results(layer_of(name, solver), FAMILIES[name].sample(B), all_weights(name, solver))


def some(name, solver, order, values=None):
    """Results for elements in a given order."""
    values = FAMILIES[name].sample(B) if values is None else values
    weights = all_weights(name, solver)
    return results(layer_of(name, solver), [v[order] for v in values], [w[order] for w in weights])


def picked(found, order):
    return {what: value[order] for what, value in found.items()}


@families
def test_again(solver, name):
    expected, found = together(name, solver), some(name, solver, torch.arange(B))
    assert all(same_bits(found[what], value) for what, value in expected.items())


@families
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(solver, name, threads):
    program = layer_of(name, solver).program
    layer = cl.ConvexLayer.from_program(program, solver=make_engine(solver, threads=threads), on_failure="nan")
    found = results(layer, FAMILIES[name].sample(B), all_weights(name, solver))
    assert_equal(solver, name, found, together(name, solver))


@families
def test_position(solver, name):
    """A permutation, of which some elements are left out."""
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))[: B - 4]
    assert_equal(solver, name, some(name, solver, order), picked(together(name, solver), order))


@families
def test_alone(solver, name):
    for element in (0, 7, B - 1):
        order = torch.tensor([element])
        assert_equal(solver, name, some(name, solver, order), picked(together(name, solver), order))


@families
def test_neighbours_that_fail(solver, name):
    """Every status that the family can have, and numbers that are not finite, between the others."""
    values = FAMILIES[name].sample(B)
    breaks = list(FAMILIES[name].breaks.values())
    broken = torch.arange(1, B, 3)
    for count, element in enumerate(broken.tolist()):
        if breaks and count % 2 == 0:
            breaks[(count // 2) % len(breaks)](values, element)
        else:
            values[count % len(values)][element] = float("nan")
    kept = torch.tensor([i for i in range(B) if i not in broken.tolist()])
    found = some(name, solver, torch.arange(B), values)
    assert (found["status"][broken] != 0).all()
    assert_equal(solver, name, picked(found, kept), picked(together(name, solver), kept))


@families
def test_neighbours_that_repeat(solver, name):
    """The same element many times: every copy is the same, and the same as the original."""
    order = torch.tensor([3] * 11)
    expected = picked(together(name, solver), order)
    assert_equal(solver, name, some(name, solver, order), expected)


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_threads_do_not_change_the_gradient_of_a_shared_parameter(solver, shared):
    """A sum over the batch, always in the same order."""
    values = [value.repeat(8, *[1] * (value.ndim - 1)) for value in FAMILIES["dense_qp"].sample(B)]
    values[shared] = values[shared][0]
    program = layer_of("dense_qp", solver).program
    found = []
    for threads in (1, 2, 3):
        engine = make_engine(solver, threads=threads)
        inputs = leaves(values)
        outputs = cl.ConvexLayer.from_program(program, solver=engine, on_failure="nan")(*inputs)
        solved = [value.nan_to_num() for value in outputs]
        found.append(torch.autograd.grad(solved, inputs, weights_like(solved)))
    assert found[0][shared].abs().max() > 1e-3
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(other, found[0], strict=True))


def test_two_layers_of_one_problem(solver):
    """Nothing depends on how many layers there are, or which was made first."""
    problem, parameters, variables = FAMILIES["dense_qp"].make()
    values = FAMILIES["dense_qp"].sample(B)
    layers = [cl.ConvexLayer(problem, parameters, variables, solver=solver, on_failure="nan") for _ in range(2)]
    first, second = (results(layer, values) for layer in layers)
    assert all(same_bits(second[what], value) for what, value in first.items())
