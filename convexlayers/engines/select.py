"""The only place that chooses an engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from convexlayers.derivatives import Cotangents, Derivative, Tangents
from convexlayers.engines.base import Engine, Plan
from convexlayers.engines.clarabel import Clarabel
from convexlayers.engines.diffcp import DiffCP
from convexlayers.engines.native import Native, NativePlan
from convexlayers.engines.scs import SCS
from convexlayers.engines.torch_dense import Torch, TorchPlan, TorchState
from convexlayers.errors import ArgumentError
from convexlayers.program import ParametrizedConeProgram
from convexlayers.solution import Point, Solution


def is_elsewhere(theta: Sequence[Tensor]) -> bool:
    """Whether data live on another device than the CPU."""
    return bool(theta) and not theta[0].is_cpu


class AutoPlan(NativePlan):
    """The native plan, which leaves data that live on another device than the CPU to the plan of `Torch`."""

    def __init__(self, program: ParametrizedConeProgram, engine: Native, auto: "Auto") -> None:
        super().__init__(program, engine)
        self.auto = auto

    @cached_property
    def elsewhere(self) -> TorchPlan:
        """The plan for the other devices."""
        return Torch(**_settings(self.auto)).setup(self.program)

    @property
    def resolving_engine(self) -> Engine:  # type: ignore[override]
        return self.auto

    def solve(self, theta: Sequence[Tensor], start: Point | None = None) -> Solution:
        return self.elsewhere.solve(theta, start) if is_elsewhere(theta) else super().solve(theta, start)

    def states(self, solution: Solution) -> tuple[Tensor, ...]:
        if not isinstance(solution.engine_state, TorchState):
            return super().states(solution)
        # The other plan needs none; compiled graphs want the same tensors wherever the data live.
        batch = solution.x.shape[0]
        return tuple(torch.zeros((batch, *tail), dtype=kind, device="cpu") for tail, kind in self.state_shapes())

    def adjoint(
        self, theta: Sequence[Tensor], solution: Solution, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        if is_elsewhere(theta) or isinstance(solution.engine_state, TorchState):
            return self.elsewhere.adjoint(theta, solution, cotangents, wanted)
        return super().adjoint(theta, solution, cotangents, wanted)

    def tangent(self, theta: Sequence[Tensor], solution: Solution, dtheta: Sequence[Tensor | None]) -> Tangents:
        if is_elsewhere(theta) or isinstance(solution.engine_state, TorchState):
            return self.elsewhere.tangent(theta, solution, dtheta)
        return super().tangent(theta, solution, dtheta)


def _settings(engine: Engine) -> dict[str, Any]:
    """What every engine can be told, as this one was."""
    return {field.name: getattr(engine, field.name) for field in fields(Engine)}


@dataclass(frozen=True)
class Auto(Engine):
    """The engine that suits the program and where its data live: native for the CPU, torch for other devices."""

    @property
    def name(self) -> str:
        return "auto"

    def choose(self, program: ParametrizedConeProgram) -> Native:
        """The engine for a program whose data live on the CPU, with the same settings."""
        return Native(**_settings(self))

    def explain(self, program: ParametrizedConeProgram) -> str:
        """What is chosen for a program, and why, in one sentence."""
        return (
            f"{self.choose(program).name}: it has every cone, and solves batches in SIMD lanes; data on another device "
            "than the CPU stay there, and torch solves them by the same method."
        )

    def setup(self, program: ParametrizedConeProgram) -> Plan:
        native = self.choose(program)
        native.check_options()
        return AutoPlan(program, native, self)


ENGINES: dict[str, Callable[..., Engine]] = {
    "auto": Auto,
    "native": Native,
    "torch": Torch,
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
