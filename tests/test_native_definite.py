"""The core's check of definiteness never passes what the careful check refuses, and passes what it should."""

import pytest
import torch

import convexlayers as cl
from convexlayers import validation
from convexlayers.errors import ArgumentError
from convexlayers.program import ParameterInfo
from convexlayers.validation import validate

FLOAT64 = torch.float64


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


def semidefinite(batch, n, rank, seed):
    factor = randn(batch, n, rank, seed=seed)
    return factor @ factor.mT


def plainly_definite(values, sign=1.0):
    info = ParameterInfo(0, "P", tuple(values.shape[1:]), ("PSD" if sign > 0 else "NSD",))
    return validation._is_plain(info, values, 1e-9)


# One matrix alone, too few to fill the lanes, and more than fill them.
@pytest.mark.parametrize("batch", [1, 3, 11])
@pytest.mark.parametrize("n", [1, 2, 5, 17, 40, 101])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e9])
def test_definite_and_semidefinite_matrices_pass(n, scale, batch):
    for rank in {n, max(1, n // 2), 1}:
        values = scale * semidefinite(batch, n, rank, seed=n)
        assert plainly_definite(values)
        assert plainly_definite(-values, -1.0)
    assert plainly_definite(torch.zeros(3, n, n, dtype=FLOAT64))


@pytest.mark.parametrize("n", [2, 5, 17, 40, 101])
@pytest.mark.parametrize("position", [0, 7, 8, 10])
def test_one_that_is_not_is_found_among_many(n, position):
    good = semidefinite(11, n, n, seed=n) + torch.eye(n, dtype=FLOAT64)
    indefinite, asymmetric, broken = good.clone(), good.clone(), good.clone()
    indefinite[position, 0, 0] = -1e-3
    asymmetric[position, 0, 1] += 1e-3
    broken[position, 1, 0] = float("nan")
    for values in (indefinite, asymmetric, broken):
        assert not plainly_definite(values)
    info = [ParameterInfo(0, "P", (n, n), ("PSD",))]
    for values in (indefinite, asymmetric):
        with pytest.raises(ArgumentError, match=f"P must be PSD.*batch index {position}"):
            validate(info, [values], [FLOAT64])
    validate(info, [broken], [FLOAT64])  # an element that is not finite is reported by its status


def test_strided_and_shared_values():
    P = semidefinite(6, 4, 4, seed=0)[::2] + torch.eye(4, dtype=FLOAT64)
    q = randn(3, 4, seed=1)
    assert cl.solve_qp(P, q).solved.all()
    assert cl.solve_qp(P[0], q).solved.all()
    with pytest.raises(ArgumentError, match="P must be PSD"):
        cl.solve_qp(-P[0], q)
