"""The compiled loops over the rows of a batch (native/src/zoo), and when they may stand in for torch's operators.

They read numbers from memory: of tensors on the CPU in single or double precision, where nobody but the Function that
calls them differentiates what they compute. Everything else goes by the torch operations next to each call, which are
the same mathematics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

from convexlayers.native import _core

DTYPES = (torch.float64, torch.float32)
# Matrices of larger orders are left to libraries, whose products are in blocks.
LARGEST_ORDER = 32
LARGEST_PLAN = 64
# Beyond this one Jacobi's method takes longer than reduction to tridiagonal form.
LARGEST_SPECTRUM = 16
# Subclasses may hold their numbers elsewhere, or have none.
PLAIN = (Tensor, torch.nn.Parameter)

SIMPLEX, SIMPLEX_ADJOINT = _core.zoo_kernel("simplex"), _core.zoo_kernel("simplex_adjoint")
CAPPED, CAPPED_ADJOINT = _core.zoo_kernel("capped_simplex"), _core.zoo_kernel("capped_simplex_adjoint")
NORM2, NORM2_ADJOINT = _core.zoo_kernel("norm2_projection"), _core.zoo_kernel("norm2_adjoint")
NORM_INF, NORM_INF_ADJOINT = _core.zoo_kernel("norm_inf_projection"), _core.zoo_kernel("norm_inf_adjoint")
SECOND_ORDER, SECOND_ORDER_DERIVATIVE = (
    _core.zoo_kernel("second_order"),
    _core.zoo_kernel("second_order_derivative"),
)
POOL, POOL_ADJOINT = _core.zoo_kernel("pool"), _core.zoo_kernel("pool_adjoint")
ENTMAX15, ENTMAX15_DERIVATIVE = _core.zoo_kernel("entmax15"), _core.zoo_kernel("entmax15_derivative")
ISOTONIC, ISOTONIC_ADJOINT = _core.zoo_kernel("isotonic"), _core.zoo_kernel("isotonic_adjoint")
TOTAL_VARIATION, TOTAL_VARIATION_ADJOINT = (
    _core.zoo_kernel("total_variation"),
    _core.zoo_kernel("total_variation_adjoint"),
)
TRIDIAGONAL, TRIDIAGONAL_ADJOINT = _core.zoo_kernel("tridiagonal"), _core.zoo_kernel("tridiagonal_adjoint")
LEAST_SQUARES, LEAST_SQUARES_ADJOINT = _core.zoo_kernel("least_squares"), _core.zoo_kernel("least_squares_adjoint")
SPECTRAL, SPECTRAL_DERIVATIVE = _core.zoo_kernel("spectral"), _core.zoo_kernel("spectral_derivative")
TRANSPORT, TRANSPORT_ADJOINT = _core.zoo_kernel("transport"), _core.zoo_kernel("transport_adjoint")


def usable(*tensors: Tensor) -> bool:
    """Whether kernels can read these tensors, all of one dtype; within `forward`, where torch has unwrapped them."""
    dtype = tensors[0].dtype
    # A graph that is being traced has no numbers.
    if dtype not in DTYPES or torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        # The older vmap, of torch.autograd.grad(is_grads_batched=True), wraps without a subclass.
        wrapped = type(tensor) not in PLAIN or is_legacy_batchedtensor(tensor)
        if wrapped or tensor.dtype is not dtype or not tensor.is_cpu:
            return False
    return True


def usable_once(*tensors: Tensor) -> bool:
    """`usable` for a backward pass: besides, nobody differentiates it, in reverse or forward mode or by a transform."""
    return (
        not torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and usable(*tensors)
    )


def packed(tensor: Tensor) -> Tensor:
    """The same numbers, one after the other in memory."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def run(
    kernel: _core.RowKernel, tensors: Sequence[Tensor | None], rows: int, n: int, *, m: int = 0, option: int = 0
) -> int:
    """Call a kernel.

    Args:
        kernel: one of the above.
        tensors: packed, inputs and then results, as the kernel lists them; None for a result that nobody wants.
        rows: size of the batch.
        n, m: sizes of a row.
        option: variant of the layer.

    Returns:
        how many rows the kernel leaves to the caller.
    """
    addresses = tuple([0 if tensor is None else tensor.data_ptr() for tensor in tensors])
    first = tensors[0]
    single = first is not None and first.dtype is torch.float32
    return kernel.run(addresses, rows, n, m, option, single, torch.get_num_threads())
