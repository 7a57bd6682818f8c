"""Errors name what is wrong, what came and what was expected, and how to say it instead."""

import re

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from convexlayers.errors import ArgumentError, ConvexLayersError, MissingArgumentError, NotDCPError, NotDPPError

x = cp.Variable(3, name="x")
A = cp.Parameter((2, 3), name="A")
b = cp.Parameter(2, name="b")
s = cp.Parameter(name="s")
P = cp.Parameter((3, 3), PSD=True, name="P")


@pytest.fixture
def layer(solver):
    """Least squares with a scalar weight."""
    objective = cp.sum_squares(A @ x - b) + cp.sum_squares(x) + s * cp.sum(x)
    return cl.ConvexLayer(cp.Problem(cp.Minimize(objective)), [A, b, s], [x], solver=solver)


GOOD = {"A": torch.ones(2, 3), "b": torch.ones(2), "s": torch.tensor(1.0)}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("A", torch.ones(3, 2), "A has shape (3, 2), expected (*batch, 2, 3)."),
        ("A", torch.ones(3), "A has shape (3,), expected (*batch, 2, 3)."),
        ("A", torch.ones(5, 3, 2), "A has shape (5, 3, 2), expected (*batch, 2, 3)."),
        ("A", 1.0, "A has shape (), expected (*batch, 2, 3)."),
        ("b", np.ones(3), "b has shape (3,), expected (*batch, 2)."),
        ("b", torch.ones(2, 1), "b has shape (2, 1), expected (*batch, 2)."),
        ("b", torch.tensor(1.0), "b has shape (), expected (*batch, 2)."),
        ("b", [[1.0, 2.0, 3.0]], "b has shape (1, 3), expected (*batch, 2)."),
        ("b", torch.ones(0), "b has shape (0,), expected (*batch, 2)."),
    ],
)
def test_wrong_shape(layer, name, value, words):
    with pytest.raises(ArgumentError, match=f"^{re.escape(words)}$"):
        layer(**(GOOD | {name: value}))


@pytest.mark.parametrize("value", ["abc", None, object(), [[1.0], [1.0, 2.0]], {"a": 1}, np.array(["a", "b"])])
def test_wrong_type(layer, value):
    with pytest.raises(ArgumentError, match=rf"^b is a {type(value).__name__}, expected a tensor"):
        layer(**(GOOD | {"b": value}))


def test_a_list_of_tensors_would_lose_their_gradients(layer):
    values = [torch.tensor(1.0, requires_grad=True), torch.tensor(2.0)]
    with pytest.raises(ArgumentError, match=r"^b is a list, expected a tensor"):
        layer(**(GOOD | {"b": values}))


def test_wrong_layout(layer):
    with pytest.raises(ArgumentError, match=r"^A is a sparse tensor, expected a dense one"):
        layer(**(GOOD | {"A": torch.eye(3)[:2].to_sparse()}))


def test_batches_that_do_not_match(layer):
    expected = "The batch dimensions of the parameters do not broadcast: A (4,), b (), s (3,)."
    with pytest.raises(ArgumentError, match=re.escape(expected)):
        layer(torch.ones(4, 2, 3), torch.ones(2), torch.ones(3))


def test_devices_that_do_not_match(layer):
    with pytest.raises(ArgumentError, match="different devices: A on cpu, b on meta"):
        layer(torch.ones(2, 3), torch.ones(2, device="meta"), 1.0)


@pytest.mark.parametrize(
    ("args", "named", "words"),
    [
        ((), {}, "0 values given, expected 3: A (2, 3), b (2,), s ()."),
        ((GOOD["A"],), {}, "1 value given, expected 3: A (2, 3), b (2,), s ()."),
        ((*GOOD.values(), 1.0), {}, "4 values given, expected 3: A (2, 3), b (2,), s ()."),
        ((), {"A": GOOD["A"], "b": GOOD["b"]}, "No value for parameter s; the parameters are A, b, s."),
        ((), GOOD | {"c": 1.0}, "Unknown parameter c; the parameters are A, b, s."),
        ((GOOD["A"],), GOOD, "A given twice."),
        ((GOOD["A"], GOOD["b"]), {"A": GOOD["A"], "b": GOOD["b"]}, "A, b given twice."),
        (({"A": GOOD["A"]},), {"b": GOOD["b"]}, "No value for parameter s; the parameters are A, b, s."),
        (({**GOOD, "c": 1.0},), {}, "Unknown parameter c; the parameters are A, b, s."),
    ],
)
def test_wrong_set_of_values(layer, args, named, words):
    with pytest.raises(MissingArgumentError, match=f"^{re.escape(words)}$") as caught:
        layer(*args, **named)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("key", ["A", A])
def test_a_value_given_twice_by_dict_and_by_name(layer, key):
    values = {key: GOOD["A"], "b": GOOD["b"], "s": 1.0}
    with pytest.raises(MissingArgumentError, match=r"^A given twice\.$"):
        layer(values, A=2 * GOOD["A"])


def test_two_parameters_of_one_name(solver):
    p, q = cp.Parameter(3, name="p"), cp.Parameter(3, name="p")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p + q))), [p, q], [x], solver=solver)
    one = torch.ones(3, dtype=torch.float64)
    for outputs in (layer(one, 2 * one), layer({p: one, q: 2 * one})):
        torch.testing.assert_close(outputs[0], -one)
    with pytest.raises(MissingArgumentError, match="Two parameters are called p"):
        layer(p=one)


PRODUCT, SQUARE, EXPONENTIAL, NORM, TWICE = s * (A @ x), s**2, cp.exp(s), cp.norm(b), s * s
FORM = cp.quad_form(x, P)


@pytest.mark.parametrize(
    ("objective", "constraints", "offender", "hint"),
    [
        (cp.sum_squares(PRODUCT - b), [], PRODUCT, "one new parameter"),
        (TWICE * cp.sum(x) + cp.sum_squares(x), [], TWICE, "one new parameter"),
        (cp.sum_squares(x - 1), [cp.norm(x) <= SQUARE + 1], SQUARE, "one new parameter"),
        (cp.sum_squares(x - 1), [EXPONENTIAL * x[0] <= 1], EXPONENTIAL, "one new parameter"),
        (cp.sum_squares(x) + NORM * cp.sum(x), [], NORM, "one new parameter"),
        (cp.sum(x), [FORM <= 1], FORM, "sum_squares(R @ x)"),
    ],
)
def test_not_dpp_names_the_smallest_offender_and_a_rewrite(solver, objective, constraints, offender, hint):
    problem = cp.Problem(cp.Minimize(objective), constraints)
    assert problem.is_dcp()
    with pytest.raises(NotDPPError) as caught:
        cl.ConvexLayer(problem, problem.parameters(), [x], solver=solver)
    message = str(caught.value)
    where = f"the constraint {constraints[0]}" if constraints else "the objective"
    assert message.startswith(f"The problem is not DPP: {offender} in {where} is not affine in the parameters.")
    assert hint in message
    assert isinstance(caught.value, ValueError)


def test_not_convex_names_the_offender(solver):
    norm, root = cp.norm(x), cp.sqrt(cp.norm(x))
    with pytest.raises(NotDCPError, match=f"not DCP .*look at {re.escape(str(cp.Maximize(norm)))}"):
        cl.ConvexLayer(cp.Problem(cp.Maximize(norm)), [], [x], solver=solver)
    with pytest.raises(NotDCPError, match=f"look at {re.escape(str(root))} in"):
        cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum(x)), [x >= 0, 3 * root + 1 <= 4]), [], [x], solver=solver)


def test_a_geometric_program_is_recognized(solver):
    y = cp.Variable(pos=True)
    with pytest.raises(NotDCPError, match="pass gp=True"):
        cl.ConvexLayer(cp.Problem(cp.Minimize(y * y + 1 / y + y**0.5)), [], [y], solver=solver)


@pytest.mark.parametrize(
    ("parameters", "variables", "words"),
    [
        ([A, b], [x], "parameters lacks s"),
        ([A, b, s, P], [x], "parameters holds P, which the problem does not contain"),
        ([A, b, s, s], [x], "same parameter twice"),
        ([A, b, s], [], "variables is empty"),
        ([A, b, s], [cp.Variable(2, name="y")], "variables holds y, which is neither"),
        ([A, b, 1.0], [x], "parameters holds a float, expected cvxpy.Parameter objects"),
        ([A, b, s], [A], "variables holds a Parameter, expected cvxpy.Variable objects"),
        ([A, b, s], [2 * x], "expected cvxpy.Variable objects"),
        ([A, b, s], [x >= 0], "holds a Inequality, expected cvxpy.Variable objects. For its multiplier pass its dual_"),
        (A, [x], "parameters is a Parameter, expected a list"),
        ([A, b, s], x, "variables is a Variable, expected a list"),
    ],
)
def test_wrong_lists(solver, parameters, variables, words):
    objective = cp.sum_squares(A @ x - b) + cp.sum_squares(x) + s * cp.sum(x)
    with pytest.raises(ArgumentError, match=re.escape(words)):
        cl.ConvexLayer(cp.Problem(cp.Minimize(objective)), parameters, variables, solver=solver)


@pytest.mark.parametrize("derivative", ["lpgd", cl.Smoothed], ids=["name", "class"])
def test_wrong_derivative(solver, derivative):
    words = r"derivative is .*, expected a strategy: Exact\(\)"
    with pytest.raises(ArgumentError, match=words):
        cl.ConvexLayer(
            cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b))), [A, b], [x], solver=solver, derivative=derivative
        )
    with pytest.raises(ArgumentError, match=words):
        cl.solve_qp(torch.eye(3), torch.ones(3), solver=solver, derivative=derivative)


def test_lists_may_be_any_iterables(solver):
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)))
    layer = cl.ConvexLayer(problem, (p for p in (A, b)), (v for v in (x,)), solver=solver)
    assert layer(GOOD["A"], GOOD["b"])[0].shape == (3,)


def test_not_a_problem(solver):
    with pytest.raises(ArgumentError, match=r"problem is a Minimize, expected a cvxpy\.Problem"):
        cl.ConvexLayer(cp.Minimize(cp.sum_squares(x)), [], [x], solver=solver)


def test_every_error_is_the_librarys_and_a_builtin():
    for name, kind in vars(cl.errors).items():
        if isinstance(kind, type) and issubclass(kind, ConvexLayersError) and kind is not ConvexLayersError:
            builtins = [base for base in kind.__mro__ if base.__module__ == "builtins"]
            assert len(builtins) > 3, f"{name} is only an Exception"
