#include "symbolic/etree.hpp"

#include <algorithm>

namespace convexlayers::symbolic {

void permute_upper(Index n, const Index* indptr, const Index* indices, const Index* permutation, Index* out_indptr,
                   Index* out_indices, Index* work) noexcept {
    Index* const position = work;
    for (Index k = 0; k < n; ++k) position[permutation[k]] = k;
    const auto each_entry = [&](auto&& visit) {
        for (Index column = 0; column < n; ++column) {
            for (Index k = indptr[column]; k < indptr[column + 1]; ++k) {
                if (indices[k] == column) continue;
                const auto [row, target] = std::minmax(position[indices[k]], position[column]);
                visit(row, target);
            }
        }
    };
    std::fill_n(out_indptr, n + 1, 0);
    each_entry([&](Index, Index column) { ++out_indptr[column]; });
    Index total = 0;
    for (Index column = 0; column <= n; ++column) {
        total += out_indptr[column];
        out_indptr[column] = total;  // one past the column's end: filling from the back leaves its beginning
    }
    each_entry([&](Index row, Index column) { out_indices[--out_indptr[column]] = row; });
}

void elimination_tree(Index n, const Index* indptr, const Index* indices, Index* parent, Index* counts,
                      Index* work) noexcept {
    Index* const seen_from = work;
    for (Index i = 0; i < n; ++i) {
        parent[i] = kNone;
        counts[i] = 0;
        seen_from[i] = i;
        for (Index k = indptr[i]; k < indptr[i + 1]; ++k) {
            for (Index j = indices[k]; seen_from[j] != i; j = parent[j]) {
                if (parent[j] == kNone) parent[j] = i;
                ++counts[j];  // L_ij != 0
                seen_from[j] = i;
            }
        }
    }
}

void postorder(Index n, const Index* parent, const Index* counts, Index* order, Index* work) noexcept {
    Index* const first_child = work;
    Index* const next_sibling = work + n;
    Index* const stack = work + 2 * n;

    // Lists of children in ascending order, but for the heir, the child with the most entries, which goes in first
    // and so comes out last.
    std::fill_n(first_child, n, kNone);
    for (Index i = 0; i < n; ++i) {
        if (parent[i] == kNone) continue;
        Index& heir = first_child[parent[i]];
        if (heir == kNone || counts[i] >= counts[heir]) heir = i;
    }
    Index* const is_heir = stack;  // not in use yet
    std::fill_n(is_heir, n, 0);
    for (Index i = 0; i < n; ++i) {
        if (first_child[i] == kNone) continue;
        is_heir[first_child[i]] = 1;
        next_sibling[first_child[i]] = kNone;
    }
    for (Index i = n - 1; i >= 0; --i) {
        if (parent[i] == kNone || is_heir[i]) continue;
        next_sibling[i] = first_child[parent[i]];
        first_child[parent[i]] = i;
    }

    // Depth first: going down consumes the list of children, a node without any left is written.
    Index written = 0;
    for (Index root = 0; root < n; ++root) {
        if (parent[root] != kNone) continue;
        Index top = 0;
        stack[0] = root;
        while (top >= 0) {
            const Index node = stack[top];
            const Index child = first_child[node];
            if (child == kNone) {
                order[written++] = node;
                --top;
            } else {
                first_child[node] = next_sibling[child];
                stack[++top] = child;
            }
        }
    }
}

void pattern_of_L(Index n, const Index* indptr, const Index* indices, const Index* parent, const Index* L_indptr,
                  Index* L_indices, Index* work) noexcept {
    Index* const seen_from = work;
    Index* const next_entry = work + n;
    std::copy_n(L_indptr, n, next_entry);
    for (Index i = 0; i < n; ++i) {
        seen_from[i] = i;
        for (Index k = indptr[i]; k < indptr[i + 1]; ++k) {
            for (Index j = indices[k]; seen_from[j] != i; j = parent[j]) {
                L_indices[next_entry[j]++] = i;
                seen_from[j] = i;
            }
        }
    }
}

}  // namespace convexlayers::symbolic
