"""The OptNet layer: a quadratic program whose matrices are learned, feasible by construction.

    minimize    1/2 x'Qx + q'x
    subject to  Gx <= h,  Ax = b

Q = LL' + ridge I with L lower triangular; h = G x0 + s0 and b = A x0 with s0 = exp(log_s0) > 0, so that x0 is strictly
feasible whatever G, A and x0 become (Amos and Kolter, "OptNet", 2017).
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.errors import ArgumentError
from convexlayers.functional import solve_qp


class QPLayer(torch.nn.Module):
    """x(q) of a learned quadratic program.

    Args:
        n: number of variables.
        inequalities, equalities: numbers of rows of G and A.
        ridge: least eigenvalue of Q.
        options: of `solve_qp`.
    """

    def __init__(
        self, n: int, inequalities: int = 0, equalities: int = 0, *, ridge: float = 1e-3, **options: Any
    ) -> None:
        super().__init__()
        if n < 1 or inequalities < 0 or equalities < 0:
            given = f"{n}, {inequalities}, {equalities}"
            raise ArgumentError(f"n, inequalities, equalities are {given}, expected at least 1, 0, 0.")
        self.ridge, self.options = ridge, options
        self.L = torch.nn.Parameter(torch.eye(n))
        self.x0 = torch.nn.Parameter(torch.zeros(n))
        self.G = torch.nn.Parameter(torch.randn(inequalities, n) / n**0.5)
        self.A = torch.nn.Parameter(torch.randn(equalities, n) / n**0.5)
        self.log_s0 = torch.nn.Parameter(torch.zeros(inequalities))

    def forward(self, q: Tensor) -> Tensor:
        """q (*batch, n) -> x (*batch, n)."""
        L = self.L.tril()
        Q = L @ L.mT + self.ridge * torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
        G, h, A, b = None, None, None, None
        if len(self.G):
            G, h = self.G, self.G @ self.x0 + self.log_s0.exp()
        if len(self.A):
            A, b = self.A, self.A @ self.x0
        return solve_qp(Q, q, G, h, A, b, validate=False, **self.options).x

    def extra_repr(self) -> str:
        """For print(layer)."""
        return f"n={len(self.x0)}, inequalities={len(self.G)}, equalities={len(self.A)}"
