"""Does a layer keep what layers promise? For whoever wrote its engine, its cone or its derivative.

Each check compares the layer with itself, so that it needs no known solution, and gives a `Finding`.
"""

import copy
import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convexlayers.layer import ConvexLayer
from convexlayers.program import ParameterInfo
from convexlayers.testing.pairs import Sampler

# What differences may be off by, in units of what their error bound says for a function whose derivatives are all one.
SAFETY = 100.0
# Steps are tried from the best one down: where a constraint changes between active and inactive inside of a wide
# stencil, a narrower one is on one side of it.
NARROWER = (1.0, 0.3, 0.1)
SYMMETRIC = {"symmetric", "PSD", "NSD"}


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        what: was compared.
        error: relative to the size of what was expected, at least 1.
        allowed: largest error that passes.
    """

    what: str
    error: float
    allowed: float

    @property
    def share(self) -> float:
        """Of what is allowed; NaN is infinite."""
        return math.inf if math.isnan(self.error) else self.error / self.allowed

    def __str__(self) -> str:
        return f"{self.what}: " + ("no" if math.isinf(self.error) else f"{self.error:.1e}, allowed {self.allowed:.1e}")


def check_layer(
    layer: ConvexLayer, *values: Tensor, accuracy: float = 1e-10, repeats: float = 1e-10, seed: int = 0
) -> float:
    """Batches, broadcasting, dtypes, gradients, failed neighbours and copies of a layer.

    1. Every element of the batch comes out as it does alone, and so does its gradient.
    2. A parameter that the batch shares gets the sum of the elements' gradients.
    3. float32 comes out as float32: the float64 result for the same numbers, rounded; gradients too.
    4. Gradients agree with differences of the layer. With solutions good to `accuracy`, a step h and a stencil of
       fourth order, those are off by about accuracy / h + h^4, least at h = accuracy^(1/5).
    5. With on_failure="nan" an element that holds NaN is NaN, its gradient zero, and the others are as they were.
    6. A deep copy and an unpickled copy return the same bits.

    Args:
        layer: to be checked.
        values: one per parameter, float64, (B, *shape) with B at least 2. Every element must be solvable, also a small
            distance away, and far from kinks of the solution; signs and definiteness must hold strictly.
        accuracy: relative, of the layer's solutions.
        repeats: what rounding may change in an element that is solved beside others, relative.
        seed: of directions and upstream gradients.

    Returns:
        the largest error as a share of what is allowed, at most 1.

    Raises:
        AssertionError: lists what is wrong, with figures.

    Examples:
        >>> import cvxpy as cp, torch, convexlayers as cl
        >>> x, t = cp.Variable(2), cp.Parameter(2, name="t")
        >>> layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.sum(x) == 1]), [t], [x])
        >>> check_layer(layer, torch.tensor([[1.0, 3.0], [2.0, 0.0]], dtype=torch.float64)) <= 1
        True
    """
    subject = Subject(layer, [value.detach() for value in values], seed)
    findings = [
        *_alone(subject, repeats),
        *_shared(subject, repeats),
        *_dtypes(subject, repeats),
        *_differences(subject, accuracy),
        *_isolation(subject, repeats),
        *_copies(subject),
    ]
    # Written so that NaN is bad.
    bad = [str(finding) for finding in findings if not finding.share <= 1]
    assert not bad, f"{layer}:\n" + "\n".join(bad)
    return max(finding.share for finding in findings)


@dataclass(frozen=True)
class Results:
    """Of one call: values, and gradients of a fixed linear function of them."""

    values: list[Tensor]
    grads: list[Tensor]


class Subject:
    """A layer with the values that it is checked at, and the results there."""

    def __init__(self, layer: ConvexLayer, values: list[Tensor], seed: int) -> None:
        self.layer = layer
        self.values = values
        self.infos = layer.program.parameters
        shapes = [value.shape for value in values]
        expected = [(*shape[:1], *info.shape) for shape, info in zip(shapes, self.infos, strict=True)]
        assert shapes == [torch.Size(shape) for shape in expected], f"Shapes are {shapes}, expected (B, *shape)."
        self.size = len(values[0])
        assert self.size >= 2, "One element is no batch: pass two at least."
        self.sampler = Sampler.seeded((self.size,), seed)
        with torch.no_grad():
            outputs = layer(*values)
        self.weights = [self.sampler.normal(*output.shape[1:]) for output in outputs]
        self.results = self.run(values)

    def run(self, values: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Results:
        """Call the layer and differentiate."""
        return run(self.layer, values, self.weights if weights is None else weights)


def run(layer: ConvexLayer, values: Sequence[Tensor], weights: Sequence[Tensor]) -> Results:
    """Call a layer and differentiate the weighted sum of what it returns."""
    leaves = [value.detach().clone().requires_grad_() for value in values]
    outputs = layer(*leaves)
    given = [weight.to(output) for weight, output in zip(weights, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, leaves, given)
    return Results([output.detach() for output in outputs], list(grads))


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference of entries, relative to the largest expected entry of its tensor or to 1; NaN stays NaN."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return math.inf
        if one.numel():
            error = float((one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1))
            worst = error if math.isnan(error) else max(worst, error)
        if math.isnan(worst):
            break
    return worst


def _fact(what: str, holds: bool) -> Finding:
    """A statement that holds or does not."""
    return Finding(what, 0.0 if holds else math.inf, 1.0)


def _alone(subject: Subject, allowed: float) -> Iterator[Finding]:
    for i in range(subject.size):
        alone = subject.run([value[i] for value in subject.values], [weight[i] for weight in subject.weights])
        values, grads = ([part[i] for part in parts] for parts in (subject.results.values, subject.results.grads))
        yield Finding(f"element {i} in the batch against alone, values", distance(values, alone.values), allowed)
        yield Finding(f"element {i} in the batch against alone, gradients", distance(grads, alone.grads), allowed)


def _shared(subject: Subject, allowed: float) -> Iterator[Finding]:
    for k, info in enumerate(subject.infos):
        shared = [value[0] if i == k else value for i, value in enumerate(subject.values)]
        if len(shared) == 1:
            # Nothing else says how large the batch is: an expanded view does, and torch sums its gradient.
            leaf = shared[0].clone().requires_grad_()
            outputs = subject.layer(leaf.expand(subject.size, *info.shape))
            (found,) = torch.autograd.grad(outputs, leaf, subject.weights)
        else:
            found = subject.run(shared).grads[k]
        wide = [value.expand(subject.size, *i.shape) for value, i in zip(shared, subject.infos, strict=True)]
        expected = subject.run(wide).grads[k].sum(0)
        error = distance([found], [expected])
        yield Finding(f"gradient of {info.name}, shared by the batch, against the sum", error, allowed)


def _dtypes(subject: Subject, allowed: float) -> Iterator[Finding]:
    # float32's rounding of the result comes on top.
    allowed += 2 * torch.finfo(torch.float32).eps
    single = [value.float() for value in subject.values]
    weights = [weight.float() for weight in subject.weights]
    found = subject.run(single, weights)
    expected = subject.run([value.double() for value in single], [weight.double() for weight in weights])
    for name in ("values", "grads"):
        parts = getattr(found, name)
        wrong = sorted({str(part.dtype) for part in parts} - {"torch.float32"})
        yield _fact(f"float32 in, {name} in {', '.join(wrong) or 'float32'}", not wrong)
        error = distance(parts, getattr(expected, name))
        yield Finding(f"{name} in float32 against float64, rounded", error, allowed)


def _direction(info: ParameterInfo, value: Tensor, sampler: Sampler) -> Tensor:
    """Random, within the attributes of the parameter, of norm one in every element."""
    direction = sampler.normal(*info.shape)
    if SYMMETRIC & set(info.attributes):
        direction = 0.5 * (direction + direction.mT)
    if "diag" in info.attributes:
        direction = torch.diag_embed(direction.diagonal(dim1=-2, dim2=-1))
    if info.sparsity is not None:
        inside = torch.zeros(info.size, dtype=direction.dtype)
        inside[torch.as_tensor(np.asarray(info.sparsity))] = 1
        direction = direction * inside.reshape(info.shape)
    flat = torch.nn.functional.normalize(direction.reshape(len(value), -1), dim=-1)
    return flat.reshape(value.shape)


def _differences(subject: Subject, accuracy: float) -> Iterator[Finding]:
    best = accuracy**0.2
    for k, info in enumerate(subject.infos):
        direction = _direction(info, subject.values[k], subject.sampler)
        slope = (subject.results.grads[k] * direction).reshape(subject.size, -1).sum(-1)
        steps = [best * factor for factor in NARROWER]
        findings = [
            Finding(
                f"gradient of {info.name} against differences with step {step:.0e}",
                _slope_error(subject, k, direction, slope, step),
                SAFETY * (accuracy / step + step**4),
            )
            for step in steps
        ]
        yield min(findings, key=lambda finding: finding.share)


def _slope_error(subject: Subject, k: int, direction: Tensor, slope: Tensor, step: float) -> float:
    """Of all elements the largest difference of slopes along the direction, relative to the gradient it is part of."""
    quotient = torch.zeros_like(slope)
    for multiple, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
        moved = [value + multiple * step * direction if i == k else value for i, value in enumerate(subject.values)]
        with torch.no_grad():
            outputs = subject.layer(*moved)
        for output, upstream in zip(outputs, subject.weights, strict=True):
            quotient += weight / step * (output * upstream).reshape(subject.size, -1).sum(-1)
    size = subject.results.grads[k].reshape(subject.size, -1).norm(dim=-1).clamp(min=1)
    return float(((slope - quotient).abs() / size).max())


def _isolation(subject: Subject, allowed: float) -> Iterator[Finding]:
    layer = copy.deepcopy(subject.layer)
    layer.on_failure = "nan"
    for k, info in enumerate(subject.infos):
        broken = k % subject.size
        values = [value.clone() for value in subject.values]
        values[k][broken] = float("nan")
        found = run(layer, values, subject.weights)
        what = f"with NaN in {info.name} of element {broken}"
        yield _fact(f"{what}, its values are NaN", all(bool(part[broken].isnan().all()) for part in found.values))
        yield _fact(f"{what}, its gradient is zero", not any(bool(part[broken].any()) for part in found.grads))
        kept = [i for i in range(subject.size) if i != broken]
        for name in ("values", "grads"):
            others, before = ([part[kept] for part in getattr(r, name)] for r in (found, subject.results))
            yield Finding(f"{what}, {name} of the others", distance(others, before), allowed)


def _copies(subject: Subject) -> Iterator[Finding]:
    yield from _copy(subject, "a deep copy", copy.deepcopy(subject.layer))
    try:
        content = pickle.dumps(subject.layer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        yield _fact(f"the layer can be pickled ({error})", False)
    else:
        yield from _copy(subject, "an unpickled copy", pickle.loads(content))


def _copy(subject: Subject, what: str, other: ConvexLayer) -> Iterator[Finding]:
    found = run(other, subject.values, subject.weights)
    for name in ("values", "grads"):
        pairs = zip(getattr(found, name), getattr(subject.results, name), strict=True)
        yield _fact(f"{what} has the same {name}", all(torch.equal(one, same) for one, same in pairs))
