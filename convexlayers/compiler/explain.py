"""Why a problem is refused: the smallest sub-expression that breaks CVXPY's rules, and a way around it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cvxpy as cp
from cvxpy.utilities import scopes


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
    is_geometric = not gp and bool(problem.is_dgp())
    hint = " It is a geometric program: pass gp=True." if is_geometric else ""
    return f"The problem is not {rules}: look at {offender} in {bad}.{hint}"


def explain_not_dpp(problem: cp.Problem, gp: bool) -> str:
    """The message for a problem that is convex but not affine in its parameters."""
    with scopes.dpp_scope():
        for root in _roots(problem):
            with _scope_of(root, problem):
                if _follows_rules(root, gp):
                    continue
                offender = _smallest_offender(root, gp)
            where = "the objective" if root is problem.objective else f"the constraint {root}"
            return (
                f"The problem is not DPP: {offender} in {where} is not affine in the parameters. {_rewrite(offender)}"
            )
    return "The problem is not DPP; see https://www.cvxpy.org/tutorial/dpp."


def _scope_of(root: Any, problem: cp.Problem) -> AbstractContextManager[None]:
    """Only the objective may hold quad_form(x, P) with a parameter P: P is then data of the program."""
    return scopes.quad_form_dpp_scope() if root is problem.objective else nullcontext()


def _rewrite(offender: Any) -> str:
    """How to say the same within the rules."""
    names = ", ".join(parameter.name() for parameter in offender.parameters()) or "the parameters"
    kind = type(offender).__name__
    if kind == "QuadForm":
        return (
            "quad_form with a parameter matrix is allowed in the objective only; in a constraint write "
            f"sum_squares(R @ x) with a parameter R and pass its value R with R'R = {names}, computed in torch."
        )
    if kind in ("MulExpression", "multiply", "DivExpression", "Power", "PowerApprox", "quad_over_lin"):
        return (
            f"Introduce one new parameter for the part that depends on {names} alone, compute its value in torch "
            "before the layer (gradients flow through it), and use it here."
        )
    return (
        f"Compute what depends on {names} alone in torch before the layer and pass it as a parameter, or move {names} "
        "out of the nonlinear function by an extra variable with an equality constraint."
    )
