"""A vectorised bracketed root finder for the projections that have no closed form."""

from collections.abc import Callable

import torch
from torch import Tensor

ITERATIONS = 200


def increasing_root(function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Tensor:
    """Root of a function that changes sign from - to + once between lower and upper, or the end it is nearest to.

    Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without using
    derivatives", Advances in Engineering Software 28 (1997): inverse quadratic interpolation where its test says that
    it is safe, bisection elsewhere. Each entry stops by itself, so that it does not depend on the others.

    Args:
        function: maps a tensor to a tensor of the same shape, entry by entry; infinite values are bisected away.
        lower, upper: the bracket, same shape.
    """
    a, b = upper, lower
    fa, fb = function(a), function(b)
    c, fc = a, fa
    t = torch.full_like(a, 0.5)
    # Rounding may leave no change of sign for a root at an end of the bracket.
    at_lower, at_upper = fb >= 0, (fa <= 0) & (fb < 0)
    done = at_lower | at_upper
    epsilon, tiny = torch.finfo(a.dtype).eps, torch.finfo(a.dtype).tiny
    for _ in range(ITERATIONS):
        new = a + t * (b - a)
        f_new = function(new)
        same = (f_new > 0) == (fa > 0)
        c, fc = torch.where(done, c, torch.where(same, a, b)), torch.where(done, fc, torch.where(same, fa, fb))
        b, fb = torch.where(done | same, b, a), torch.where(done | same, fb, fa)
        a, fa = torch.where(done, a, new), torch.where(done, fa, f_new)
        nearest = torch.where(fa.abs() < fb.abs(), a, b)
        limit = (epsilon * nearest.abs() + tiny) / (b - a).abs()
        done = done | ~(limit < 0.5) | (fa == 0)
        if bool(done.all()):
            break
        t = _interpolate(a, b, c, fa, fb, fc).clamp(min=limit.clamp(max=0.5), max=1 - limit.clamp(max=0.5))
    root = torch.where(fa.abs() < fb.abs(), a, b)
    return torch.where(at_lower, lower, torch.where(at_upper, upper, root))


def _interpolate(a: Tensor, b: Tensor, c: Tensor, fa: Tensor, fb: Tensor, fc: Tensor) -> Tensor:
    """Where between a and b to look next, as a share of b - a."""
    position, height = (a - b) / (c - b), (fa - fb) / (fc - fb)
    safe = (height**2 < position) & ((1 - height) ** 2 < 1 - position)
    t = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
    return torch.where(safe & t.isfinite(), t, torch.full_like(t, 0.5))
