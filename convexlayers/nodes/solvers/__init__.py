"""Local solvers of nodes. Every element of a batch has its own steps and its own end."""

from convexlayers.nodes.solvers.augmented_lagrangian import AugmentedLagrangian
from convexlayers.nodes.solvers.base import NodeSolver
from convexlayers.nodes.solvers.lbfgs import LBFGS
from convexlayers.nodes.solvers.levenberg_marquardt import LevenbergMarquardt
from convexlayers.nodes.solvers.newton import Newton
from convexlayers.nodes.solvers.sqp import SQP

__all__ = ["LBFGS", "SQP", "AugmentedLagrangian", "LevenbergMarquardt", "Newton", "NodeSolver"]
