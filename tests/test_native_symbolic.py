"""Symbolic analysis: against dense elimination, exact minimum degree, and another implementation's ordering."""

import doctest
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import qdldl
from scipy import sparse

from convexlayers.errors import ConvexLayersError
from convexlayers.native import SymbolicFactor, analyze, info, symbolic


def analyze_matrix(matrix):
    """The symbolic factor of a symmetric scipy or numpy matrix, read as a pattern."""
    upper = sparse.triu(sparse.csc_array(matrix), format="csc")
    upper.sort_indices()
    return analyze(upper.shape[0], upper.indptr, upper.indices)


def random_pattern(n, density, seed):
    """Symmetric boolean matrix; some of its diagonal is missing."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < density)
    return upper | upper.T


def eliminate(pattern):
    """Pattern of L strictly below the diagonal, by eliminating one column after another on a dense matrix."""
    filled = pattern.copy()
    for k in range(len(filled)):
        below = k + 1 + np.flatnonzero(filled[k + 1 :, k])
        filled[np.ix_(below, below)] = True
    return np.tril(filled, -1)


def minimum_degree_fill(pattern):
    """Entries of L under exact minimum degree, lowest index first among equals."""
    graph = pattern & ~np.eye(len(pattern), dtype=bool)
    left = np.ones(len(graph), dtype=bool)
    entries = 0
    while left.any():
        degrees = np.where(left, graph.sum(axis=1), len(graph))
        pivot = int(degrees.argmin())
        neighbours = np.flatnonzero(graph[pivot])
        entries += len(neighbours)
        graph[np.ix_(neighbours, neighbours)] = True
        graph[neighbours, neighbours] = False
        graph[pivot, :] = graph[:, pivot] = left[pivot] = False
    return entries


def grid(*shape):
    """Adjacency of a grid with nearest neighbours, plus the identity, as a csc matrix."""
    matrix = sparse.csc_array(np.ones((1, 1)))
    for k in shape:
        line = sparse.diags_array([np.ones(k - 1), np.ones(k), np.ones(k - 1)], offsets=[-1, 0, 1])
        matrix = sparse.kron(matrix, sparse.eye_array(k)) + sparse.kron(sparse.eye_array(matrix.shape[0]), line)
    return sparse.csc_array(matrix)


def kkt(P, A):
    return sparse.csc_array(sparse.block_array([[P, A.T], [A, -sparse.eye_array(A.shape[0])]]))


def dense_L(factor):
    n = len(factor.permutation)
    return sparse.csc_array((np.ones(factor.nnz_L, dtype=bool), factor.L_indices, factor.L_indptr), (n, n)).toarray()


RANDOM = [(n, density, seed) for n in (2, 3, 7, 20, 60) for density in (0.02, 0.1, 0.3, 0.9) for seed in range(4)]
RANDOM += [(200, 0.01, 0), (200, 0.03, 1), (300, 0.005, 2)]


@pytest.mark.parametrize(("n", "density", "seed"), RANDOM)
class TestAgainstDenseElimination:
    @pytest.fixture
    def pattern(self, n, density, seed):
        return random_pattern(n, density, seed)

    @pytest.fixture
    def factor(self, pattern):
        return analyze_matrix(pattern)

    @pytest.fixture
    def expected_L(self, pattern, factor):
        return eliminate(pattern[np.ix_(factor.permutation, factor.permutation)])

    def test_permutation(self, factor, n):
        assert np.array_equal(np.sort(factor.permutation), np.arange(n))

    def test_pattern(self, factor, expected_L):
        rows, columns = np.nonzero(expected_L.T)[::-1]  # column by column, rows ascending
        assert np.array_equal(factor.L_indices, rows)
        assert np.array_equal(np.repeat(np.arange(len(expected_L)), np.diff(factor.L_indptr)), columns)

    def test_elimination_tree(self, factor, expected_L):
        has_parent = expected_L.any(axis=0)
        assert np.array_equal(factor.elimination_tree, np.where(has_parent, expected_L.argmax(axis=0), -1))

    def test_counts(self, factor, expected_L):
        counts = expected_L.sum(axis=0)
        assert np.array_equal(factor.column_counts, counts)
        assert np.array_equal(factor.L_indptr, np.concatenate([[0], np.cumsum(counts)]))
        assert factor.nnz_L == counts.sum()
        # Dividing column k by its pivot, then a multiplication and an addition per entry of the updated triangle.
        assert factor.flops == sum(c + 2 * (c * (c + 1) // 2) for c in counts)

    def test_postordered(self, factor):
        tree = factor.elimination_tree
        finished = []  # roots of the subtrees visited so far whose parent has not come yet
        for j in range(len(tree)):
            while finished and tree[finished[-1]] == j:
                finished.pop()
            finished.append(j)
        assert all(tree[root] == -1 for root in finished)

    def test_column_with_the_same_pattern_is_next_to_it(self, factor):
        tree, counts = factor.elimination_tree, factor.column_counts
        for j, parent in enumerate(tree):
            if parent >= 0 and counts[j] == counts[parent] + 1:
                assert tree[parent - 1] == parent
                assert counts[parent - 1] == counts[parent] + 1


class TestKnownStructures:
    def test_empty(self):
        factor = analyze(0, [0], [])
        assert factor.nnz_L == factor.flops == 0
        assert [len(factor.permutation), len(factor.L_indptr), len(factor.L_indices)] == [0, 1, 0]

    @pytest.mark.parametrize("stored", [False, True])
    def test_single(self, stored):
        factor = analyze(1, [0, int(stored)], [0] * stored)
        assert factor.permutation.tolist() == [0]
        assert factor.elimination_tree.tolist() == [-1]
        assert factor.nnz_L == 0

    def test_diagonal(self):
        factor = analyze_matrix(sparse.eye_array(50))
        assert factor.nnz_L == 0
        assert (factor.elimination_tree == -1).all()

    def test_diagonal_does_not_matter(self):
        matrix = grid(6, 7)
        with_diagonal = analyze_matrix(matrix)
        without = analyze_matrix(matrix - sparse.diags_array(matrix.diagonal()))
        assert np.array_equal(with_diagonal.permutation, without.permutation)
        assert np.array_equal(with_diagonal.L_indices, without.L_indices)

    @pytest.mark.parametrize("n", [2, 3, 50, 1001])
    def test_tridiagonal_does_not_fill(self, n):
        assert analyze_matrix(grid(n)).nnz_L == n - 1

    def test_tree_does_not_fill(self):
        rng = np.random.default_rng(0)
        parents = [rng.integers(0, i) for i in range(1, 500)]
        edges = sparse.coo_array((np.ones(499), (parents, np.arange(1, 500))), (500, 500))
        assert analyze_matrix(edges + edges.T).nnz_L == 499

    @pytest.mark.parametrize("hub", [0, 4321, 9999])
    def test_arrow_does_not_fill(self, hub):
        n = 10_000
        row = sparse.coo_array((np.ones(n), (np.full(n, hub), np.arange(n))), (n, n))
        assert analyze_matrix(row + row.T + sparse.eye_array(n)).nnz_L == n - 1

    def test_several_dense_rows_go_last(self):
        n, dense = 5_000, 4
        rows = sparse.csc_array(np.ones((dense, n)))
        factor = analyze_matrix(kkt(sparse.eye_array(n), rows))
        assert factor.nnz_L == n * dense + dense * (dense - 1) // 2
        assert set(factor.permutation[-dense + 1 :]) <= set(range(n, n + dense))

    def test_full(self):
        factor = analyze_matrix(np.ones((40, 40)))
        assert factor.nnz_L == 40 * 39 // 2
        assert np.array_equal(factor.elimination_tree, [*range(1, 40), -1])

    @pytest.mark.parametrize(("n", "m"), [(50, 25), (50, 50), (50, 100), (300, 300)])
    @pytest.mark.parametrize("P_dense", [False, True])
    def test_dense_quadratic_program_fills_one_block_only(self, n, m, P_dense):
        """Either the constraints go first and fill in nothing but P, or the variables and fill nothing but the rest."""
        P = sparse.csc_array(np.ones((n, n))) if P_dense else sparse.eye_array(n)
        constraints_first = n * m + n * (n - 1) // 2
        variables_first = n * m + m * (m - 1) // 2 + (n * (n - 1) // 2 if P_dense else 0)
        factor = analyze_matrix(kkt(P, sparse.csc_array(np.ones((m, n)))))
        assert factor.nnz_L == min(constraints_first, variables_first)


class TestFill:
    @pytest.mark.parametrize("shape", [(10, 10), (5, 30), (5, 5, 5)])
    def test_grid_against_exact_minimum_degree(self, shape):
        matrix = grid(*shape)
        pattern = matrix.toarray() != 0
        entries = analyze_matrix(matrix).nnz_L
        assert entries <= 1.2 * minimum_degree_fill(pattern)
        assert entries < eliminate(pattern).sum()  # the natural order

    @pytest.mark.parametrize("seed", range(8))
    def test_random_against_exact_minimum_degree(self, seed):
        pattern = random_pattern(120, 0.03, seed)
        assert analyze_matrix(pattern).nnz_L <= 1.2 * minimum_degree_fill(pattern)

    @pytest.mark.parametrize(
        "matrix",
        [
            grid(40, 40),
            grid(12, 12, 12),
            kkt(sparse.eye_array(400), sparse.random_array((300, 400), density=0.01, rng=np.random.default_rng(0))),
            kkt(sparse.eye_array(900), sparse.vstack([np.ones((3, 900)), sparse.eye_array(900)])),
        ],
        ids=["grid", "grid 3d", "sparse constraints", "simplex"],
    )
    def test_against_amd(self, matrix):
        dominant = matrix + sparse.diags_array(np.sign(matrix.diagonal()) * 1e4)
        L = qdldl.Solver(sparse.csc_matrix(dominant)).factors()[0]
        assert analyze_matrix(matrix).nnz_L <= 1.1 * L.nnz


class TestResult:
    def test_deterministic_and_shared_by_threads(self):
        matrix = grid(15, 15)
        expected = analyze_matrix(matrix)
        with ThreadPoolExecutor(4) as pool:
            for factor in pool.map(analyze_matrix, [matrix] * 16):
                assert np.array_equal(factor.permutation, expected.permutation)
                assert np.array_equal(factor.L_indices, expected.L_indices)

    def test_dtypes(self):
        factor = analyze(2, np.array([0, 1, 3], dtype=np.int32), np.array([0, 0, 1], dtype=np.uint16))
        for name in ("permutation", "elimination_tree", "column_counts", "L_indptr", "L_indices"):
            assert getattr(factor, name).dtype == np.int64
        assert isinstance(factor.nnz_L, int)
        assert isinstance(factor.flops, int)

    def test_frozen(self):
        factor = analyze(2, [0, 1, 3], [0, 0, 1])
        assert isinstance(factor, SymbolicFactor)
        with pytest.raises(AttributeError):
            factor.nnz_L = 0
        with pytest.raises(ValueError, match="read-only"):
            factor.permutation[0] = 0

    def test_result_outlives_its_making(self):
        permutation = analyze_matrix(grid(9, 9)).permutation
        analyze_matrix(grid(9, 9))
        assert np.array_equal(np.sort(permutation), np.arange(81))


@pytest.mark.parametrize(
    ("n", "indptr", "indices", "message"),
    [
        (-1, [0], [], r"n is -1, expected an integer >= 0"),
        (1.5, [0], [], r"n is 1\.5, expected an integer >= 0"),
        (2, [0, 0], [], r"indptr has 2 entries, expected n \+ 1 = 3"),
        (1, [[0, 0]], [], r"indptr has shape \(1, 2\), expected one dimension"),
        (1, [0, 1], [[0]], r"indices has shape \(1, 1\), expected one dimension"),
        (1, [0.0, 1.0], [0], r"indptr has dtype float64, expected integers"),
        (1, [0, 1], [0.0], r"indices has dtype float64, expected integers"),
        (1, [1, 1], [0], r"indptr\[0\] is 1, expected 0"),
        (3, [0, 2, 1, 3], [0, 0, 1], r"indptr falls from 2 to 1 at column 1"),
        (2, [0, 1, 2], [0, 0, 1], r"indptr\[-1\] is 2, expected the length of indices, 3"),
        (2, [0, 1, 2], [1, 1], r"indices has row 1 in column 0, expected rows 0 to 0"),
        (2, [0, 1, 2], [0, -1], r"indices has row -1 in column 1, expected rows 0 to 1"),
        (2, [0, 1, 3], [0, 1, 0], r"indices has row 0 after row 1 in column 1"),
        (2, [0, 1, 3], [0, 1, 1], r"indices has row 1 after row 1 in column 1"),
    ],
)
def test_invalid_input(n, indptr, indices, message):
    with pytest.raises(ValueError, match=message) as caught:
        analyze(n, indptr, indices)
    assert isinstance(caught.value, ConvexLayersError)


def test_info():
    build = info()
    assert set(build) == {"version", "compiler", "instruction_set", "lanes"}
    assert build["instruction_set"] in {"baseline", "avx2", "avx512"}
    assert build["lanes"] in {2, 4, 8}
    assert build["version"] != "unknown"


def test_examples():
    assert doctest.testmod(symbolic) == (0, 3)
