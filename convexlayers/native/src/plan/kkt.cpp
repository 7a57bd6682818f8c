#include "plan/kkt.hpp"

namespace convexlayers::plan {

namespace {

void add_cones(const Pattern& pattern, KktPattern& kkt) {
    Int row = pattern.cones.zero;
    kkt.first_nonnegative = row;
    kkt.consecutive = pattern.cones.nonnegative;
    for (Int i = 0; i < pattern.cones.nonnegative; ++i) kkt.nonnegative_rows.push_back(row++);
    Int entries = 0;
    for (const Int dim : pattern.cones.second_order) {
        if (dim == 1) {
            kkt.nonnegative_rows.push_back(row++);
            continue;
        }
        const Int first = pattern.n + row, v_node = kkt.nodes, u_node = kkt.nodes + 1;
        kkt.second_order.push_back({row, first, dim, v_node, u_node});
        kkt.nodes += 2;
        kkt.signs.insert(kkt.signs.end(), {-1.0, 1.0});
        for (Int i = 0; i < dim; ++i, ++entries) {
            kkt.entries.push_back({v_node, first + i, Source::v_vector, entries});
            kkt.entries.push_back({u_node, first + i, Source::u_vector, entries});
        }
        row += dim;
    }
}

}  // namespace

KktPattern make_kkt(const Pattern& pattern) {
    KktPattern kkt;
    kkt.nodes = pattern.n + pattern.m;
    kkt.signs.assign(pattern.n, 1.0);
    kkt.signs.insert(kkt.signs.end(), pattern.m, -1.0);
    kkt.P_diagonal.assign(pattern.n, -1);
    for (Int j = 0; j < pattern.n; ++j) {
        for (Int p = pattern.P_indptr[j]; p < pattern.P_indptr[j + 1]; ++p) {
            if (pattern.P_rows[p] == j)
                kkt.P_diagonal[j] = p;
            else
                kkt.entries.push_back({j, pattern.P_rows[p], Source::data, p});
        }
        for (Int p = pattern.A_indptr[j]; p < pattern.A_indptr[j + 1]; ++p)
            kkt.entries.push_back({pattern.n + pattern.A_rows[p], j, Source::data, pattern.A_start() + p});
    }
    add_cones(pattern, kkt);
    return kkt;
}

}  // namespace convexlayers::plan
