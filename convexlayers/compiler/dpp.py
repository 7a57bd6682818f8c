"""Disciplined parametrized programming with a quadratic objective.

CVXPY knows two sets of rules: the plain ones, and those for solvers with a quadratic objective, which allow
quad_form(x, P) with a parameter P but then no parameter in x. Here each term of the objective may follow either one.
Neither says that a quad_form with a parameter P must reach the objective through affine functions only: elsewhere CVXPY
replaces P by a factor of its present value, so that the solution would not depend on the parameter. That is refused.
"""

from collections.abc import Iterator
from typing import Any

import cvxpy as cp
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.quad_form import QuadForm
from cvxpy.reductions.dcp2cone.canonicalizers import CANON_METHODS
from cvxpy.utilities import scopes


def is_dpp(problem: cp.Problem, gp: bool) -> bool:
    """Whether the cone program's data are affine in the parameters (gp: in them and their logarithms)."""
    if not gp and frozen_quad_form(problem) is not None:
        return False
    with scopes.dpp_scope():
        if gp:
            return bool(problem.is_dgp())
        constraints = all(constraint.is_dcp() for constraint in problem.constraints)
        return constraints and all(follows_objective_rules(term, problem) for term in objective_terms(problem))


def objective_terms(problem: cp.Problem) -> list[Any]:
    """The summands of the objective."""
    expression = problem.objective.args[0]
    return list(expression.args) if isinstance(expression, AddExpression) else [expression]


def follows_objective_rules(term: Any, problem: cp.Problem) -> bool:
    """Whether a scalar term of the objective follows one of the sets of rules; called in CVXPY's DPP scope."""

    def has_the_curvature() -> bool:
        return term.is_concave() if isinstance(problem.objective, cp.Maximize) else term.is_convex()

    if has_the_curvature():
        return True
    with scopes.quad_form_dpp_scope():
        return has_the_curvature()


def frozen_quad_form(problem: cp.Problem) -> Any:
    """A quad_form with a parameter matrix that is not an affine part of the objective, or None."""
    for found, affine_above in _quad_forms(problem.objective, True):
        if not affine_above and found.args[1].parameters():
            return found
    for constraint in problem.constraints:
        for found, _ in _quad_forms(constraint, False):
            if found.args[1].parameters():
                return found
    return None


def _quad_forms(node: Any, affine_above: bool) -> Iterator[tuple[Any, bool]]:
    """All quad_forms below a node, and whether only affine atoms stand above each."""
    if isinstance(node, QuadForm):
        yield node, affine_above
    below = affine_above and type(node) not in CANON_METHODS
    for arg in node.args:
        yield from _quad_forms(arg, below)
