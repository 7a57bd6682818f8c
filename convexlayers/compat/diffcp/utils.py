"""The face of `diffcp.utils`: cone programs behind CVXPY's problems, random matrices of a pattern."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["get_random_like", "least_squares_eq_scs_data", "scs_data_from_cvxpy_problem"]

# A, b, c and the cones.
Data = tuple[Any, np.ndarray, np.ndarray, dict[str, Any]]


def scs_data_from_cvxpy_problem(problem: "cp.Problem") -> Data:
    """A, b, c, cone_dict of a problem without parameters that lack a value.

    Quadratic objectives become second-order cones, since there is no P among what is returned; diffcp leaves their
    quadratic part out.
    """
    import cvxpy as cp
    from cvxpy.reductions.solvers.conic_solvers.scs_conif import dims_to_solver_dict

    data = problem.get_problem_data(cp.SCS, solver_opts={"use_quad_obj": False})[0]
    return data["A"], data["b"], data["c"], dims_to_solver_dict(data["dims"])


def least_squares_eq_scs_data(m: int, n: int, seed: int = 0) -> Data:
    """|Ax - b|_1 over the simplex, A (m, n) and b (m,) normal: a program with one solution."""
    import cvxpy as cp

    rng = np.random.RandomState(seed)
    b, A, x = rng.randn(m), rng.randn(m, n), cp.Variable(n)
    constraints: Any = [x >= 0, cp.sum(x) == 1]
    return scs_data_from_cvxpy_problem(cp.Problem(cp.Minimize(cp.norm1(A @ x - b)), constraints))


def get_random_like(A: Any, randomness: Callable[[int], np.ndarray]) -> sp.csc_matrix:
    """A sparse matrix with the nonzeros' positions of A and the values `randomness(count)`."""
    rows, cols = A.nonzero()
    return sp.csc_matrix((randomness(A.nnz), (rows, cols)), shape=A.shape)
