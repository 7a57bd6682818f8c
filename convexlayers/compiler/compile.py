"""compile_problem: the pipeline, one step per line."""

import time
from collections.abc import Iterable

import cvxpy as cp

from convexlayers.compiler.accept import as_list, check_arguments, check_problem, check_version
from convexlayers.compiler.canonicalize import canonicalize
from convexlayers.compiler.parameters import describe_parameters, parameter_blocks
from convexlayers.compiler.recover import describe_outputs
from convexlayers.compiler.rows import describe_rows
from convexlayers.compiler.tensors import extract
from convexlayers.program import ParametrizedConeProgram


def compile_problem(
    problem: cp.Problem,
    parameters: Iterable[cp.Parameter],
    variables: Iterable[cp.Variable],
    *,
    gp: bool = False,
) -> ParametrizedConeProgram:
    """Compile a parametrized CVXPY problem to a cone program whose numbers are affine in the parameters.

    The problem, its parameters and variables are read and never written: values, caches and dual values stay as they
    are. A quadratic objective stays quadratic.

    Args:
        problem: must be DPP (https://www.cvxpy.org/tutorial/dpp), or DGP and DPP with gp=True.
        parameters: all parameters of the problem, in the order in which values will be passed.
        variables: what to return: variables of the problem, or dual variables (`constraint.dual_variables[k]`).
        gp: whether the problem is a geometric program.

    Returns:
        a program that pickles and works without cvxpy; `print` it to see what it is.

    Raises:
        ArgumentError: the lists do not match the problem.
        NotDCPError, NotDPPError: the problem does not follow CVXPY's rules; the message names the sub-expression.
        UnsupportedProblemError: complex or integer variables, or something unknown in CVXPY's problem data.

    Examples:
        >>> import cvxpy as cp, convexlayers as cl
        >>> x, t = cp.Variable(2), cp.Parameter(2)
        >>> program = cl.compile_problem(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0]), [t], [x])
        >>> program.structure.cones.describe()
        'zero 2, nonnegative 2'
    """
    start = time.perf_counter()
    check_version()
    parameters, variables = as_list("parameters", parameters), as_list("variables", variables)
    check_arguments(problem, parameters, variables)
    check_problem(problem, gp)
    canonical = canonicalize(problem, gp)
    infos = describe_parameters(parameters)
    blocks, columns = parameter_blocks(parameters, infos, canonical)
    structure, affine, row_maps = extract(canonical.stuffed, columns)
    outputs = describe_outputs(problem, variables, canonical, structure, row_maps)
    maximizes = isinstance(problem.objective, cp.Maximize)
    return ParametrizedConeProgram(
        structure=structure,
        map=affine,
        blocks=blocks,
        parameters=infos,
        outputs=outputs,
        objective_sign=-1.0 if maximizes else 1.0,
        objective_exponential=gp,
        title=f"{'maximize' if maximizes else 'minimize'} {_shorten(str(problem.objective.args[0]))}",
        row_groups=describe_rows(problem, canonical, row_maps),
        compile_seconds=time.perf_counter() - start,
    )


def _shorten(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."
