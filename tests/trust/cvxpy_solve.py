"""CVXPY's own answer, at a tight tolerance."""

import warnings

import cvxpy as cp
import numpy as np

# Clarabel as accurate as it gets: shorter steps and less regularization than its own keep it from stalling at 1e-6.
ACCURATE = {
    "tol_gap_abs": 1e-12,
    "tol_gap_rel": 1e-12,
    "tol_feas": 1e-12,
    "max_step_fraction": 0.9,
    "static_regularization_constant": 1e-13,
    "iterative_refinement_max_iter": 50,
    "iterative_refinement_reltol": 1e-15,
    "iterative_refinement_abstol": 1e-15,
}


def solve_by_cvxpy(problem, values, outputs, gp=False):
    """Values of variables and dual variables, each an array of its shape, by problem.solve."""
    for parameter, value in values.items():
        parameter.value = value
    with warnings.catch_warnings():
        # Where nothing more is to be gained Clarabel stops before its tolerance: that is as good as it gets.
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.CLARABEL, gp=gp, warm_start=False, accept_unknown=True, **ACCURATE)
    return [np.asarray(output.value, dtype=float).reshape(output.shape) for output in outputs]
