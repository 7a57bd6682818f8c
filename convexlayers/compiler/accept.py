"""What is refused before any work is done, and the sentences that say why."""

from collections.abc import Iterable, Sequence
from typing import Any

import cvxpy as cp

from convexlayers.compiler.explain import explain_not_convex, explain_not_dpp
from convexlayers.errors import ArgumentError, NotDCPError, NotDPPError, UnsupportedProblemError


def check_arguments(problem: cp.Problem, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]) -> None:
    """The lists must be those of the problem.

    Raises:
        ArgumentError: an item has the wrong type, is missing, unknown or given twice.
    """
    if not isinstance(problem, cp.Problem):
        raise ArgumentError(f"problem is a {type(problem).__name__}, expected a cvxpy.Problem.")
    _check_kind("parameters", parameters, cp.Parameter)
    _check_kind("variables", variables, cp.Variable)
    known = {parameter.id: parameter for parameter in problem.parameters()}
    given = {parameter.id for parameter in parameters}
    missing = [parameter.name() for key, parameter in known.items() if key not in given]
    if missing:
        raise ArgumentError(
            f"parameters lacks {', '.join(missing)}: the list must hold every parameter of the problem."
        )
    unknown = [parameter.name() for parameter in parameters if parameter.id not in known]
    if unknown:
        raise ArgumentError(f"parameters holds {', '.join(unknown)}, which the problem does not contain.")
    if len(given) < len(parameters):
        raise ArgumentError("parameters holds the same parameter twice.")
    if not variables:
        raise ArgumentError("variables is empty: name at least one variable or dual variable to return.")
    owned = {variable.id for variable in problem.variables()}
    owned |= {dual.id for constraint in problem.constraints for dual in constraint.dual_variables}
    strangers = [variable.name() for variable in variables if variable.id not in owned]
    if strangers:
        raise ArgumentError(
            f"variables holds {', '.join(strangers)}, which is neither a variable of the problem nor a dual variable "
            "of one of its constraints."
        )


def _check_kind(name: str, items: Iterable[object], kind: type) -> None:
    for item in items:
        if not isinstance(item, kind):
            raise ArgumentError(f"{name} holds a {type(item).__name__}, expected cvxpy.{kind.__name__} objects.")


def check_problem(problem: cp.Problem, gp: bool) -> None:
    """The problem must be real, continuous, convex, and affine in its parameters.

    Raises:
        UnsupportedProblemError, NotDCPError, NotDPPError.
    """
    for leaf in [*problem.variables(), *problem.parameters(), *problem.constants()]:
        if leaf.is_complex():
            raise UnsupportedProblemError(f"{leaf.name()} is complex; write real and imaginary parts as two real ones.")
    for leaf in [*problem.variables(), *problem.parameters()]:
        if leaf.attributes["boolean"] or leaf.attributes["integer"]:
            raise UnsupportedProblemError(
                f"{leaf.name()} is boolean or integer; the solution would not be differentiable."
            )
    for constraint in problem.constraints:
        alpha = getattr(constraint, "alpha", None)
        if isinstance(alpha, cp.Expression) and alpha.parameters():
            raise NotDPPError(
                f"The exponent of {constraint} is a parameter; exponents of power cones must be constants."
            )
    convex = problem.is_dgp() if gp else problem.is_dcp()
    if not convex:
        raise NotDCPError(explain_not_convex(problem, gp))
    rules: Any = problem.is_dpp
    follows = rules("dgp") if gp else rules("dcp", quad_form_dpp="qp")
    if not follows:
        raise NotDPPError(explain_not_dpp(problem, gp))
