"""Which of the user's constraints the rows of the cone program are.

A constraint of the user's keeps an id that can be followed through CVXPY's reductions. All other rows were introduced
on the way: by an attribute of a variable, which they contain and nothing else, or by an atom, together with variables
that the user does not know. Those lead back to whom they were introduced for: the objective or constraint that they
stand in, directly or through other such rows.
"""

from collections.abc import Iterable
from typing import Any

import cvxpy as cp
from cvxpy.constraints.psd import PSD

from convexlayers.compiler.canonicalize import Canonical
from convexlayers.compiler.tensors import RowMap
from convexlayers.program import RowGroup

OBJECTIVE = "the objective"
UNKNOWN = "a reformulation of the problem"
LONGEST_LABEL = 80


def describe_rows(problem: cp.Problem, canonical: Canonical, row_maps: dict[int, RowMap]) -> tuple[RowGroup, ...]:
    """The rows of every cone constraint under the user's name for it."""
    final = {canonical.constraint_ids[constraint.id]: constraint for constraint in problem.constraints}
    labels = {key: _label(constraint) for key, constraint in final.items()}
    owners = _owners(canonical, labels, _known(canonical, problem))
    declared = _declared(problem, canonical)
    groups = []
    for stuffed in canonical.stuffed.constraints:
        names = {variable.id for variable in stuffed.variables()}
        if stuffed.id in final:
            label = labels[stuffed.id]
        elif len(names) == 1 and names <= declared.keys():
            label = declared[names.pop()]
        else:
            label = f"{owners.get(stuffed.id, UNKNOWN)} (introduced by an atom)"
        groups.append(_group(label, stuffed, row_maps[stuffed.id]))
    return tuple(group for group in groups if len(group.rows))


def _label(constraint: Any) -> str:
    """The label that the user gave, or the text."""
    label = getattr(constraint, "label", None)
    text = " ".join(str(label if label else constraint).split())
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 3] + "..."


def _known(canonical: Canonical, problem: cp.Problem) -> set[int]:
    """Ids of the user's variables, in every form they take."""
    known = {variable.id for variable in [*problem.variables(), *canonical.log_variables.values()]}
    return known | {reduced.id for _, reduced in canonical.reduced_variables.values() if reduced is not None}


def _declared(problem: cp.Problem, canonical: Canonical) -> dict[int, str]:
    """Name and attributes of the user's variables that have any, by the ids they have in the cone program."""
    labels = {}
    for variable in problem.variables():
        names = [name for name, value in variable.attributes.items() if value is not None and value is not False]
        leaf = canonical.log_variables.get(variable.id, variable)
        _, reduced = canonical.reduced_variables.get(leaf.id, (None, None))
        labels[(reduced or leaf).id] = f"{variable.name()}, declared {', '.join(names)}" if names else variable.name()
    return labels


def _owners(canonical: Canonical, labels: dict[int, str], known: set[int]) -> dict[int, str]:
    """Whom each constraint was introduced for, by its id: what can be reached through variables the user lacks."""

    def introduced(ids: Iterable[int]) -> set[int]:
        return set(ids) - known

    variables = {c.id: introduced(v.id for v in c.variables()) for c in canonical.stuffed.constraints}
    found: dict[int, str] = {}
    sources = [(OBJECTIVE, introduced(canonical.objective_variables))]
    sources += [(label, variables[key]) for key, label in labels.items() if key in variables]
    for label, start in sources:
        front = set(start)
        while front:
            reached = [key for key, own in variables.items() if key not in found and key not in labels and own & front]
            found |= dict.fromkeys(reached, label)
            front = set().union(*(variables[key] for key in reached))
    return found


def _group(label: str, stuffed: Any, rows: RowMap) -> RowGroup:
    shape, first = tuple(stuffed.args[0].shape), rows.rows[0]
    if isinstance(stuffed, PSD):
        first = first.reshape(shape, order="F").min(axis=(-2, -1))
        return RowGroup(label, first.reshape(-1), shape[:-2])
    return RowGroup(label, first.reshape(shape, order="F").reshape(-1), shape)
