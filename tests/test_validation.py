"""The core's check of values has the verdict of the careful check, at the border of every tolerance too."""

import copy
import pickle

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from convexlayers import validation
from convexlayers.errors import ArgumentError
from convexlayers.program import ParameterInfo

FLOAT64 = torch.float64
SLACK = 1e-9
ORDERS = [1, 2, 3, 7, 8, 9, 17, 33]
# More than a thread takes at a time, for the smaller orders.
BATCHES = [1, 2, 5, 9, 700]


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


def lower_bounds(n):
    """Between -3 and -1, the last one -1; with negative strides."""
    return np.linspace(-1, -3, n * n)[::-1].reshape(n, n)


def pattern(n):
    """Every second entry, the last one of the first row not."""
    return np.setdiff1d(np.arange(0, n * n, 2), n - 1)


def inside_pattern(value):
    inside = torch.zeros(value.shape[-1] ** 2, dtype=FLOAT64)
    inside[pattern(value.shape[-1])] = 1
    return value * inside.reshape(value.shape[-2:])


def gram(value):
    return value @ value.mT


def singular(value):
    """Semidefinite, with zeros in the last row and column."""
    first = torch.diag(torch.ones(value.shape[-1], dtype=FLOAT64))
    first[-1] = 0
    return first @ gram(value) @ first.mT


# Of each: what a ParameterInfo has for order n, how a random matrix is brought into the set, and which entry leaves it,
# in which direction.
BORDERS = {
    "nonneg": (lambda n: {"attributes": ("nonneg",)}, torch.abs, (-1, -1), -1.0),
    "nonpos": (lambda n: {"attributes": ("nonpos",)}, lambda v: -v.abs(), (0, -1), 1.0),
    "pos": (lambda n: {"attributes": ("pos",)}, lambda v: 1 + v.abs(), (-1, 0), -1.0),
    "neg": (lambda n: {"attributes": ("neg",)}, lambda v: -1 - v.abs(), (-1, -1), 1.0),
    "symmetric": (lambda n: {"attributes": ("symmetric",)}, lambda v: v + v.mT, (-1, 0), 1.0),
    "diag": (lambda n: {"attributes": ("diag",)}, lambda v: v * torch.eye(v.shape[-1]), (-1, 0), -1.0),
    "bounds": (lambda n: {"bounds": (np.array(-1.0), np.array(1.0))}, torch.tanh, (0, -1), 1.0),
    "bounds_of_arrays": (lambda n: {"bounds": (lower_bounds(n), np.array(np.inf))}, torch.tanh, (-1, -1), -1.0),
    "bounds_and_nonneg": (
        lambda n: {"attributes": ("nonneg",), "bounds": (lower_bounds(n), np.array(1.0))},
        lambda v: v.tanh().abs(),
        (-1, -1),
        -1.0,
    ),
    "sparsity": (lambda n: {"sparsity": pattern(n)}, inside_pattern, (0, -1), 1.0),
    "symmetric_and_pos": (
        lambda n: {"attributes": ("pos", "symmetric")},
        lambda v: 3 + v.tanh() + v.mT.tanh(),
        (-1, 0),
        1.0,
    ),
    "PSD": (lambda n: {"attributes": ("PSD",)}, gram, (-1, 0), 1.0),
    "PSD_singular": (lambda n: {"attributes": ("PSD",)}, singular, (-1, -1), -1.0),
    "NSD": (lambda n: {"attributes": ("NSD",)}, lambda v: -gram(v), (0, -1), 1.0),
    "PSD_and_NSD": (lambda n: {"attributes": ("PSD", "NSD")}, torch.zeros_like, (0, 0), 1.0),
}


def is_refused(info, values, slack=SLACK):
    """The verdict of the careful check."""
    try:
        validation._validate_one(info, values, slack)
    except ArgumentError:
        return True
    return False


def to_border(base, entry, sign, by):
    """The matrices with one entry `by` times the allowance further; exactly so where the entry is zero."""
    values = base.clone()
    values[..., entry[0], entry[1]] += sign * by * SLACK * (base.abs().amax() or 1.0)
    return values


@pytest.mark.parametrize("name", BORDERS)
@pytest.mark.parametrize("n", ORDERS)
def test_verdict_at_the_border(name, n):
    describe, bring, entry, sign = BORDERS[name]
    info = ParameterInfo(0, "A", (n, n), **describe(n))
    base = bring(randn(n, n, seed=n))
    # An entry at the border of the set; the largest one is another.
    if name in ("nonneg", "nonpos", "pos", "neg", "bounds_and_nonneg"):
        base[entry] = 0.0
    elif name == "bounds":
        base[entry] = 1.0
    elif name == "bounds_of_arrays":
        base[entry] = -1.0
    verdicts = set()
    for by in (0.0, 1e-300, 0.5, 1 - 1e-15, 1.0, 1 + 1e-15, 1.5, 1e3, 1e9):
        one = to_border(base, entry, sign, by)
        refused = is_refused(info, one[None])
        verdicts.add(refused)
        definite = bool({"PSD", "NSD"} & set(info.attributes))
        for batch in BATCHES if n < 9 else BATCHES[:3]:
            values = base.expand(batch, n, n).clone()
            values[batch // 2] = one
            plain = validation._is_plain(info, values, SLACK)
            assert not (plain and refused)
            # Where there is an eigenvalue in doubt, the core says so; others have to pass there.
            if not definite and not is_refused(info, values):
                assert plain
    # A matrix of order one is symmetric and diagonal, and nothing is allowed for what has to be positive.
    if n > 1 or name not in ("symmetric", "diag", "PSD", "NSD", "symmetric_and_pos"):
        assert verdicts == ({True} if name in ("pos", "neg") else {False, True})


@pytest.mark.parametrize("name", ["nonneg", "bounds", "symmetric", "diag", "sparsity", "pos"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("n", [2, 3, 8, 13])
def test_values_that_are_not_finite_are_in_doubt_and_exempt(name, broken, n):
    describe, bring, _, _ = BORDERS[name]
    info = ParameterInfo(0, "A", (n, n), **describe(n))
    values = bring(randn(5, n, n, seed=n))
    assert validation._is_plain(info, values, SLACK)
    for place in (0, n * n // 2, n * n - 1):
        bad = values.clone()
        bad[3].view(-1)[place] = broken
        assert not validation._is_plain(info, bad, SLACK)
        validation.validate([info], [bad], [FLOAT64])
        bad[1] = -7 + 3 * randn(n, n, seed=1).abs() - 9 * torch.arange(n).double()  # none of all
        with pytest.raises(ArgumentError, match="batch index 1"):
            validation.validate([info], [bad], [FLOAT64])


@pytest.mark.parametrize("name", ["nonneg", "diag", "PSD"])
@pytest.mark.parametrize("place", [0, 350, 699])
def test_one_among_many_is_found_on_threads(name, place):
    describe, bring, entry, sign = BORDERS[name]
    info = ParameterInfo(0, "A", (40, 40), **describe(40))
    values = bring(randn(700, 40, 40, seed=0))
    attributes = validation._prepare(info)

    def holds():
        return attributes.hold(values.data_ptr(), values.numel(), SLACK, 3)

    assert holds()
    values[place][entry] += sign * 1e3 * values[place].abs().max()
    assert not holds()


@pytest.mark.parametrize("name", ["symmetric", "diag", "PSD"])
def test_values_of_several_matrices(name):
    """The last of the matrices counts as much as the first."""
    describe, bring, entry, sign = BORDERS[name]
    info = ParameterInfo(0, "A", (2, 5, 5), **describe(5))
    values = bring(randn(3, 2, 5, 5, seed=0))
    assert validation._is_plain(info, values, SLACK)
    validation._validate_one(info, values, SLACK)
    values[2, 1][entry] += sign
    assert not validation._is_plain(info, values, SLACK)
    assert is_refused(info, values)


def test_orders_that_are_left_to_a_library():
    info = ParameterInfo(0, "A", (301, 301), ("PSD",))
    values = gram(randn(1, 301, 310, seed=0))
    assert not validation._is_plain(info, values, SLACK)
    validation.validate([info], [values], [FLOAT64])


def test_values_in_other_dtypes_and_layouts():
    info = ParameterInfo(0, "A", (3, 3), ("symmetric",))
    value = randn(4, 3, 3, seed=0)
    value = value + value.mT
    rounding = torch.zeros(3, 3)
    rounding[0, 1] = 1e-5  # float32's, not float64's
    validation.validate([info], [(value + rounding).float()], [torch.float32])
    validation.validate([info], [value[:1].expand(4, 3, 3)], [FLOAT64])
    validation.validate([info], [value.mT], [FLOAT64])
    validation.validate([info], [value[:0]], [FLOAT64])
    validation.validate([info], [value[0]], [FLOAT64])
    with pytest.raises(ArgumentError, match=r"A must be symmetric.*batch index 0"):
        validation.validate([info], [value + rounding], [FLOAT64])
    wrong = value.clone()
    wrong[2, 2, 0] += 1
    with pytest.raises(ArgumentError, match=r"A must be symmetric.*batch index 2"):
        validation.validate([info], [wrong.mT.requires_grad_()], [FLOAT64])


def test_what_is_prepared_stays_out_of_copies():
    x, p = cp.Variable(3), cp.Parameter(3, nonneg=True, name="p")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1) + p @ cp.abs(x))), [p], [x])
    good, bad = torch.ones(3, dtype=FLOAT64), -torch.ones(3, dtype=FLOAT64)
    (expected,) = layer(good)
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(good)[0], expected)
        with pytest.raises(ArgumentError, match="p must be nonneg"):
            other(bad)


def test_transforms_of_torch_func():
    """Their tensors have no address, and are checked all the same."""
    x, p = cp.Variable(3), cp.Parameter(3, nonneg=True, name="p")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1) + p @ x)), [p], [x])
    gradient = torch.func.grad(lambda value: layer(value)[0].sum())
    value = torch.ones(3, dtype=FLOAT64)
    torch.testing.assert_close(gradient(value), -0.5 * value)  # x = 1 - p / 2
    with pytest.raises(ArgumentError, match="p must be nonneg"):
        gradient(-value)
