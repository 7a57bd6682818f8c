#include "symbolic/quotient_graph.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace convexlayers::symbolic {

namespace {

constexpr Index kElement = -1;     // in elements_: the node is no variable but an element
constexpr Index kNodeArrays = 16;  // arrays of length n in the workspace

}  // namespace

// ---------------------------------------------------------------------------------------------------- set-up

// Lists start with 2 * entries (each edge seen from both ends) and never grow in total, but a new element is written
// before the lists it replaces are dropped: n entries of room suffice, and `entries` more make compactions rare.
Index QuotientGraph::workspace_size(Index n, Index entries) noexcept {
    return kNodeArrays * n + (n + 3 * entries);
}

QuotientGraph::QuotientGraph(Index n, Index entries, PivotRule rule, Index* work) noexcept
    : n_(n), capacity_(n + 3 * entries), rule_(rule) {
    Index** const arrays[kNodeArrays] = {
        &start_,    &length_, &elements_, &weight_,  &degree_,    &mark_,        &key_,         &next_,
        &previous_, &by_key_, &hash_,     &by_hash_, &hash_next_, &member_next_, &member_last_, &pivot_,
    };
    for (Index** array : arrays) {
        *array = work;
        work += n;
    }
    lists_ = work;
}

Index QuotientGraph::order_group(const Index* indptr, const Index* indices, const Index* group, Index wanted,
                                 Index* order) noexcept {
    load(indptr, indices, group, wanted);
    while (eliminated_ < active_) {
        const Index pivot = take_pivot();
        form_element(pivot);
        measure_elements(pivot);
        update_variables(pivot);
        merge_indistinguishable(pivot);
        finish_element(pivot);
    }
    return write_order(order);
}

void QuotientGraph::load(const Index* indptr, const Index* indices, const Index* group, Index wanted) noexcept {
    reset_nodes(group, wanted);
    const auto each_edge = [&](auto&& visit) {
        for (Index column = 0; column < n_; ++column) {
            if (group[column] != wanted) continue;
            for (Index k = indptr[column]; k < indptr[column + 1]; ++k) {
                const Index row = indices[k];
                if (row != column && group[row] == wanted) visit(row, column);
            }
        }
    };
    each_edge([&](Index row, Index column) { ++length_[row], ++length_[column]; });
    free_ = 0;
    for (Index i = 0; i < n_; ++i) {
        start_[i] = free_;
        free_ += length_[i];
        length_[i] = 0;
    }
    each_edge([&](Index row, Index column) {
        lists_[start_[row] + length_[row]++] = column;
        lists_[start_[column] + length_[column]++] = row;
    });
    for (Index i = n_ - 1; i >= 0; --i) {
        if (weight_[i] > 0) link(i, length_[i]);
    }
}

void QuotientGraph::reset_nodes(const Index* group, Index wanted) noexcept {
    active_ = eliminated_ = pivots_ = 0;
    minimum_ = n_;
    stamp_ = 2;
    for (Index i = 0; i < n_; ++i) {
        weight_[i] = group[i] == wanted ? 1 : 0;
        active_ += weight_[i];
        length_[i] = elements_[i] = 0;
        mark_[i] = 1;
        by_key_[i] = by_hash_[i] = member_next_[i] = kNone;
        member_last_[i] = i;
    }
}

// ---------------------------------------------------------------------------------------------------- elimination

Index QuotientGraph::take_pivot() noexcept {
    while (by_key_[minimum_] == kNone) ++minimum_;
    const Index pivot = by_key_[minimum_];
    unlink(pivot);
    return pivot;
}

// Lp = (A_p + union of L_e over e in E_p) without p. The elements of E_p are absorbed.
void QuotientGraph::form_element(Index pivot) noexcept {
    make_room(pivot);
    const Index begin = free_;
    const Index own = start_[pivot];
    const Index adjacent = elements_[pivot];
    eliminated_ += weight_[pivot];
    weight_[pivot] = 0;
    degree_[pivot] = 0;
    for (Index k = own; k < own + adjacent; ++k) {
        const Index element = lists_[k];
        collect(start_[element], length_[element]);
        mark_[element] = 0;
    }
    collect(own + adjacent, length_[pivot] - adjacent);
    for (Index k = begin; k < free_; ++k) degree_[pivot] -= weight_[lists_[k]];
    start_[pivot] = begin;
    length_[pivot] = free_ - begin;
    elements_[pivot] = kElement;
    mark_[pivot] = 1;
    pivot_[pivots_++] = pivot;
}

// Appends the living variables among lists_[first .. first + count) to the element being formed, each once.
void QuotientGraph::collect(Index first, Index count) noexcept {
    for (Index k = first; k < first + count; ++k) {
        const Index variable = lists_[k];
        if (weight_[variable] <= 0) continue;
        weight_[variable] = -weight_[variable];
        lists_[free_++] = variable;
        unlink(variable);
    }
}

// mark_[e] = stamp_ + |L_e \ Lp| for every element e next to a variable of Lp: start from |L_e| and take away the
// weight of each variable of Lp that e is adjacent to.
void QuotientGraph::measure_elements(Index pivot) noexcept {
    const Index begin = start_[pivot];
    for (Index k = begin; k < begin + length_[pivot]; ++k) {
        const Index variable = lists_[k];
        const Index weight = -weight_[variable];
        const Index first = start_[variable];
        for (Index j = first; j < first + elements_[variable]; ++j) {
            const Index element = lists_[j];
            if (mark_[element] == 0) continue;
            if (mark_[element] < stamp_) mark_[element] = stamp_ + degree_[element];
            mark_[element] -= weight;
        }
    }
}

void QuotientGraph::update_variables(Index pivot) noexcept {
    const Index begin = start_[pivot];
    for (Index k = begin; k < begin + length_[pivot]; ++k) update_variable(lists_[k], pivot);
    stamp_ += n_ + 1;  // no measure is larger than n, so every mark is old now
}

// Drops from the lists of i what the new element covers, puts the element in front, and bounds the external degree by
// |A_i| + sum of |L_e \ Lp|; |Lp \ i| is added in finish_element, when Lp is final.
void QuotientGraph::update_variable(Index variable, Index pivot) noexcept {
    const Index begin = start_[variable];
    const Index variables = begin + elements_[variable];
    const Index end = begin + length_[variable];
    Index keep = begin;
    Index bound = 0;
    Index hash = 0;
    for (Index k = begin; k < variables; ++k) {
        const Index element = lists_[k];
        if (mark_[element] == 0) continue;
        const Index outside = mark_[element] - stamp_;
        if (outside == 0) {
            mark_[element] = 0;  // L_e is a subset of Lp: absorbed although not adjacent to the pivot
            continue;
        }
        lists_[keep++] = element;
        bound += outside;
        hash += element;
    }
    const Index kept_elements = keep;
    for (Index k = variables; k < end; ++k) {
        const Index neighbour = lists_[k];
        if (weight_[neighbour] <= 0) continue;  // gone, or in Lp and so reached through the element
        lists_[keep++] = neighbour;
        bound += weight_[neighbour];
        hash += neighbour;
    }
    if (keep == begin) {
        eliminate_with(variable, pivot);
        return;
    }
    // At least one entry was dropped, the pivot itself or an element absorbed by it, so lists_[keep] is ours.
    lists_[keep] = lists_[kept_elements];
    lists_[kept_elements] = lists_[begin];
    lists_[begin] = pivot;
    elements_[variable] = kept_elements - begin + 1;
    length_[variable] = keep - begin + 1;
    degree_[variable] = std::min(degree_[variable], bound);
    hash_[variable] = hash;
    hash_next_[variable] = by_hash_[hash % n_];
    by_hash_[hash % n_] = variable;
}

void QuotientGraph::eliminate_with(Index variable, Index pivot) noexcept {
    const Index weight = -weight_[variable];
    degree_[pivot] -= weight;
    eliminated_ += weight;
    weight_[variable] = 0;
    append_members(variable, pivot);
}

void QuotientGraph::merge_indistinguishable(Index pivot) noexcept {
    const Index begin = start_[pivot];
    for (Index k = begin; k < begin + length_[pivot]; ++k) {
        if (weight_[lists_[k]] == 0) continue;
        const Index bucket = hash_[lists_[k]] % n_;
        Index variable = by_hash_[bucket];
        by_hash_[bucket] = kNone;
        for (; variable != kNone; variable = hash_next_[variable]) absorb_twins(variable);
    }
}

// Merges into `variable` all that follow it in its hash list and have the same lists.
void QuotientGraph::absorb_twins(Index variable) noexcept {
    if (hash_next_[variable] == kNone) return;
    const Index begin = start_[variable];
    for (Index k = begin + 1; k < begin + length_[variable]; ++k) mark_[lists_[k]] = stamp_;
    Index before = variable;
    for (Index twin = hash_next_[variable]; twin != kNone; twin = hash_next_[twin]) {
        if (same_lists(variable, twin)) {
            weight_[variable] += weight_[twin];
            weight_[twin] = 0;
            append_members(twin, variable);
            hash_next_[before] = hash_next_[twin];
        } else {
            before = twin;
        }
    }
    ++stamp_;
}

// The first entry of both lists is the new element; the other entries of `first` carry the mark stamp_.
bool QuotientGraph::same_lists(Index first, Index second) const noexcept {
    if (hash_[first] != hash_[second]) return false;
    if (length_[first] != length_[second] || elements_[first] != elements_[second]) return false;
    const Index begin = start_[second];
    for (Index k = begin + 1; k < begin + length_[second]; ++k) {
        if (mark_[lists_[k]] != stamp_) return false;
    }
    return true;
}

// Lp is final: drop what was merged or eliminated, complete the degrees, and give the variables back to the lists.
void QuotientGraph::finish_element(Index pivot) noexcept {
    const Index begin = start_[pivot];
    const Index end = begin + length_[pivot];
    const Index remaining = active_ - eliminated_;
    free_ = begin;
    for (Index k = begin; k < end; ++k) {
        const Index variable = lists_[k];
        const Index weight = -weight_[variable];
        if (weight == 0) continue;
        weight_[variable] = weight;
        link(variable, std::min(degree_[variable] + degree_[pivot] - weight, remaining - weight));
        lists_[free_++] = variable;
    }
    length_[pivot] = free_ - begin;
    if (length_[pivot] == 0) mark_[pivot] = 0;
}

// ---------------------------------------------------------------------------------------------------- bookkeeping

void QuotientGraph::append_members(Index from, Index into) noexcept {
    member_next_[member_last_[into]] = from;
    member_last_[into] = member_last_[from];
}

void QuotientGraph::link(Index variable, Index degree) noexcept {
    const Index key = rule_ == PivotRule::external_degree ? degree : degree + weight_[variable] - 1;
    degree_[variable] = degree;
    key_[variable] = key;
    next_[variable] = by_key_[key];
    previous_[variable] = kNone;
    if (next_[variable] != kNone) previous_[next_[variable]] = variable;
    by_key_[key] = variable;
    minimum_ = std::min(minimum_, key);
}

void QuotientGraph::unlink(Index variable) noexcept {
    const Index before = previous_[variable];
    const Index after = next_[variable];
    if (after != kNone) previous_[after] = before;
    if (before != kNone) {
        next_[before] = after;
    } else {
        by_key_[key_[variable]] = after;
    }
}

// Room for the element of `pivot`. Moving every living list to the front keeps their order, so no list overtakes one
// that has not been moved yet.
void QuotientGraph::make_room(Index pivot) noexcept {
    Index needed = length_[pivot] - elements_[pivot];
    for (Index k = start_[pivot]; k < start_[pivot] + elements_[pivot]; ++k) needed += length_[lists_[k]];
    if (free_ + std::min(needed, n_) <= capacity_) return;
    Index free = 0;
    for (Index i = 0; i < n_; ++i) {
        if (weight_[i] > 0) move_list(i, free);
    }
    for (Index k = 0; k < pivots_; ++k) {
        if (mark_[pivot_[k]] != 0) move_list(pivot_[k], free);
    }
    free_ = free;
}

void QuotientGraph::move_list(Index node, Index& free) noexcept {
    std::memmove(lists_ + free, lists_ + start_[node], static_cast<std::size_t>(length_[node]) * sizeof(Index));
    start_[node] = free;
    free += length_[node];
}

Index QuotientGraph::write_order(Index* order) const noexcept {
    Index written = 0;
    for (Index k = 0; k < pivots_; ++k) {
        for (Index member = pivot_[k]; member != kNone; member = member_next_[member]) order[written++] = member;
    }
    return written;
}

}  // namespace convexlayers::symbolic
