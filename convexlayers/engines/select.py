"""The only place that chooses an engine."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from convexlayers.derivatives import Derivative
from convexlayers.engines.base import Engine, Plan
from convexlayers.engines.clarabel import Clarabel
from convexlayers.engines.diffcp import DiffCP
from convexlayers.engines.native import Native
from convexlayers.engines.scs import SCS
from convexlayers.errors import ArgumentError
from convexlayers.program import ParametrizedConeProgram


@dataclass(frozen=True)
class Auto(Engine):
    """The engine that suits the program: native for all of them."""

    @property
    def name(self) -> str:
        return "auto"

    def choose(self, program: ParametrizedConeProgram) -> Engine:
        """The engine for a program, with the same settings."""
        return Native(**{field.name: getattr(self, field.name) for field in fields(self)})

    def explain(self, program: ParametrizedConeProgram) -> str:
        """What is chosen for a program, and why, in one sentence."""
        return f"{self.choose(program).name}: it has every cone, and solves batches in SIMD lanes."

    def setup(self, program: ParametrizedConeProgram) -> Plan:
        return self.choose(program).setup(program)


ENGINES: dict[str, Callable[..., Engine]] = {
    "auto": Auto,
    "native": Native,
    "clarabel": Clarabel,
    "scs": SCS,
    "diffcp": DiffCP,
}


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
    if not isinstance(solver, str) or solver.lower() not in ENGINES:
        known = ", ".join(repr(known) for known in ENGINES)
        raise ArgumentError(f"solver is {solver!r}, expected one of {known} or an engine object.")
    return ENGINES[solver.lower()](**given)
