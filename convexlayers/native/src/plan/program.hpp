// What a plan is made from: the pattern of a cone program, its cones, and the affine map from parameters to its numbers.
#pragma once

#include <cstdint>
#include <vector>

namespace convexlayers::plan {

using Int = std::int32_t;

// Rows come in this order: zero, nonnegative, second-order cones (t, x) with |x| <= t, positive semidefinite matrices
// as svec vectors, exponential cones, power cones.
struct ConeSizes {
    Int zero = 0;
    Int nonnegative = 0;
    std::vector<Int> second_order;   // dimensions
    std::vector<Int> semidefinite;   // orders
    Int exponential = 0;
    std::vector<double> power;       // exponents

    Int rows() const {
        Int count = zero + nonnegative + 3 * exponential + 3 * static_cast<Int>(power.size());
        for (const Int dim : second_order) count += dim;
        for (const Int order : semidefinite) count += order * (order + 1) / 2;
        return count;
    }
};

// minimize 1/2 x'Px + q'x + offset subject to Ax + s = b, s in K. P by its upper triangle. Entries by column, then row.
struct Pattern {
    Int n = 0;
    Int m = 0;
    ConeSizes cones;
    std::vector<Int> P_rows, P_indptr;  // P_indptr, A_indptr: n + 1
    std::vector<Int> A_rows, A_indptr;

    Int P_entries() const { return static_cast<Int>(P_rows.size()); }
    Int A_entries() const { return static_cast<Int>(A_rows.size()); }
    // The vector of numbers is P | q | A | b | offset.
    Int q_start() const { return P_entries(); }
    Int A_start() const { return q_start() + n; }
    Int b_start() const { return A_start() + A_entries(); }
    Int offset_start() const { return b_start() + m; }
    Int size() const { return offset_start() + 1; }
};

// One block of parameters theta_i and its part M_i of numbers = constant + sum_i M_i theta_i; entries sorted by row.
struct ParameterBlock {
    Int width = 0;
    std::vector<Int> rows, cols;
    std::vector<double> values;
};

}  // namespace convexlayers::plan
