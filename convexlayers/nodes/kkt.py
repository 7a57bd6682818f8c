"""The symmetric linear system behind the derivative of a node: its solution, rank and inertia.

    K = [ H  A' ]      H = d2L/dy2 (n, n),  A = dc/dy (m, n), rows of inactive inequalities zeroed
        [ A  -D ]      D = diag(1 for inactive inequalities, 0 otherwise)

so that elements of a batch with different active sets share one shape: an inactive row says that its unknown is zero.
K is diagonalized, which answers three questions at once.

- Rank. K is nonsingular iff A has full row rank and H is nonsingular on its null space. Where it is not, the least
  squares solution of minimum norm is taken, and the element is flagged. Its unknowns are scaled by one factor for all
  of y and one per constraint, so that the norm is the user's.
- Inertia (Gould, "On practical conditions for the existence and uniqueness of solutions to the general equality
  quadratic programming problem", 1985). With r active rows of rank k and Z a basis of the null space of A,
  inertia(K without inactive rows) = (k, k, r - k) + inertia(Z'HZ). A negative eigenvalue of Z'HZ is a direction in
  which the objective falls: the point is no minimum.
- The solution, with iterative refinement against K itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

REFINEMENT_STEPS = 2
# How far the error of the point may raise the threshold of the rank.
LARGEST_NOISE = 1e-5


def assemble(H: Tensor, A: Tensor, active: Tensor) -> Tensor:
    """K, (B, n + m, n + m), from H (B, n, n), A (B, m, n) and the mask of active rows (B, m). Differentiable."""
    A = A * active.unsqueeze(-1)
    D = torch.diag_embed((~active).to(H.dtype))
    return torch.cat([torch.cat([H, A.mT], 2), torch.cat([A, -D], 2)], 1)


@dataclass(frozen=True, eq=False)
class Factor:
    """K diagonalized, up to a scaling.

    Attributes:
        K: (B, N, N).
        scale: d of diag(d) K diag(d) = Q diag(values) Q', (B, N).
        Q: (B, N, N).
        inverse: of the eigenvalues, zero where they count as zero, (B, N).
        rank_deficient: (B,).
        negative_curvature: whether Z'HZ has a negative eigenvalue, (B,).
    """

    K: Tensor
    scale: Tensor
    Q: Tensor
    inverse: Tensor
    rank_deficient: Tensor
    negative_curvature: Tensor

    def solve(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """K u = right, (B, N); and the relative residual, (B,). Linear in `right`, whatever its size."""
        size = right.abs().amax(1, keepdim=True)
        size = torch.where(size > 0, size, torch.ones_like(size))
        target = right / size
        u = self._apply(target)
        for _ in range(REFINEMENT_STEPS):
            u = u + self._apply(target - _times(self.K, u))
        residual = (target - _times(self.K, u)).abs().amax(1) if target.shape[1] else target.new_zeros(len(target))
        return u * size, residual

    def _apply(self, right: Tensor) -> Tensor:
        return self.scale * _times(self.Q, self.inverse * _times(self.Q.mT, self.scale * right))


def factor(
    H: Tensor, A: Tensor, active: Tensor, noise: Tensor | float = 0.0, reference: Tensor | None = None
) -> Factor:
    """Diagonalize.

    Args:
        H: (B, n, n). A: (B, m, n). active: (B, m), True for equalities.
        noise: relative error of the point at which H and A were taken, (B,): eigenvalues below it are not told from
            zero.
        reference: size of the terms that H is the sum of, (B,): where they cancel, what is left is rounding. By default
            that of H.
    """
    K = assemble(H, A, active)
    batch, N, n = K.shape[0], K.shape[1], H.shape[1]
    threshold = torch.as_tensor(noise, dtype=K.dtype, device=K.device).expand(batch)
    threshold = threshold.clamp(100 * N * torch.finfo(K.dtype).eps, LARGEST_NOISE)
    scale = _scale(K, n, H.abs().amax((1, 2)) if reference is None else reference)
    values, Q = torch.linalg.eigh(scale.unsqueeze(2) * K * scale.unsqueeze(1))
    zero = values.abs() <= threshold.unsqueeze(1) * values.abs().amax(1, keepdim=True).clamp(min=1)
    deficient = zero.any(1)
    inverse = torch.where(zero, torch.zeros_like(values), 1 / torch.where(zero, torch.ones_like(values), values))
    negative = ((values < 0) & ~zero).sum(1) - (~active).sum(1)
    return Factor(K, scale, Q, inverse, deficient, negative > _rank(A, active, deficient))


def _rank(A: Tensor, active: Tensor, deficient: Tensor) -> Tensor:
    """Of the active rows, (B,); their number, where K is nonsingular."""
    rank = active.sum(1)
    rows = deficient.nonzero().squeeze(1)
    if len(rows) and A.shape[1]:
        rank = rank.index_copy(0, rows, torch.linalg.matrix_rank(_unit_rows(A[rows] * active[rows].unsqueeze(-1))))
    return rank


def _unit_rows(A: Tensor) -> Tensor:
    size = A.abs().amax(-1, keepdim=True)
    return A / torch.where(size > 0, size, torch.ones_like(size))


def _scale(K: Tensor, n: int, reference: Tensor) -> Tensor:
    """One factor for y, which brings the terms of H to size one, and one per row of A, (B, N).

    The norm that is to be minimal is the user's, up to these: so all of y has the same factor.
    """
    root = torch.where(reference > 0, reference, torch.ones_like(reference)).sqrt().unsqueeze(1)
    rows = K[:, n:, :n].abs().amax(2)
    inactive = torch.diagonal(K, dim1=1, dim2=2)[:, n:] != 0
    below = torch.where(inactive, torch.ones_like(rows), root / torch.where(rows > 0, rows, torch.ones_like(rows)))
    return torch.cat([(1 / root).expand(-1, n), below], 1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
