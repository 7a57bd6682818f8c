"""Whom to cite for a layer: this software, and the methods that this layer uses."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from convexlayers.cones import Cones
from convexlayers.derivatives import Derivative, Exact, Perturbed, Smoothed
from convexlayers.engines import Engine
from convexlayers.program import ParametrizedConeProgram
from convexlayers.seeing import references as known
from convexlayers.seeing.references import Reference

Use = tuple[str, tuple[Reference, ...]]


class Citable(Protocol):
    """A layer, as far as citations need it.

    Attributes:
        program: compiled.
        engine: who solves.
    """

    program: ParametrizedConeProgram
    engine: Engine


@dataclass(frozen=True)
class Citation:
    """Whom to cite; `print` it, or write `bibtex` to a file.

    Attributes:
        uses: what is used, in words, each with its references.
    """

    uses: tuple[Use, ...]

    @property
    def references(self) -> tuple[Reference, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(reference for _, references in self.uses for reference in references))

    @property
    def bibtex(self) -> str:
        """All of them as BibTeX."""
        return "\n\n".join(reference.bibtex for reference in self.references) + "\n"

    def __str__(self) -> str:
        lines = []
        for what, references in self.uses:
            lines += [f"{what}:", *(f"  {reference}" for reference in references)]
        return "\n".join(lines)


def citation(layer: Citable) -> Citation:
    """The methods that a layer uses: how its problem becomes a cone program, who solves it, how it is differentiated.

    Args:
        layer: a `ConvexLayer`.

    Examples:
        >>> import cvxpy as cp, convexlayers as cl
        >>> x, t = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.norm(x) <= 1])
        >>> found = cl.citation(cl.ConvexLayer(problem, [t], [x]))
        >>> [reference.key for reference in found.references][:3]
        ['convexlayers', 'cvxpy', 'cvxpy_rewriting']
    """
    engine = layer.engine
    uses = (
        ("this library", (_own_reference(),)),
        *_canonicalization(layer.program),
        *_solver(engine, layer.program.structure.cones),
        *_derivative(engine),
    )
    return Citation(uses)


def _own_reference() -> Reference:
    """As CITATION.cff has it."""
    try:
        number = version("convexlayers")
    except PackageNotFoundError:
        number = "unknown"
    where = (("version", number), ("note", f"version {number}"))
    return Reference("convexlayers", "software", known.OWN_AUTHORS, known.OWN_TITLE, None, where)


def _canonicalization(program: ParametrizedConeProgram) -> Iterator[Use]:
    yield "the problem in CVXPY, and its reduction to a cone program", (known.CVXPY, known.REWRITING)
    yield "parameters by the rules of disciplined parametrized programming (DPP)", (known.LAYERS,)
    if program.objective_exponential:
        yield "a geometric program (DGP)", (known.GEOMETRIC,)


def _solver(engine: Engine, cones: Cones) -> Iterator[Use]:
    """By the engine's name; one that is not of this library is only named."""
    interior = engine.name in ("auto", "native", "torch")
    if interior:
        yield "homogeneous embedding with a quadratic objective, Mehrotra's predictor and corrector", (
            known.CLARABEL, known.MEHROTRA,
        )  # fmt: skip
        yield "equilibration of the numbers", (known.RUIZ,)
        if cones.second_order or cones.psd:
            yield "scaling of symmetric cones", (known.NESTEROV_TODD,)
        if cones.exponential or cones.power:
            yield "scaling of exponential and power cones", (known.TUNCEL, known.DAHL_ANDERSEN)
    if engine.name in ("auto", "native"):
        yield "fill-reducing ordering", (known.MINIMUM_DEGREE,)
    if engine.name == "clarabel":
        yield "solved by Clarabel", (known.CLARABEL,)
    if engine.name in ("scs", "diffcp"):
        yield "solved by SCS", (known.SCS, known.SCS_QUADRATIC)
    if not interior and engine.name not in ("clarabel", "scs", "diffcp"):
        yield f"solved by {engine.name}, which has to say itself whom to cite", ()


def _derivative(engine: Engine) -> Iterator[Use]:
    derivative: Derivative = engine.derivative
    if engine.name == "diffcp":
        yield "derivative by diffcp", (known.CONE_DERIVATIVE,)
    elif isinstance(derivative, Smoothed):
        yield "derivative of the central path; for linear programs", (known.BARRIER_GRADIENT,)
    elif isinstance(derivative, Perturbed):
        yield "Lagrangian proximal gradient descent (LPGD)", (known.LPGD,)
    elif isinstance(derivative, Exact):
        yield "implicit derivative of the optimality conditions; of quadratic programs, and of cone programs", (
            known.OPTNET, known.CONE_DERIVATIVE,
        )  # fmt: skip
