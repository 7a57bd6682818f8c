"""The only part of the library that imports cvxpy: a parametrized problem in, a `ParametrizedConeProgram` out."""

from convexlayers.compiler.compile import compile_problem

__all__ = ["compile_problem"]
