#include "plan/panels.hpp"

#include <algorithm>
#include <new>

namespace convexlayers::plan {

namespace {

using symbolic::Index;

// Share of a group's entries that may be zeros for the sake of longer chains.
constexpr double kMostZeros = 0.2;

// Columns of an upper triangle.
struct Upper {
    std::vector<Index> indptr, indices;

    // The entries among the first `nodes` nodes.
    Upper(const KktPattern& kkt, Int nodes) : indptr(nodes + 1, 0) {
        const auto inside = [&](const KktEntry& entry) { return entry.row < nodes; };
        for (const KktEntry& entry : kkt.entries)
            if (inside(entry)) ++indptr[entry.row + 1];
        for (Int j = 0; j < nodes; ++j) indptr[j + 1] += indptr[j];
        indices.resize(indptr[nodes]);
        std::vector<Index> next(indptr.begin(), indptr.end() - 1);
        for (const KktEntry& entry : kkt.entries)
            if (inside(entry)) indices[next[entry.row]++] = entry.col;
        for (Int j = 0; j < nodes; ++j) std::sort(indices.begin() + indptr[j], indices.begin() + indptr[j + 1]);
    }
};

void check(symbolic::Status status) {
    if (status != symbolic::Status::ok) throw std::bad_alloc();
}

// The two extra nodes of an expanded cone come right after the last of its rows. Before them they would make its block
// dense, and mix eigenvalues of H whose sizes have nothing in common.
std::vector<Index> insert_extra_nodes(const KktPattern& kkt, Int plain, const std::vector<Index>& permutation) {
    std::vector<Index> place(plain), order;
    for (Int k = 0; k < plain; ++k) place[permutation[k]] = k;
    std::vector<std::vector<Int>> after(plain);
    for (const ExpandedBlock& cone : kkt.expanded) {
        Index last = 0;
        for (Int i = 0; i < cone.dim; ++i) last = std::max(last, place[cone.first_node + i]);
        after[last].insert(after[last].end(), {cone.u_node, cone.v_node});
    }
    for (Int k = 0; k < plain; ++k) {
        order.push_back(permutation[k]);
        order.insert(order.end(), after[k].begin(), after[k].end());
    }
    return order;
}

symbolic::SymbolicFactor analyze(const KktPattern& kkt) {
    Int plain = kkt.nodes;
    for (const ExpandedBlock& cone : kkt.expanded) plain = std::min(plain, cone.v_node);
    symbolic::SymbolicFactor factor;
    const Upper upper(kkt, plain);
    check(symbolic::analyze(plain, upper.indptr.data(), upper.indices.data(), factor));
    if (plain == kkt.nodes) return factor;
    const std::vector<Index> order = insert_extra_nodes(kkt, plain, factor.permutation);
    const Upper whole(kkt, kkt.nodes);
    check(symbolic::analyze_in_order(kkt.nodes, whole.indptr.data(), whole.indices.data(), order.data(), factor));
    return factor;
}

class Builder {
public:
    Builder(const KktPattern& kkt, const symbolic::SymbolicFactor& factor) : kkt_(kkt), factor_(factor) {}

    Panels run() {
        panels_.nodes = kkt_.nodes;
        panels_.flops = factor_.flops;
        if (panels_.large()) panels_.longest = kLongestLargeChain;
        panels_.L_entries = static_cast<std::int64_t>(factor_.L_indices.size());
        panels_.position.resize(kkt_.nodes);
        panels_.signs.resize(kkt_.nodes);
        panels_.group_of.resize(kkt_.nodes);
        for (Int k = 0; k < kkt_.nodes; ++k) {
            panels_.position[factor_.permutation[k]] = k;
            panels_.signs[k] = kkt_.signs[factor_.permutation[k]];
        }
        for (Int first = 0; first < kkt_.nodes;) first = add_group(first);
        for (Group& group : panels_.groups) add_updates(group);
        for (std::size_t g = 0; g < panels_.groups.size(); ++g) add_to_runs(static_cast<Int>(g));
        return std::move(panels_);
    }

private:
    const Index* column(Int j) const { return factor_.L_indices.data() + factor_.L_indptr[j]; }
    Index count(Int j) const { return factor_.column_counts[j]; }

    // Column j + 1 continues the pattern of column j, which continues the group's.
    bool continues_chain(Int j) const {
        return j + 1 < kkt_.nodes && factor_.elimination_tree[j] == j + 1 && count(j) == count(j + 1) + 1;
    }

    // In a large factorization column j + 1 may also have entries that column j lacks, j its child: j and those before it
    // are filled up with zeros, as long as those are few. The pattern of a group is that of its last column.
    bool continues_relaxed(Int first, Int j, std::int64_t& zeros) const {
        if (!panels_.large() || j + 1 >= kkt_.nodes || factor_.elimination_tree[j] != j + 1) return false;
        const std::int64_t k = j + 1 - first, more = zeros + k * (count(j + 1) + 1 - count(j));
        if (more > kMostZeros * static_cast<double>((k + 1) * (count(j + 1) + 1))) return false;
        zeros = more;
        return true;
    }

    bool same_pattern(Int i, Int j) const {
        return count(i) == count(j) && count(i) > 0 && std::equal(column(i), column(i) + count(i), column(j));
    }

    Int add_group(Int first) {
        Int last = first + 1;
        const bool independent = last < kkt_.nodes && same_pattern(first, last);
        if (independent) {
            while (last < kkt_.nodes && last - first < kMostIndependent && same_pattern(first, last)) ++last;
        } else {
            std::int64_t zeros = 0;
            while (last - first < panels_.longest &&
                   (continues_relaxed(first, last - 1, zeros) || continues_chain(last - 1)))
                ++last;
        }
        Group group{};
        group.first = first;
        group.k = last - first;
        group.chain = !independent;
        group.leaf = true;
        group.head = independent ? 1 : group.k;
        group.r = static_cast<Int>(count(last - 1));
        group.rows = static_cast<Int>(panels_.rows.size());
        group.offset = panels_.size;
        panels_.rows.insert(panels_.rows.end(), column(last - 1), column(last - 1) + group.r);
        panels_.size += (group.head + group.r) * group.k;
        panels_.widest = std::max(panels_.widest, group.r * group.k);
        std::fill(panels_.group_of.begin() + first, panels_.group_of.begin() + last,
                  static_cast<Int>(panels_.groups.size()));
        panels_.groups.push_back(group);
        return last;
    }

    void add_updates(Group& source) {
        source.first_update = static_cast<Int>(panels_.updates.size());
        const Int* rows = panels_.rows.data() + source.rows;
        for (Int first = 0; first < source.r;) {
            const Int target = panels_.group_of[rows[first]];
            Int last = first + 1;
            while (last < source.r && panels_.group_of[rows[last]] == target) ++last;
            panels_.groups[target].leaf = false;
            add_update(source, first, last, panels_.groups[target]);
            first = last;
        }
        source.last_update = static_cast<Int>(panels_.updates.size());
    }

    void add_update(const Group& source, Int first, Int last, const Group& target) {
        const Int* rows = panels_.rows.data() + source.rows;
        Update update{target.offset, first, last, static_cast<Int>(panels_.columns.size()),
                      static_cast<Int>(panels_.row_offsets.size())};
        for (Int j = first; j < last; ++j) panels_.columns.push_back(rows[j] - target.first);
        for (Int i = first; i < source.r; ++i) panels_.row_offsets.push_back(row_offset(target, rows[i]));
        panels_.updates.push_back(update);
    }

    // Offset of a row in the target's array. The rows below are sorted.
    Int row_offset(const Group& target, Int row) const {
        if (row < target.first + target.k) return target.chain ? (row - target.first) * target.k : 0;
        const Int* begin = panels_.rows.data() + target.rows;
        const Int* found = std::lower_bound(begin, begin + target.r, row);
        return (target.head + static_cast<Int>(found - begin)) * target.k;
    }

    void add_to_runs(Int index) {
        const Group& group = panels_.groups[index];
        const bool small = group.k <= (group.chain ? kMostSmallColumns : 2) && group.r >= 1 && group.r <= kMostSmallRows;
        Run* const last = panels_.runs.empty() ? nullptr : &panels_.runs.back();
        if (small && last != nullptr && last->pairs >= 0 && last->k == group.k && last->r == group.r &&
            last->chain == group.chain) {
            ++last->count;
        } else {
            panels_.runs.push_back({index, 1, group.first, group.k, group.r, group.offset, group.rows,
                                    small ? static_cast<Int>(panels_.pairs.size()) : -1, group.chain});
        }
        if (!small) return;
        const Int* const rows = panels_.rows.data() + group.rows;
        for (Int i = 0; i < group.r; ++i)
            for (Int j = 0; j <= i; ++j) panels_.pairs.push_back(panels_.locate(rows[i], rows[j]));
    }

    const KktPattern& kkt_;
    const symbolic::SymbolicFactor& factor_;
    Panels panels_;
};

}  // namespace

Int Panels::locate(Int i, Int j) const {
    if (i < j) std::swap(i, j);
    const Group& group = groups[group_of[j]];
    const Int column = j - group.first;
    if (i < group.first + group.k) return group.offset + (group.chain ? (i - group.first) * group.k : 0) + column;
    const Int* begin = rows.data() + group.rows;
    const Int* found = std::lower_bound(begin, begin + group.r, i);
    return group.offset + (group.head + static_cast<Int>(found - begin)) * group.k + column;
}

Panels make_panels(const KktPattern& kkt) {
    const symbolic::SymbolicFactor factor = analyze(kkt);
    return Builder(kkt, factor).run();
}

namespace {

KktPattern dense(Int order) {
    KktPattern kkt;
    kkt.nodes = order;
    kkt.signs.assign(order, 1.0);
    for (Int i = 0; i < order; ++i)
        for (Int j = 0; j < i; ++j) kkt.entries.push_back({i, j, Source::data, 0});
    return kkt;
}

}  // namespace

DensePattern::DensePattern(Int order) : panels(make_panels(dense(order))) {
    for (Int i = 0; i < order; ++i) {
        for (Int j = 0; j <= i; ++j) places.push_back(panels.locate(panels.position[i], panels.position[j]));
        diagonal.push_back(places.back());
    }
}

}  // namespace convexlayers::plan
