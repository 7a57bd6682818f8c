"""Settings of SCS, Clarabel and diffcp, as users of other packages pass them, in this library's terms.

Accuracies and iteration limits have a counterpart; diffcp's modes "lpgd", "lpgd_right", "lpgd_left" are `Perturbed`.
All others steer a method that is not used here; they are named in one warning.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from convexlayers.derivatives import Derivative, Exact, Perturbed
from convexlayers.engines import Engine
from convexlayers.errors import ArgumentError

# SCS, Clarabel, ECOS, moreau.
ACCURACIES = frozenset(
    ["eps", "eps_abs", "eps_rel", "tol_gap_abs", "tol_gap_rel", "tol_feas", "abstol", "reltol", "feastol"]
    + ["tol", "tolerance"]
)
LIMITS = frozenset(["max_iters", "max_iter", "max_iterations"])
EXACT_MODES = frozenset(["lsqr", "lsmr", "dense"])
# What has an effect, or asks for what happens anyway.
HEEDED = ACCURACIES | LIMITS | {"mode", "derivative_kwargs", "ipm_settings"}
# Along the cotangent is "right" there and "lower" here.
SIDES = {"lpgd": "average", "lpgd_right": "lower", "lpgd_left": "upper"}


@dataclass(frozen=True)
class Settings:
    """What other packages' settings mean here.

    Attributes:
        tolerance: the smallest accuracy that was asked for, None for none.
        max_iterations: None for none.
        derivative: None where no mode was given.
        ignored: names of settings without a counterpart, sorted.
    """

    tolerance: float | None = None
    max_iterations: int | None = None
    derivative: Derivative | None = None
    ignored: tuple[str, ...] = ()

    def apply(self, engine: Engine) -> Engine:
        """The engine with these settings in place of its own."""
        fields = ("tolerance", "max_iterations", "derivative")
        changes = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        return replace(engine, **changes) if changes else engine

    def warn(self, stacklevel: int = 3) -> None:
        """Name what is ignored, if anything is."""
        if self.ignored:
            names = ", ".join(map(repr, self.ignored))
            warnings.warn(
                f"Ignored, since they steer a method that convexlayers does not use: {names}.", stacklevel=stacklevel
            )


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Translate.

    Args:
        given: settings by name, as `solver_args` of cvxpylayers or keyword arguments of diffcp.

    Raises:
        ArgumentError: an accuracy or a limit is no number of its kind, or a mode is not known.
    """
    # moreau's are one level deeper.
    nested = given.get("ipm_settings")
    if isinstance(nested, Mapping):
        given = {**nested, **{name: value for name, value in given.items() if name != "ipm_settings"}}
    accuracies = [_accuracy(name, given[name]) for name in sorted(ACCURACIES & given.keys())]
    limits = [_limit(name, given[name]) for name in sorted(LIMITS & given.keys())]
    known = ACCURACIES | LIMITS | {"mode"}
    ignored = {name for name in given.keys() - known if not _is_idle(name, given[name])}
    mode, options = given.get("mode"), given.get("derivative_kwargs") or {}
    derivative = None if mode is None else read_mode(mode, options)
    if isinstance(derivative, Perturbed):
        ignored -= {"derivative_kwargs"}
    return Settings(
        tolerance=min(accuracies) if accuracies else None,
        max_iterations=min(limits) if limits else None,
        derivative=derivative,
        ignored=tuple(sorted(ignored)),
    )


def read_mode(mode: str, options: Mapping[str, Any]) -> Derivative:
    """The derivative strategy behind one of diffcp's modes.

    Args:
        mode: "lsqr", "lsmr", "dense" (all are `Exact`), "lpgd", "lpgd_right" or "lpgd_left".
        options: of the last three: "tau" and "rho", relative here, see `Perturbed`.

    Raises:
        ArgumentError: the mode or an option is not known.
    """
    if mode in EXACT_MODES:
        return Exact()
    if mode not in SIDES:
        raise ArgumentError(
            f"mode is {mode!r}, expected one of {', '.join(map(repr, [*sorted(EXACT_MODES), *SIDES]))}."
        )
    unknown = options.keys() - {"tau", "rho"}
    if unknown:
        raise ArgumentError(f"derivative_kwargs: unknown keys {sorted(unknown)}, expected 'tau' and 'rho'.")
    return Perturbed(side=SIDES[mode], **options)


def _accuracy(name: str, value: Any) -> float:
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        raise ArgumentError(f"{name} is {value!r}, expected a number between 0 and 1.")
    return float(value)


def _limit(name: str, value: Any) -> int:
    if not isinstance(value, Real) or float(value) < 1 or not float(value).is_integer():
        raise ArgumentError(f"{name} is {value!r}, expected a whole number of at least 1.")
    return int(float(value))


def _is_idle(name: str, value: Any) -> bool:
    """Whether a setting asks for what happens anyway: silence."""
    return name == "verbose" and not value
