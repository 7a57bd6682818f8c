// Everything about a parametrized program that does not depend on numbers: made once, shared by threads, never written.
#pragma once

#include <vector>

#include "plan/kkt.hpp"
#include "plan/panels.hpp"
#include "plan/program.hpp"

namespace convexlayers::plan {

// numbers[source] goes to panels[target].
struct Copy {
    Int source, target;
};

// One entry of the parameter map, split by what its row is, with all that its gradient needs (lanes/derivative.hpp).
struct MapEntry {
    Int i, j;      // P: row and column; q: j; A: row i of A and column j; b: i; offset: neither
    Int col;       // of theta
    double value;  // of the map; entries off the diagonal of P count twice
};

struct BlockGradient {
    std::vector<MapEntry> P, q, A, b, offset;
};

struct Plan {
    Pattern pattern;
    KktPattern kkt;
    Panels panels;
    std::vector<double> constant;
    std::vector<ParameterBlock> blocks;
    std::vector<BlockGradient> gradients;   // one per block
    std::vector<Int> block_starts;          // of each block in the concatenated theta, and its length at the end
    std::vector<Int> map_indptr, map_cols;  // the whole map by rows, columns of the concatenated theta
    std::vector<double> map_values;

    std::vector<Int> A_places;              // of the entries of A, if all of them are lasting; else empty
    std::vector<Copy> lasting;              // entries of P and A in groups that are never overwritten
    std::vector<Copy> renewed;              // entries of P and A that every factorization overwrites
    std::vector<Int> diagonal;              // node -> its place in the arrays
    std::vector<Int> v_targets, u_targets;  // entries of the two vectors of expanded blocks
    std::vector<Int> rotated_targets;       // entries of the rows of semidefinite cones
    struct Range {
        Int begin, end;
    };
    std::vector<Range> cleared;             // parts of the arrays that start at zero in every factorization: fill-in

    Plan(Pattern pattern, std::vector<double> constant, std::vector<ParameterBlock> blocks);

    Int n() const { return pattern.n; }
    Int m() const { return pattern.m; }
    Int theta_width() const { return block_starts.back(); }

private:
    void merge_map();
    void place_entries();
    void find_cleared();
};

}  // namespace convexlayers::plan
