#include "symbolic/ordering.hpp"

#include <algorithm>
#include <cmath>

namespace convexlayers::symbolic {

namespace {

enum Group : Index { kSparse = 0, kDense = 1 };

// Writes each node's group; returns the number of dense ones.
Index find_dense_nodes(Index n, const Index* indptr, const Index* indices, Index* group) noexcept {
    std::fill_n(group, n, 0);  // degrees first
    for (Index column = 0; column < n; ++column) {
        for (Index k = indptr[column]; k < indptr[column + 1]; ++k) {
            if (indices[k] == column) continue;
            ++group[indices[k]];
            ++group[column];
        }
    }
    const Index limit = std::max<Index>(16, static_cast<Index>(10.0 * std::sqrt(static_cast<double>(n))));
    Index dense = 0;
    for (Index i = 0; i < n; ++i) {
        group[i] = group[i] > limit ? kDense : kSparse;
        dense += group[i];
    }
    return dense;
}

}  // namespace

Index minimum_degree_workspace_size(Index n, Index entries) noexcept {
    return n + QuotientGraph::workspace_size(n, entries);
}

void minimum_degree(Index n, const Index* indptr, const Index* indices, PivotRule rule, Index* permutation,
                    Index* work) noexcept {
    Index* const group = work;
    const Index dense = find_dense_nodes(n, indptr, indices, group);
    QuotientGraph graph(n, indptr[n], rule, work + n);
    const Index ordered = graph.order_group(indptr, indices, group, kSparse, permutation);
    if (dense > 0) graph.order_group(indptr, indices, group, kDense, permutation + ordered);
}

}  // namespace convexlayers::symbolic
