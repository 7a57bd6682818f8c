"""Announcing derivatives that are not exact."""

import warnings

from convexlayers.errors import DerivativeWarning, count_of
from convexlayers.solution import DerivativeReport

# A derivative whose linear system was solved worse than this is announced.
RESIDUAL_WORTH_A_WARNING = 1e-6
NOT_UNIQUE = (
    "the solution or its multipliers are not unique there, or the data are badly scaled. The least-squares derivative "
    "of minimum norm was returned."
)
NO_POINT = (
    "the derivative strategy found no point to take it at. With Smoothed, the constraints have no interior there, or "
    "the set of solutions is unbounded; with Perturbed, the perturbed problems have no solution: lower tau or raise "
    "rho."
)


def warn_of_residual(report: DerivativeReport) -> None:
    """Announce derivatives whose linear system has no solution, or was not solved accurately."""
    if report.residual is None or report.all_accurate:
        return
    large = report.residual > RESIDUAL_WORTH_A_WARNING
    number = int(large.sum())
    if number == 0:
        return
    first = int(large.nonzero()[0])
    residual = float(report.residual[first])
    warnings.warn(
        f"The derivative of {count_of(number, 'element')} of {large.numel()} is not exact (first index {first}, "
        f"relative residual {residual:.1e}): {NO_POINT if residual == float('inf') else NOT_UNIQUE}",
        DerivativeWarning,
        stacklevel=4,
    )
