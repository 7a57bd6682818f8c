"""User's values to blocks of theta and back: dtypes, devices, leading dimensions, broadcasting.

A parameter's value has shape (*batch, *shape). The batch dimensions of all values broadcast against each other; a value
without any, or whose are all of size one, is shared by the batch and stays a single row.

A parameter with a sparsity pattern takes a dense value, a sparse matrix without batch dimensions, or the entries on its
pattern, (*batch, entries), in the order of `ParameterInfo.sparsity`; where a shape can be read both ways it is dense.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from convexlayers.errors import ArgumentError, wrong_shape
from convexlayers.program import Block, ParameterInfo
from convexlayers.sparse import Entries, SparseMatrix, is_sparse, pick

Value = Tensor | np.ndarray | SparseMatrix | Entries | float | int


@dataclass(frozen=True)
class Batch:
    """How values come and results are to be given back.

    Attributes:
        shape: broadcast batch dimensions.
        dtype: of the results.
        device: of the results.
        dtypes: in which each value came.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    dtypes: tuple[torch.dtype, ...] = ()

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def restore(self, value: Tensor) -> Tensor:
        """(B, *shape) in the solver's dtype to (*batch, *shape) in the user's; a single row is repeated."""
        if value.shape[0] != self.size:
            value = value.expand(self.size, *value.shape[1:])
        if len(self.shape) != 1:
            value = value.reshape((*self.shape, *value.shape[1:]))
        if value.dtype is self.dtype and value.device == self.device:
            return value
        return value.to(device=self.device, dtype=self.dtype if value.is_floating_point() else value.dtype)

    def as_row(self, value: Tensor, info: ParameterInfo) -> Tensor:
        """What `block_values` made of a value, for the batch or shared by it, to (B or 1, entries), float64."""
        size = info.entries
        rows = self.size if size == 0 else value.numel() // size
        return _in_float64(value.reshape(rows, size), self.device)

    def as_rows(self, grad: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A cotangent of a result, (*batch, *shape), to (B, size), float64."""
        return _in_float64(grad.reshape(self.size, math.prod(shape)), self.device)


@lru_cache(maxsize=64)
def _plain_batch(shape: tuple[int, ...], count: int) -> Batch:
    """The batch of float64 tensors on the CPU."""
    return Batch(shape, torch.float64, torch.device("cpu"), (torch.float64,) * count)


def _is_plain(value: Value) -> bool:
    """Whether a value is what the engines work with: no conversion, no question of dtypes and devices."""
    return isinstance(value, Tensor) and value.dtype is torch.float64 and value.is_cpu and value.layout is torch.strided


def _in_float64(value: Tensor, device: torch.device) -> Tensor:
    # The kernels read memory, in which torch may have put off a change of sign (`z.conj().imag`).
    value = value.resolve_neg()
    return value if value.dtype is torch.float64 and value.device == device else value.to(device, torch.float64)


def as_tensor(name: str, value: Value) -> Tensor:
    """A tensor of real floating-point numbers.

    Raises:
        ArgumentError: the value is complex, or not numeric.
    """
    if is_sparse(value):
        kind = "tensor" if isinstance(value, Tensor) else "matrix"
        raise ArgumentError(
            f"{name} is a sparse {kind}, expected a dense one: only a parameter that was declared with `sparsity=` "
            "takes it."
        )
    if isinstance(value, Tensor):
        tensor = value
    else:
        if np.ma.is_masked(value):
            raise ArgumentError(f"{name} is an array with masked entries, expected one with all its numbers.")
        # A copy in native byte order: torch takes neither negative strides nor foreign bytes nor read-only memory.
        # Numbers keep all their digits in float64; the dtype of results is decided by `common_dtype`.
        try:
            array = np.asarray(value)
        except (ValueError, RuntimeError):  # ragged lists, lists of tensors that require gradients
            array = np.empty(0, dtype=object)
        if array.dtype.kind not in "fiubc":
            raise ArgumentError(f"{name} is a {type(value).__name__}, expected a tensor, an array or a number.")
        dtype = np.dtype(np.float64) if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
        tensor = torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    if tensor.layout is not torch.strided:
        raise ArgumentError(f"{name} is a sparse tensor of layout {tensor.layout}, expected a dense one.")
    if tensor.is_complex():
        raise ArgumentError(f"{name} is complex, expected real numbers.")
    return tensor if tensor.is_floating_point() else tensor.to(torch.float64)


def common_dtype(values: Sequence[Value]) -> torch.dtype:
    """The dtype of results: that of the tensors and arrays, torch's default where there are only numbers."""
    dtype = None
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            dtype = value.dtype if dtype is None else torch.promote_types(dtype, value.dtype)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            found = as_tensor("", value[..., :0] if value.ndim else value).dtype
            dtype = found if dtype is None else torch.promote_types(dtype, found)
    return dtype if dtype is not None else torch.get_default_dtype()


def to_batch(
    parameters: Sequence[ParameterInfo], values: Sequence[Value], dtype: torch.dtype | None = None
) -> tuple[list[Tensor], Batch]:
    """Check shapes and find the batch.

    Args:
        parameters: what is expected.
        values: one per parameter, of shape (*batch, *shape).
        dtype: of results, by default the common one of the values.

    Returns:
        the values as tensors, (*batch, *shape) or, where the batch shares them, with a batch of size one, in their own
        dtypes and differentiable; and the batch.

    Raises:
        ArgumentError: a shape is wrong, batch dimensions do not broadcast, or devices differ; the message names the
            parameter, what came and what was expected.
    """
    if any(info.sparsity is not None for info in parameters):
        values = [_without_zeros(info, value) for info, value in zip(parameters, values, strict=True)]
    plain = len(values) > 0 and dtype in (None, torch.float64) and all(_is_plain(value) for value in values)
    tensors: list[Tensor] = (
        list(values)  # type: ignore[arg-type]
        if plain
        else [as_tensor(info.name, value) for info, value in zip(parameters, values, strict=True)]
    )
    leading = [_leading(info, tensor) for info, tensor in zip(parameters, tensors, strict=True)]
    shape = _common_shape(parameters, leading)
    if plain:
        batch = _plain_batch(shape, len(tensors))
    else:
        dtypes = tuple(tensor.dtype for tensor in tensors)
        batch = Batch(shape, dtype or common_dtype(values), _common_device(parameters, tensors, values), dtypes)
    for position, lead in enumerate(leading):
        if lead != shape and math.prod(lead) != 1:
            trailing = tensors[position].shape[len(lead) :]
            tensors[position] = tensors[position].expand(*shape, *trailing)
    return tensors, batch


def _common_shape(parameters: Sequence[ParameterInfo], leading: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The batch dimensions, broadcast."""
    if all(lead == leading[0] for lead in leading):
        return leading[0] if leading else ()
    try:
        return tuple(torch.broadcast_shapes(*leading))
    except RuntimeError as error:
        listed = ", ".join(f"{info.name} {tuple(lead)}" for info, lead in zip(parameters, leading, strict=True))
        raise ArgumentError(f"The batch dimensions of the parameters do not broadcast: {listed}.") from error


def _without_zeros(info: ParameterInfo, value: Value) -> Value:
    """The entries of a sparse matrix on the pattern of its parameter; other values as they are."""
    if info.sparsity is None or not is_sparse(value):
        return value
    return pick(info.name, value, info.shape, info.sparsity)


def are_entries(info: ParameterInfo, tensor: Tensor) -> bool:
    """Whether a value consists of the entries on the parameter's pattern, (*batch, entries)."""
    shape, rank = tuple(tensor.shape), len(info.shape)
    is_dense = len(shape) >= rank and shape[len(shape) - rank :] == info.shape
    return info.sparsity is not None and not is_dense and shape[-1:] == (info.entries,)


def value_shape(info: ParameterInfo, tensor: Tensor) -> tuple[int, ...]:
    """What of a value's shape is not batch dimensions."""
    return (info.entries,) if are_entries(info, tensor) else info.shape


def _leading(info: ParameterInfo, tensor: Tensor) -> tuple[int, ...]:
    """Batch dimensions of a value."""
    shape = tuple(tensor.shape)
    if info.sparsity is not None and are_entries(info, tensor):
        return shape[:-1]
    cut = len(shape) - len(info.shape)
    if cut < 0 or shape[cut:] != info.shape:
        expected = f"(*batch, {', '.join(map(str, info.shape))})" if info.shape else "(*batch)"
        expected += f" or (*batch, {info.entries}), its entries" if info.sparsity is not None else ""
        raise wrong_shape(info.name, tensor.shape, expected)
    return shape[:cut]


def _common_device(
    parameters: Sequence[ParameterInfo], tensors: Sequence[Tensor], values: Sequence[Value]
) -> torch.device:
    """The one device of all tensors; arrays and numbers go wherever the tensors are."""
    found: dict[torch.device, str] = {}
    for info, tensor, value in zip(parameters, tensors, values, strict=True):
        if isinstance(value, Tensor):
            found.setdefault(tensor.device, info.name)
    if len(found) > 1:
        listed = ", ".join(f"{name} on {device}" for device, name in found.items())
        raise ArgumentError(f"The parameters are on different devices: {listed}.")
    device = next(iter(found), torch.device("cpu"))
    if device.type == "meta":
        name = found[device]
        raise ArgumentError(f"{name} is on the meta device, which keeps no numbers, expected a device that does.")
    return device


def block_values(blocks: Sequence[Block], values: Sequence[Tensor]) -> list[Tensor]:
    """What each block of theta is made from: a parameter's value, its entries on a pattern, or its logarithm."""
    return [_block_value(block, values[block.parameter]) for block in blocks]


def _block_value(block: Block, value: Tensor) -> Tensor:
    info = block.sparse
    if info is not None and info.sparsity is not None and not are_entries(info, value):
        flat = value.reshape(*value.shape[: value.ndim - len(info.shape)], info.size)
        value = flat.index_select(-1, torch.as_tensor(info.sparsity, device=value.device))
    return _log(value.to(torch.float64)) if block.logarithm else value


def _log(value: Tensor) -> Tensor:
    """log, NaN where not positive, and there with a zero (not a NaN) gradient."""
    positive = value > 0
    safe = torch.where(positive, value, torch.ones_like(value))
    return torch.where(positive, safe.log(), torch.full_like(value, float("nan")))
