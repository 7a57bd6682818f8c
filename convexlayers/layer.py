"""ConvexLayer: a parametrized convex problem as a torch module."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from convexlayers.autograd import Call
from convexlayers.batching import Value, block_values, to_batch
from convexlayers.calling import collect_values
from convexlayers.compiled import CompilableModule
from convexlayers.derivatives import Derivative
from convexlayers.diagnosis import Diagnosis, diagnose
from convexlayers.engines import Engine, make_engine
from convexlayers.execute import BatchSolution, Execution, check_policy, execute
from convexlayers.program import ParametrizedConeProgram
from convexlayers.relax import check_relax
from convexlayers.saving import SavedModule
from convexlayers.seeing.reporting import ReportedModule

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True)
class LayerSolution(BatchSolution):
    """What `ConvexLayer.solve` returns, besides the fields of `BatchSolution`.

    Attributes:
        values: what the layer returns, in the order of its `variables`, each (*batch, *shape), differentiable.
        variables: those of them that are primal variables.
        duals: those of them that are dual variables.
    """

    values: tuple[Tensor, ...]
    variables: tuple[Tensor, ...]
    duals: tuple[Tensor, ...]


class ConvexLayer(SavedModule, CompilableModule, ReportedModule):
    """A layer whose outputs solve a convex optimization problem whose parameters are its inputs.

    The problem is canonicalized once, here; calls solve it for a batch of parameter values and are differentiable in
    them, by implicit differentiation of the optimality conditions.

    Args:
        problem: a DPP cvxpy.Problem (or DGP with gp=True). It is read and never written.
        parameters: all its parameters, in the order of the call's arguments.
        variables: what to return: variables of the problem or `constraint.dual_variables[k]`.
        solver: "auto" (native), "native", "clarabel", "scs", "diffcp", or an engine object.
        derivative: a derivative strategy: `Exact()`, the default, `Smoothed(mu)` or `Perturbed(tau)`.
        on_failure: "raise" (SolverError if any element is not solved) or "nan" (NaN in the outputs of such elements,
            zero in their gradients, the others as if they were alone).
        gp: whether the problem is a geometric program.
        tolerance: relative accuracy of solutions, by default 1e-8.
        max_iterations: limit of the solver's iterations, None for its own.
        validate: check values against the parameters' attributes (sign, symmetry, definiteness, bounds).
        threads: for the batch, None for torch's number.
        relax: None, or "closest_feasible": elements without a feasible point are replaced by the closest feasible
            problem (zero, nonnegative and second-order cones) and flagged in `solution.relaxed`.

    Shape:
        Inputs (*batch, *parameter.shape), batch dimensions broadcast; outputs (*batch, *variable.shape), in the inputs'
        dtype and on their device. An input shared by the batch gets the sum of its elements' gradients.

    Raises:
        ArgumentError, NotDCPError, NotDPPError, UnsupportedProblemError: see `compile_problem`.

    Examples:
        >>> import cvxpy as cp, torch, convexlayers as cl
        >>> x, t = cp.Variable(2), cp.Parameter(2, name="t")
        >>> layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.sum(x) == 1]), [t], [x])
        >>> (x_star,) = layer(t=torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
        >>> x_star.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        problem: "cp.Problem",
        parameters: Iterable["cp.Parameter"],
        variables: Iterable["cp.Variable"],
        *,
        solver: str | Engine = "auto",
        derivative: Derivative | None = None,
        on_failure: str = "raise",
        gp: bool = False,
        tolerance: float | None = None,
        max_iterations: int | None = None,
        validate: bool = True,
        threads: int | None = None,
        relax: str | None = None,
    ) -> None:
        super().__init__()
        # Imported here, so that a layer that comes from a file does not need cvxpy.
        from convexlayers.compiler import compile_problem

        engine = make_engine(
            solver, derivative=derivative, tolerance=tolerance, max_iterations=max_iterations, threads=threads
        )
        self._prepare(compile_problem(problem, parameters, variables, gp=gp), engine, on_failure, validate, relax)

    @classmethod
    def from_program(
        cls,
        program: ParametrizedConeProgram,
        *,
        solver: str | Engine = "auto",
        on_failure: str = "raise",
        validate: bool = True,
        relax: str | None = None,
    ) -> Self:
        """A layer from what `compile_problem` returned, possibly elsewhere: cvxpy is not needed.

        Args:
            program: compiled.
            solver, on_failure, validate, relax: as in the constructor.
        """
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer._prepare(program, make_engine(solver), on_failure, validate, relax)
        return layer

    def _prepare(
        self, program: ParametrizedConeProgram, engine: Engine, on_failure: str, validate: bool, relax: str | None
    ) -> None:
        self.program = program
        self.engine = engine
        self.on_failure = check_policy(on_failure)
        self.validate = validate
        self.relax = relax
        self._relax_with = check_relax(relax, engine, program)
        self._plan = engine.setup(program)
        self._register()

    def forward(self, *values: Value | Mapping[Any, Value], **named: Value) -> tuple[Tensor, ...]:
        """Solve and return the requested variables.

        Args:
            *values: one per parameter, in order; or one mapping from parameters or their names to values.
            **named: values by parameter name.

        Returns:
            one tensor per entry of `variables`, (*batch, *shape).

        Raises:
            ArgumentError: names the parameter, what came and what was expected.
            SolverError: with on_failure="raise", if an element was not solved.
        """
        if torch.compiler.is_compiling():
            return self._compiled_call(collect_values(self.program.parameters, values, named))
        return self._run(values, named, with_objective=False).values

    def solve(
        self, *values: Value | Mapping[Any, Value], warm_start: LayerSolution | None = None, **named: Value
    ) -> LayerSolution:
        """Like calling the layer, with objective, status, iterations and residuals of every element.

        Args:
            *values, **named: as in a call.
            warm_start: what an earlier `solve` returned, for the same batch or for one element, to begin at. It saves
                iterations where the parameters have moved little; the tolerance is the same.
        """
        run = self._run(values, named, with_objective=True, warm_start=warm_start)
        pairs = list(zip(self.program.outputs, run.values, strict=True))
        return LayerSolution(
            values=run.values,
            variables=tuple(value for info, value in pairs if info.source == "x"),
            duals=tuple(value for info, value in pairs if info.source == "z"),
            **run.common(),  # type: ignore[arg-type]
        )

    def diagnose(self, *values: Value | Mapping[Any, Value], **named: Value) -> Diagnosis:
        """Look at the solution and say in words what it is like and what its derivative can be expected to be.

        Which constraints are active or weakly active, whether the solution is at a vertex, whether it and its
        multipliers are unique. Dense linear algebra, for a look at some elements rather than for every training step.

        Args:
            *values, **named: as in a call.

        Returns:
            one entry per element of the batch; `print` it. Elements that were not solved are in it, whatever
            `on_failure` is.
        """
        given = collect_values(self.program.parameters, values, named)
        tensors, batch = to_batch(self.program.parameters, given)
        theta = Call(self._plan, batch).rows([value.detach() for value in block_values(self.program.blocks, tensors)])
        return diagnose(self._plan, [block for block in theta if block is not None], batch.shape)

    def _run(
        self, values: Sequence[Value | Mapping[Any, Value]], named: Mapping[str, Value], **options: Any
    ) -> Execution:
        given = collect_values(self.program.parameters, values, named)
        options |= {"on_failure": self.on_failure, "check_values": self.validate, "relax": self._relax_with}
        return execute(self._plan, given, **options)
