"""The face of `diffcp`: cone programs and their derivatives, numpy and scipy in and out, solved by this library.

Replace `import diffcp` by `from convexlayers.compat import diffcp`. See `cone_program` for what differs.
"""

from convexlayers.compat.diffcp import cone_program, cones, utils
from convexlayers.compat.diffcp.cone_program import (
    SolverError,
    solve_and_derivative,
    solve_and_derivative_batch,
    solve_only,
    solve_only_batch,
)
from convexlayers.compat.diffcp.cones import EXP, EXP_DUAL, POS, PSD, SOC, ZERO
from convexlayers.compat.diffcp.results import solve_and_derivative_internal, solve_internal

# The version of diffcp whose interface this is; CVXPY asks for it.
__version__ = "1.1.9"

__all__ = [
    "EXP",
    "EXP_DUAL",
    "POS",
    "PSD",
    "SOC",
    "ZERO",
    "SolverError",
    "cone_program",
    "cones",
    "solve_and_derivative",
    "solve_and_derivative_batch",
    "solve_and_derivative_internal",
    "solve_internal",
    "solve_only",
    "solve_only_batch",
    "utils",
]
