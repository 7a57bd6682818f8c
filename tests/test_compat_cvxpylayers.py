"""cvxpylayers' face: what its users write, beside the layer underneath."""

import copy
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import convexlayers as cl
from convexlayers.compat.cvxpylayers import CvxpyLayer


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**options):
    """Nearest point of a simplex of size r: x, and the price of the sum."""
    x, t, r = cp.Variable(3), cp.Parameter(3, name="t"), cp.Parameter(name="r")
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - t)), [cp.sum(x) == r, x >= 0])
    return CvxpyLayer(problem, [t, r], [x, problem.constraints[0].dual_variables[0]], **options)


T, R = torch.tensor([[0.9, 0.3, -1.0], [0.5, 0.5, 0.5]], dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
SIMPLEX = torch.tensor([[0.8, 0.2, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)


@pytest.mark.parametrize(
    "solver", [None, "DIFFCP", "MOREAU", "CUCLARABEL", "MPAX", "CLARABEL", "SCS", "native", "torch"]
)
def test_every_solver_solves(solver):
    x, price = make(solver=solver)(T, R)
    torch.testing.assert_close(x, SIMPLEX, rtol=1e-6, atol=1e-6)
    # x = t - price where x is positive.
    torch.testing.assert_close(price, torch.tensor([0.1, 1 / 6], dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_derivatives():
    layer = make()
    assert gradcheck(lambda t, r: layer(t, r), (T[:1].clone().requires_grad_(), R.clone().requires_grad_()))


def test_the_results_are_those_of_the_layer():
    x, A = cp.Variable((2, 3)), cp.Parameter((2, 3))
    problem = cp.Problem(cp.Minimize(cp.sum(cp.exp(x)) - cp.sum(cp.multiply(A, x))), [cp.norm(x, 1) <= 1])
    values = normal(0, 4, 2, 3).float()
    (found,) = CvxpyLayer(problem, parameters=[A], variables=[x])(values)
    (expected,) = cl.ConvexLayer(problem, [A], [x])(values)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_geometric_programs():
    x, a = cp.Variable(pos=True), cp.Parameter(pos=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(x + a / x)), [a], [x], gp=True)
    (found,) = layer(torch.tensor([4.0, 9.0], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("given", "tolerance", "iterations"),
    [
        ({"eps": 1e-6}, 1e-6, None),
        ({"eps_abs": 1e-5, "eps_rel": 1e-7, "max_iters": 5000}, 1e-7, 5000),
        ({"tol_gap_abs": 1e-9, "max_iter": 50}, 1e-9, 50),
        ({"tol": 1e-7}, 1e-7, None),
        ({"ipm_settings": {"tol_feas": 1e-6, "tol_gap_abs": 1e-5}, "max_iter": 9}, 1e-6, 9),
        ({}, 1e-8, None),
    ],
)
def test_settings_have_their_counterparts(given, tolerance, iterations):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = make(solver_args=given).layer.engine
    assert (engine.tolerance, engine.max_iterations) == (tolerance, iterations)


def test_settings_of_a_call_are_of_this_call():
    layer = make()
    with pytest.raises(cl.SolverError, match="MAX_ITERATIONS"):
        layer(T, R, solver_args={"max_iters": 1})
    torch.testing.assert_close(layer(T, R)[0], SIMPLEX)
    for k in range(20):
        layer(T, R, solver_args={"eps": 10.0 ** (-8 + 0.1 * k)})
    assert len(layer._others) <= 8


def test_one_warning_names_what_is_ignored():
    given = {"mode": "dense", "n_jobs_forward": 1, "acceleration_lookback": 0, "solve_method": "ECOS", "verbose": False}
    with pytest.warns(UserWarning, match="Ignored") as caught:
        make(solver_args=given)
    assert len(caught) == 1
    assert "'acceleration_lookback', 'n_jobs_forward', 'solve_method'" in str(caught[0].message)
    with pytest.warns(UserWarning, match="'scale'") as caught:
        make()(T, R, solver_args={"scale": 1.0})
    assert caught[0].filename == __file__


def test_the_modes_of_lpgd():
    given = {"mode": "lpgd", "derivative_kwargs": {"tau": 0.5, "rho": 0.1}}
    assert make(solver_args=given).layer.engine.derivative == cl.Perturbed(tau=0.5, rho=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((T,), "1 value given, expected 2"),
        ((T, R, R), "3 values given"),
        ((T[:, :2], R), "t has shape"),
        ((T, torch.ones(3, dtype=torch.float64)), "batch"),
    ],
)
def test_wrong_values_are_value_errors(values, message):
    for warm_start in (False, True):
        with pytest.raises(ValueError, match=message):
            make()(*values, warm_start=warm_start)


def test_wrong_problems_are_value_errors():
    x, a, b = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    not_dpp = cp.Problem(cp.Minimize(cp.sum_squares(x - b * a * b)), [x >= 0])
    with pytest.raises(ValueError, match="DPP"):
        CvxpyLayer(not_dpp, [a, b], [x])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a)))
    for parameters, variables in (([], [x]), ([a, b], [x]), ([a], [cp.Variable(2)])):
        with pytest.raises(ValueError, match=r"\w"):
            CvxpyLayer(problem, parameters, variables)
    with pytest.raises(ValueError, match="solver is 'OSQP'"):
        CvxpyLayer(problem, [a], [x], solver="OSQP")


def test_an_infeasible_element_is_the_error_of_both_packages():
    diffcp = pytest.importorskip("diffcp")
    with pytest.raises(diffcp.SolverError, match="PRIMAL_INFEASIBLE") as caught:
        make()(T, torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert isinstance(caught.value, cl.SolverError)
    assert caught.value.status.tolist() == [0, 2]


def test_warm_starts():
    """They save iterations, give the same solution, and are remembered only where they were asked for."""
    n = 40
    x, t = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.sum(x) == 1, x >= 0])
    layer, values = CvxpyLayer(problem, [t], [x]), normal(1, 5, n).requires_grad_()
    layer(values)
    assert layer._previous is None
    (cold,) = layer(values, warm_start=True)
    first = layer._previous
    assert not first.objective.requires_grad
    (warm,) = layer(values + 1e-5, warm_start=True)
    torch.testing.assert_close(warm, cold, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(warm, layer(values + 1e-5)[0], rtol=1e-6, atol=1e-7)
    assert layer._previous.iterations.max() < first.iterations.min()
    warm[:, 0].sum().backward()
    expected = torch.autograd.grad(layer(values + 1e-5)[0][:, 0].sum(), values)[0]
    torch.testing.assert_close(values.grad, expected, rtol=1e-6, atol=1e-8)
    # Another batch begins from nothing.
    assert layer(values[:2], warm_start=True)[0].shape == (2, n)


def test_copies_and_pickles():
    layer = make(solver_args={"eps": 1e-7})
    layer(T, R, warm_start=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(T, R)[0], SIMPLEX)
        assert other._previous is None
        assert other.layer.engine.tolerance == 1e-7


def test_the_context():
    layer = make(solver="SCS")
    assert [parameter.name() for parameter in layer.ctx.parameters] == ["t", "r"]
    assert (layer.ctx.solver, layer.ctx.gp, len(layer.ctx.variables)) == ("scs", False, 2)
    assert isinstance(layer.ctx.problem, cp.Problem)
    with pytest.raises(AttributeError, match=r"ctx\.reduced_A belongs to cvxpylayers .* layer\.layer\.program"):
        layer.ctx.reduced_A  # noqa: B018


def test_arrays_are_taken_too():
    x, _ = make()(T.numpy(), np.float64(1.0))
    torch.testing.assert_close(x, SIMPLEX)


def test_the_faces_stand_in_for_the_packages():
    """As the page about migration has it; in a process of its own, since it changes what imports mean."""
    page = (Path(__file__).parent.parent / "docs" / "migration.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```text\n(from convexlayers.compat.shim.*?)```", page, re.DOTALL)
    code += "import cvxpylayers.torch\nfrom cvxpylayers.torch import CvxpyLayer\nfrom qpth.qp import QPFunction\n"
    code += "assert CvxpyLayer.__module__ == 'convexlayers.compat.cvxpylayers'\n"
    subprocess.run([sys.executable, "-c", code], check=True)
