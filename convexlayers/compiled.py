"""Layers inside of torch.compile and torch.export: the calls as custom operators of torch (torch.library.custom_op).

A compiled graph holds tensors and constants, so a layer is a string in it, under which it is registered here for as
long as it lives. The operators take values as the user passed them, and return what the layer returns, then the point
that the derivative is taken at.
"""

import math
from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from convexlayers.autograd import Call, pull_back
from convexlayers.batching import Value, block_values, common_dtype, to_batch, value_shape
from convexlayers.engines.base import Plan
from convexlayers.errors import ArgumentError, ConvexLayersError
from convexlayers.execute import check
from convexlayers.operators import Operator, fill
from convexlayers.status import raise_for_status


class CompilableModule(torch.nn.Module):
    """A module that compiled graphs find by a name; copies and unpickled ones get a name of their own.

    Attributes:
        validate, on_failure, relax: see `ConvexLayer`; as they are when the graph runs.
    """

    validate: bool
    on_failure: str
    relax: str | None
    _plan: Plan
    _name: str

    def _register(self) -> None:
        self._name = f"layer {next(_numbers)}"
        _registered[self._name] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._register()

    def _compiled_call(self, values: Sequence[Value]) -> tuple[Tensor, ...]:
        """The outputs, by one node of a graph."""
        if self.relax is not None:
            raise ArgumentError("A layer with relax cannot be compiled: what it relaxes depends on numbers.")
        outputs = len(self._plan.program.outputs)
        tensors = [value if isinstance(value, Tensor) else torch.as_tensor(value) for value in values]
        return tuple(torch.ops.convexlayers.solve(self._name, tensors)[:outputs])


_registered: WeakValueDictionary[str, CompilableModule] = WeakValueDictionary()
_numbers = count()


def find(name: str) -> CompilableModule:
    """The layer of that name.

    Raises:
        ConvexLayersError: it is gone.
    """
    layer = _registered.get(name)
    if layer is None:
        raise ConvexLayersError(
            f"{name} of a compiled graph does not exist in this process: it has been deleted, or the graph is of "
            "another process. Keep the layer alive as long as the graph, and export again where it is to run."
        )
    return layer


@torch.library.custom_op("convexlayers::solve", mutates_args=())
def solve(name: str, values: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a layer; x, s, z; status; the engine's states."""
    layer = find(name)
    plan, program = layer._plan, layer._plan.program
    tensors, batch = to_batch(program.parameters, list(values))
    if layer.validate and program.checked:
        check(program, tensors, batch)
    run = Call(plan, batch, with_objective=False)
    run.theta = tuple([row for row in run.rows(block_values(program.blocks, tensors)) if row is not None])
    run.solution = plan.answer(run.theta)
    if layer.on_failure == "raise" and not run.solution.all_solved:
        raise_for_status(batch.restore(run.solution.status))
    solution = run.solution
    parts = (*run.outputs(), solution.x, solution.s, solution.z, solution.status, *plan.states(solution))
    # No two outputs of an operator may share memory.
    return [part.clone() for part in parts]


@solve.register_fake
def _(name: str, values: Sequence[Tensor]) -> list[Tensor]:
    plan = find(name)._plan
    structure, infos = plan.program.structure, plan.program.parameters
    leading = [
        value.shape[: value.ndim - len(value_shape(info, value))] for value, info in zip(values, infos, strict=True)
    ]
    shape = torch.broadcast_shapes(*leading)
    size = math.prod(shape)
    like = values[0] if values else torch.empty(0)
    dtype = common_dtype(list(values))
    outputs = [like.new_empty((*shape, *info.shape), dtype=dtype) for info in plan.program.outputs]
    point = [like.new_empty((size, width), dtype=torch.float64) for width in (structure.n, structure.m, structure.m)]
    states = [torch.empty((size, *tail), dtype=kind, device="cpu") for tail, kind in plan.state_shapes()]
    return [*outputs, *point, like.new_empty(size, dtype=torch.int64), *states]


@torch.library.custom_op("convexlayers::adjoint", mutates_args=())
def adjoint(
    name: str, wanted: Sequence[bool], values: Sequence[Tensor], point: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    """Cotangents of the values that are wanted, from those of the outputs."""
    layer = find(name)
    program = layer._plan.program
    tensors, batch = to_batch(program.parameters, list(values))
    blocks, given = program.blocks, block_values(program.blocks, tensors)
    run = Call(layer._plan, batch, with_objective=False)
    run.theta = tuple([row for row in run.rows(given) if row is not None])
    run.solution = Operator(layer._plan).restore(run.theta, point)
    found = pull_back(run, [wanted[block.parameter] for block in blocks], given, grads)
    out = [torch.zeros_like(value) if wish else None for value, wish in zip(values, wanted, strict=True)]
    for block, value, grad in zip(blocks, given, found, strict=True):
        total = out[block.parameter]
        if total is None or grad is None:
            continue
        if block.logarithm:
            # value = log v, NaN where v is not positive.
            grad = (grad * (-value).exp()).masked_fill(value.isnan(), 0.0)
        total += grad.sum_to_size(total.shape)
    return [total for total in out if total is not None]


@adjoint.register_fake
def _(name: str, wanted: Sequence[bool], values: Sequence[Tensor], *_: object) -> list[Tensor]:  # noqa: ARG001
    return [torch.empty_like(value) for value, wish in zip(values, wanted, strict=True) if wish]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.name, values = inputs
    ctx.count, ctx.outputs = len(values), len(find(ctx.name)._plan.program.outputs)
    ctx.save_for_backward(*values, *output)
    ctx.mark_non_differentiable(*output[ctx.outputs :])


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[None, list[Tensor | None]]:
    values, outputs = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    given = [
        torch.zeros_like(output) if grad is None else grad
        for output, grad in zip(outputs[: ctx.outputs], grads, strict=False)
    ]
    wanted = [bool(value.requires_grad) for value in values]
    found = torch.ops.convexlayers.adjoint(ctx.name, wanted, values, outputs[ctx.outputs :], given)
    return None, list(fill(wanted, found))


solve.register_autograd(_backward, setup_context=_setup_context)
