"""The symmetric linear system of the derivative: assembled dense and batched, factored, solved and refined.

With M = ds/dv = Q diag(mu) Q' (D Proj_K(v), or its smooth counterpart), nu = 1 - mu and S = diag(sqrt(nu)), write dz =
Q S w. The differentiated conditions (exact.py) become

    [ P    A~'       ] [dx]   [ r1      ]
    [ A~  -diag(mu)  ] [w ] = [ S Q' r2 ],      A~ = S Q' A.

Against the textbook form with H = M (I - M)^-1 in the corner this one is bounded: where mu = 1 the row reads -w = 0,
where mu = 0 it reads q'A dx = q'r2, and nothing is clipped. It is quasi-definite (P, diag(mu) >= 0), and its null space
is null(P) n null(A~) for x times null(diag(mu)) n null(A~') for w.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Spectrum
from convexlayers.derivatives.inverse import DenseInverse, Inverse, SparseInverse
from convexlayers.program import ConeProgram, Structure

# An equilibrated matrix whose inverse is larger than this is singular to working precision.
LARGEST_INVERSE = 1e12
# Eigenvalues below this share of the largest, after equilibration, are zero.
SMALL_EIGENVALUE = 1e-12
EQUILIBRATION_STEPS = 8
# Rows whose largest entries are within this factor of 1 need no further equilibration.
BALANCED = 4.0
# eps of the regularized system, relative to the equilibrated one; refinement removes its effect.
REGULARIZATION = 1e-4
SINGULAR_STEPS = 16
# A singular system whose residual refinement brings below this is consistent.
CONSISTENT = 1e-12
# Sparse factorizations pay from this order on, up to this share of nonzeros.
SMALLEST_SPARSE = 150
SPARSE_DENSITY = 0.05
LARGEST_EIGENPROBLEM = 2000
# The dense systems of a chunk of the batch stay below this many bytes.
CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class KKTSystem:
    """The matrix of one batch.

    Attributes:
        K: (B, n + m, n + m).
        A: dense A, (B, m, n).
        root_nu: sqrt(nu), (B, m, 1).
        spectrum: of M.
        sparse: whether most entries of K are zero, for every element of the structure.
    """

    K: Tensor
    A: Tensor
    root_nu: Tensor
    spectrum: Spectrum
    sparse: bool

    def to_rows(self, w: Tensor) -> Tensor:
        """Q S w, (B, m) to (B, m)."""
        return self.spectrum.basis.unrotate(self.root_nu * w.unsqueeze(-1)).squeeze(-1)

    def from_rows(self, r: Tensor) -> Tensor:
        """S Q' r, (B, m) to (B, m)."""
        return (self.root_nu * self.spectrum.basis.rotate(r.unsqueeze(-1))).squeeze(-1)


def assemble(program: ConeProgram, spectrum: Spectrum) -> KKTSystem:
    """The system at a point.

    Args:
        program: the numbers, batch B.
        spectrum: of M = ds/dv there, entries of shape (B, m).
    """
    A = program.dense_A()
    root_nu = spectrum.nu.sqrt().unsqueeze(-1)
    rotated = root_nu * spectrum.basis.rotate(A)
    upper = torch.cat([program.dense_P(), rotated.transpose(-1, -2)], dim=-1)
    lower = torch.cat([rotated, torch.diag_embed(-spectrum.mu)], dim=-1)
    sparse = A.device.type == "cpu" and is_sparse(program.structure)
    return KKTSystem(torch.cat([upper, lower], dim=-2), A, root_nu, spectrum, sparse)


def is_sparse(structure: Structure) -> bool:
    """Whether a sparse factorization pays, decided by the structure alone; rotations fill the rows of their cones."""
    size = structure.n + structure.m
    linear = structure.cones.zero + structure.cones.nonnegative
    entries = int((structure.A_rows < linear).sum()) + (structure.m - linear) * structure.n
    return size >= SMALLEST_SPARSE and 2 * (entries + len(structure.P_rows)) <= SPARSE_DENSITY * size**2


def chunks(program: ConeProgram) -> Iterator[Tensor]:
    """Indices of the batch in pieces whose dense systems fit in CHUNK_BYTES."""
    size = program.structure.n + program.structure.m
    per_chunk = max(1, CHUNK_BYTES // (8 * max(size, 1) ** 2))
    return iter(torch.arange(program.batch, device=program.data.device).split(per_chunk))


@dataclass(frozen=True)
class Factor:
    """A factored system.

    Attributes:
        D: from equilibration, (B, N, 1).
        inverse: D K D, and its inverse; that of D (K + eps J) D, J = diag(I, -I), for the singular elements.
        singular: (B,), whether K is singular to working precision.
    """

    D: Tensor
    inverse: Inverse
    singular: Tensor


def equilibrate(K: Tensor) -> Tensor:
    """D with rows of D K D of maximum norm about 1 (Ruiz, 2001), (B, N, 1)."""
    D = torch.ones(*K.shape[:-1], 1, dtype=K.dtype, device=K.device)
    if K.shape[-1] == 0:
        return D
    scaled = K.abs()
    for _ in range(EQUILIBRATION_STEPS):
        largest = scaled.amax(-1, keepdim=True)
        largest = torch.where(largest > 0, largest, torch.ones_like(largest))
        # Each element stops by itself, so that it does not depend on the others.
        balanced = ((largest < BALANCED) & (largest > 1 / BALANCED)).all(1, keepdim=True)
        if bool(balanced.all()):
            break
        d = torch.where(balanced, torch.ones_like(largest), largest.rsqrt())
        D, scaled = d * D, d * scaled * d.transpose(-1, -2)
    return D


def factor(system: KKTSystem) -> Factor:
    """Factor a batch, singular elements included."""
    K, n = system.K, system.A.shape[-1]
    make = SparseInverse.of if system.sparse else DenseInverse.of
    D = equilibrate(K)
    inverse: Inverse = make(D * K * D.transpose(-1, -2))
    if K.shape[-1] == 0:
        return Factor(D, inverse, torch.zeros(len(K), dtype=torch.bool, device=K.device))
    singular = _is_singular(inverse, D)
    if bool(singular.any()):
        i = singular.nonzero().squeeze(-1)
        weight = D[i] ** 2 / (D[i] ** 2).mean(1, keepdim=True)
        sign = torch.where(torch.arange(K.shape[-1], device=K.device) < n, 1.0, -1.0).to(K.dtype)
        inverse = inverse.shift(i, REGULARIZATION * sign * weight.squeeze(-1))
    return Factor(D, inverse, singular)


def _is_singular(inverse: Inverse, like: Tensor) -> Tensor:
    """Whether the inverse magnifies a fixed vector beyond `LARGEST_INVERSE`, (B,).

    A null vector is orthogonal to it with probability zero; the equilibrated matrix has norm about 1.
    """
    probe = torch.cos(torch.arange(1, like.shape[1] + 1, dtype=like.dtype, device=like.device) ** 2)
    magnified = inverse.apply(probe.reshape(1, -1, 1).expand_as(like).contiguous())
    return ~(magnified.abs().amax((1, 2)) < LARGEST_INVERSE)


def solve(factored: Factor, rhs: Tensor, refinement_steps: int) -> tuple[Tensor, Tensor]:
    """Solve K u = rhs, by minimum norm and least squares where K is singular.

    Singular elements are solved with K + eps J and refined against K. For rhs in the range of K this converges to
    pinv(K) rhs: the null space of K splits into a part for x and one for w, so (K + eps J)^-1 maps the range of K into
    itself, and all that appears in the null space is rounding divided by eps, which is why eps is not small. Where rhs
    is not in the range, or convergence (eps over the smallest eigenvalue per step) is slow, refinement stalls, and an
    eigen-decomposition gives pinv(K) rhs.

    Args:
        factored: of K, (B, N, N).
        rhs: (B, N).
        refinement_steps: of iterative refinement for regular elements; a step is kept where it reduces the residual.

    Returns:
        u (B, N) and the relative residual |D (rhs - K u)| / |D rhs| in the maximum norm, (B,).
    """
    if rhs.shape[-1] == 0:
        return rhs, rhs.sum(-1)
    D = factored.D
    scaled_rhs = D * rhs.unsqueeze(-1)
    u = factored.inverse.apply(scaled_rhs)
    residual = scaled_rhs - factored.inverse.multiply(u)
    steps = max(refinement_steps, SINGULAR_STEPS) if bool(factored.singular.any()) else refinement_steps
    for step in range(steps):
        better = u + factored.inverse.apply(residual)
        new_residual = scaled_rhs - factored.inverse.multiply(better)
        improved = (new_residual.abs().amax(1) < residual.abs().amax(1)).unsqueeze(-1)
        if step >= refinement_steps:
            improved = improved & factored.singular.reshape(-1, 1, 1)
        if not bool(improved.any()):
            break
        u, residual = torch.where(improved, better, u), torch.where(improved, new_residual, residual)
    size = scaled_rhs.abs().amax((1, 2))
    relative = residual.abs().amax((1, 2)) / torch.where(size > 0, size, torch.ones_like(size))
    u = (D * u).squeeze(-1)
    stalled = (factored.singular & ~(relative <= CONSISTENT)).nonzero().squeeze(-1)
    # Beyond that size eigenvalues take minutes; the regularized solution stays, and its residual is reported.
    for i in stalled.tolist() if rhs.shape[-1] <= LARGEST_EIGENPROBLEM else []:
        u[i], relative[i] = _least_squares(factored.inverse.dense(i), D[i], rhs[i])
    return u, relative


def _least_squares(scaled: Tensor, D: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """pinv(K) rhs for one element, with the rank read off the equilibrated matrix, and the relative residual."""
    values, vectors = torch.linalg.eigh(scaled)
    d = D.squeeze(-1)
    small = values.abs() <= SMALL_EIGENVALUE * values.abs().amax()
    # D K D y = 0 says that D y is in the null space of K.
    null = torch.linalg.qr(D * vectors[:, small])[0]
    consistent = rhs - null @ (null.T @ rhs)
    kept = vectors[:, ~small]
    u = d * (kept @ ((kept.T @ (d * consistent)) / values[~small]))
    u = u - null @ (null.T @ u)
    missing = d * rhs - scaled @ (u / d)
    return u, missing.abs().amax() / (d * rhs).abs().amax()
