"""CVXPY's own answer, at a tight tolerance."""

import warnings

import cvxpy as cp
import numpy as np
from cvxpy_reference import ACCURATE


def solve_by_cvxpy(problem, values, outputs, gp=False):
    """Values of variables and dual variables, each an array of its shape, by problem.solve."""
    for parameter, value in values.items():
        parameter.value = value
    with warnings.catch_warnings():
        # Where nothing more is to be gained Clarabel stops before its tolerance: that is as good as it gets.
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.CLARABEL, gp=gp, warm_start=False, accept_unknown=True, **ACCURATE)
    return [np.asarray(output.value, dtype=float).reshape(output.shape) for output in outputs]
