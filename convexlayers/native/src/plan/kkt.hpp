// The pattern of the matrix that is factored in every iteration and for the derivative:
//
//     [ P    A'        ]     nodes 0 .. n-1: variables, pivots positive
//     [ A   -H         ]     nodes n .. n+m-1: rows, pivots negative
//
// H is block diagonal, one block per cone. For the zero and nonnegative cone it is diagonal. For a second-order cone of
// dimension at least 2 it has the form D + uu' - vv', D a multiple of the identity, and is expanded by two more nodes,
//
//     [ -D    v    u ]
//     [  v'  -1      ]   pivot negative
//     [  u'        1 ]   pivot positive
//
// whose elimination gives -(D + uu' - vv'), so that the rows of the cone stay as sparse as those of A. (A dense block
// would also mix eigenvalues of H that are 15 orders of magnitude apart at a solution.)
#pragma once

#include <vector>

#include "plan/program.hpp"

namespace convexlayers::plan {

struct SecondOrderBlock {
    Int row;         // first row
    Int first_node;  // its node
    Int dim;
    Int v_node, u_node;
};

// An entry (row > col) of the lower triangle in the original numbering of nodes, and where its number comes from.
enum class Source : std::uint8_t { data, v_vector, u_vector };

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
    std::vector<SecondOrderBlock> second_order;  // of dimension >= 2; those of dimension 1 count as nonnegative rows
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
