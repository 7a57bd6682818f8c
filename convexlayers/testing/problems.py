"""Random cone programs whose solution, or whose proof that there is none, is known by construction.

Optimal programs: draw a strictly complementary pair (s, z), a point x, and A and P; then b = Ax + s and q = -Px - A'z
make (x, s, z) optimal. With as many variables as `random_program` chooses, the solution is unique and the derivative's
linear system is regular, for random A with probability one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from convexlayers.assembly import dense_cone_program
from convexlayers.cones import Cones
from convexlayers.errors import ArgumentError
from convexlayers.program import ParametrizedConeProgram
from convexlayers.testing.pairs import Sampler, complementary_pair
from convexlayers.testing.reference import newton_matrix

# Matrices A to choose from; a single random one is now and then close to a program without a unique solution.
DRAWS = 16

# One of each kind, of sizes that exercise the order of entries. A new cone enters every generated check by one line.
KINDS = {
    "zero": Cones(zero=2),
    "nonnegative": Cones(nonnegative=4),
    "second_order": Cones(second_order=(4,)),
    "psd": Cones(psd=(3,)),
    "exponential": Cones(exponential=1),
    "power": Cones(power=(0.3,)),
}


def join(*parts: Cones) -> Cones:
    """The product of products of cones, its rows in the library's order."""
    return Cones(
        zero=sum(part.zero for part in parts),
        nonnegative=sum(part.nonnegative for part in parts),
        second_order=sum((part.second_order for part in parts), ()),
        psd=sum((part.psd for part in parts), ()),
        exponential=sum(part.exponential for part in parts),
        power=sum((part.power for part in parts), ()),
    )


def cone_cases() -> dict[str, Cones]:
    """Each kind of cone, each pair of kinds, two PSD blocks of orders 3 and 4, and all kinds together, by name."""
    cases = dict(KINDS)
    cases |= {f"{one}+{other}": join(KINDS[one], KINDS[other]) for one, other in combinations(KINDS, 2)}
    cases["psd3+psd4"] = Cones(psd=(3, 4))
    cases["all"] = join(*KINDS.values())
    return cases


@dataclass(frozen=True)
class Numbers:
    """P, q, A, b of a batch of cone programs.

    Attributes:
        cones: the cones of the rows of A.
        P: (*batch, n, n), symmetric positive semidefinite.
        q: (*batch, n). A: (*batch, m, n). b: (*batch, m).
    """

    cones: Cones
    P: Tensor
    q: Tensor
    A: Tensor
    b: Tensor

    @property
    def program(self) -> ParametrizedConeProgram:
        """The program with theta = (P, q, A, b), for `engine.setup`."""
        return dense_cone_program(self.q.shape[-1], True, self.cones)

    @property
    def theta(self) -> list[Tensor]:
        """Blocks of theta for `plan.solve`, (B, k_i); A and b are left out where there are no rows."""
        n, m = self.q.shape[-1], self.b.shape[-1]
        blocks = [self.P.reshape(-1, n * n), self.q.reshape(-1, n)]
        return [*blocks, self.A.reshape(-1, m * n), self.b.reshape(-1, m)] if m else blocks


@dataclass(frozen=True)
class SolvedProgram(Numbers):
    """A program with its solution.

    Attributes:
        x: (*batch, n). s, z: (*batch, m).
    """

    x: Tensor
    s: Tensor
    z: Tensor


@dataclass(frozen=True)
class InfeasibleProgram(Numbers):
    """A program without feasible points.

    Attributes:
        certificate: z with A'z = 0, z in K*, b'z < 0, (*batch, m).
    """

    certificate: Tensor


@dataclass(frozen=True)
class UnboundedProgram(Numbers):
    """A feasible program without a minimum.

    Attributes:
        certificate: x with Px = 0, -Ax in K, q'x < 0, (*batch, n).
    """

    certificate: Tensor


def random_program(
    cones: Cones,
    *,
    n: int | None = None,
    rank: int | None = None,
    batch: Sequence[int] = (),
    seed: int = 0,
    activity: str = "boundary",
    draws: int = DRAWS,
) -> SolvedProgram:
    """A program with a known, unique and strictly complementary solution.

    Args:
        cones: the cones, of any sizes.
        n: number of variables; by default one for which the solution is unique.
        rank: of P, by default n (positive definite); 0 gives a linear objective.
        batch: leading dimensions.
        seed: the same numbers for the same seed.
        activity: how the solution lies in the cones, see `complementary_pair`.
        draws: matrices A to choose the best conditioned one from; 1 is fast, and takes what comes.

    Raises:
        ArgumentError: with these n and rank the solution or its multipliers cannot be unique.
    """
    sampler = Sampler.seeded(batch, seed)
    s, z = complementary_pair(cones, sampler, activity)
    return program_at(cones, s, z, sampler, n=n, rank=rank, draws=draws)


def program_at(
    cones: Cones,
    s: Tensor,
    z: Tensor,
    sampler: Sampler,
    *,
    n: int | None = None,
    rank: int | None = None,
    draws: int = DRAWS,
) -> SolvedProgram:
    """A program whose solution has this slack and these multipliers.

    Args:
        cones: the cones.
        s, z: a complementary pair, (*batch, m), for instance from `complementary_pair`.
        sampler: draws the rest; its batch dimensions are those of s and z.
        n, rank, draws: as in `random_program`.

    Raises:
        ArgumentError: with these n and rank the solution or its multipliers cannot be unique.
    """
    fixed, moving = _counts(cones, s, z)
    if n is None:
        n = fixed + 2 if rank is None else max(1, min((fixed + moving + 1) // 2, moving) + rank)
    rank = n if rank is None else rank
    if not fixed <= n <= moving + rank or rank > n:
        raise ArgumentError(
            f"n is {n} and rank {rank}, expected rank <= n and {fixed} <= n <= {moving} + rank for a unique solution."
        )
    P, x = random_psd(sampler, n, rank), sampler.normal(n)
    A = _well_conditioned(sampler, P, cones, s - z, draws)
    q = -_times(P, x) - _times(A.transpose(-1, -2), z)
    return SolvedProgram(cones, P, q, A, _times(A, x) + s, x, s, z)


def infeasible_program(cones: Cones, *, n: int = 3, batch: Sequence[int] = (), seed: int = 0) -> InfeasibleProgram:
    """A program with a positive definite objective and no feasible point.

    The certificate lies inside K*, so nearby right-hand sides are infeasible too.

    Args:
        cones: the cones, at least one row.
        n: number of variables.
        batch, seed: as in `random_program`.
    """
    sampler = Sampler.seeded(batch, seed)
    _, z = complementary_pair(cones, sampler, "outside")
    square = (z * z).sum(-1, keepdim=True)
    A, b = sampler.normal(cones.rows, n), sampler.normal(cones.rows)
    A = A - z.unsqueeze(-1) * (z.unsqueeze(-2) @ A) / square.unsqueeze(-1)
    b = b - z * ((b * z).sum(-1, keepdim=True) + 1) / square
    return InfeasibleProgram(cones, random_psd(sampler, n, n), sampler.normal(n), A, b, z)


def unbounded_program(
    cones: Cones, *, n: int = 4, rank: int = 0, batch: Sequence[int] = (), seed: int = 0
) -> UnboundedProgram:
    """A strictly feasible program whose objective decreases without limit.

    Args:
        cones: the cones.
        n: number of variables.
        rank: of P, below n.
        batch, seed: as in `random_program`.

    Raises:
        ArgumentError: P would be positive definite.
    """
    if rank >= n:
        raise ArgumentError(f"rank is {rank}, expected less than n = {n} for an unbounded program.")
    sampler = Sampler.seeded(batch, seed)
    direction = sampler.normal(n)
    recession, _ = complementary_pair(cones, sampler, "inside")
    slack, _ = complementary_pair(cones, sampler, "inside")
    square = (direction * direction).sum(-1, keepdim=True)

    def set_image(M: Tensor, image: Tensor) -> Tensor:
        """The matrix nearest to M that maps the direction to this image."""
        off = _times(M, direction) - image
        return M - off.unsqueeze(-1) * direction.unsqueeze(-2) / square.unsqueeze(-1)

    A = set_image(sampler.normal(cones.rows, n), -recession)
    F = sampler.normal(rank, n)
    F = set_image(F, torch.zeros_like(F[..., 0]))
    q = sampler.normal(n)
    q = q - direction * ((q * direction).sum(-1, keepdim=True) + 1) / square
    b = _times(A, sampler.normal(n)) + slack
    return UnboundedProgram(cones, F.transpose(-1, -2) @ F, q, A, b, direction)


def random_psd(sampler: Sampler, n: int, rank: int) -> Tensor:
    """Symmetric matrices with `rank` eigenvalues in [1/2, 2] and the others zero, (*batch, n, n)."""
    V = sampler.orthonormal(n, rank)
    P = (V * sampler.positive(1, rank)) @ V.transpose(-1, -2)
    return 0.5 * (P + P.transpose(-1, -2))


def _well_conditioned(sampler: Sampler, P: Tensor, cones: Cones, v: Tensor, draws: int) -> Tensor:
    """The A, out of a few random ones for each element, that keeps the derivative's system farthest from singular."""
    drawn = torch.stack([sampler.normal(cones.rows, P.shape[-1]) for _ in range(draws)])
    if cones.rows == 0 or draws == 1:
        return drawn[0]
    spectrum = cones.spectrum(v)
    smallest = torch.stack([torch.linalg.svdvals(newton_matrix(P, A, spectrum))[..., -1] for A in drawn])
    return torch.take_along_dim(drawn, smallest.argmax(0)[None, ..., None, None], dim=0)[0]


def _times(M: Tensor, x: Tensor) -> Tensor:
    return (M @ x.unsqueeze(-1)).squeeze(-1)


def _counts(cones: Cones, s: Tensor, z: Tensor) -> tuple[int, int]:
    """Directions of the rows in which s cannot move at all, and those in which z can move.

    The multipliers are unique where the rows of the first kind are independent (at most n of them), and x where those
    of the second kind and P leave nothing undetermined (at least n of them).
    """
    if cones.rows == 0:
        return 0, 0
    spectrum = cones.spectrum((s - z).reshape(-1, cones.rows)[:1])
    return int((spectrum.mu == 0).sum()), int((spectrum.nu > 0).sum())
