"""Directions from solutions of perturbed problems: Lagrangian proximal gradient descent.

Source: Paulus, Martius, Musil, "LPGD: A general framework for backpropagation through embedded optimization layers"
(arXiv 2407.05920, 2024). With theta = (P, q, A, b) and the Lagrangian

    L(x, z; theta) = 1/2 x'Px + q'x + z'(Ax - b),    solution (x*, z*) = min over x, max over z in K*,

let l(x, z) = grad_x'x + grad_z'z be the loss as the backward pass knows it. Its envelope at t > 0 has the saddle point
of L + t l, that is the solution (x_t, z_t) of the same problem with

    q + t grad_x,    b - t grad_z,

and by the envelope theorem d/dtheta min max (L + t l) = grad_theta L(x_t, z_t). Differentiate in t at 0: the two orders
of differentiation give grad_theta of l(x*(theta), z*(theta)), the gradient that is wanted, as the limit of

    lower:    [grad_theta L(x_t, z_t)  - grad_theta L(x*, z*)  ] / t
    upper:    [grad_theta L(x*, z*)    - grad_theta L(x_-t, z_-t)] / t
    average:  [grad_theta L(x_t, z_t)  - grad_theta L(x_-t, z_-t)] / 2t

with grad_theta L = (1/2 xx', x, zx', -z) for P, q, A, b. For finite t they are gradients of Moreau envelopes of the
loss, and not zero where the solution is piecewise constant, if t is long enough to leave the vertex. A cotangent of s =
b - Ax is that of x, less A'grad_s, and explicit parts of b and A; that of the optimal value goes by the envelope
theorem.

With rho, the perturbed problems are kept near the solution by rho/2 |x - x*|^2: P + rho I, q - rho x*.

What tau and rho are relative to: t is chosen for each element such that the perturbation of q and b is at most tau
times the terms of the conditions there, |q|, |Px|, |A'z| and |b|, |Ax|, |s| in the maximum norm, with all numbers in
units of size one, and reaches that for one of the two. So the result is homogeneous in the cotangent, not additive, and
the same for cotangents of all sizes. rho is relative to the same terms of q over |x|: an otherwise free x moves by tau
/ rho of |x|.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.assembly import add_diagonal
from convexlayers.derivatives.base import NO_CONTEXT, Context, Cotangents, Derivative, Tangents
from convexlayers.derivatives.implicit import contract, lagrangian_gradient
from convexlayers.errors import ArgumentError, ConvexLayersError
from convexlayers.program import ConeProgram
from convexlayers.solution import DerivativeReport

SIDES = ("average", "lower", "upper")
# A solution that moves by less than this, relative, has not left its vertex: that is a solver's tolerance.
UNMOVED = 1e-6
# Sizes below this, in units of size one, are zero up to what a solver leaves there.
SMALLEST = 1e-3


@dataclass(frozen=True)
class Perturbed(Derivative):
    """Differences of solutions of perturbed problems (LPGD): useful where the exact derivative is zero.

    The forward pass returns the solution. The backward pass solves two more problems (one with a side other than
    "average"), moved along the incoming gradient and against it. As tau goes to zero the result is the exact
    derivative, where there is one. Forward mode takes differences along the tangent of the data; for finite tau it is
    not the transpose of the reverse mode.

    Args:
        tau: size of the perturbation relative to the terms of the optimality conditions, per element: the result does
            not depend on the size of the incoming gradient but by the factor. Larger sees vertices that are further
            away.
        rho: weight of the distance to the solution, relative as well: 0 is none; with it perturbed problems are
            bounded.
        side: "average" of both sides, "lower" (along the incoming gradient) or "upper" (against it).

    A side whose problem has no solution is left out; without any, the derivative of that element is zero, its residual
    infinite, and a DerivativeWarning says so. `locally_constant` in the report says that x did not move: raise tau.

    Examples:
        >>> import torch, convexlayers as cl
        >>> cost = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
        >>> one = torch.ones(1, 3, dtype=torch.float64)
        >>> x = cl.solve_lp(cost, A=one, b=one[0, :1], lb=0.0, derivative=cl.Perturbed(tau=1.0)).x
        >>> (-x[1]).backward()  # a loss that falls with the second entry: its cost has to fall, the others' to rise
        >>> cost.grad[1] > 0
        tensor(True)
    """

    tau: float = 1e-2
    rho: float = 0.0
    side: str = "average"

    def __post_init__(self) -> None:
        if not 0 < self.tau < float("inf"):
            raise ArgumentError(f"tau is {self.tau}, expected a positive number.")
        if not 0 <= self.rho < float("inf"):
            raise ArgumentError(f"rho is {self.rho}, expected a nonnegative number.")
        if self.side not in SIDES:
            raise ArgumentError(f"side is {self.side!r}, expected one of {', '.join(map(repr, SIDES))}.")

    def adjoint(
        self,
        program: ConeProgram,
        x: Tensor,
        s: Tensor,
        z: Tensor,
        cotangents: Cotangents,
        context: Context = NO_CONTEXT,
    ) -> tuple[Tensor, DerivativeReport]:
        grad_x, grad_s, grad_z = cotangents.dense(program)
        explicit = contract(program, x, z, torch.zeros_like(x), grad_s)
        if cotangents.objective is not None:
            explicit = explicit + cotangents.objective.unsqueeze(-1) * lagrangian_gradient(program, x, z)
        direction, slices = torch.zeros_like(program.data), program.structure.slices
        direction[:, slices["q"]] = grad_x - program.At_times(grad_s)
        direction[:, slices["b"]] = -grad_z
        ends = self._ends(program, (x, s, z), direction, context)
        high, low = (lagrangian_gradient(program, end[0], end[2]) for end in (ends.high, ends.low))
        return explicit + ends.quotient(high, low), ends.report()

    def tangent(
        self,
        program: ConeProgram,
        x: Tensor,
        s: Tensor,
        z: Tensor,
        ddata: Tensor,
        context: Context = NO_CONTEXT,
    ) -> tuple[Tangents, DerivativeReport]:
        ends = self._ends(program, (x, s, z), ddata, context)
        dx, ds, dz = (ends.quotient(high, low) for high, low in zip(ends.high, ends.low, strict=True))
        objective = (ddata * lagrangian_gradient(program, x, z)).sum(-1)
        report = ends.report()
        report.locally_constant = None
        return Tangents(dx, ds, dz, objective), report

    def _ends(self, program: ConeProgram, point: "Point", direction: Tensor, context: Context) -> "Ends":
        """Solutions at program.data + t direction and at program.data - t direction."""
        if context.resolve is None:
            raise ConvexLayersError("Perturbed solves again: it needs an engine, and there is none.")
        terms = _terms(program, *point)
        unit = _unit(program, direction, terms)
        signs = {"average": (1.0, -1.0), "lower": (1.0,), "upper": (-1.0,)}[self.side]
        moving = (unit > 0).nonzero().squeeze(-1)
        part, at, t = program.select(moving), [v[moving] for v in point], self.tau / unit[moving]
        # Divided first: t times a tiny direction may overflow.
        scaled = self.tau * (direction[moving] / unit[moving].unsqueeze(-1))
        data = torch.cat([part.data + sign * scaled for sign in signs])
        rho = self.rho * terms[moving, 0] / _size(at[0])
        found = context.resolve(self._near(ConeProgram(part.structure, data), at[0], rho, len(signs)))
        ends = Ends.at_rest(point, unit)
        for k, sign in enumerate(signs):
            side = slice(k * len(moving), (k + 1) * len(moving))
            solved = found.solved[side]
            x, s, z = (v[side][solved] for v in (found.x, found.s, found.z))
            ends.put(moving[solved], sign, (x, s, z), t[solved])
        return ends

    def _near(self, program: ConeProgram, x: Tensor, rho: Tensor, sides: int) -> ConeProgram:
        """The program with rho/2 |x - x*|^2 in its objective."""
        if self.rho == 0:
            return program
        x, rho = x.repeat(sides, 1), rho.repeat(sides).unsqueeze(-1)
        structure, positions, diagonal = add_diagonal(program.structure)
        data = program.data.new_zeros(program.batch, structure.size)
        data[:, torch.as_tensor(positions, device=x.device)] = program.data
        data[:, torch.as_tensor(diagonal, device=x.device)] += rho
        data[:, structure.slices["q"]] -= rho * x
        return ConeProgram(structure, data)


Point = tuple[Tensor, Tensor, Tensor]


@dataclass
class Ends:
    """Two points on a line through each element's data.

    Attributes:
        high, low: (x, s, z) there; the solution itself where there was nothing to solve or no solution was found.
        width: their distance, in steps of the direction, (B,); 0 for none.
        wanted: elements whose direction is not zero, (B,).
    """

    high: list[Tensor]
    low: list[Tensor]
    width: Tensor
    wanted: Tensor

    @classmethod
    def at_rest(cls, point: Point, unit: Tensor) -> "Ends":
        """Both at the solution."""
        return cls(list(point), list(point), torch.zeros_like(unit), unit > 0)

    def put(self, indices: Tensor, sign: float, point: Point, t: Tensor) -> None:
        """Move an end of some elements."""
        end = self.high if sign > 0 else self.low
        for k, new in enumerate(point):
            end[k] = end[k].index_copy(0, indices, new)
        self.width = self.width.index_add(0, indices, t)

    def quotient(self, high: Tensor, low: Tensor) -> Tensor:
        """The difference per step, zero where there is none."""
        width = torch.where(self.width > 0, self.width, torch.ones_like(self.width)).unsqueeze(-1)
        return (high - low) / width

    def report(self) -> DerivativeReport:
        """Infinite residuals where no side was solved."""
        zeros = torch.zeros_like(self.width)
        failed = self.wanted & (self.width == 0)
        moved = (self.high[0] - self.low[0]).abs().amax(-1) > UNMOVED * _size(self.high[0])
        residual = torch.where(failed, zeros + float("inf"), zeros)
        return DerivativeReport(residual=residual, locally_constant=self.wanted & ~failed & ~moved)


def _size(v: Tensor) -> Tensor:
    """Maximum norm, 1 where that is close to zero, (B,)."""
    largest = v.abs().amax(-1) if v.shape[-1] else v.sum(-1)
    return torch.where(largest > SMALLEST, largest, torch.ones_like(largest))


def _terms(program: ConeProgram, x: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """Sizes of what stands beside q and beside b in the conditions, 1 where that is zero, (B, 2)."""
    dual = torch.cat([program.q, program.P_times(x), program.At_times(z)], dim=-1)
    primal = torch.cat([program.b, program.A_times(x), s], dim=-1)
    return torch.stack([_size(dual), _size(primal)], dim=-1)


def _unit(program: ConeProgram, direction: Tensor, terms: Tensor) -> Tensor:
    """Size of a direction of the numbers, relative to them, (B,)."""
    sizes = {"P": _size(program.P_values), "q": terms[:, 0], "A": _size(program.A_values), "b": terms[:, 1]}
    parts = [torch.zeros_like(terms[:, 0])]
    for name, size in sizes.items():
        part = direction[:, program.structure.slices[name]]
        if part.shape[-1]:
            parts.append(part.abs().amax(-1) / size)
    return torch.stack(parts).amax(0)
