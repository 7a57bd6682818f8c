"""The only place that chooses an engine."""

from collections.abc import Callable

from convexlayers.derivatives import Derivative
from convexlayers.engines.base import Engine
from convexlayers.engines.clarabel import Clarabel
from convexlayers.engines.diffcp import DiffCP
from convexlayers.engines.scs import SCS
from convexlayers.errors import ArgumentError

ENGINES: dict[str, Callable[..., Engine]] = {"clarabel": Clarabel, "scs": SCS, "diffcp": DiffCP}
DEFAULT = "clarabel"


def make_engine(
    solver: str | Engine = "auto",
    *,
    derivative: Derivative | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    threads: int | None = None,
) -> Engine:
    """The engine that a user's choice stands for.

    Args:
        solver: "auto", the name of an engine, or an engine object, which is returned as it is.
        derivative, tolerance, max_iterations, threads: see `Engine`; None for its defaults.

    Raises:
        ArgumentError: the name is not known, or settings come with an engine object, which has its own.
    """
    settings = {
        "derivative": derivative,
        "tolerance": tolerance,
        "max_iterations": max_iterations,
        "threads": threads,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(solver, Engine):
        if given:
            raise ArgumentError(f"{', '.join(given)} given beside an engine object: set them on the engine.")
        return solver
    name = DEFAULT if solver == "auto" else solver
    if not isinstance(name, str) or name.lower() not in ENGINES:
        known = ", ".join(repr(known) for known in ["auto", *ENGINES])
        raise ArgumentError(f"solver is {solver!r}, expected one of {known} or an engine object.")
    return ENGINES[name.lower()](**given)
