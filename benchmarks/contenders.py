"""What is timed: this library and its peers behind one face, so that all of them are timed by the same lines.

A contender is prepared once per problem (compilation, canonicalization, solver objects; not timed). Its `forward` is
timed, and so is torch's backward pass from what `forward` returned to what `inputs` returned. Whatever a library asks
of every caller stands between those two; what only the benchmark wants stands outside.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from families import Family
from torch import Tensor

import convexlayers as cl
from convexlayers.solution import measure

Values = Sequence[Tensor]


class Contender:
    """One library, with one way of calling it.

    Attributes:
        name: in tables.
        packages: what has to be installed; all their versions are reported.
    """

    name: str
    packages: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether it can take part."""
        return all(find_spec(package) is not None for package in self.packages)

    def prepare(self, family: Family, batch: int) -> None:
        """Everything that is done once per problem; not timed."""
        raise NotImplementedError

    def resize(self, batch: int) -> None:
        """Get ready for another batch size; most libraries need nothing."""

    def inputs(self, values: Values) -> list[Tensor]:
        """Leaves for one call, from the parameters' values; not timed."""
        return [value.detach().clone().requires_grad_() for value in values]

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        """Solve; timed."""
        raise NotImplementedError

    def outputs(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The user's variables, from what `forward` returned; not timed."""
        return results

    def gradients(self, inputs: Values) -> list[Tensor]:
        """Gradients of the parameters, after the backward pass; not timed. One that is missing counts as zero."""
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in inputs]

    def residual(self, values: Values) -> float | None:
        """The largest relative KKT residual of the batch, if the library tells dual variables and slacks."""
        return None

    def complaint(self) -> str:
        """What the library said of its last call if it did not claim success and yet did not raise."""
        return ""


class Ours(Contender):
    """`ConvexLayer` with its defaults, or with the named engine."""

    def __init__(self, solver: str | None = None) -> None:
        self.solver = solver
        self.name = f"convexlayers({solver})" if solver else "convexlayers"
        self.packages = (solver,) if solver else ()

    def prepare(self, family: Family, batch: int) -> None:
        problem, parameters, variables, _ = family
        self.layer = cl.ConvexLayer(problem, parameters, variables, solver=self.solver or "auto")

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        return self.layer(*inputs)

    def residual(self, values: Values) -> float:
        with torch.no_grad():
            solution = self.layer.solve(*values).cone_solution
        return float(measure(solution.program, solution.x, solution.s, solution.z).largest.max())


class Cvxpylayers(Contender):
    """`CvxpyLayer` with its defaults (SCS and diffcp), or with the named solver."""

    def __init__(self, solver: str | None = None) -> None:
        self.solver = solver
        self.name = f"cvxpylayers+{solver.lower()}" if solver else "cvxpylayers"
        self.packages = ("cvxpylayers", solver.lower() if solver else "diffcp")

    def prepare(self, family: Family, batch: int) -> None:
        from cvxpylayers.torch import CvxpyLayer

        problem, parameters, variables, _ = family
        options: dict[str, Any] = {"solver": self.solver} if self.solver else {}
        self.layer = CvxpyLayer(problem, parameters=parameters, variables=variables, **options)

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        return self.layer(*inputs)
