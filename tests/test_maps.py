"""Sparse maps: M x and M'y against the dense matrix, by every way that a special pattern takes."""

import copy
import pickle

import numpy as np
import pytest
import torch

from convexlayers.maps import SparseMap

# Rows, columns and values of the entries, and the shape.
PATTERNS = {
    "identity": ([0, 1, 2], [0, 1, 2], [1, 1, 1], (3, 3)),
    "slice": ([0, 1], [1, 2], [1, 1], (2, 4)),
    "permutation": ([0, 1, 2, 3], [2, 0, 3, 1], [1, 1, 1, 1], (4, 4)),
    "weighted permutation": ([0, 1, 2, 3], [2, 0, 3, 1], [2, -1, 0.5, 3], (4, 4)),
    "columns once, several in a row": ([0, 0, 1, 3], [2, 1, 3, 0], [2, -1, 0.5, 3], (5, 4)),
    "injective": ([0, 1, 2], [4, 0, 2], [1, 1, 1], (3, 5)),
    "weighted injective": ([0, 1, 2], [4, 0, 2], [2, 3, -1], (3, 5)),
    "as many entries as columns, one twice": ([0, 1, 2], [2, 2, 0], [1, 1, 1], (3, 3)),
    "general": ([0, 0, 2, 2, 2], [0, 3, 1, 3, 2], [1, 2, 3, 4, 5], (4, 4)),
    "nothing": ([], [], [], (2, 3)),
    "no columns": ([], [], [], (2, 0)),
}
COPIES = [copy.copy, copy.deepcopy, lambda linear: pickle.loads(pickle.dumps(linear))]


def make(name):
    """A map and its dense matrix."""
    rows, cols, values, shape = PATTERNS[name]
    matrix = torch.zeros(shape, dtype=torch.float64)
    matrix[rows, cols] = torch.tensor(values, dtype=torch.float64)
    return SparseMap(np.array(rows, dtype=int), np.array(cols, dtype=int), np.array(values, dtype=float), shape), matrix


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("name", PATTERNS)
def test_map_and_adjoint_are_those_of_the_matrix(name, batch, dtype):
    linear, matrix = make(name)
    height, width = linear.shape
    x, y, matrix = randn(*batch, width).to(dtype), randn(*batch, height, seed=1).to(dtype), matrix.to(dtype)
    for found, expected in ((linear.apply(x), x @ matrix.T), (linear.adjoint(y), y @ matrix)):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("name", PATTERNS)
def test_what_the_adjoint_needs_is_made_when_it_is_asked_for(name, copied):
    linear, matrix = make(name)
    before = pickle.dumps(linear)
    linear.apply(randn(2, linear.shape[1]))
    assert vars(linear).keys() & {"_transposed", "_is_injective"} == set()
    y = randn(2, linear.shape[0])
    linear.adjoint(y)
    # A copy is the same whatever was asked of the original.
    assert pickle.dumps(linear) == before
    torch.testing.assert_close(copied(linear).adjoint(y), y @ matrix)


@pytest.mark.parametrize("name", PATTERNS)
def test_what_the_adjoint_keeps_does_not_depend_on_its_first_call(name):
    """Tensors of an inference mode, of a device or of a transform would be of no use to the calls that follow."""
    y, g = randn(2, PATTERNS[name][3][0]), randn(2, PATTERNS[name][3][1], seed=1)
    for context in (torch.inference_mode, lambda: torch.device("meta")):
        linear, matrix = make(name)
        with context():
            linear.adjoint(y)
        leaf = y.clone().requires_grad_()
        (grad,) = torch.autograd.grad(linear.adjoint(leaf), leaf, g)
        torch.testing.assert_close(grad, g @ matrix.T)
    for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        linear, matrix = make(name)
        transform(linear.adjoint)(y)
        torch.testing.assert_close(linear.adjoint(y), y @ matrix)
