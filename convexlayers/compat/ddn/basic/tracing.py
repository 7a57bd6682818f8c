"""numpy code differentiated by torch: functions of numpy that meet a `Traced` array are done by torch.

numpy hands its functions over to arguments that ask for it (NEP 13, `__array_ufunc__`; NEP 18, `__array_function__`),
so a function written with numpy, or with the numpy of the autograd package, needs no change to be differentiated.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.lib.mixins import NDArrayOperatorsMixin
from torch import Tensor

from convexlayers.errors import ArgumentError


class Traced(NDArrayOperatorsMixin):
    """An array whose numbers are a tensor of torch.

    Args:
        tensor: float64.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """numpy's elementwise functions and operators."""
        name = ufunc.__name__
        if method != "__call__" or options or name not in ELEMENTWISE:
            raise _unknown(name if method == "__call__" else f"{name}.{method}")
        return wrapped(ELEMENTWISE[name](*(plain(value) for value in inputs)))

    def __array_function__(self, function: Any, _: Any, given: Any, options: Any) -> Any:
        """numpy's other functions."""
        name = function.__name__ if "linalg" not in str(function.__module__) else f"linalg.{function.__name__}"
        if name not in FUNCTIONS:
            raise _unknown(name)
        unwrapped = {key: plain(value) for key, value in options.items()}
        return wrapped(FUNCTIONS[name](*(plain(value) for value in given), **unwrapped))

    def __getitem__(self, index: Any) -> "Traced":
        return Traced(self.tensor[plain(index)])

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator["Traced"]:
        return (Traced(part) for part in self.tensor)

    def __bool__(self) -> bool:
        return bool(self.tensor)

    def __getattr__(self, name: str) -> Any:
        """Methods of arrays, which are the functions of the same name."""
        if name.startswith("_") or (name not in FUNCTIONS and name not in ELEMENTWISE):
            raise AttributeError(f"A traced array has no {name}.")
        function = FUNCTIONS.get(name) or ELEMENTWISE[name]
        return lambda *given, **options: wrapped(function(self.tensor, *map(plain, given), **options))

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        """As of an array."""
        return self.tensor.ndim

    @property
    def size(self) -> int:
        """As of an array."""
        return self.tensor.numel()

    @property
    def T(self) -> "Traced":
        """The transpose."""
        return Traced(_transpose(self.tensor))


def plain(value: Any) -> Any:
    """What torch takes: tensors for arrays, numbers as they are; lists item by item."""
    if isinstance(value, Traced):
        return value.tensor
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return torch.stack([_tensor(plain(part)) for part in value.ravel()]).reshape(value.shape)
        return torch.from_numpy(np.ascontiguousarray(value)) if value.ndim else value.item()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return type(value)(plain(part) for part in value)
    return value


def wrapped(value: Any) -> Any:
    """A tensor as a traced array."""
    return Traced(value) if isinstance(value, Tensor) else value


def as_tensor(value: Any) -> Tensor:
    """A result of a function written with numpy, float64."""
    return _tensor(plain(np.asarray(value, dtype=object) if isinstance(value, list | tuple) else value))


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


def _unknown(name: str) -> ArgumentError:
    return ArgumentError(
        f"np.{name} cannot be differentiated here. Write the node with torch, for "
        f"convexlayers.compat.ddn.pytorch.node, or with these: {', '.join(sorted({*ELEMENTWISE, *FUNCTIONS}))}."
    )


def _of_tensors(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *values: function(*(_tensor(value) for value in values))


def _dot(a: Any, b: Any) -> Any:
    scalar = any(not isinstance(part, Tensor) or part.ndim == 0 for part in (a, b))
    return a * b if scalar else _tensor(a).double() @ _tensor(b).double()


def _transpose(a: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    return a.permute(axes if axes is not None else tuple(reversed(range(a.ndim))))


def _along(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Reductions: over everything, or along an axis."""

    def reduce(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
        axes = tuple(range(a.ndim)) if axis is None else axis
        return a.clone() if axes == () else function(a, dim=axes, keepdim=keepdims)

    return reduce


def _joined(function: Callable[..., Tensor], axis: int = 0) -> Callable[..., Tensor]:
    return lambda parts, axis=axis: function([_tensor(part) for part in parts], dim=axis)


def _reshape(a: Tensor, *shape: Any) -> Tensor:
    return a.reshape(*shape)


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "matmul")},
    "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv, "true_divide": operator.truediv,
    "power": operator.pow, "float_power": operator.pow, "negative": operator.neg, "positive": operator.pos,
    "less": operator.lt, "less_equal": operator.le, "greater": operator.gt, "greater_equal": operator.ge,
    "equal": operator.eq, "not_equal": operator.ne,
    "absolute": torch.abs, "fabs": torch.abs,
    **{name: _of_tensors(getattr(torch, name)) for name in (
        "sqrt", "square", "exp", "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "sinh", "cosh", "tanh",
        "arcsin", "arccos", "arctan", "arctan2", "sign", "reciprocal", "maximum", "minimum", "hypot", "logaddexp",
        "isnan", "isfinite", "logical_and", "logical_or", "logical_not",
    )},
}  # fmt: skip

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "dot": _dot, "vdot": _dot, "inner": _dot, "matmul": _dot,
    "outer": lambda a, b: torch.outer(_tensor(a).flatten(), _tensor(b).flatten()),
    "sum": _along(torch.sum), "mean": _along(torch.mean), "amax": _along(torch.amax), "amin": _along(torch.amin),
    "max": _along(torch.amax), "min": _along(torch.amin),
    "prod": lambda a, axis=None: a.prod() if axis is None else a.prod(axis),
    "cumsum": lambda a, axis=0: a.cumsum(axis), "diff": lambda a: torch.diff(a),
    "concatenate": _joined(torch.cat), "stack": _joined(torch.stack),
    "hstack": lambda parts: torch.hstack([_tensor(part) for part in parts]),
    "vstack": lambda parts: torch.vstack([_tensor(part) for part in parts]),
    "reshape": _reshape, "ravel": torch.flatten, "flatten": torch.flatten, "squeeze": torch.squeeze,
    "transpose": _transpose, "expand_dims": torch.unsqueeze, "copy": torch.clone,
    "where": lambda mask, a, b: torch.where(mask, _tensor(a), _tensor(b)),
    "clip": lambda a, low=None, high=None: torch.clamp(a, low, high),
    "trace": torch.trace, "diag": torch.diag, "einsum": torch.einsum,
    "zeros_like": torch.zeros_like, "ones_like": torch.ones_like,
    "linalg.norm": lambda a: a.square().sum().sqrt(), "linalg.inv": torch.linalg.inv,
    "linalg.solve": torch.linalg.solve, "linalg.det": torch.linalg.det, "linalg.slogdet": torch.linalg.slogdet,
}  # fmt: skip


def traced(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """A function of numpy arrays as one of tensors."""
    return lambda *tensors: as_tensor(function(*(Traced(tensor) for tensor in tensors)))


def grad(function: Callable[..., Any], argnum: int = 0) -> Callable[..., Any]:
    """The gradient of a scalar function of arrays, as an array; as of the autograd package. It can be nested."""
    return _lifted(torch.func.grad(lambda *values: traced(function)(*values).reshape(()), argnums=argnum))


def jacobian(function: Callable[..., Any], argnum: int = 0) -> Callable[..., Any]:
    """The Jacobian of a function of arrays, as an array (*result, *argument); as of the autograd package."""
    return _lifted(torch.func.jacrev(traced(function), argnums=argnum))


def _lifted(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def of_arrays(*arrays: Any) -> Any:
        tensors = [as_tensor(value).double() for value in arrays]
        found = function(*tensors)
        return Traced(found) if any(isinstance(value, Traced) for value in arrays) else found.detach().numpy()

    return of_arrays
