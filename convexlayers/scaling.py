"""Units: every element is solved, judged and differentiated with its numbers brought to size one.

Solvers stop by absolute as well as relative tests, so that a program with small numbers is "solved" anywhere, and one
with large numbers never. For positive tau, sigma, omega the program with

    P' = tau^2/omega P,  q' = tau/omega q,  A' = tau/sigma A,  b' = b/sigma,  offset' = offset/omega

has the solution x' = x/tau, s' = s/sigma, z' = sigma/omega z, and the objective of the original divided by omega (cones
are invariant). The three are powers of two, so that nothing is rounded, and chosen from medians of the nonzero entries,
so that one huge bound does not make everything else small. Of P the diagonal counts, which bounds the other entries of
a positive semidefinite matrix: small ones beside it say nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convexlayers.derivatives.base import Cotangents, Tangents
from convexlayers.program import ConeProgram, Structure

Point = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Scaling:
    """Units of a batch.

    Attributes:
        tau, sigma, omega: as above, shape (B, 1).
    """

    tau: Tensor
    sigma: Tensor
    omega: Tensor

    def select(self, indices: Tensor) -> "Scaling":
        """The elements at these indices."""
        return Scaling(*(part[indices] for part in (self.tau, self.sigma, self.omega)))

    def normalize(self, program: ConeProgram) -> ConeProgram:
        """The program in these units."""
        return ConeProgram(program.structure, self.scale_data(program.structure, program.data))

    def scale_data(self, structure: Structure, data: Tensor) -> Tensor:
        """Numbers, or tangents of them, in these units, and cotangents of the numbers from those in them; (B, size)."""
        tau, sigma, omega = self.tau, self.sigma, self.omega
        factors = {"P": tau * tau / omega, "q": tau / omega, "A": tau / sigma, "b": 1 / sigma, "offset": 1 / omega}
        # A part at a time in one copy: these are the largest tensors that there are.
        scaled = data.clone()
        for name, factor in factors.items():
            scaled[:, structure.slices[name]] *= factor
        return scaled

    def normalize_point(self, x: Tensor, s: Tensor, z: Tensor) -> Point:
        """A solution of the original in these units."""
        return x / self.tau, s / self.sigma, z * (self.sigma / self.omega)

    def restore_point(self, x: Tensor, s: Tensor, z: Tensor) -> Point:
        """A solution of the normalized program in the original's units."""
        return self.tau * x, self.sigma * s, (self.omega / self.sigma) * z

    def normalize_cotangents(self, cotangents: Cotangents, program: ConeProgram) -> Cotangents:
        """Cotangents with respect to the normalized solution of a program."""
        x, s, z = self.restore_point(*cotangents.dense(program))
        objective = None if cotangents.objective is None else self.omega.squeeze(-1) * cotangents.objective
        return Cotangents(x, s, z, objective)

    def restore_tangents(self, tangents: Tangents) -> Tangents:
        """Tangents of the original solution."""
        dx, ds, dz = self.restore_point(tangents.dx, tangents.ds, tangents.dz)
        return Tangents(dx, ds, dz, self.omega.squeeze(-1) * tangents.objective)


def find_scaling(program: ConeProgram) -> Scaling:
    """Units for every element; 1 for what an element does not have."""
    diagonal = torch.as_tensor(program.structure.P_diagonal, device=program.data.device)
    sources = program.P_values.index_select(-1, diagonal), program.q, program.A_values
    (P, q, A), b = (_typical(part, ROUNDING) for part in sources), _typical(program.b)
    from_objective = torch.where((P > 0) & (q > 0), q / torch.where(P > 0, P, torch.ones_like(P)), torch.ones_like(q))
    size_A = torch.where(A > 0, A, torch.ones_like(A))
    natural = size_A * from_objective
    noise = (P > 0) & (q > 0) & (b < RIGHT_SIDE_NOISE * natural) & (b < TINY)
    sigma = _power_of_two(torch.where((b > 0) & ~noise, b, natural))
    tau = _power_of_two(torch.where(A > 0, sigma / size_A, from_objective))
    omega = _power_of_two(torch.maximum(tau * q, tau * tau * P))
    return Scaling(tau, sigma, omega)


# A right-hand side this much smaller than 1 and than A x is at the minimum of the objective alone is rounding, not a
# unit. One of size one never is: beside a small ridge the minimum of the objective alone is very far away.
RIGHT_SIDE_NOISE, TINY = 2.0**-20, 2.0**-28
# Numbers below this are zero for the choice of units: 1e-300 beside 1 is not what half of the numbers are like.
SMALLEST_NUMBER = 2.0**-200
# So are numbers of P, q and A this much below both 1 and the largest of their kind: what rounding leaves where a zero
# was meant. (Of b a single huge bound would make the others that.)
ROUNDING = 2.0**-32


def _typical(values: Tensor, rounding: float = 0.0) -> Tensor:
    """Median size of the entries that are not zero, 0 where there are none, (B, 1)."""
    if values.numel() == 0:
        return torch.zeros(len(values), 1, dtype=values.dtype, device=values.device)
    size = values.detach().abs()
    smallest = (rounding * size.amax(-1, keepdim=True).clamp(max=1)).clamp(min=SMALLEST_NUMBER)
    if size.device.type == "cpu" and bool((size.amin(-1, keepdim=True) >= smallest).all()):
        # The same number by numpy, several times as fast.
        middle = (size.shape[-1] - 1) // 2
        return torch.from_numpy(np.partition(size.numpy(), middle, axis=-1)[:, middle : middle + 1].copy())
    median = torch.where(size >= smallest, size, float("nan")).nanmedian(dim=-1, keepdim=True).values
    return torch.nan_to_num(median, nan=0.0)


def _power_of_two(size: Tensor) -> Tensor:
    """The power of two nearest to a size, 1 for zero and for what is not finite."""
    usable = (size > 0) & size.isfinite()
    exponent = torch.where(usable, size, torch.ones_like(size)).log2().round()
    return torch.exp2(exponent)
