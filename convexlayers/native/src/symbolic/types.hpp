// What the symbolic kernels share: the index type and the return codes.
//
// A pattern is given as CSC: column j holds the row indices indices[indptr[j] .. indptr[j+1]). "Upper triangle" means
// every row index is at most its column; the diagonal may be present or not, kernels treat it as present. Within a
// column indices are distinct, in any order. The caller has checked all this: kernels trust their arguments.
#pragma once

#include <cstdint>

namespace convexlayers::symbolic {

using Index = std::int64_t;

inline constexpr Index kNone = -1;  // no node: the parent of a root, the end of a linked list

enum class Status : int {
    ok = 0,
    out_of_memory = 1,
};

}  // namespace convexlayers::symbolic
