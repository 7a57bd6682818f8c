// The elimination tree of a symmetric matrix and the pattern of its factor L.
//
// parent(j) = min { i > j : L_ij != 0 }. The pattern of row i of L is the *row subtree* of i: the nodes met on the
// way up the tree from every j with A_ji != 0, j < i, before i is reached. J. Liu, "The role of elimination trees in
// sparse factorization", SIAM J. Matrix Anal. Appl. 11 (1990).
//
// All kernels: pattern of the upper triangle as in types.hpp, of the matrix in elimination order, entries on the
// diagonal ignored. None allocates, none can fail.
#pragma once

#include "symbolic/types.hpp"

namespace convexlayers::symbolic {

// Pattern of the strict upper triangle of the matrix whose row and column k are row and column permutation[k] of the
// given one. Sizes: out_indptr n + 1; out_indices at least the off-diagonal entries of the input; work n.
// O(n + entries). Row indices within a column come out in no particular order.
void permute_upper(Index n, const Index* indptr, const Index* indices, const Index* permutation, Index* out_indptr,
                   Index* out_indices, Index* work) noexcept;

// parent (n; kNone for a root) and counts (n): entries of each column of L strictly below the diagonal.
// work: n. O(entries of L).
void elimination_tree(Index n, const Index* indptr, const Index* indices, Index* parent, Index* counts,
                      Index* work) noexcept;

// order[k] is the node visited k-th when every node comes after its children; the child with the most entries comes
// last, so that a column and the next one with the same pattern below it are neighbours (one supernode).
// Reordering a matrix by a postorder of its tree does not change the fill. work: 3 n. O(n).
void postorder(Index n, const Index* parent, const Index* counts, Index* order, Index* work) noexcept;

// L_indices (L_indptr[n]): row indices of L below the diagonal, ascending within each column. L_indptr (n + 1) is the
// running sum of the counts. work: 2 n. O(entries of L).
void pattern_of_L(Index n, const Index* indptr, const Index* indices, const Index* parent, const Index* L_indptr,
                  Index* L_indices, Index* work) noexcept;

}  // namespace convexlayers::symbolic
