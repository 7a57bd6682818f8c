"""What the layers of the zoo share: arguments with leading dimensions, and Functions that know what to do under vmap.

A layer is a `BatchedFunction`: its forward pass finds the solution by whatever method is fastest, without a graph; its
backward pass is the derivative of the optimality conditions, written in differentiable torch operations on the inputs
and outputs of the forward pass. Outputs that are saved keep their place in the graph, so derivatives of the backward
pass, of any order, are those of the solution.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value, as_tensor, common_dtype
from convexlayers.errors import ArgumentError, SecondDerivativeError, wrong_shape

# (name, value, number of dimensions of one element)
Argument = tuple[str, Value, int]


class BatchedFunction(torch.autograd.Function):
    """A Function whose tensors, inputs and outputs, all have the same leading dimensions.

    Under vmap it is called once, with the mapped dimension as one more of those.

    Attributes:
        auxiliary: number of last outputs that carry no derivative.
    """

    auxiliary = 0

    @classmethod
    def call(cls, *arguments: Any) -> Any:
        """`apply`, without the time that torch spends on binding default arguments."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return cls.apply(*arguments)
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:  # type: ignore[override]
        """The mapped dimension goes to the front; tensors without it are repeated."""
        mapped = [
            argument
            if not isinstance(argument, Tensor)
            else argument.unsqueeze(0).expand(info.batch_size, *argument.shape)
            if dim is None
            else argument.movedim(dim, 0)
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        outputs = cls.call(*mapped)
        return outputs, (0,) * len(outputs) if isinstance(outputs, tuple) else 0


def remember(ctx: Any, inputs: Sequence[Any], output: Tensor | tuple[Tensor, ...], auxiliary: int = 0) -> None:
    """Save all tensors, inputs before outputs, as `ctx.saved_tensors`, and the other inputs as `ctx.options`.

    Args:
        ctx: of `setup_context`.
        inputs, output: of the forward pass.
        auxiliary: number of last outputs that carry no derivative.
    """
    outputs = output if isinstance(output, tuple) else (output,)
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ctx.options = tuple(value for value in inputs if not isinstance(value, Tensor))
    ctx.save_for_backward(*tensors, *outputs)
    ctx.save_for_forward(*tensors, *outputs)
    if auxiliary:
        ctx.mark_non_differentiable(*outputs[-auxiliary:])
        ctx.set_materialize_grads(False)


def tangent_context(ctx: Any) -> tuple[Tensor, ...]:
    """The saved tensors, for a `jvp`.

    Raises:
        SecondDerivativeError: forward over forward mode, of which torch loses a part in any custom Function.
    """
    # Imported here: nobody else needs torch's private modules.
    from torch._C._functorch import TransformType
    from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

    if torch._C._are_functorch_transforms_active():
        # The level that asks is itself the last of these.
        active = [interpreter.key() for interpreter in retrieve_all_functorch_interpreters()]
        if active.count(TransformType.Jvp) > 1:
            raise SecondDerivativeError(
                "Forward over forward mode is not supported by torch's custom Functions. Take forward over reverse "
                "mode instead: torch.func.jacfwd(torch.func.jacrev(f)), or torch.func.hessian(f)."
            )
    return ctx.saved_tensors


def unexpanded(*arguments: Argument, names: Sequence[str] = ()) -> list[Tensor]:
    """Tensors of one dtype on one device, (*batch, *element), whose leading dimensions broadcast.

    Args:
        *arguments: (name, value, number of dimensions of one element).
        names: of the dimensions of one element of the first argument, for messages.

    Raises:
        ArgumentError: a value is not numeric, has too few dimensions or no entries, or batches do not broadcast.
    """
    tensors = [as_tensor(name, value) for name, value, _ in arguments]
    dtype = tensors[0].dtype
    if any(tensor.dtype is not dtype for tensor in tensors) or not isinstance(arguments[0][1], Tensor):
        dtype = common_dtype([value for _, value, _ in arguments])
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), tensors[0].device)
    for position, (name, value, dims) in enumerate(arguments):
        tensor = tensors[position]
        _check_element(name, tensor, dims, names if position == 0 else ())
        if tensor.dtype is not dtype:
            tensors[position] = tensor = tensor.to(dtype)
        # Arrays and numbers go where the tensors are; tensors on different devices are torch's error.
        if tensor.device != device and not isinstance(value, Tensor):
            tensors[position] = tensor.to(device)
    _common(tensors, arguments)
    return tensors


def batched(*arguments: Argument, names: Sequence[str] = ()) -> list[Tensor]:
    """Like `unexpanded`, with the leading dimensions expanded to those of the batch."""
    ready = _as_they_are(arguments)
    if ready is not None:
        return ready
    tensors = unexpanded(*arguments, names=names)
    shape = _common(tensors, arguments)
    return [
        tensor
        if tensor.shape[: tensor.ndim - dims] == shape
        else tensor.expand(*shape, *tensor.shape[tensor.ndim - dims :])
        for tensor, (_, _, dims) in zip(tensors, arguments, strict=True)
    ]


def _as_they_are(arguments: Sequence[Argument]) -> list[Tensor] | None:
    """What `batched` returns for tensors that need no conversion, in a few microseconds; None where they may."""
    first = arguments[0][1]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    dtype, device, lead = first.dtype, first.device, first.shape[: first.ndim - arguments[0][2]]
    tensors = []
    for _, value, dims in arguments:
        if type(value) is float and dims == 0:
            value = first.new_full(lead, value)
        if not isinstance(value, Tensor) or value.dtype is not dtype or value.layout is not torch.strided:
            return None
        shape = value.shape
        batch = len(shape) - dims
        if batch < 0 or shape[:batch] != lead or 0 in shape[batch:] or value.device != device:
            return None
        tensors.append(value)
    return tensors


def vector_of(value: Value, like: Value) -> Value:
    """A number as a vector of the last dimension of another value; anything else as it is."""
    number = isinstance(value, int | float)
    if not number and not (isinstance(value, Tensor) and value.ndim == 0):
        return value
    like = like if isinstance(like, Tensor) else torch.as_tensor(like)
    return like.new_full(like.shape[-1:], value) if number else value.expand(like.shape[-1:])


def _check_element(name: str, tensor: Tensor, dims: int, names: Sequence[str]) -> None:
    """That there are enough dimensions, none of the element's being empty."""
    named = ", ".join(names) if names else ", ".join("nmkl"[:dims])
    if tensor.ndim < dims:
        raise wrong_shape(name, tensor.shape, f"(*batch, {named})")
    if dims and math.prod(tensor.shape[tensor.ndim - dims :]) == 0:
        raise wrong_shape(name, tensor.shape, f"(*batch, {named}) with at least one entry")


def _common(tensors: Sequence[Tensor], arguments: Sequence[Argument]) -> tuple[int, ...]:
    """The leading dimensions, broadcast."""
    leading = [tensor.shape[: tensor.ndim - dims] for tensor, (_, _, dims) in zip(tensors, arguments, strict=True)]
    if all(lead == leading[0] for lead in leading):
        return tuple(leading[0])
    try:
        return tuple(torch.broadcast_shapes(*leading))
    except RuntimeError as error:
        named = zip(arguments, leading, strict=True)
        listed = ", ".join(f"{name} {tuple(lead)}" for (name, _, _), lead in named)
        raise ArgumentError(f"The batch dimensions do not broadcast: {listed}.") from error


def expect(name: str, tensor: Tensor, element: Sequence[int], why: str = "") -> None:
    """That one element of a tensor has this shape.

    Raises:
        ArgumentError: it has not.
    """
    if tuple(tensor.shape[tensor.ndim - len(element) :]) != tuple(element):
        raise wrong_shape(name, tensor.shape, f"(*batch, {', '.join(map(str, element))}){why}")


def positive(name: str, value: Value, *, zero: bool = False) -> Value:
    """A number that is positive; tensors are not looked at, their wrong elements come out as NaN.

    Raises:
        ArgumentError: it is not.
    """
    if isinstance(value, int | float) and not (value > 0 or (zero and value == 0)):
        raise ArgumentError(f"{name} is {value}, expected a {'nonnegative' if zero else 'positive'} number.")
    return value


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension of the entries where the mask is 1, 0 where there is none; (..., 1)."""
    return (value * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
