"""Constraints on variables are kept, their attributes hold, and the user's objects are read and never written."""

import copy

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from trust.families import assert_same, randn, weights_like

n, B = 4, 4


def solve(solver, objective, constraints, parameters, values, variable):
    problem = cp.Problem(objective, constraints)
    return cl.ConvexLayer(problem, parameters, [variable], solver=solver)(*values)[0]


def project(solver, x, constraints, t_value):
    """Projection of t on the constraints."""
    t = cp.Parameter(x.shape)
    return solve(solver, cp.Minimize(cp.sum_squares(x - t)), constraints, [t], [t_value], x)


def project_on_simplex(t):
    ordered = t.sort(-1, descending=True).values
    sums = (ordered.cumsum(-1) - 1) / torch.arange(1, t.shape[-1] + 1)
    count = (ordered > sums).sum(-1, keepdim=True)
    return (t - sums.gather(-1, count - 1)).clamp(min=0)


def project_on_psd(T):
    values, vectors = torch.linalg.eigh((T + T.mT) / 2)
    return (vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.mT


def check(actual, expected, t_value, tolerance=1e-5):
    """Values and gradients of a closed form."""
    assert_same(actual, expected, tolerance)
    weights = weights_like([actual])
    (grad,), (right,) = (torch.autograd.grad(value, t_value, weights) for value in (actual, expected))
    assert_same(grad, right, tolerance)


def vectors():
    return (2 * randn(B, n, seed=1)).requires_grad_()


def matrices():
    return randn(B, 3, 3, seed=2).requires_grad_()


# Each function gives a variable, the constraints on it, and the projection that they mean.
def nonnegative_constraint():
    x = cp.Variable(n)
    return x, [x >= 0], lambda t: t.clamp(min=0)


def nonnegative_attribute():
    return cp.Variable(n, nonneg=True), [], lambda t: t.clamp(min=0)


def nonpositive_attribute():
    return cp.Variable(n, nonpos=True), [], lambda t: t.clamp(max=0)


def box_constraint():
    x = cp.Variable(n)
    return x, [x >= -0.5, x <= 1], lambda t: t.clamp(-0.5, 1.0)


def box_attribute():
    return cp.Variable(n, bounds=[-0.5, 1.0]), [], lambda t: t.clamp(-0.5, 1.0)


def box_of_arrays_with_infinite_entries():
    low, high = np.array([-np.inf, -1.0, 0.0, -0.1]), np.array([0.0, 0.2, np.inf, 0.1])
    x = cp.Variable(n, bounds=[low, high])
    return x, [], lambda t: t.maximum(torch.as_tensor(low)).minimum(torch.as_tensor(high))


def one_sided_bound():
    return cp.Variable(n, bounds=[None, 0.3]), [], lambda t: t.clamp(max=0.3)


def ball():
    x = cp.Variable(n)
    return x, [cp.norm(x) <= 1], lambda t: t / t.norm(dim=-1, keepdim=True).clamp(min=1)


def second_order_cone_object():
    x = cp.Variable(n)
    return x, [cp.SOC(cp.Constant(1.0), x)], lambda t: t / t.norm(dim=-1, keepdim=True).clamp(min=1)


def simplex():
    x = cp.Variable(n)
    return x, [x >= 0, cp.sum(x) == 1], project_on_simplex


def simplex_by_attribute():
    x = cp.Variable(n, nonneg=True)
    return x, [cp.sum(x) == 1], project_on_simplex


def hyperplane():
    x = cp.Variable(n)
    return x, [cp.sum(x) == 1], lambda t: t + (1 - t.sum(-1, keepdim=True)) / n


ON_VECTORS = [
    nonnegative_constraint,
    nonnegative_attribute,
    nonpositive_attribute,
    box_constraint,
    box_attribute,
    box_of_arrays_with_infinite_entries,
    one_sided_bound,
    ball,
    second_order_cone_object,
    simplex,
    simplex_by_attribute,
    hyperplane,
]


def semidefinite_constraint():
    X = cp.Variable((3, 3), symmetric=True)
    return X, [X >> 0], project_on_psd


def semidefinite_attribute():
    return cp.Variable((3, 3), PSD=True), [], project_on_psd


def negative_semidefinite_attribute():
    return cp.Variable((3, 3), NSD=True), [], lambda T: -project_on_psd(-T)


def symmetric_attribute():
    return cp.Variable((3, 3), symmetric=True), [], lambda T: (T + T.mT) / 2


def diagonal_attribute():
    return cp.Variable((3, 3), diag=True), [], lambda T: torch.diag_embed(T.diagonal(dim1=-2, dim2=-1))


def sparse_attribute():
    pattern = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1]])
    return cp.Variable((3, 3), sparsity=np.nonzero(pattern)), [], lambda T: T * torch.as_tensor(pattern)


def nonnegative_matrix():
    return cp.Variable((3, 3), nonneg=True), [], lambda T: T.clamp(min=0)


def semidefinite_block():
    X = cp.Variable((3, 3))
    return X, [X[:2, :2] >> 0, X[0, 1] == X[1, 0]], with_projected_block


def with_projected_block(T):
    inside = torch.zeros(3, 3, dtype=torch.bool)
    inside[:2, :2] = True
    return torch.where(inside, torch.nn.functional.pad(project_on_psd(T[:, :2, :2]), (0, 1, 0, 1)), T)


ON_MATRICES = [
    semidefinite_constraint,
    semidefinite_attribute,
    negative_semidefinite_attribute,
    symmetric_attribute,
    diagonal_attribute,
    sparse_attribute,
    nonnegative_matrix,
    semidefinite_block,
]


@pytest.mark.parametrize("make", ON_VECTORS)
def test_constraint_directly_on_a_vector(solver, make):
    x, constraints, projection = make()
    t = vectors()
    expected = projection(t)
    assert (expected - t).abs().max() > 0.1
    check(project(solver, x, constraints, t), expected, t)


@pytest.mark.parametrize("make", ON_MATRICES)
def test_constraint_directly_on_a_matrix(solver, make):
    X, constraints, projection = make()
    T = matrices()
    expected = projection(T)
    assert (expected - T).abs().max() > 0.1
    check(project(solver, X, constraints, T), expected, T)


def test_cone_objects_directly_on_variables(solver):
    """max z st (x, y, z) in the power cone, x + y = a: x = .3 a, y = .7 a, z = .3^.3 .7^.7 a."""
    x, a = cp.Variable(3), cp.Parameter()
    a_value = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    constraints = [cp.PowCone3D(x[0], x[1], x[2], 0.3), x[0] + x[1] == a]
    value = solve(solver, cp.Maximize(x[2]), constraints, [a], [a_value], x)
    shares = torch.tensor([0.3, 0.7, 0.3**0.3 * 0.7**0.7], dtype=torch.float64)
    check(value, a_value[:, None] * shares, a_value)


def test_exponential_cone_directly_on_variables(solver):
    """min z st y exp(x / y) <= z, x = a, y = 1: z = exp(a)."""
    x, a = cp.Variable(3), cp.Parameter()
    a_value = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    constraints = [cp.ExpCone(x[0], x[1], x[2]), x[0] == a, x[1] == 1]
    value = solve(solver, cp.Minimize(x[2]), constraints, [a], [a_value], x[:].variables()[0])
    expected = torch.stack([a_value, torch.ones_like(a_value), a_value.exp()], -1)
    check(value, expected, a_value)


def make_problem():
    """A problem with a bit of everything."""
    x, X = cp.Variable(3, name="x"), cp.Variable((2, 2), PSD=True, name="X")
    t, C = cp.Parameter(3, name="t"), cp.Parameter((2, 2), symmetric=True, name="C")
    objective = cp.Minimize(cp.sum_squares(x - t) + cp.sum_squares(X - C) + cp.exp(x[0]))
    constraints = [x >= 0, cp.sum(x) == 1, cp.norm(x) <= 2, cp.trace(X) == 1]
    return cp.Problem(objective, constraints), [t, C], [x, X, constraints[1].dual_variables[0]]


def state(problem):
    """All that a user can see of a problem."""
    return {
        "value": problem.value,
        "status": problem.status,
        "variables": {v.id: copy.deepcopy(v.value) for v in problem.variables()},
        "parameters": {p.id: copy.deepcopy(p.value) for p in problem.parameters()},
        "duals": {d.id: copy.deepcopy(d.value) for c in problem.constraints for d in c.dual_variables},
        "attributes": {leaf.id: dict(leaf.attributes) for leaf in [*problem.variables(), *problem.parameters()]},
        "solution": problem.solution,
        "stats": problem.solver_stats,
        "cache": problem._cache.param_prog,
        "text": str(problem),
        "constraints": [id(c) for c in problem.constraints],
        "objective": id(problem.objective),
    }


def assert_same_state(before, after):
    for key, value in before.items():
        if key in ("variables", "parameters", "duals"):
            assert value.keys() == after[key].keys()
            for name in value:
                np.testing.assert_array_equal(value[name], after[key][name])
        else:
            assert value is after[key] or value == after[key], key


def values_of_parameters():
    C = randn(B, 2, 2, seed=2)
    return [randn(B, 3, seed=1).requires_grad_(), (C + C.mT).requires_grad_()]


@pytest.mark.parametrize("solved_before", [False, True])
def test_the_users_objects_are_never_written(solver, solved_before):
    problem, parameters, variables = make_problem()
    if solved_before:
        parameters[0].value, parameters[1].value = np.array([3.0, -1.0, 0.5]), np.eye(2)
        problem.solve(solver=cp.CLARABEL)
    before = state(problem)
    layer = cl.ConvexLayer(problem, parameters, variables, solver=solver)
    assert_same_state(before, state(problem))
    outputs = layer(*values_of_parameters())
    sum(value.sum() for value in outputs).backward()
    assert_same_state(before, state(problem))


def test_cvxpy_solves_it_afterwards_as_before(solver):
    problem, parameters, variables = make_problem()
    cl.ConvexLayer(problem, parameters, variables, solver=solver)(*values_of_parameters())
    fresh, fresh_parameters, _ = make_problem()
    for pair in (parameters, fresh_parameters):
        pair[0].value, pair[1].value = np.array([3.0, -1.0, 0.5]), np.diag([2.0, 0.1])
    assert problem.solve(solver=cp.CLARABEL) == fresh.solve(solver=cp.CLARABEL)
    for variable, other in zip(problem.variables(), fresh.variables(), strict=True):
        np.testing.assert_array_equal(variable.value, other.value)
    # And again with other values, now that both have caches.
    for pair in (parameters, fresh_parameters):
        pair[0].value = np.array([0.0, 0.0, 2.0])
    assert problem.solve(solver=cp.CLARABEL) == fresh.solve(solver=cp.CLARABEL)


def test_values_of_the_problem_do_not_leak_into_the_layer(solver):
    """Parameter values and solutions that are there at compilation play no role."""
    clean, clean_parameters, clean_variables = make_problem()
    used, used_parameters, used_variables = make_problem()
    used_parameters[0].value, used_parameters[1].value = np.array([3.0, -1.0, 0.5]), np.eye(2)
    used.solve(solver=cp.CLARABEL)
    values = values_of_parameters()
    outputs = cl.ConvexLayer(used, used_parameters, used_variables, solver=solver)(*values)
    expected = cl.ConvexLayer(clean, clean_parameters, clean_variables, solver=solver)(*values)
    assert_same(outputs, expected, 0.0)


def test_changing_the_problem_later_does_not_change_the_layer(solver):
    problem, parameters, variables = make_problem()
    layer = cl.ConvexLayer(problem, parameters, variables, solver=solver)
    values = values_of_parameters()
    before = layer(*values)
    parameters[0].value = np.array([9.0, 9.0, 9.0])
    parameters[1].value = np.eye(2)
    problem.solve(solver=cp.CLARABEL)
    problem.constraints.append(variables[0] <= 0.1)
    assert_same(layer(*values), before, 0.0)


def test_several_layers_from_one_problem(solver):
    problem, parameters, variables = make_problem()
    x, X, _ = variables
    t, C = parameters
    first = cl.ConvexLayer(problem, [t, C], [x], solver=solver)
    second = cl.ConvexLayer(problem, [C, t], [X, x], solver=solver)
    t_value, C_value = values_of_parameters()
    (x_first,), (X_second, x_second) = first(t_value, C_value), second(C_value, t_value)
    assert X_second.shape == (B, 2, 2)
    assert_same(x_first, x_second, 1e-9)
    assert_same(first(t_value, C_value)[0], x_first, 0.0)


def test_one_variable_in_two_problems(solver):
    x, t = cp.Variable(3), cp.Parameter(3)
    objective = cp.Minimize(cp.sum_squares(x - t))
    free = cl.ConvexLayer(cp.Problem(objective), [t], [x], solver=solver)
    bounded = cl.ConvexLayer(cp.Problem(objective, [x >= 0]), [t], [x], solver=solver)
    t_value = randn(B, 3, seed=1)
    assert_same(free(t_value)[0], t_value, 1e-7)
    assert_same(bounded(t_value)[0], t_value.clamp(min=0), 1e-5)
    assert_same(free(t_value)[0], t_value, 1e-7)
