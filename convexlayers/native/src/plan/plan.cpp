#include "plan/plan.hpp"

#include <algorithm>
#include <utility>

namespace convexlayers::plan {

namespace {

// The columns of the entries of a compressed pattern.
std::vector<Int> expand(const std::vector<Int>& indptr) {
    std::vector<Int> columns;
    for (std::size_t j = 0; j + 1 < indptr.size(); ++j)
        columns.insert(columns.end(), indptr[j + 1] - indptr[j], static_cast<Int>(j));
    return columns;
}

// Whether the entries of a group's column, the diagonal left out, stay the matrix's own: no other group updates them and no
// column of the same group comes before. (In a large factorization a first column may have been filled up with zeros.)
bool is_lasting(const Panels& panels, const Group& group, Int column) {
    return group.leaf && (!group.chain || group.k == 1 || (column == 0 && !panels.large()));
}

BlockGradient split(const ParameterBlock& block, const Pattern& pattern) {
    const std::vector<Int> P_cols = expand(pattern.P_indptr), A_cols = expand(pattern.A_indptr);
    BlockGradient out;
    for (std::size_t e = 0; e < block.rows.size(); ++e) {
        const Int row = block.rows[e], col = block.cols[e];
        const double value = block.values[e];
        if (row < pattern.q_start()) {
            const Int i = pattern.P_rows[row], j = P_cols[row];
            out.P.push_back({i, j, col, i == j ? 0.5 * value : value});
        } else if (row < pattern.A_start()) {
            out.q.push_back({0, row - pattern.q_start(), col, value});
        } else if (row < pattern.b_start()) {
            const Int p = row - pattern.A_start();
            out.A.push_back({pattern.A_rows[p], A_cols[p], col, value});
        } else if (row < pattern.offset_start()) {
            out.b.push_back({row - pattern.b_start(), 0, col, value});
        } else {
            out.offset.push_back({0, 0, col, value});
        }
    }
    return out;
}

}  // namespace

Plan::Plan(Pattern pattern_in, std::vector<double> constant_in, std::vector<ParameterBlock> blocks_in)
    : pattern(std::move(pattern_in)),
      kkt(make_kkt(pattern)),
      panels(make_panels(kkt)),
      constant(std::move(constant_in)),
      blocks(std::move(blocks_in)) {
    for (const ParameterBlock& block : blocks) gradients.push_back(split(block, pattern));
    merge_map();
    place_entries();
}

void Plan::merge_map() {
    block_starts.assign(1, 0);
    map_indptr.assign(pattern.size() + 1, 0);
    for (const ParameterBlock& block : blocks) {
        block_starts.push_back(block_starts.back() + block.width);
        for (const Int row : block.rows) ++map_indptr[row + 1];
    }
    for (Int i = 0; i < pattern.size(); ++i) map_indptr[i + 1] += map_indptr[i];
    map_cols.resize(map_indptr.back());
    map_values.resize(map_indptr.back());
    std::vector<Int> next(map_indptr.begin(), map_indptr.end() - 1);
    for (std::size_t b = 0; b < blocks.size(); ++b)
        for (std::size_t e = 0; e < blocks[b].rows.size(); ++e) {
            const Int slot = next[blocks[b].rows[e]]++;
            map_cols[slot] = block_starts[b] + blocks[b].cols[e];
            map_values[slot] = blocks[b].values[e];
        }
}

void Plan::place_entries() {
    const auto place = [this](Int node) { return panels.position[node]; };
    for (Int node = 0; node < kkt.nodes; ++node) diagonal.push_back(panels.locate(place(node), place(node)));
    for (const KktEntry& entry : kkt.entries) {
        const Int i = place(entry.row), j = place(entry.col);
        const Int target = panels.locate(i, j);
        const Group& group = panels.groups[panels.group_of[std::min(i, j)]];
        const bool kept = is_lasting(panels, group, std::min(i, j) - group.first);
        switch (entry.source) {
            case Source::data: (kept ? lasting : renewed).push_back({entry.index, target}); break;
            case Source::v_vector: v_targets.push_back(target); break;
            case Source::u_vector: u_targets.push_back(target); break;
            case Source::rotated: rotated_targets.push_back(target); break;
        }
    }
    // In the order of memory, so that the copies stream.
    for (auto* copies : {&lasting, &renewed})
        std::sort(copies->begin(), copies->end(), [](const Copy& a, const Copy& b) { return a.target < b.target; });
    const Int A_start = pattern.A_start(), A_end = A_start + pattern.A_entries();
    std::vector<Int> places(pattern.A_entries(), -1);
    for (const Copy& copy : lasting)
        if (copy.source >= A_start && copy.source < A_end) places[copy.source - A_start] = copy.target;
    if (std::find(places.begin(), places.end(), -1) == places.end()) A_places = std::move(places);
    find_cleared();
}

void Plan::find_cleared() {
    std::vector<bool> written(panels.size, false);
    for (const Copy& copy : renewed) written[copy.target] = true;
    for (const auto* targets : {&diagonal, &v_targets, &u_targets, &rotated_targets})
        for (const Int target : *targets) written[target] = true;
    for (const Group& group : panels.groups) {
        for (Int i = group.offset; i < group.offset + (group.head + group.r) * group.k; ++i) {
            const Int row = (i - group.offset) / group.k, column = (i - group.offset) % group.k;
            // Above the diagonal nothing is read; tiles of long chains compute there, and are better off with numbers.
            const bool unused = group.chain && column > row && group.k <= kMostSmallColumns;
            if (written[i] || unused || is_lasting(panels, group, column)) continue;
            if (!cleared.empty() && cleared.back().end == i)
                ++cleared.back().end;
            else
                cleared.push_back({i, i + 1});
        }
    }
}

}  // namespace convexlayers::plan
