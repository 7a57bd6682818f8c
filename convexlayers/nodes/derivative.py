"""The derivative of a node's solution and multipliers, of every order, forward and reverse.

Source: Gould, Hartley, Campbell, "Deep declarative networks" (2019), proposition 4.6; here with one linear system for
any mixture of constraints. At a solution, with the active constraints c (equalities and active inequalities),

    grad_y L(x, y, lam) = 0,    c(x, y) = 0.

Differentiating, with K of kkt.py and B = d(grad_y L)/dx, C = dc/dx:

    K [dy; dlam] = -[B; C] dx                                                  (tangent)

    for cotangents (v, u) of y and lam,  v'dy + u'dlam = -[v; u]' K^-1 [B; C] dx, so solve the symmetric system
    K [w; s] = -[v; u] once;  grad_x = B'w + C's = d/dx (w' grad_y L + s'c)    (adjoint)

which is one pass of automatic differentiation over all inputs: B and C are never formed. Both are functions of (x, y,
lam) again, made of differentiable operations. y and lam are both outputs of the node, so that the derivative of the
adjoint, taken in all three, is the second derivative of the solution, and so on; the active set stays fixed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convexlayers.errors import SecondDerivativeError
from convexlayers.nodes.blocks import in_blocks
from convexlayers.nodes.kkt import assemble, factor
from convexlayers.nodes.point import Point
from convexlayers.nodes.problem import Problem
from convexlayers.reports import warn_of_residual
from convexlayers.solution import DerivativeReport
from convexlayers.stacks import understands_stacks

# (H, A, active, right-hand side) to the solution of K's system.
LinearSolve = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# Above this order of K torch's batched factorization is not used: its threads may hang on processors.
LARGEST_BATCHED = 128


@dataclass
class NodeReport(DerivativeReport):
    """What is known of the last derivative taken at a node's solution; see `DerivativeReport`.

    `locally_constant` is not computed for nodes.
    """


@dataclass
class NodeCall:
    """One call of a node.

    Attributes:
        problem: its functions.
        solve: the call and inputs (B, ...) to the Point of the batch; it sets `problem` and `equalities`.
        block: number of elements that are worked off together.
        damping: added to the diagonal of H in derivatives.
        equalities: how many of the constraints are.
        point: what came out; set by the forward pass.
        report: of the derivative; filled by the first derivative that is taken.
    """

    problem: Problem
    solve: Callable[["NodeCall", Sequence[Tensor]], Point]
    block: int
    damping: float = 0.0
    equalities: int = 0
    point: Point | None = None
    report: NodeReport = field(default_factory=NodeReport)

    @property
    def solved(self) -> Point:
        """The point; the forward pass has run."""
        assert self.point is not None
        return self.point


@dataclass(frozen=True)
class Product:
    """A product with the derivative of a node, as a function of tensors (B, ...).

    Attributes:
        kind: "adjoint" of (active, noise, y, lam, grad_y, grad_lam, *xs), "tangent" of (active, noise, y, lam, *dxs,
            *xs), or "vjp" and "jvp" of another Product, of its tensors and then the cotangents of its results or the
            tangents of its differentiable tensors.
        moving: of "adjoint" and "tangent": which of the inputs the product is with.
        arity: number of tensors.
        differentiable: positions of the tensors that the product can be differentiated in.
        results: number of results.
        inner: of "vjp" and "jvp".
    """

    kind: str
    moving: tuple[int, ...]
    arity: int
    differentiable: tuple[int, ...]
    results: int
    inner: "Product | None" = None

    def derived(self, kind: str) -> "Product":
        """Its own "vjp" or "jvp"."""
        places = self.differentiable
        added, results = (self.results, len(places)) if kind == "vjp" else (len(places), self.results)
        behind = range(self.arity, self.arity + added)
        return Product(kind, self.moving, self.arity + added, (*places, *behind), results, self)

    def __call__(self, call: NodeCall, solve: LinearSolve, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The results, (B, ...) each."""
        inner = self.inner
        if inner is None:
            return (_adjoint if self.kind == "adjoint" else _tangent)(call, solve, self.moving, tensors)
        before, behind, places = tensors[: inner.arity], tensors[inner.arity :], inner.differentiable

        def of_differentiable(*values: Tensor) -> tuple[Tensor, ...]:
            merged = list(before)
            for place, value in zip(places, values, strict=True):
                merged[place] = value
            return inner(call, solve, *merged)

        values = tuple(before[place] for place in places)
        if self.kind == "jvp":
            return _push_forward(of_differentiable, values, behind)
        return torch.func.vjp(of_differentiable, *values)[1](behind)


def adjoint_product(moving: tuple[int, ...], xs: Sequence[Tensor]) -> Product:
    """The product of cotangents with the derivative in the inputs `moving`."""
    places = (2, 3, 4, 5, *(6 + i for i, x in enumerate(xs) if x.is_floating_point()))
    return Product("adjoint", moving, 6 + len(xs), places, len(moving))


def tangent_product(moving: tuple[int, ...], xs: Sequence[Tensor]) -> Product:
    """The product of the derivative in the inputs `moving` with their tangents."""
    first = 4 + len(moving)
    places = (*range(2, first), *(first + i for i, x in enumerate(xs) if x.is_floating_point()))
    return Product("tangent", moving, first + len(xs), places, 2)


def _adjoint(
    call: NodeCall, solve: LinearSolve, moving: tuple[int, ...], tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    active, _, y, lam, grad_y, grad_lam, *xs = tensors
    H, A = _system(call, xs, y, lam)
    # Multipliers of inactive inequalities are the constant zero.
    solution = solve(H, A, active, -torch.cat([grad_y, grad_lam * active], 1))
    w, s = solution[:, : y.shape[1]], solution[:, y.shape[1] :] * active

    def contracted(*values: Tensor) -> Tensor:
        slope, c = _conditions(call, _merged(xs, moving, values), y, lam)
        return (w * slope).sum() + (s * c).sum()

    return torch.func.grad(contracted, argnums=tuple(range(len(moving))))(*(xs[i] for i in moving))


def _tangent(
    call: NodeCall, solve: LinearSolve, moving: tuple[int, ...], tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    active, _, y, lam = tensors[:4]
    dxs, xs = tensors[4 : 4 + len(moving)], tensors[4 + len(moving) :]
    H, A = _system(call, xs, y, lam)
    values = tuple(xs[i] for i in moving)
    dslope, dc = _push_forward(lambda *parts: _conditions(call, _merged(xs, moving, parts), y, lam), values, tuple(dxs))
    solution = solve(H, A, active, -torch.cat([dslope, dc * active], 1))
    return solution[:, : y.shape[1]], solution[:, y.shape[1] :] * active


def _system(call: NodeCall, xs: Sequence[Tensor], y: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """H and A."""
    H = call.problem.hessian(xs, y, lam)
    if call.damping:
        H = H + call.damping * torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
    return H, call.problem.jacobian(xs, y)


def _conditions(call: NodeCall, xs: Sequence[Tensor], y: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """grad_y L and c."""
    return call.problem.lagrangian_gradient(xs, y, lam), call.problem.constraints(xs, y)


def _merged(xs: Sequence[Tensor], moving: tuple[int, ...], values: Sequence[Tensor]) -> list[Tensor]:
    merged = list(xs)
    for place, value in zip(moving, values, strict=True):
        merged[place] = value
    return merged


def _push_forward(
    function: Callable[..., tuple[Tensor, ...]], values: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The derivative times tangents, by two reverse passes: u -> J'u is linear, and its own adjoint is J.

    torch's forward mode cannot be nested, and a caller may be inside it.
    """
    results, pull = torch.func.vjp(function, *values)  # type: ignore[assignment]
    zeros = tuple(torch.zeros_like(result) for result in results)
    return torch.func.vjp(lambda *cotangents: pull(cotangents), *zeros)[1](tangents)


def _exact_solve(H: Tensor, A: Tensor, active: Tensor, right: Tensor) -> Tensor:
    """By torch's differentiable factorization: for derivatives of derivatives."""
    K, right = assemble(H, A, active), right.unsqueeze(2)
    if K.shape[1] < LARGEST_BATCHED:
        return torch.linalg.solve(K, right).squeeze(2)
    return torch.stack([torch.linalg.solve(one, other) for one, other in zip(K, right, strict=True)]).squeeze(2)


def evaluate(call: NodeCall, product: Product, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A product over a batch: zero for elements that were not solved (noise is NaN), in blocks for the others."""
    solved = (~tensors[1][:, 0].isnan()).nonzero().squeeze(1)
    batch, first = len(tensors[1]), product.inner is None
    outcome = [tensor[solved] for tensor in tensors]
    if len(solved) == 0:
        shapes = [tensor[:1] for tensor in tensors]
        found = [torch.zeros_like(part[:0]) for part in _result_like(product, shapes)]
    elif first:
        found = _evaluate_first(call, product, outcome, solved, batch)
    else:
        found = in_blocks(lambda *block: _evaluate_derived(call, product, block), outcome, call.block)
    return [part.new_zeros(batch, *part.shape[1:]).index_copy(0, solved, part) for part in found]


def _result_like(product: Product, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors with the shapes of the results."""
    if product.kind == "adjoint":
        return [tensors[6 + i] for i in product.moving]
    if product.kind == "tangent":
        return [tensors[2], tensors[3]]
    inner = product.inner
    assert inner is not None
    return [tensors[i] for i in inner.differentiable] if product.kind == "vjp" else _result_like(inner, tensors)


def _evaluate_first(
    call: NodeCall, product: Product, tensors: Sequence[Tensor], solved: Tensor, batch: int
) -> list[Tensor]:
    """A first derivative, by least squares where the system is singular; says so in the report."""

    def block(*parts: Tensor) -> tuple[Tensor, ...]:
        known: list[Tensor] = []

        def solve(H: Tensor, A: Tensor, active: Tensor, right: Tensor) -> Tensor:
            system = factor(H, A, active, parts[1][:, 0], parts[1][:, 1])
            solution, residual = system.solve(right)
            known[:] = [residual, system.rank_deficient]
            return solution

        return *product(call, solve, *parts), *known

    *found, residual, deficient = in_blocks(block, tensors, call.block)
    report = NodeReport()
    report.residual = residual.new_zeros(batch).index_copy(0, solved, residual)
    report.rank_deficient = deficient.new_zeros(batch).index_copy(0, solved, deficient)
    call.report.residual, call.report.rank_deficient = report.residual, report.rank_deficient
    warn_of_residual(call.report)
    return found


def _evaluate_derived(call: NodeCall, product: Product, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A derivative of a derivative, where the system is nonsingular."""
    inner = product
    while inner.inner is not None:
        inner = inner.inner
    active, noise, y, lam = tensors[:4]
    xs = tensors[6 if inner.kind == "adjoint" else 4 + len(inner.moving) : inner.arity]
    if bool(factor(*_system(call, xs, y, lam), active, noise[:, 0], noise[:, 1]).rank_deficient.any()):
        raise SecondDerivativeError(
            "A second derivative was asked for where the optimality conditions of the node are singular: the solution "
            "or its multipliers are not unique, and there is none. damping=... regularizes the conditions."
        )
    return product(call, _exact_solve, *tensors)


class NodeFunction(torch.autograd.Function):
    """Inputs (B, ...) to y (B, n), lam (B, m), the mask of active rows and the noise (NaN where not solved)."""

    @staticmethod
    def forward(call: NodeCall, *xs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        point = call.solve(call, xs)
        call.point = point
        failed = point.status != 0
        nan = torch.full_like(point.residual, float("nan"))
        y = torch.where(failed.unsqueeze(1), nan.unsqueeze(1), point.y)
        lam = torch.where(failed.unsqueeze(1), nan.unsqueeze(1), point.lam)
        return y, lam, point.active.clone(), torch.where(failed.unsqueeze(1), nan.unsqueeze(1), point.noise)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, xs = inputs[0], inputs[1:]
        y, lam, active, noise = output
        ctx.mark_non_differentiable(active, noise)
        ctx.save_for_backward(active, noise, y, lam, *xs)
        ctx.save_for_forward(active, noise, y, lam, *xs)

    @staticmethod
    @understands_stacks
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        active, noise, y, lam, *xs = ctx.saved_tensors
        moving = tuple(i for i, x in enumerate(xs) if ctx.needs_input_grad[1 + i] and x.is_floating_point())
        product = adjoint_product(moving, xs)
        found = ProductFunction.apply(ctx.call, product, active, noise, y, lam, grads[0], grads[1], *xs)
        return None, *_spread(found, moving, len(xs))

    @staticmethod
    @understands_stacks
    def jvp(ctx: Any, _: None, *dxs: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        active, noise, y, lam, *xs = ctx.saved_tensors
        moving = tuple(i for i, dx in enumerate(dxs) if dx is not None and xs[i].is_floating_point())
        product = tangent_product(moving, xs)
        moved = [dxs[i] for i in moving]
        return *ProductFunction.apply(ctx.call, product, active, noise, y, lam, *moved, *xs), None, None  # type: ignore

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[Any, ...], call: NodeCall, *xs: Tensor
    ) -> tuple[Any, Any]:
        """Elements of vmap's batch are elements of the node's."""
        return _folded(info.batch_size, in_dims[1:], xs, lambda flat: NodeFunction.apply(call, *flat))


class ProductFunction(torch.autograd.Function):
    """A `Product`; its derivatives are `Product`s."""

    @staticmethod
    def forward(call: NodeCall, product: Product, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(evaluate(call, product, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, ctx.product = inputs[:2]
        ctx.save_for_backward(*inputs[2:])
        ctx.save_for_forward(*inputs[2:])

    @staticmethod
    @understands_stacks
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        product, tensors = ctx.product, ctx.saved_tensors
        found = ProductFunction.apply(ctx.call, product.derived("vjp"), *tensors, *grads)
        return None, None, *_spread(found, product.differentiable, len(tensors))

    @staticmethod
    @understands_stacks
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        product, tensors = ctx.product, ctx.saved_tensors
        moved = [torch.zeros_like(tensors[i]) if tangents[i] is None else tangents[i] for i in product.differentiable]
        return ProductFunction.apply(ctx.call, product.derived("jvp"), *tensors, *moved)  # type: ignore

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[Any, ...], call: NodeCall, product: Product, *tensors: Tensor
    ) -> tuple[Any, Any]:
        """As for the node."""
        return _folded(info.batch_size, in_dims[2:], tensors, lambda flat: ProductFunction.apply(call, product, *flat))


def _spread(found: Any, places: Sequence[int], count: int) -> list[Tensor | None]:
    spread: list[Tensor | None] = [None] * count
    for place, value in zip(places, found, strict=True):
        spread[place] = value
    return spread


def _folded(
    size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor], apply: Callable[[list[Tensor]], Any]
) -> tuple[Any, Any]:
    """Apply to tensors whose mapped dimension has been folded into the batch, and unfold the results."""
    flat = []
    for tensor, place in zip(tensors, in_dims, strict=True):
        front = tensor.expand(size, *tensor.shape) if place is None else tensor.movedim(place, 0)
        flat.append(front.reshape(front.shape[0] * front.shape[1], *front.shape[2:]))
    batch = flat[0].shape[0] // size
    results = tuple(result.reshape(size, batch, *result.shape[1:]) for result in apply(flat))
    return results, (0,) * len(results)
