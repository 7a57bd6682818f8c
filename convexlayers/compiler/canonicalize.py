"""CVXPY's own reductions, up to and not including a solver: DCP -> cone constraints with affine arguments -> tensors.

CVXPY's solving chain is not used: it ends in a solver's own format, and it writes to the problem's caches.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
from cvxpy.constraints.exponential import ExpCone
from cvxpy.constraints.nonpos import Inequality, NonNeg, NonPos
from cvxpy.constraints.power import PowCone3D, PowConeND
from cvxpy.constraints.psd import PSD
from cvxpy.constraints.second_order import SOC
from cvxpy.constraints.zero import Equality, Zero
from cvxpy.reductions.cone2cone.approx import APPROX_CONE_CONVERSIONS, ApproxCone2Cone
from cvxpy.reductions.cone2cone.exact import ExactCone2Cone
from cvxpy.reductions.cvx_attr2constr import CvxAttr2Constr
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg
from cvxpy.reductions.dcp2cone.dcp2cone import Dcp2Cone
from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp
from cvxpy.reductions.eliminate_zero_sized import EliminateZeroSized
from cvxpy.reductions.flip_objective import FlipObjective
from cvxpy.settings import COO_CANON_BACKEND, DPP_PARAM_THRESHOLD
from cvxpy.utilities import scopes
from cvxpy.utilities.solver_context import SolverInfo

from convexlayers.compiler.stuffing import SparseStuffing
from convexlayers.errors import NotDPPError, UnsupportedProblemError

CONES = frozenset({Zero, NonNeg, SOC, PSD, ExpCone, PowCone3D})

# Everything that a ParamConeProg of the supported CVXPY versions holds. Content under another name is an error.
KNOWN_CONTENT = frozenset(
    ["q", "A", "P", "x", "lower_bounds", "upper_bounds", "lb_tensor", "ub_tensor", "reduced_A", "reduced_P"]
    + ["constraints", "constr_size", "constr_map", "cone_dims", "parameters", "param_id_to_col", "id_to_param"]
    + ["param_id_to_size", "total_param_size", "variables", "var_id_to_col", "id_to_var", "formatted", "dir_cones"]
)
MUST_BE_EMPTY = ("lower_bounds", "upper_bounds", "lb_tensor", "ub_tensor", "dir_cones")


@dataclass
class Canonical:
    """A problem as CVXPY's tensors, with the trail back to the user's objects.

    Attributes:
        stuffed: CVXPY's parametrized cone program.
        constraint_ids: id of the user's constraint -> id of the cone constraint that carries its dual.
        approximated: ids of user's constraints that were replaced by an approximation or a decomposition.
        logarithms: gp only: parameter id -> the parameter that holds its logarithm.
        log_variables: gp only: variable id -> the variable that holds its logarithm.
        reduced_parameters: parameter id -> (parameter with attributes, its reduced form).
        objective_variables: ids of the variables in the reduced objective.
        reduced_variables: variable id -> (variable with attributes, its reduced form or None if it kept its id).
    """

    stuffed: ParamConeProg
    constraint_ids: dict[int, int]
    approximated: set[int] = field(default_factory=set)
    objective_variables: frozenset[int] = frozenset()
    logarithms: dict[int, cp.Parameter] = field(default_factory=dict)
    log_variables: dict[int, cp.Variable] = field(default_factory=dict)
    reduced_parameters: dict[int, tuple[cp.Parameter, cp.Parameter]] = field(default_factory=dict)
    reduced_variables: dict[int, tuple[cp.Variable, cp.Variable | None]] = field(default_factory=dict)


def canonicalize(problem: cp.Problem, gp: bool) -> Canonical:
    """Reduce a problem that `accept` has accepted.

    Raises:
        UnsupportedProblemError: CVXPY produced something unknown.
        NotDPPError: its reformulation is not affine in the parameters.
    """
    with warnings.catch_warnings():
        # CVXPY warns of how it does things (backends, copies of deprecated constraints, sparse values); its user cannot
        # do anything about that here, and was warned of his own part when he built the problem.
        warnings.simplefilter("ignore")
        return _reduce(problem, gp)


def _reduce(problem: cp.Problem, gp: bool) -> Canonical:
    trail = {constraint.id: constraint.id for constraint in problem.constraints}
    canonical = Canonical(stuffed=None, constraint_ids=trail)  # type: ignore[arg-type]
    current = problem
    if gp:
        current = _remove_logarithms(current, canonical)
    if isinstance(current.objective, cp.Maximize):
        current = FlipObjective().apply(current)[0]
    # perspective() canonicalizes its function for the solver named here; nothing else reads the name.
    context = SolverInfo(solver=cp.CLARABEL, supported_constraints=CONES, supports_bounds=False)
    current = _follow(canonical, Dcp2Cone(quad_obj=True, solver_context=context), current)
    current = _remove_attributes(current, canonical)
    current = _convert_cones(current, canonical)
    current = _follow(canonical, EliminateZeroSized(), current)
    _check_constraints(current)
    canonical.objective_variables = frozenset(variable.id for variable in current.objective.variables())
    stuffing = SparseStuffing(quad_obj=True, canon_backend=_backend(current))
    try:
        canonical.stuffed = stuffing.apply(current)[0]
    except AssertionError as error:  # CVXPY's own check that coefficients are affine in the parameters
        raise _not_affine([parameter.name() for parameter in current.parameters()]) from error
    _check_content(canonical.stuffed)
    return canonical


def _backend(problem: cp.Problem) -> str | None:
    """CVXPY's own rule: the coordinate backend for many parameters, its default otherwise."""
    size = sum(parameter.size for parameter in problem.parameters())
    return COO_CANON_BACKEND if size >= DPP_PARAM_THRESHOLD else None


def _follow(canonical: Canonical, reduction: Any, problem: cp.Problem) -> cp.Problem:
    """Apply a reduction and follow the ids of the constraints through it."""
    reduced, inverse = reduction.apply(problem)
    if isinstance(inverse, dict):
        ids = inverse.get("cons_id_map", {})
    elif isinstance(inverse, tuple):
        ids = inverse[2] if inverse else {}
    else:
        ids = inverse.cons_id_map
    for key, current in canonical.constraint_ids.items():
        canonical.constraint_ids[key] = ids.get(current, current)
    return reduced


def _remove_logarithms(problem: cp.Problem, canonical: Canonical) -> cp.Problem:
    reduction = Dgp2Dcp()
    reduced = _follow(canonical, reduction, problem)
    methods = reduction.canon_methods
    canonical.logarithms = {original.id: new for original, new in methods._parameters.items()}
    canonical.log_variables = {original.id: new for original, new in methods._variables.items()}
    return reduced


def _remove_attributes(problem: cp.Problem, canonical: Canonical) -> cp.Problem:
    reduction = CvxAttr2Constr(reduce_bounds=True)
    reduced = _follow(canonical, reduction, problem)
    canonical.reduced_parameters = {old.id: (old, new) for old, new in reduction._parameters.items()}
    canonical.reduced_variables = {old.id: (old, new) for old, new in reduction._variables.items()}
    canonical.reduced_variables |= {old.id: (old, None) for old in reduction._symmetric_vars}
    return reduced


def _convert_cones(problem: cp.Problem, canonical: Canonical) -> cp.Problem:
    """Cones outside the library's six: exactly where that is possible, by CVXPY's approximations otherwise."""
    context = SolverInfo(solver=cp.CLARABEL, supported_constraints=CONES)
    for targets, make in (
        ({NonPos, PowConeND}, lambda found: ExactCone2Cone(target_cones=found, solver_context=context)),
        (set(APPROX_CONE_CONVERSIONS), lambda found: ApproxCone2Cone(target_cones=found)),
    ):
        found = {type(constraint) for constraint in problem.constraints} & targets
        if not found:
            continue
        replaced = {c.id for c in problem.constraints if type(c) in found - {NonPos}}
        canonical.approximated |= {key for key, now in canonical.constraint_ids.items() if now in replaced}
        problem = _follow(canonical, make(found), problem)
    return problem


def _check_constraints(problem: cp.Problem) -> None:
    """CVXPY's stuffing drops constraints of types that it does not know."""
    strange = {type(c).__name__ for c in problem.constraints if type(c) not in CONES | {Equality, Inequality}}
    if strange:
        raise UnsupportedProblemError(f"Constraints of type {', '.join(sorted(strange))} are not supported.")
    with scopes.dpp_scope():
        for constraint in problem.constraints:
            bad = [arg for arg in constraint.args if not arg.is_affine()]
            if bad:
                raise _not_affine([parameter.name() for parameter in bad[0].parameters()])


def _not_affine(names: list[str]) -> NotDPPError:
    return NotDPPError(
        f"CVXPY's reformulation of the problem is not affine in {', '.join(names)}: introduce a variable that equals "
        "the expression with the parameters, or one parameter for a product of them, and use that in its place."
    )


def _check_content(stuffed: ParamConeProg) -> None:
    unknown = set(vars(stuffed)) - KNOWN_CONTENT
    if unknown:
        raise UnsupportedProblemError(
            f"This version of CVXPY puts {', '.join(sorted(unknown))} into its cone programs, which is not known here. "
            "Use a supported version of CVXPY."
        )
    for name in MUST_BE_EMPTY:
        content = getattr(stuffed, name, None)
        if content is not None and len(content) > 0:
            raise UnsupportedProblemError(f"CVXPY left {name} in its cone program, which would be ignored.")
    if stuffed.is_mixed_integer():
        raise UnsupportedProblemError("CVXPY introduced integer variables.")
    strange = {type(c).__name__ for c in stuffed.constraints if type(c) not in CONES}
    if strange:
        raise UnsupportedProblemError(
            f"CVXPY left constraints of type {', '.join(sorted(strange))} in its cone program."
        )
