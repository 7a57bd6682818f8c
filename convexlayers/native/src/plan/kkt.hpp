// The pattern of the matrix that is factored in every iteration and for the derivative:
//
//     [ P    A'        ]     nodes 0 .. n-1: variables, pivots positive
//     [ A   -H         ]     nodes n .. n+m-1: rows, pivots negative
//
// H is block diagonal, one block per cone. For the zero and nonnegative cone it is diagonal. For a second-order cone of
// dimension at least 2, an exponential or a power cone it has the form D + uu' - vv', D a multiple of the identity, and
// is expanded by two more nodes,
//
//     [ -D    v    u ]
//     [  v'  -1      ]   pivot negative
//     [  u'        1 ]   pivot positive
//
// whose elimination gives -(D + uu' - vv'), so that the rows of the cone stay as sparse as those of A. (A dense block
// would also mix eigenvalues of H that are 15 orders of magnitude apart at a solution.)
//
// For a semidefinite cone H is diagonal after an orthogonal change of coordinates that moves with the iterate, so its
// rows of A stand there in these coordinates: every column that meets the cone meets all of its rows.
#pragma once

#include <vector>

#include "plan/program.hpp"

namespace convexlayers::plan {

// What a semidefinite cone keeps, and the scratch of one call (lanes/cones/semidefinite.hpp).
constexpr Int semidefinite_numbers(Int order) { return 3 * order * order + order; }
constexpr Int semidefinite_work(Int order) { return 3 * order * order + 3 * order; }

// What an exponential or power cone keeps: three eigenvectors, and a guess (lanes/cones/boundary.hpp).
inline constexpr Int kBoundaryNumbers = 10;

struct ExpandedBlock {
    Int row;         // first row
    Int first_node;  // its node
    Int dim;
    Int v_node, u_node;
};

struct SemidefiniteBlock {
    Int row, order, dim;
    Int numbers;                    // where its part of Workspace::cone_numbers begins
    Int first_column, last_column;  // into KktPattern::rotated_columns
};

// The entries of one column of A in the rows of one semidefinite cone.
struct RotatedColumn {
    Int first_entry, count;  // entries of A
    Int places;              // into KktPattern::rotated_places: their places in the cone
    Int targets;             // into the list of rotated entries: `dim` of them
};

// An entry (row > col) of the lower triangle in the original numbering of nodes, and where its number comes from.
enum class Source : std::uint8_t { data, v_vector, u_vector, rotated };

struct KktEntry {
    Int row, col;
    Source source;
    Int index;  // data: index into the numbers; else: index into the list of such entries
};

struct KktPattern {
    Int nodes = 0;
    std::vector<double> signs;        // of the pivots
    std::vector<KktEntry> entries;    // strictly below the diagonal
    std::vector<Int> P_diagonal;      // (n) index of the entry (j, j) in the numbers, -1 where there is none
    std::vector<ExpandedBlock> expanded;  // second-order cones of dimension >= 2, then exponential, then power cones
    Int second_orders = 0;                // how many of them are second-order cones
    std::vector<double> exponents;        // of the others: of a power cone, 0 for an exponential cone
    std::vector<SemidefiniteBlock> semidefinite;  // of order >= 2
    std::vector<RotatedColumn> rotated_columns;
    std::vector<Int> rotated_places;
    // Vectors that the cones keep (Workspace::cone_numbers), where the bases of exponential and power cones begin in
    // them, and scratch of one call.
    Int cone_numbers = 0, basis_start = 0, cone_work = 0;
    // Those of dimension or order 1 among them.
    std::vector<Int> nonnegative_rows;
    Int first_nonnegative = 0, consecutive = 0;  // so many of them, from the first one on, follow each other

    // work(row) for every nonnegative row. Consecutive rows are a loop of their own, which can run in vectors.
    template <class Work>
    void for_each_nonnegative(const Work& work) const {
        for (Int i = first_nonnegative; i < first_nonnegative + consecutive; ++i) work(i);
        for (std::size_t k = consecutive; k < nonnegative_rows.size(); ++k) work(nonnegative_rows[k]);
    }
};

KktPattern make_kkt(const Pattern& pattern);

}  // namespace convexlayers::plan
