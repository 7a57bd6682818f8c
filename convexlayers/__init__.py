"""Convex optimization problems as differentiable PyTorch layers.

Importing this package loads neither cvxpy nor a solver; they are loaded by what needs them.
"""

from typing import TYPE_CHECKING, Any

from convexlayers import cones, engines, errors, nodes, plot, zoo
from convexlayers.cones import Cones
from convexlayers.derivatives import Exact, Perturbed, Smoothed
from convexlayers.errors import ConvexLayersError, SolverError
from convexlayers.functional import (
    differentiable_solution,
    solve_cone_program,
    solve_lp,
    solve_qp,
    solve_socp,
)
from convexlayers.layer import ConvexLayer
from convexlayers.program import ParametrizedConeProgram
from convexlayers.seeing import citation, report
from convexlayers.status import Status

if TYPE_CHECKING:
    from convexlayers.compiler import compile_problem

__version__ = "0.1.0"

__all__ = [
    "Cones",
    "ConvexLayer",
    "ConvexLayersError",
    "Exact",
    "ParametrizedConeProgram",
    "Perturbed",
    "Smoothed",
    "SolverError",
    "Status",
    "citation",
    "compile_problem",
    "cones",
    "differentiable_solution",
    "engines",
    "errors",
    "nodes",
    "plot",
    "report",
    "solve_cone_program",
    "solve_lp",
    "solve_qp",
    "solve_socp",
    "zoo",
]


def __getattr__(name: str) -> Any:
    # compile_problem is the one public name that needs cvxpy at import.
    if name == "compile_problem":
        from convexlayers.compiler import compile_problem

        return compile_problem
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
