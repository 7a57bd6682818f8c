"""What the engines claim: one more line is one more engine, and decides which promises it is held to.

Accuracy is that of x, s, z on a well-posed problem whose numbers are of size one, at default settings (tolerance 1e-8):

- `REFINED`: Newton steps take residuals to rounding, 1e-15 of the terms, and a condition number of up to 1e6 makes that
  1e-9 of the solution. First and second derivatives of the cones' projections are of size one there, so that a
  derivative, one more solve with the same matrix, is off by as much again: 1e-8 for both.
- `RESIDUAL`: residuals of 1e-8 that nothing makes smaller where all cones are polyhedra, since a splitting method's
  points are complementary there by construction; a condition number of 1e2, which is that of projections onto them in a
  few variables, makes that 1e-6.
- `UNREFINED`: a duality gap of s'z = 1e-8 says no more than its square root where a cone is curved, 1e-4, and the same
  holds for the derivative at that point; ten times that for the directions in which the problem is flatter than one.
"""

from dataclasses import dataclass

REFINED, RESIDUAL, UNREFINED = 1e-8, 1e-6, 1e-3


@dataclass(frozen=True)
class Claims:
    """What an engine promises.

    Attributes:
        accuracy: of solutions and derivatives, see above.
        exact: whether its derivative is the library's own, `Exact`, with its reports and its linearity.
        bitwise: whether results are the same to the last bit beside any neighbours and on any number of threads.
        thorough: whether it is quick enough, and claims enough, for the rows that need hundreds of solves.
        lacks: kinds of cones that it does not have.
    """

    accuracy: float
    exact: bool
    bitwise: bool
    thorough: bool
    lacks: frozenset[str] = frozenset()


ENGINES = {
    "native": Claims(REFINED, exact=True, bitwise=True, thorough=True),
    "torch": Claims(REFINED, exact=True, bitwise=True, thorough=True),
    "clarabel": Claims(REFINED, exact=True, bitwise=False, thorough=True),
    "scs": Claims(RESIDUAL, exact=True, bitwise=False, thorough=False),
    "diffcp": Claims(UNREFINED, exact=False, bitwise=False, thorough=False, lacks=frozenset({"power"})),
}


def claims_all(solver: str) -> bool:
    """Whether the rows that need everything are for this engine."""
    return ENGINES[solver].thorough


def has_cones(solver: str, kinds: set[str]) -> bool:
    """Whether an engine has all these kinds of cones."""
    return not kinds & ENGINES[solver].lacks
