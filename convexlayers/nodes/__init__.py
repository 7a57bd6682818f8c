"""Declarative nodes: objective and constraints as functions of torch, convex or not, any solver; see docs/nodes.md."""

from convexlayers.nodes.compose import Parallel, Select
from convexlayers.nodes.low_rank_sdp import LowRankMaxSAT, MixingMethod
from convexlayers.nodes.node import DeclarativeNode, declarative_node, least_squares_node
from convexlayers.nodes.pnp import PnP
from convexlayers.nodes.point import Outcome
from convexlayers.nodes.problem import BoundProblem, Problem
from convexlayers.nodes.solution import NodeSolution
from convexlayers.nodes.solvers import LBFGS, SQP, AugmentedLagrangian, LevenbergMarquardt, Newton, NodeSolver
from convexlayers.nodes.starts import Restarts

__all__ = [
    "LBFGS",
    "SQP",
    "AugmentedLagrangian",
    "BoundProblem",
    "DeclarativeNode",
    "LevenbergMarquardt",
    "LowRankMaxSAT",
    "MixingMethod",
    "Newton",
    "NodeSolution",
    "NodeSolver",
    "Outcome",
    "Parallel",
    "PnP",
    "Problem",
    "Restarts",
    "Select",
    "declarative_node",
    "least_squares_node",
]
