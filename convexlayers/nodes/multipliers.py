"""Which inequalities are active at a point, and the multipliers there.

An inequality is a candidate where its slack, as a distance, is within what the solver's tolerance leaves open; a
generous margin does no harm, because the multiplier decides: of the candidates those are active whose multiplier is
positive. Multipliers solve

    minimize |grad f + A'lam|    subject to    lam >= 0 for inequalities

over equalities and candidates: by least squares of minimum norm, and by nonnegative least squares (Lawson, Hanson,
"Solving Least Squares Problems", 1974) in the elements where that gives a wrong sign. A candidate whose multiplier is
zero is weakly active: the solution has one-sided derivatives there, and the one without the constraint is taken.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Slack up to this multiple of the tolerance makes a candidate, ...
SLACK_FACTOR = 100.0
# ... and a multiplier up to this one, relative to gradients of the objective around the point, counts as zero.
MULTIPLIER_FACTOR = 10.0


@dataclass(frozen=True, eq=False)
class Multipliers:
    """What holds with equality, and how hard it pushes.

    Attributes:
        lam: (B, m), zero for inactive inequalities.
        active: (B, m), True for equalities.
        weakly_active: whether an inequality holds with equality and a zero multiplier, (B,).
    """

    lam: Tensor
    active: Tensor
    weakly_active: Tensor


def find_multipliers(
    gradient: Tensor,
    A: Tensor,
    c: Tensor,
    y: Tensor,
    scale: Tensor,
    equalities: int,
    tolerance: float,
    given: Tensor | None = None,
) -> Multipliers:
    """Find them.

    Args:
        gradient: of the objective, (B, n).
        A: Jacobian of the constraints, (B, m, n). c: their values, (B, m).
        y: the point, (B, n).
        scale: of gradients of the objective around it, (B,).
        equalities: how many of the constraints are, from the first on.
        tolerance: relative accuracy of the point.
        given: multipliers that the solver has, (B, m).
    """
    norms = A.norm(dim=2)
    candidates = distances(c, norms, y) <= SLACK_FACTOR * tolerance
    candidates[:, :equalities] = True
    # Rows of length one, so that neither ranks nor thresholds depend on how a constraint is written.
    rows = A / torch.where(norms > 0, norms, torch.ones_like(norms)).unsqueeze(2)
    if given is None:
        pushes = _least_squares(gradient, rows, candidates)
        wrong = (candidates & (pushes < 0))[:, equalities:].any(1)
        for element in wrong.nonzero().squeeze(1).tolist():
            pushes[element] = _nonnegative(gradient[element], rows[element], candidates[element], equalities)
    else:
        pushes = given * norms
    zero = MULTIPLIER_FACTOR * tolerance * scale.unsqueeze(1)
    active = candidates & (pushes > zero)
    active[:, :equalities] = True
    weak = (candidates & ~active).any(1)
    pushes = _least_squares(gradient, rows, active) if given is None else pushes * active
    return Multipliers(pushes / torch.where(norms > 0, norms, torch.ones_like(norms)), active, weak)


def distances(c: Tensor, norms: Tensor, y: Tensor) -> Tensor:
    """How far y is from c_i = 0 by its linearization, relative to the size of y, (B, m)."""
    size = norms * y.abs().amax(1, keepdim=True).clamp(min=1)
    # A constraint whose gradient vanishes is as far away as its value says: there is no better unit.
    return c.abs() / torch.where(size > 0, size, torch.ones_like(size))


def _least_squares(gradient: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """lam of minimum norm with grad f + A'lam smallest, zero outside the mask, (B, m)."""
    if rows.shape[1] == 0:
        return rows.new_zeros(rows.shape[:2])
    masked = rows * mask.unsqueeze(2)
    return -(torch.linalg.pinv(masked.mT, rtol=1e-12) @ gradient.unsqueeze(2)).squeeze(2) * mask


def _nonnegative(gradient: Tensor, rows: Tensor, mask: Tensor, equalities: int) -> Tensor:
    """One element by nonnegative least squares; a multiplier of an equality is a difference of two."""
    from scipy.optimize import nnls

    indices = mask.nonzero().squeeze(1).cpu().numpy()
    matrix = rows.cpu().numpy()[indices].T
    free = indices < equalities
    found, _ = nnls(np.concatenate([matrix, -matrix[:, free]], 1), -gradient.cpu().numpy())
    found[: free.sum()] -= found[len(indices) :]
    lam = torch.zeros_like(rows[:, 0])
    lam[mask] = torch.from_numpy(found[: len(indices)]).to(lam)
    return lam
