"""A loss of a layer's outputs and its derivative, by several strategies, along a line in the parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.calling import collect_values
from convexlayers.derivatives import Derivative, Exact, Perturbed, Smoothed
from convexlayers.layer import ConvexLayer
from convexlayers.plot.canvas import make_axes
from convexlayers.program import ParameterInfo

Values = Sequence[Value] | Mapping[Any, Value]
Loss = Callable[[tuple[Tensor, ...]], Tensor]

STRATEGIES: dict[str, Derivative] = {
    "exact": Exact(),
    "smoothed": Smoothed(mu=1e-2),
    "perturbed": Perturbed(tau=0.1),
}
STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True, eq=False)
class Curve:
    """One strategy along the line.

    Attributes:
        name: of the strategy.
        t: (points,) from 0 at the start to 1 at the stop.
        loss: (points,) at the point that the strategy returns: Smoothed returns that of the central path.
        slope: (points,) its derivative in t, by the strategy; NaN, as the loss, where nothing was found.
    """

    name: str
    t: Tensor
    loss: Tensor
    slope: Tensor


def first_entry(outputs: tuple[Tensor, ...]) -> Tensor:
    """The first entry of the first output, (points,)."""
    return outputs[0].reshape(len(outputs[0]), -1)[:, 0]


def curves(
    layer: ConvexLayer,
    start: Values,
    stop: Values,
    *,
    loss: Loss = first_entry,
    derivatives: Mapping[str, Derivative] | None = None,
    points: int = 100,
) -> list[Curve]:
    """Losses and their derivatives at the parameters start + t (stop - start), t from 0 to 1.

    Where the exact derivative does not exist, as at a tie, a DerivativeWarning says so as after any backward pass.

    Args:
        layer: its problem and engine; its own derivative strategy counts for nothing here.
        start, stop: the ends of the line: one value per parameter in order, or by parameter or name; no batch.
        loss: of the layer's outputs with `points` elements each, (points,); an element's loss is its own.
        derivatives: strategies by name; by default exact, smoothed (mu = 0.01) and perturbed (tau = 0.1).
        points: on the line.
    """
    infos = layer.program.parameters
    ends = list(zip(_as_tensors(infos, start), _as_tensors(infos, stop), strict=True))
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    found = []
    for name, derivative in (STRATEGIES if derivatives is None else derivatives).items():
        engine = replace(layer.engine, derivative=derivative)
        other = ConvexLayer.from_program(layer.program, solver=engine, on_failure="nan", validate=layer.validate)
        leaf = t.clone().requires_grad_()
        outputs = other(*(a + leaf.reshape(-1, *[1] * a.ndim) * (b - a) for a, b in ends))
        value = loss(outputs)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        value = value.detach()
        found.append(Curve(name, t, value, slope.masked_fill(value.isnan(), torch.nan)))
    return found


def gradient(layer: ConvexLayer, start: Values, stop: Values, *, axes: Any = None, **options: Any) -> Any:
    """The derivative of a loss along a line in the parameters, by several strategies.

    Args:
        layer, start, stop: as in `curves`.
        axes: of matplotlib, to draw on; None for new ones.
        **options: loss, derivatives and points, as in `curves`.

    Returns:
        the axes.

    Raises:
        PackageNotInstalledError: there is no matplotlib.
    """
    return _draw(make_axes(axes), curves(layer, start, stop, **options), "slope", "derivative of the loss in t")


def loss(layer: ConvexLayer, start: Values, stop: Values, *, axes: Any = None, **options: Any) -> Any:
    """The loss itself along that line, at the points that the strategies return.

    Args:
        layer, start, stop, axes, **options: as in `gradient`.

    Returns:
        the axes.

    Raises:
        PackageNotInstalledError: there is no matplotlib.
    """
    return _draw(make_axes(axes), curves(layer, start, stop, **options), "loss", "loss")


def _draw(axes: Any, found: Sequence[Curve], attribute: str, label: str) -> Any:
    """An attribute of all curves over t."""
    for style, curve in zip(cycle(STYLES), found, strict=False):
        axes.plot(curve.t.numpy(), getattr(curve, attribute).numpy(), style, label=curve.name)
    axes.set_xlabel("t, from start to stop")
    axes.set_ylabel(label)
    axes.legend(fontsize=8)
    return axes


def _as_tensors(infos: Sequence[ParameterInfo], values: Values) -> list[Tensor]:
    """In double precision; shapes are checked by the call."""
    given = [values] if isinstance(values, Mapping) else list(values)
    return [torch.as_tensor(value, dtype=torch.float64).cpu() for value in collect_values(infos, given, {})]
