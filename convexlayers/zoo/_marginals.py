"""The linear system behind everything with given row and column sums: transport plans, doubly stochastic matrices.

    [ diag(W 1)   W          ] [lambda]   [r]
    [ W'          diag(W' 1) ] [mu    ] = [c]       W (..., n, m) >= 0, sum(r) = sum(c)

It is the normal equations of W o (lambda 1' + 1 mu') having row sums r and column sums c. It is singular: a number
may move from lambda to mu, once for every connected part of the graph of W's positive entries. The right-hand sides
that come up lie in its range, and what is used of the solution, lambda_i + mu_j where W_ij > 0, is unique. So a small
multiple of the identity is added to the Schur complement in mu, and its effect removed by refinement.
"""

import torch
from torch import Tensor

# Relative to the diagonal; after REFINEMENTS, an error of RIDGE^(1 + REFINEMENTS) over the smallest eigenvalue is left.
RIDGE = {torch.float64: 1e-10, torch.float32: 1e-5}
REFINEMENTS = 2


def potentials(W: Tensor, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """A solution lambda (..., n), mu (..., m); differentiable in all three.

    Args:
        W: (..., n, m). r: (..., n). c: (..., m).
    """
    if W.shape[-1] > W.shape[-2]:
        mu, lam = potentials(W.mT, c, r)
        return lam, mu
    rows, cols = W.sum(-1), W.sum(-2)
    # A row without entries has no equation; nothing of its lambda is used.
    rows = torch.where(rows.detach() > 0, rows, 1.0)
    scaled = W / rows.unsqueeze(-1)
    complement = torch.diag_embed(cols) - W.mT @ scaled
    ridge = RIDGE.get(W.dtype, 1e-5) * cols.detach().amax(-1)[..., None, None].clamp(min=torch.finfo(W.dtype).tiny)
    eye = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    factor = torch.linalg.cholesky_ex(complement + ridge * eye)[0]
    right = (c - (scaled.mT @ r.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1)
    mu = torch.cholesky_solve(right, factor)
    for _ in range(REFINEMENTS):
        mu = mu + torch.cholesky_solve(right - complement @ mu, factor)
    lam = (r - (W @ mu).squeeze(-1)) / rows
    return lam, mu.squeeze(-1)


def spread(lam: Tensor, mu: Tensor) -> Tensor:
    """lambda_i + mu_j, (..., n, m)."""
    return lam.unsqueeze(-1) + mu.unsqueeze(-2)
