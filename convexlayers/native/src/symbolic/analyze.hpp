// The whole symbolic analysis of an LDL' factorization: once per pattern, before any number is known.
#pragma once

#include <vector>

#include "symbolic/types.hpp"

namespace convexlayers::symbolic {

// P A P' = L D L', L unit lower triangular, for row and column k of P A P' being row and column permutation[k] of A.
struct SymbolicFactor {
    std::vector<Index> permutation;       // n
    std::vector<Index> elimination_tree;  // n; parent of each column, kNone for a root; postordered
    std::vector<Index> column_counts;     // n; entries strictly below the diagonal
    std::vector<Index> L_indptr;          // n + 1
    std::vector<Index> L_indices;         // L_indptr[n]; ascending within each column
    Index flops = 0;                      // of one numeric factorization, see factorization_flops
};

// Column j with c entries below its diagonal costs c divisions and the update of the c (c + 1) / 2 entries of a
// triangle by a multiplication and an addition each: c (c + 2) in all.
Index factorization_flops(Index n, const Index* counts) noexcept;

// Ordering, elimination tree, postorder, pattern of L. Orders by both pivot rules where there is fill to save and
// keeps the one with fewer flops: a pattern is analyzed once and factored many times.
// indptr (n + 1), indices (indptr[n]): see types.hpp.
// Memory: the result, and while running about 26 n + 4 * entries indices. Time: the orderings, and O(entries of L).
// Returns ok, or out_of_memory; then `factor` is in no particular state.
Status analyze(Index n, const Index* indptr, const Index* indices, SymbolicFactor& factor) noexcept;

// The same for a given order of elimination, order[k] the node eliminated k-th, up to a postorder of its tree: a node
// still comes after those of its neighbours that it came after.
Status analyze_in_order(Index n, const Index* indptr, const Index* indices, const Index* order,
                        SymbolicFactor& factor) noexcept;

}  // namespace convexlayers::symbolic
