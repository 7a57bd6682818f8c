"""What is refused before any work is done, and the sentences that say why."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cvxpy as cp
from cvxpy.atoms.elementwise.power import Power

from convexlayers.compiler.dpp import is_dpp
from convexlayers.compiler.explain import explain_not_convex, explain_not_dpp
from convexlayers.errors import ArgumentError, NotDCPError, NotDPPError, UnsupportedProblemError

# Before, CVXPY loses the quadratic part of an objective in a symmetric variable: it solves another problem.
LOWEST_CVXPY = (1, 9, 3)


def check_version() -> None:
    """The installed CVXPY must be one whose reformulations are right.

    Raises:
        UnsupportedProblemError: it is too old.
    """
    version: str = cp.__version__  # pyright: ignore[reportPrivateImportUsage]
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < LOWEST_CVXPY:
        lowest = ".".join(map(str, LOWEST_CVXPY))
        raise UnsupportedProblemError(
            f"CVXPY {version} is installed, and loses quadratic terms of symmetric variables. "
            f"Use CVXPY {lowest} or later: pip install 'cvxpy>={lowest}'."
        )


def as_list(name: str, items: Iterable[Any]) -> list[Any]:
    """The items, from any iterable but an expression, which iterates over its entries.

    Raises:
        ArgumentError: it is one.
    """
    if isinstance(items, cp.Expression):
        raise ArgumentError(f"{name} is a {type(items).__name__}, expected a list of them.")
    return list(items)


def check_arguments(problem: cp.Problem, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]) -> None:
    """The lists must be those of the problem.

    Raises:
        ArgumentError: an item has the wrong type, is missing, unknown or given twice.
        UnsupportedProblemError: a parameter stands where CVXPY does not see it.
    """
    if not isinstance(problem, cp.Problem):
        raise ArgumentError(f"problem is a {type(problem).__name__}, expected a cvxpy.Problem.")
    _check_kind("parameters", parameters, cp.Parameter)
    _check_kind("variables", variables, cp.Variable)
    _check_hidden(problem)
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
            hint = " For its multiplier pass its dual_variables[0]." if isinstance(item, cp.Constraint) else ""
            raise ArgumentError(f"{name} holds a {type(item).__name__}, expected cvxpy.{kind.__name__} objects.{hint}")


def _check_hidden(problem: cp.Problem) -> None:
    """A parameter that CVXPY does not see as one would be frozen at its present value."""
    seen = {parameter.id for parameter in problem.parameters()}
    for root in [problem.objective, *problem.constraints]:
        for node in _nodes(root):
            if isinstance(node, cp.Parameter) and node.id not in seen:
                raise UnsupportedProblemError(
                    f"{node.name()} stands inside an atom of {root} that CVXPY does not parametrize: introduce a "
                    "variable that equals the atom's argument, and use that instead."
                )


def _nodes(node: Any) -> Iterator[Any]:
    """An expression or constraint and everything below it."""
    if not hasattr(node, "args"):
        raise UnsupportedProblemError("partial_optimize is not supported: write the inner problem into the outer one.")
    yield node
    for arg in node.args:
        yield from _nodes(arg)


def _check_exponents(problem: cp.Problem) -> None:
    for root in [problem.objective, *problem.constraints]:
        for node in _nodes(root):
            if isinstance(node, Power) and isinstance(node.p, cp.Expression) and node.p.parameters():
                names = ", ".join(parameter.name() for parameter in node.p.parameters())
                raise NotDPPError(
                    f"The exponent of {node} in {root} is the parameter {names}; exponents must be constants, except "
                    "in geometric programs (gp=True)."
                )


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
        if isinstance(constraint, cp.FiniteSet):
            raise UnsupportedProblemError(f"{constraint} is a discrete set; the solution would not be differentiable.")
        alpha = getattr(constraint, "alpha", None)
        if isinstance(alpha, cp.Expression) and alpha.parameters():
            raise NotDPPError(
                f"The exponent of {constraint} is a parameter; exponents of power cones must be constants."
            )
    if not gp:
        _check_exponents(problem)
    convex = problem.is_dgp() if gp else problem.is_dcp()
    if not convex:
        raise NotDCPError(explain_not_convex(problem, gp))
    if not is_dpp(problem, gp):
        raise NotDPPError(explain_not_dpp(problem, gp))
