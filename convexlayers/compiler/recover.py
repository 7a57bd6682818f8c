"""From solution vectors back to the user's variables and dual variables.

Duals. A cone constraint with argument e, s = R e, enters the Lagrangian as -z's = -(R'z)'e, so its dual in the space of
its argument is R'z. CVXPY's convention is that of the Lagrangian f + y'(lhs - rhs) for equalities, whose rows are
s = -e: there the dual is -R'z = z; and a multiplier in the dual cone for everything else.
"""

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.constraints.second_order import SOC
from cvxpy.constraints.zero import Zero
from cvxpy.reductions.cvx_attr2constr import recover_value_for_leaf

from convexlayers.compiler.canonicalize import Canonical
from convexlayers.compiler.tensors import RowMap
from convexlayers.errors import UnsupportedProblemError
from convexlayers.maps import SparseMap
from convexlayers.program import OutputInfo, Structure


def describe_outputs(
    problem: cp.Problem,
    variables: Sequence[cp.Variable],
    canonical: Canonical,
    structure: Structure,
    row_maps: dict[int, RowMap],
) -> tuple[OutputInfo, ...]:
    """How each requested variable or dual variable is read off the solution."""
    duals = {
        dual.id: (constraint, position)
        for constraint in problem.constraints
        for position, dual in enumerate(constraint.dual_variables)
    }
    outputs = []
    for variable in variables:
        if variable.id in duals:
            constraint, position = duals[variable.id]
            outputs.append(_dual_output(constraint, position, canonical, structure, row_maps))
        else:
            outputs.append(_primal_output(variable, canonical, structure))
    return tuple(outputs)


def _primal_output(variable: cp.Variable, canonical: Canonical, structure: Structure) -> OutputInfo:
    leaf = canonical.log_variables.get(variable.id, variable)
    index = _variable_index(leaf, canonical)
    return OutputInfo(
        name=variable.name(),
        shape=tuple(variable.shape),
        source="x",
        map=SparseMap.selection(index.reshape(-1), structure.n),
        exponential=leaf is not variable,
    )


def _variable_index(leaf: cp.Variable, canonical: Canonical) -> np.ndarray:
    """Position in x of every entry of a variable, -1 for structural zeros."""
    starts = canonical.stuffed.var_id_to_col
    original, reduced = canonical.reduced_variables.get(leaf.id, (None, None))
    key = reduced.id if reduced is not None else leaf.id
    if key not in starts:
        # CVXPY drops variables without entries; any other one is in x.
        assert leaf.size == 0, f"{leaf.name()} is not in the cone program"
        return np.zeros(leaf.shape, dtype=np.int64)
    if original is None or not original._has_dim_reducing_attr:
        return starts[key] + np.arange(leaf.size).reshape(leaf.shape, order="F")
    # CVXPY rebuilds a matrix from its free entries by copying them: sent through it, their numbers come back in place.
    free = _free_entries(original)
    rebuilt: Any = recover_value_for_leaf(original, np.arange(1.0, free + 1), project=False)
    numbers = np.asarray(rebuilt.toarray() if hasattr(rebuilt, "toarray") else rebuilt).astype(np.int64)
    return np.where(numbers > 0, starts[key] + numbers - 1, -1)


def _free_entries(variable: cp.Variable) -> int:
    if variable.sparse_idx is not None or variable.attributes["diag"]:
        return variable._reduced_size
    order = variable.shape[-1]
    return int(np.prod(variable.shape[:-2], dtype=int)) * order * (order + 1) // 2


def _dual_output(
    constraint: Any, position: int, canonical: Canonical, structure: Structure, row_maps: dict[int, RowMap]
) -> OutputInfo:
    dual = constraint.dual_variables[position]
    name = f"dual of {constraint}"
    if constraint.id in canonical.approximated:
        raise UnsupportedProblemError(
            f"The {name} is not available: CVXPY replaces this constraint by several others. Return variables instead, "
            "or write it with three-dimensional power cones."
        )
    final = canonical.constraint_ids[constraint.id]
    if final not in row_maps:
        assert dual.size == 0, f"{constraint} is not in the cone program"
        return OutputInfo(name, tuple(dual.shape), "z", SparseMap.selection(np.zeros(0), structure.m))
    rows = row_maps[final]
    stuffed = next(c for c in canonical.stuffed.constraints if c.id == final)
    sign = -1.0 if isinstance(stuffed, Zero) else 1.0
    entry = np.arange(dual.size).reshape(dual.shape)  # row-major position of each entry of the dual
    if isinstance(constraint, SOC) and position == 1 and constraint.axis == 1:
        entry = entry.T  # CVXPY stacks the transpose of X
    flat = entry.reshape(-1, order="F")
    values = sign * rows.factor[position]
    return OutputInfo(
        name=name,
        shape=tuple(dual.shape),
        source="z",
        map=SparseMap(flat, rows.rows[position], values, (dual.size, structure.m)),
    )
