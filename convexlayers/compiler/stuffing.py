"""CVXPY's last reduction, to matrices, with an objective that stays sparse.

CVXPY finds the coefficients of a quadratic objective in one dense matrix with a row for every entry of its variables
and a column for every entry of the problem's parameters, those of the constraints included: a gigabyte for a quadratic
program with 400 variables and 800 constraints whose coefficients are parameters. For affine expressions it has a sparse
way. Here the affine terms go that way, and what is left has one row for each quadratic term.
"""

from collections.abc import Iterator
from typing import Any

import cvxpy as cp
import scipy.sparse as sp
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.atoms.quad_form import QuadForm, SymbolicQuadForm
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ConeMatrixStuffing


class SparseStuffing(ConeMatrixStuffing):
    """The reduction, for problems in the form that it accepts."""

    def stuffed_objective(self, problem: cp.Problem, extractor: Any) -> tuple[Any, Any, cp.Variable]:
        """Tensors of P (None for none) and q, and the variable that holds all others."""
        affine: list[Any] = []
        quadratic: list[Any] = []
        for term in _terms(problem.objective.expr, 1):
            (quadratic if _is_quadratic(term) else affine).append(term)
        if not affine:
            return super().stuffed_objective(problem, extractor)
        if not quadratic:
            return ConeMatrixStuffing(quad_obj=False).stuffed_objective(problem, extractor)
        rest = problem.copy([cp.Minimize(sum(quadratic[1:], start=quadratic[0])), problem.constraints])
        P, q, x = super().stuffed_objective(rest, extractor)
        linear = extractor.affine(sum(affine[1:], start=affine[0]))
        return P, sp.csc_array(sp.coo_array(q)) + sp.csc_array(sp.coo_array(linear)), x


def _is_quadratic(expression: Any) -> bool:
    """Whether a quadratic is somewhere in it, be it times zero.

    CVXPY must not be asked: what it finds out about an expression stays there, also when it has put a variable in place
    of the quadratic.
    """
    return isinstance(expression, QuadForm | SymbolicQuadForm) or any(map(_is_quadratic, expression.args))


def _terms(expression: Any, sign: int) -> Iterator[Any]:
    """Expressions whose sum is the given one, times a sign."""
    if isinstance(expression, NegExpression):
        yield from _terms(expression.args[0], -sign)
    elif isinstance(expression, AddExpression) and all(arg.shape == expression.shape for arg in expression.args):
        for arg in expression.args:
            yield from _terms(arg, sign)
    else:
        yield expression if sign == 1 else -expression
