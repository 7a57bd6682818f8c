#include "plan/kkt.hpp"

#include <algorithm>

namespace convexlayers::plan {

namespace {

class Builder {
public:
    explicit Builder(const Pattern& pattern) : pattern_(pattern) {
        kkt_.nodes = pattern.n + pattern.m;
        kkt_.signs.assign(pattern.n, 1.0);
        kkt_.signs.insert(kkt_.signs.end(), pattern.m, -1.0);
        kkt_.P_diagonal.assign(pattern.n, -1);
    }

    KktPattern run() {
        is_rotated_.assign(pattern_.m, false);
        add_cones();
        add_data();
        return std::move(kkt_);
    }

private:
    void add_cones() {
        const ConeSizes& cones = pattern_.cones;
        Int row = cones.zero;
        kkt_.first_nonnegative = row;
        kkt_.consecutive = cones.nonnegative;
        for (Int i = 0; i < cones.nonnegative; ++i) kkt_.nonnegative_rows.push_back(row++);
        for (const Int dim : cones.second_order) {
            if (dim == 1)
                kkt_.nonnegative_rows.push_back(row);
            else
                expand(row, dim);
            row += dim;
        }
        kkt_.second_orders = static_cast<Int>(kkt_.expanded.size());
        for (const Int order : cones.semidefinite) row += add_semidefinite(row, order);
        kkt_.basis_start = kkt_.cone_numbers;
        kkt_.exponents.assign(cones.exponential, 0.0);
        kkt_.exponents.insert(kkt_.exponents.end(), cones.power.begin(), cones.power.end());
        for (std::size_t i = 0; i < kkt_.exponents.size(); ++i, row += 3) expand(row, 3);
        kkt_.cone_numbers += kBoundaryNumbers * static_cast<Int>(kkt_.exponents.size());
    }

    void expand(Int row, Int dim) {
        const Int first = pattern_.n + row, v_node = kkt_.nodes, u_node = kkt_.nodes + 1;
        kkt_.expanded.push_back({row, first, dim, v_node, u_node});
        kkt_.nodes += 2;
        kkt_.signs.insert(kkt_.signs.end(), {-1.0, 1.0});
        for (Int i = 0; i < dim; ++i, ++expanded_entries_) {
            kkt_.entries.push_back({v_node, first + i, Source::v_vector, expanded_entries_});
            kkt_.entries.push_back({u_node, first + i, Source::u_vector, expanded_entries_});
        }
    }

    Int add_semidefinite(Int row, Int order) {
        const Int dim = order * (order + 1) / 2;
        if (order == 1) {
            kkt_.nonnegative_rows.push_back(row);
        } else {
            std::fill_n(is_rotated_.begin() + row, dim, true);
            const Int first_column = static_cast<Int>(kkt_.rotated_columns.size());
            for (Int j = 0; j < pattern_.n; ++j) rotate_column(row, dim, j);
            const Int last_column = static_cast<Int>(kkt_.rotated_columns.size());
            kkt_.semidefinite.push_back({row, order, dim, kkt_.cone_numbers, first_column, last_column});
            kkt_.cone_numbers += semidefinite_numbers(order);
            // And a vector of the cone's rows, where they are rotated.
            kkt_.cone_work = std::max(kkt_.cone_work, dim + semidefinite_work(order));
        }
        return dim;
    }

    void rotate_column(Int row, Int dim, Int j) {
        const auto begin = pattern_.A_rows.begin();
        const auto first = std::lower_bound(begin + pattern_.A_indptr[j], begin + pattern_.A_indptr[j + 1], row);
        const auto last = std::lower_bound(first, begin + pattern_.A_indptr[j + 1], row + dim);
        if (first == last) return;
        kkt_.rotated_columns.push_back({static_cast<Int>(first - begin), static_cast<Int>(last - first),
                                        static_cast<Int>(kkt_.rotated_places.size()), rotated_entries_});
        for (auto entry = first; entry != last; ++entry) kkt_.rotated_places.push_back(*entry - row);
        for (Int k = 0; k < dim; ++k, ++rotated_entries_)
            kkt_.entries.push_back({pattern_.n + row + k, j, Source::rotated, rotated_entries_});
    }

    // Entries of P and of those rows of A that are not rotated.
    void add_data() {
        for (Int j = 0; j < pattern_.n; ++j) {
            for (Int p = pattern_.P_indptr[j]; p < pattern_.P_indptr[j + 1]; ++p) {
                if (pattern_.P_rows[p] == j)
                    kkt_.P_diagonal[j] = p;
                else
                    kkt_.entries.push_back({j, pattern_.P_rows[p], Source::data, p});
            }
            for (Int p = pattern_.A_indptr[j]; p < pattern_.A_indptr[j + 1]; ++p) {
                const Int row = pattern_.A_rows[p];
                if (!is_rotated_[row])
                    kkt_.entries.push_back({pattern_.n + row, j, Source::data, pattern_.A_start() + p});
            }
        }
    }

    const Pattern& pattern_;
    KktPattern kkt_;
    std::vector<bool> is_rotated_;
    Int expanded_entries_ = 0, rotated_entries_ = 0;
};

}  // namespace

KktPattern make_kkt(const Pattern& pattern) { return Builder(pattern).run(); }

}  // namespace convexlayers::plan
