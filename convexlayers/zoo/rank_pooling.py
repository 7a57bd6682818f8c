"""Rank pooling: a sequence as the direction along which it advances in time.

    minimize    1/2 |u|^2 + C / 2 sum_t max(|u'v_t - t| - eps, 0)^2

(Fernando, Gavves, Oramas, Ghodrati and Tuytelaars, "Modeling video evolution for action recognition", 2015). As a QP
in u and the excess xi: |u'v_t - t| <= eps + xi_t, xi >= 0.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.functional import solve_qp
from convexlayers.zoo._batched import batched, positive


def rank_pool(V: Value, C: Value = 1.0, eps: Value = 0.1, **options: Any) -> Tensor:
    """The direction u of support vector regression of time on the frames.

    Args:
        V: frames, (*batch, T, d).
        C, eps: (*batch) or numbers, positive.
        options: of `solve_qp`.

    Returns:
        u, (*batch, d), differentiable in all three.

    Raises:
        ArgumentError, SolverError: as in `solve_qp`.
    """
    V, C, eps = batched(("V", V, 2), ("C", positive("C", C), 0), ("eps", positive("eps", eps), 0), names=("T", "d"))
    steps, d = V.shape[-2:]
    time = torch.arange(1, steps + 1, dtype=V.dtype, device=V.device)
    weights = torch.cat([V.new_ones(*C.shape, d), C.unsqueeze(-1).expand(*C.shape, steps)], dim=-1)
    minus = -torch.eye(steps, dtype=V.dtype, device=V.device).expand(*V.shape[:-1], steps)
    # The excess needs no bound: where it could be negative, 0 is cheaper.
    G = torch.cat([torch.cat([V, minus], dim=-1), torch.cat([-V, minus], dim=-1)], dim=-2)
    h = torch.cat([time + eps.unsqueeze(-1), eps.unsqueeze(-1) - time], dim=-1)
    solution = solve_qp(torch.diag_embed(weights), V.new_zeros(d + steps), G, h, validate=False, **options)
    return solution.x[..., :d]
