"""The face of `cvxpylayers.torch`: `CvxpyLayer` with its arguments, on `ConvexLayer`.

Replace `from cvxpylayers.torch import CvxpyLayer` by `from convexlayers.compat.cvxpylayers import CvxpyLayer`.

What differs: the default accuracy is 1e-8 and not about 1e-4; parameters are checked against their attributes; any
number of batch dimensions, which broadcast; `warm_start=True` works with every solver, and only a layer that was called
with it remembers a solution; a solver that stops early is an error and not a warning. What that package keeps to itself
(`layer.ctx`'s matrices, its buffers) is not there: `layer.layer` is the `ConvexLayer`, `layer.layer.program` the
compiled problem. A `state_dict` of that package holds nothing learned, and is not loaded.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from convexlayers.batching import to_batch
from convexlayers.compat import moreau
from convexlayers.compat.settings import read_settings
from convexlayers.engines import Engine, make_engine
from convexlayers.engines.scs import cone_dict
from convexlayers.errors import ArgumentError, SolverError
from convexlayers.layer import ConvexLayer, LayerSolution
from convexlayers.program import ParametrizedConeProgram

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["CvxpyLayer"]

# That package's names, in capitals; other names are this library's. "MOREAU" is moreau where that is installed.
SOLVERS = {
    None: "auto",
    "DIFFCP": "auto",
    "MOREAU": "auto",
    "CUCLARABEL": "auto",
    "MPAX": "auto",
    "CLARABEL": "clarabel",
    "SCS": "scs",
}
# Layers with settings of one call that are kept for the next one.
REMEMBERED = 8
# What that package's layers, of version 1 and 0.1, have besides, and where its like is here.
PROGRAM = "the compiled problem is layer.layer.program"
ELSEWHERE = {
    **dict.fromkeys(["P", "q", "A", "_P_scipy", "_q_scipy", "_A_scipy", "compiler", "cone_dims", "param_ids"], PROGRAM),
    **dict.fromkeys(["cp_problem", "params", "param_order", "variables", "var_dict", "gp", "dgp2dcp"], "see layer.ctx"),
    "info": "layer.layer.solve(...) returns status, iterations and residuals of every element",
    "_warm_start_cache": "layer.layer.solve(..., warm_start=solution) begins at an earlier solution",
}


@dataclass(frozen=True, eq=False)
class LayersContext:
    """What of that package's context can be told: the rest raises an AttributeError that says where to look.

    Attributes:
        problem, parameters, variables, gp: as the layer was given them.
        solver: name of the engine.
        program: the compiled problem.
    """

    problem: "cp.Problem"
    parameters: Sequence["cp.Parameter"]
    variables: Sequence["cp.Variable"]
    gp: bool
    solver: str
    program: ParametrizedConeProgram

    @property
    def cone_dims(self) -> dict[str, Any]:
        """Sizes of the compiled problem's cones, under SCS's keys."""
        return cone_dict(self.program.structure.cones)

    def validate_params(self, values: Sequence[Tensor]) -> tuple[int, ...]:
        """The batch shape of these values.

        Raises:
            ArgumentError: a ValueError that names the parameter, what came and what was expected.
        """
        if len(values) != len(self.parameters):
            raise ArgumentError(f"{len(values)} values given, expected {len(self.parameters)}.")
        return tuple(to_batch(self.program.parameters, values)[1].shape)

    def __getattr__(self, name: str) -> NoReturn:
        hint = "" if name.startswith("__") else "; see layer.layer.program for the compiled problem"
        raise AttributeError(f"ctx.{name} belongs to cvxpylayers and is not kept here{hint}.")

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayersContext":
        # Copies of CVXPY's objects would be other parameters than the user's.
        return self


class CvxpyLayer(torch.nn.Module):
    """A layer whose outputs solve a parametrized problem, with the arguments of cvxpylayers.

    Args:
        problem: a DPP cvxpy.Problem, or DGP with gp=True.
        parameters: all its parameters, in the order of the call's arguments.
        variables: what to return: variables of the problem or `constraint.dual_variables[k]`.
        solver: None, "DIFFCP", "CUCLARABEL" and "MPAX" are engine "auto", whatever is installed; "CLARABEL" and "SCS"
            the engines of that name; "MOREAU" is moreau where it is installed, "auto" elsewhere; names in small letters
            and engine objects are those of `ConvexLayer`.
        gp: whether the problem is a geometric program.
        verbose, canon_backend: accepted, without effect.
        solver_args: settings of a solver: accuracies are the tolerance (the smallest counts), limits of iterations are
            heeded, the modes of LPGD are `Perturbed`, others are named in one warning.

    Raises:
        ArgumentError, NotDCPError, NotDPPError: ValueErrors, as in that package.
        UnsupportedProblemError: see `compile_problem`.

    Examples:
        >>> import cvxpy as cp, torch
        >>> x, t = cp.Variable(2), cp.Parameter(2)
        >>> layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0]), parameters=[t], variables=[x])
        >>> (x_star,) = layer(torch.tensor([[1.0, -1.0], [2.0, 3.0]]), solver_args={"eps": 1e-6})
        >>> x_star.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        problem: "cp.Problem",
        parameters: Sequence["cp.Parameter"],
        variables: Sequence["cp.Variable"],
        solver: str | Engine | None = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        settings = read_settings(solver_args or {})
        settings.warn()
        engine = settings.apply(_engine(solver))
        for name, given in (("parameters", parameters), ("variables", variables)):
            if not isinstance(given, list | tuple):
                raise ArgumentError(f"{name} is a {type(given).__name__}, expected a list or a tuple.")
        self.layer = ConvexLayer(problem, parameters, variables, solver=engine, gp=gp)
        program = self.layer.program
        self.ctx = LayersContext(problem, tuple(parameters), tuple(variables), gp, engine.name, program)
        # Replaced as a whole, so that threads that call one layer do not meet.
        self._others: dict[Any, ConvexLayer] = {}
        self._previous: LayerSolution | None = None

    def forward(
        self, *params: Tensor, solver_args: Mapping[str, Any] | None = None, warm_start: bool = False
    ) -> tuple[Tensor, ...]:
        """Solve and return the requested variables.

        Args:
            *params: one tensor per parameter, (*batch, *parameter.shape).
            solver_args: settings for this call, in place of the constructor's.
            warm_start: begin at the solution of the last call with warm_start=True, where it was of the same batch; see
                `ConvexLayer.solve`. For threads, hand solutions to `layer.layer.solve` instead.

        Returns:
            one tensor per entry of `variables`, (*batch, *shape).

        Raises:
            ArgumentError: a ValueError that names the parameter, what came and what was expected.
            SolverError: an element was not solved; also diffcp's SolverError, where diffcp was imported.
        """
        layer = self._layer_with(solver_args)
        try:
            return self._warm_call(layer, params) if warm_start else layer(*params)
        except SolverError as error:
            theirs = getattr(sys.modules.get("diffcp"), "SolverError", SolverError)
            if issubclass(SolverError, theirs):
                raise
            raise _common_error(theirs)(str(error), error.status) from error

    def _layer_with(self, solver_args: Mapping[str, Any] | None) -> ConvexLayer:
        """The layer, or one with the settings of a call."""
        if not solver_args:
            return self.layer
        settings = read_settings(solver_args)
        settings.warn(stacklevel=6)
        engine = settings.apply(self.layer.engine)
        if engine == self.layer.engine:
            return self.layer
        key = (engine.tolerance, engine.max_iterations, engine.derivative)
        found = self._others.get(key)
        if found is None:
            found = ConvexLayer.from_program(self.layer.program, solver=engine)
            self._others = {**dict(list(self._others.items())[1 - REMEMBERED :]), key: found}
        return found

    def _warm_call(self, layer: ConvexLayer, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        previous = self._previous
        if previous is not None and len(params) == len(layer.program.parameters):
            _, batch = to_batch(layer.program.parameters, params)
            previous = previous if previous.status.shape == batch.shape else None
        solution = layer.solve(*params, warm_start=previous)
        # What is remembered must not hold the graph of this call.
        self._previous = replace(solution, objective=solution.objective.detach(), values=(), variables=(), duals=())
        return solution.values

    def __getattr__(self, name: str) -> Any:
        if name in ELSEWHERE:
            raise AttributeError(f"CvxpyLayer.{name} belongs to cvxpylayers and is not kept here; {ELSEWHERE[name]}.")
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered of calls is no part of the layer.
        return {**self.__dict__, "_others": {}, "_previous": None}


def _engine(solver: str | Engine | None) -> Engine:
    """The engine behind that package's choice of a solver."""
    if isinstance(solver, Engine):
        return solver
    if solver is not None and not isinstance(solver, str):
        raise ArgumentError(
            f"solver is a {type(solver).__name__}: solvers written for cvxpylayers' interface are not called here. "
            "Write an Engine instead, see docs/extending.md."
        )
    if solver == "MOREAU" and moreau.is_installed():
        return moreau.Moreau()
    return make_engine(SOLVERS.get(solver) or str(solver))


def _common_error(theirs: Any) -> type[SolverError]:
    """A SolverError that handlers written for diffcp catch too."""

    class CommonSolverError(SolverError, theirs):
        """An element was not solved."""

    return CommonSolverError
