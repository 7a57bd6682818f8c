"""A vectorised bracketed root finder for the projections that have no closed form."""

from collections.abc import Callable

import torch
from torch import Tensor

ITERATIONS = 128


def increasing_root(function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Tensor:
    """Root of a function that changes sign from - to + once between lower and upper, by bisection.

    Bisection takes only signs, so infinities are harmless, each entry is independent of the others, and the result is
    exact to the last bit that the evaluation of the function allows.

    Args:
        function: maps a tensor to a tensor of the same shape, entry by entry.
        lower, upper: the bracket, same shape.
    """
    for _ in range(ITERATIONS):
        middle = lower + 0.5 * (upper - lower)
        if bool(((middle <= lower) | (middle >= upper)).all()):
            break
        above = function(middle) > 0
        lower, upper = torch.where(above, lower, middle), torch.where(above, middle, upper)
    return lower + 0.5 * (upper - lower)
