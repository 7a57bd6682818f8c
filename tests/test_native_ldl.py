"""The factorization and its solves in lanes: against dense linear algebra, and each lane alone."""

import os
import subprocess
import sys

import numpy as np
import pytest

from convexlayers.native import _core, info

# Asked for by name, a set that the processor lacks runs as the next smaller one.
ALL_SETS = ("baseline", "avx2", "avx512")
CHAIN, INDEPENDENT = 16, 32  # longest groups of columns, plan/panels.hpp
# Numbers of systems: one alone, full blocks of 2, 4 and 8 lanes, and blocks that leave lanes idle.
COUNTS = (1, 3, 8, 19)


def symmetric(pattern):
    return pattern | pattern.T | np.eye(len(pattern), dtype=bool)


def sparse_pattern(nodes, density, seed):
    return symmetric(np.random.default_rng(seed).random((nodes, nodes)) < density)


def banded(nodes, width):
    return np.abs(np.subtract.outer(np.arange(nodes), np.arange(nodes))) <= width


def blocks(*sizes):
    """Dense blocks on the diagonal: chains with nothing below."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.equal.outer(owner, owner)


def same_columns(columns, rows):
    """Columns without entries among themselves, with the same dense rows below: one group tied to one chain."""
    nodes = columns + rows
    last = np.arange(nodes) >= columns
    return symmetric(last[:, None] & np.ones(nodes, dtype=bool))


def chain_below_blocks(size, count, rows):
    """Dense blocks over the same dense rows: several chains of length `size` that update one target."""
    inside = np.zeros((size * count + rows, size * count + rows), dtype=bool)
    inside[: size * count, : size * count] = blocks(*[size] * count)
    inside[size * count :, :] = True
    return symmetric(inside)


def scattered_rows(columns, rows, seed):
    """Groups of equal columns over random subsets of rows, so that updates hit columns that are not neighbours."""
    rng = np.random.default_rng(seed)
    nodes = 3 * columns + rows
    pattern = np.zeros((nodes, nodes), dtype=bool)
    for group in range(3):
        subset = 3 * columns + np.flatnonzero(rng.random(rows) < 0.6)
        pattern[np.ix_(subset, np.arange(group * columns, (group + 1) * columns))] = True
    return symmetric(pattern)


STRUCTURES = {
    "empty": np.zeros((0, 0), dtype=bool),
    "1x1": np.ones((1, 1), dtype=bool),
    "diagonal": np.eye(11, dtype=bool),
    "arrow": same_columns(40, 1),
    "tridiagonal": banded(30, 1),
    "banded 5": banded(40, 5),
    "banded 20": banded(60, 20),
    "blocks": blocks(1, 2, 3, 5, CHAIN - 1, CHAIN, CHAIN + 1),
    "blocks over rows": chain_below_blocks(3, 4, 7),
    "long blocks over rows": chain_below_blocks(CHAIN + 3, 2, 6),
    **{f"dense {n}": np.ones((n, n), dtype=bool) for n in (2, 7, CHAIN, CHAIN + 1, 2 * CHAIN + 5)},
    # Updates of 1 to 13 columns: every width of a tile, and every number of rows that its height leaves over.
    **{f"{k} equal columns over {r}": same_columns(k, r) for k, r in zip(range(2, 15), range(1, 14), strict=True)},
    "more equal columns than a group": same_columns(INDEPENDENT + 1, 5),
    "twice as many": same_columns(2 * INDEPENDENT + 3, 4),
    **{f"scattered {seed}": scattered_rows(4 + seed, 9, seed) for seed in range(4)},
    **{
        f"sparse {n} {density}": sparse_pattern(n, density, seed)
        for seed, (n, density) in enumerate([(5, 0.3), (20, 0.1), (60, 0.02), (60, 0.06), (90, 0.3), (150, 0.01)])
    },
}  # fmt: skip


def random_system(name, count, sides):
    """Quasi-definite matrices of one structure with random signs, (count, n, n), and right-hand sides."""
    pattern = STRUCTURES[name]
    n = len(pattern)
    rng = np.random.default_rng([count, sides, *name.encode()])
    signs = rng.choice([-1.0, 1.0], n)
    matrix = np.tril(rng.standard_normal((count, n, n)) * pattern, -1)
    matrix += matrix.transpose(0, 2, 1)
    # Each sign's own block is diagonally dominant; entries between the signs are arbitrary.
    own = np.abs(matrix * np.equal.outer(signs, signs)).sum(2)
    matrix[:, np.arange(n), np.arange(n)] = signs * (own + rng.uniform(0.5, 1.5, (count, n)))
    return signs, matrix, rng.standard_normal((count, sides, n))


def solve(name, signs, matrix, rhs):
    rows, cols = np.nonzero(np.tril(STRUCTURES[name]))
    # Entries may stand on either side of the diagonal, in any order.
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    rows, cols = rows[order], cols[order]
    swapped = order % 2 == 0
    rows, cols = np.where(swapped, cols, rows), np.where(swapped, rows, cols)
    values = np.ascontiguousarray(matrix[:, rows, cols])
    return _core.factor_and_solve(
        len(signs), signs, rows.astype(np.int32), cols.astype(np.int32), values, np.ascontiguousarray(rhs)
    )


def tolerance(signs, matrix):
    """Bound of the relative error of a solution, per system.

    |L| |D| |L'| of a quasi-definite matrix K = [A, B'; B, -C] is at most n times the norm of the larger of A + B'C^-1 B
    and C + B A^-1 B' (Gill, Saunders, Shinnerl, "On the stability of Cholesky factorization for symmetric quasidefinite
    systems", 1996); times the condition number, and 10 n roundings.
    """
    n = len(signs)
    plus, minus = signs > 0, signs < 0
    bounds = []
    for K in matrix:
        sizes = np.array([1e-300, np.linalg.norm(K, 2) if n else 0.0])
        for own, other in ((plus, minus), (minus, plus)):
            if own.any() and other.any():
                S = K[np.ix_(own, own)] - K[np.ix_(own, other)] @ np.linalg.solve(
                    K[np.ix_(other, other)], K[np.ix_(other, own)]
                )
                sizes = np.append(sizes, np.linalg.norm(S, 2))
        growth = n * sizes.max() / max(sizes[1], 1e-300)
        bounds.append(10 * (n + 1) * np.finfo(float).eps * growth * (np.linalg.cond(K, 2) if n else 1.0))
    return np.array(bounds)


@pytest.mark.parametrize("name", STRUCTURES)
class TestSolves:
    @pytest.mark.parametrize("count", COUNTS)
    @pytest.mark.parametrize("sides", [1, 2])
    def test_against_dense(self, name, count, sides):
        signs, matrix, rhs = random_system(name, count, sides)
        found = solve(name, signs, matrix, rhs)
        expected = np.linalg.solve(matrix, rhs.transpose(0, 2, 1)).transpose(0, 2, 1)
        assert found.shape == rhs.shape
        error = np.linalg.norm(found - expected, axis=2)
        assert (error <= tolerance(signs, matrix)[:, None] * np.linalg.norm(expected, axis=2)).all()

    def test_alone_and_among_others(self, name):
        """To the last bit: the scalar kernel, any lane, any neighbours."""
        signs, matrix, rhs = random_system(name, 19, 2)
        together = solve(name, signs, matrix, rhs)
        for element in range(19):
            alone = solve(name, signs, matrix[element : element + 1], rhs[element : element + 1])
            assert alone.tobytes() == together[element : element + 1].tobytes()
        order = np.random.default_rng(0).permutation(19)
        assert solve(name, signs, matrix[order], rhs[order]).tobytes() == together[order].tobytes()

    def test_neighbour_that_is_not_finite(self, name):
        signs, matrix, rhs = random_system(name, 9, 1)
        together = solve(name, signs, matrix, rhs)
        spoiled = matrix.copy()
        spoiled[4] = np.nan
        kept = np.arange(9) != 4
        assert solve(name, signs, spoiled, rhs)[kept].tobytes() == together[kept].tobytes()

    def test_right_hand_side_alone(self, name):
        """One right-hand side and two are separate code."""
        signs, matrix, rhs = random_system(name, 9, 2)
        together = solve(name, signs, matrix, rhs)
        for side in (0, 1):
            alone = solve(name, signs, matrix, rhs[:, side : side + 1])
            assert alone.tobytes() == np.ascontiguousarray(together[:, side : side + 1]).tobytes()


def test_no_systems():
    signs = np.ones(3)
    assert solve("1x1", signs[:1], np.ones((0, 1, 1)), np.ones((0, 2, 1))).shape == (0, 2, 1)


@pytest.mark.parametrize("isa", ALL_SETS)
@pytest.mark.skipif("CONVEXLAYERS_ISA" in os.environ, reason="is run inside itself")
def test_instruction_sets(isa):
    """All of the above with the kernels of another instruction set, in a process of its own."""
    environment = {**os.environ, "CONVEXLAYERS_ISA": isa}
    name = "from convexlayers.native import info; print(info()['instruction_set'])"
    found = subprocess.run([sys.executable, "-c", name], env=environment, capture_output=True, text=True, check=True)
    if found.stdout.strip() != isa:
        pytest.skip(f"this processor has no {isa}")
    if isa == info()["instruction_set"]:
        pytest.skip(f"{isa} is what this process runs")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    inner = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert inner.returncode == 0, inner.stdout[-4000:]
