"""Public checks for authors of engines, derivatives and layers; random programs whose solutions are known."""

from convexlayers.testing.checks import check_engine, check_solution, check_statuses
from convexlayers.testing.derivative_checks import Figure, check_derivative
from convexlayers.testing.hard_problems import HardQP, hard_qps, random_qp
from convexlayers.testing.layer_checks import check_layer
from convexlayers.testing.pairs import Sampler, complementary_pair
from convexlayers.testing.problems import (
    InfeasibleProgram,
    Numbers,
    SolvedProgram,
    UnboundedProgram,
    cone_cases,
    infeasible_program,
    join,
    program_at,
    random_program,
    unbounded_program,
)

__all__ = [
    "Figure",
    "HardQP",
    "InfeasibleProgram",
    "Numbers",
    "Sampler",
    "SolvedProgram",
    "UnboundedProgram",
    "check_derivative",
    "check_engine",
    "check_layer",
    "check_solution",
    "check_statuses",
    "complementary_pair",
    "cone_cases",
    "hard_qps",
    "infeasible_program",
    "join",
    "program_at",
    "random_program",
    "random_qp",
    "unbounded_program",
]
