// How the factor of a matrix is stored and updated: columns of L with the same pattern below, in groups.
//
// Nodes are renumbered in elimination order. A group is a run of consecutive columns, of one of two kinds:
//
//     chain         column c + 1 is the parent of column c and has the same pattern below it (a supernode)
//     independent   the columns have the same pattern and no entries among themselves
//
// A group of k columns and r common rows below is one row-major array of (head + r) x k numbers: head = k rows hold the
// lower triangle of a chain with its diagonal, head = 1 row holds the diagonal of an independent group. Stored are the
// entries of U = L D, not of L, so that a group that no other updates keeps the matrix's own numbers.
//
// When a group has been eliminated, the entries of later columns at pairs (i, j), i >= j, of its rows below change by
// -U_i D^-1 U_j'. An `Update` lists where those pairs are for the columns j that lie in one later group.
#pragma once

#include <algorithm>
#include <vector>

#include "plan/kkt.hpp"
#include "symbolic/analyze.hpp"

namespace convexlayers::plan {

inline constexpr Int kLongestChain = 16;
inline constexpr Int kMostIndependent = 32;
// Factorizations of more operations than this are large: their elements are solved one by one, whatever the batch, by
// kernels that put columns and rows into vectors (lanes/ldl_single.hpp), and threads share one element. Their chains are
// longer, so that what an update loads and stores is used more often.
inline constexpr std::int64_t kLargeFlops = 20'000'000;
inline constexpr Int kLongestLargeChain = 64;

struct Update {
    Int target;        // offset of the target group's array
    Int first, last;   // positions j of the source's rows that are columns of the target
    Int columns;       // into Panels::columns, last - first column numbers in the target
    Int rows;          // into Panels::row_offsets, one offset per source row from `first` on
};

struct Group {
    Int first, k, head, r;
    Int rows;                        // into Panels::rows, r of them
    Int offset;                      // of its array
    Int first_update, last_update;   // into Panels::updates
    bool chain, leaf;                // leaf: no other group updates it

    Int below() const { return offset + head * k; }
};

// Consecutive groups of the same kind and sizes, so that all they have follows from the first one. Only small groups
// form runs; others are runs of one.
struct Run {
    Int group, count;                // first group, and how many
    Int first, k, r;                 // of the first group, as in Group
    Int offset, rows;
    Int pairs;                       // into Panels::pairs; -1 for a group that is not small
    bool chain;
};

inline constexpr Int kMostSmallColumns = 3;
inline constexpr Int kMostSmallRows = 3;

struct Panels {
    Int nodes = 0;
    Int size = 0;                    // numbers in all arrays
    Int widest = 0;                  // largest k * r of a group
    Int longest = kLongestChain;     // no chain is longer
    std::int64_t flops = 0;
    std::int64_t L_entries = 0;
    std::vector<Int> position;       // node -> place in elimination order
    std::vector<double> signs;       // of the pivots, in elimination order
    std::vector<Group> groups;
    std::vector<Int> rows;
    std::vector<Update> updates;
    std::vector<Int> columns, row_offsets;
    std::vector<Run> runs;
    std::vector<Int> pairs;          // of the groups of runs: places of what pairs (i, j), j <= i, of rows below change
    std::vector<Int> group_of;       // by place in elimination order

    bool large() const { return flops > kLargeFlops; }
    // Numbers that a factorization needs besides its arrays: the triangle of a chain and the rows below a group; where one
    // matrix is factored alone twice, and in whole tiles.
    std::size_t scratch(int lanes) const {
        const std::size_t triangle = static_cast<std::size_t>(longest) * longest;
        return triangle + widest + (lanes == 1 ? widest + 24 * std::max(longest, kMostIndependent) : 0);
    }

    // Where the entry (i, j) or (j, i) of the matrix is stored; places in elimination order.
    Int locate(Int i, Int j) const;
};

Panels make_panels(const KktPattern& kkt);

// A dense symmetric matrix with positive pivots.
struct DensePattern {
    Panels panels;
    std::vector<Int> places;    // of the entries of the lower triangle, row by row
    std::vector<Int> diagonal;  // of those on the diagonal

    explicit DensePattern(Int order);
};

}  // namespace convexlayers::plan
