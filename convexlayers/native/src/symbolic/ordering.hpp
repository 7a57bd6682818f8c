// A fill-reducing ordering for the LDL' factorization of a symmetric matrix, from its pattern alone.
//
// Approximate minimum degree on the quotient graph (quotient_graph.hpp). Nodes adjacent to more than
// max(16, 10 sqrt(n)) others are set aside and ordered last, among themselves by the same method: every elimination
// next to such a node would read its whole list again, which makes an arrow matrix quadratic, and they end up last
// under any sensible ordering. Ordering them by method and not as they came matters for matrices that are dense in
// large part, where "set aside" may mean most of the graph.
#pragma once

#include "symbolic/quotient_graph.hpp"
#include "symbolic/types.hpp"

namespace convexlayers::symbolic {

// Length of `work` below: 18 n + 3 * entries, entries = indptr[n].
Index minimum_degree_workspace_size(Index n, Index entries) noexcept;

// permutation[k] is the node eliminated k-th. indptr (n + 1) and indices (indptr[n]) are the pattern of the upper
// triangle, see types.hpp. Deterministic; allocates nothing. Cannot fail.
void minimum_degree(Index n, const Index* indptr, const Index* indices, PivotRule rule, Index* permutation,
                    Index* work) noexcept;

}  // namespace convexlayers::symbolic
