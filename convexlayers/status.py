"""Status codes of solved elements, and the sentences that go with them.

A solve never raises for one element of a batch: it records what happened as a code, and the caller's policy
(`raise_for_status`, or NaN in the failed elements) decides what that means.
"""

from enum import IntEnum

import torch
from torch import Tensor

from convexlayers.errors import SolverError, count_of


class Status(IntEnum):
    """What became of one element. Only `SOLVED` counts as a solution."""

    SOLVED = 0
    INACCURATE = 1
    PRIMAL_INFEASIBLE = 2
    DUAL_INFEASIBLE = 3
    MAX_ITERATIONS = 4
    NUMERICAL_ERROR = 5
    INVALID_DATA = 6

    @property
    def sentence(self) -> str:
        """What the code means and what to do about it."""
        return SENTENCES[self]


SENTENCES = {
    Status.SOLVED: "Solved: the residuals are within the tolerance.",
    Status.INACCURATE: (
        "The solver stopped where the residuals are above the tolerance. Rescale the data or loosen the tolerance."
    ),
    Status.PRIMAL_INFEASIBLE: (
        "Infeasible: no point satisfies the constraints. Check the parameter values, or add slacks with a penalty."
    ),
    Status.DUAL_INFEASIBLE: (
        "Unbounded: the objective decreases without limit. Bound the variables or add a quadratic term."
    ),
    Status.MAX_ITERATIONS: (
        "The iteration limit was reached. Raise max_iterations, rescale the data or loosen the tolerance."
    ),
    Status.NUMERICAL_ERROR: "The solver broke down numerically. Rescale the data, or try another engine.",
    Status.INVALID_DATA: "The data contain NaN or Inf. Look for them in the parameters of this element.",
}

RESCUED = "The engine stalled here, and Clarabel was asked: slower, and its status is the one reported."

RELAXED = "No point satisfies the constraints: the closest feasible problem was solved."


def describe(status: Tensor, rescued: Tensor | None = None, relaxed: Tensor | None = None) -> str:
    """Count the codes of a batch in words, with the indices of their first elements.

    Args:
        status: integer tensor of any shape.
        rescued: which elements a second engine was asked for, of the same shape; they get a line of their own.
        relaxed: which elements were replaced by the closest feasible problem; likewise.
    """
    flat = status.reshape(-1)
    groups = [(code.name, flat == int(code), code.sentence) for code in Status]
    for name, mask, sentence in (("Rescued", rescued, RESCUED), ("Relaxed", relaxed, RELAXED)):
        if mask is not None:
            groups.append((name, mask.reshape(-1), sentence))
    return "\n".join(f"{name}: {_count(mask)} {sentence}" for name, mask, sentence in groups if bool(mask.any()))


def _count(mask: Tensor) -> str:
    """How many elements, and the first indices."""
    indices = mask.nonzero().reshape(-1).tolist()
    more = ", ..." if len(indices) > 5 else ""
    return f"{count_of(len(indices), 'element')} (index {', '.join(map(str, indices[:5]))}{more})."


def raise_for_status(status: Tensor) -> None:
    """Raise `SolverError` unless every element is SOLVED.

    Args:
        status: integer tensor of any shape, one code per element; indices in the message count its elements in
            row-major order.

    Raises:
        SolverError: names the number of failed elements, their first indices, their status and what to try.
    """
    failed = status != int(Status.SOLVED)
    number = int(failed.sum())
    if number == 0:
        return
    # Solved elements are left out of the message: it is about what went wrong.
    shown = torch.where(failed, status, torch.full_like(status, -1))
    raise SolverError(
        f"{number} of {count_of(status.numel(), 'element')} not solved.\n{describe(shown)}\n"
        'With on_failure="nan" the failed elements become NaN with zero gradient and the others are returned.',
        status=status,
    )
