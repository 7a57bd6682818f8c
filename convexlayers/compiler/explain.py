"""Why a problem is refused: the smallest sub-expression that breaks CVXPY's rules, and a way around it."""

from typing import Any

import cvxpy as cp
from cvxpy.constraints.nonpos import Inequality
from cvxpy.constraints.zero import Equality, Zero
from cvxpy.problems.objective import Objective
from cvxpy.utilities import scopes

from convexlayers.compiler.dpp import follows_objective_rules, frozen_quad_form, objective_terms


def _roots(problem: cp.Problem) -> list[Any]:
    """Objective and constraints."""
    return [problem.objective, *problem.constraints]


def _follows_rules(node: Any, gp: bool) -> bool:
    return bool(node.is_dgp() if gp else node.is_dcp())


def _smallest_offender(node: Any, gp: bool) -> Any:
    """The deepest sub-expression that breaks the rules while all of its own arguments follow them."""
    for arg in node.args:
        if not _follows_rules(arg, gp):
            return _smallest_offender(arg, gp)
    return node


def explain_not_convex(problem: cp.Problem, gp: bool) -> str:
    """The message for a problem that is not DCP (or DGP)."""
    rules = "DGP (log-log convex)" if gp else "DCP (convex)"
    bad = next(root for root in _roots(problem) if not _follows_rules(root, gp))
    offender = _smallest_offender(bad, gp)
    place = str(bad) if offender is bad else f"{offender} in {bad}"
    is_geometric = not gp and bool(problem.is_dgp())
    hint = "It is a geometric program: pass gp=True." if is_geometric else _rule(offender, gp)
    return f"The problem is not {rules}: look at {place}. {hint}"


def _rule(offender: Any, gp: bool) -> str:
    """What an objective, a constraint or an expression has to be."""
    kind = "log-log " if gp else ""
    if isinstance(offender, Objective):
        return f"Minimize what is {kind}convex, or maximize what is {kind}concave."
    if isinstance(offender, Equality | Zero):
        return f"Both sides of an equality must be {kind}affine."
    if isinstance(offender, Inequality):
        return f"The smaller side of an inequality must be {kind}convex, the larger one {kind}concave."
    if isinstance(offender, cp.Expression):
        return (
            f"CVXPY's rules say neither that it is {kind}convex nor that it is {kind}concave: write it with other "
            "atoms, or give its leaves the signs that they have (nonneg=True, PSD=True)."
        )
    return f"What is constrained must be {kind}affine."


def explain_not_dpp(problem: cp.Problem, gp: bool) -> str:
    """The message for a problem that is convex but not affine in its parameters."""
    offender, where = _offender_and_place(problem, gp)
    if offender is None:
        return "The problem is not DPP; see https://www.cvxpy.org/tutorial/dpp."
    with scopes.dpp_scope():
        offender = _parameter_part(offender) or offender
    return f"The problem is not DPP: {offender} in {where} is not affine in the parameters. {_rewrite(offender)}"


def _offender_and_place(problem: cp.Problem, gp: bool) -> tuple[Any, str]:
    with scopes.dpp_scope():
        for constraint in problem.constraints:
            if not _follows_rules(constraint, gp):
                return _smallest_offender(constraint, gp), f"the constraint {constraint}"
        if gp:
            bad = None if _follows_rules(problem.objective, gp) else problem.objective
        else:
            bad = next((t for t in objective_terms(problem) if not follows_objective_rules(t, problem)), None)
        if bad is not None:
            return _smallest_offender(bad, gp), "the objective"
    return frozen_quad_form(problem), "the problem"


def _parameter_part(node: Any) -> Any:
    """The deepest nonlinear function of parameters alone below an offender, or None: it can be computed beforehand."""
    for arg in node.args:
        found = _parameter_part(arg)
        if found is not None:
            return found
    alone = isinstance(node, cp.Expression) and node.parameters() and not node.variables()
    return node if alone and not node.is_affine() else None


PRODUCTS = ("MulExpression", "multiply", "DivExpression", "Power", "PowerApprox", "quad_over_lin")


def _rewrite(offender: Any) -> str:
    """How to say the same within the rules."""
    names = ", ".join(parameter.name() for parameter in offender.parameters()) or "the parameters"
    if type(offender).__name__ == "QuadForm":
        return _rewrite_quad_form(offender)
    if isinstance(offender, cp.Expression) and (not offender.variables() or _is_product_with_affine_factors(offender)):
        return (
            f"Introduce one new parameter for the part that depends on {names} alone, compute its value in torch "
            "before the layer (gradients flow through it), and use it here."
        )
    return (
        f"Compute what depends on {names} alone in torch before the layer and pass it as a parameter, or move the "
        "parameters out of the nonlinear function: an extra variable with an equality constraint takes its argument's "
        "place."
    )


def _is_product_with_affine_factors(offender: Any) -> bool:
    return type(offender).__name__ in PRODUCTS and all(arg.is_affine() for arg in offender.args)


def _rewrite_quad_form(offender: Any) -> str:
    x, P = offender.args
    if x.parameters():
        return (
            f"Introduce an extra variable y with the constraint y == {x}, and write the quad_form of y; or compute a "
            "factor R of the whole quadratic in torch and write sum_squares(R @ x)."
        )
    return (
        "quad_form with a parameter matrix may stand in the objective, multiplied by constants and added to other "
        f"terms; elsewhere write sum_squares(R @ x) with one parameter R and pass its value, R'R = {P}, computed in "
        "torch."
    )
