// How far functions and small dense matrices of lanes/ are from references: one per instruction set, numeric.cpp.
#pragma once

#include <cstdint>

namespace convexlayers {

// Of what was measured, that with the largest share of the error that it may have; above 1 is wrong.
struct Worst {
    const char* what = "";
    double share = 0;
};

namespace baseline {
Worst worst_of_numeric(std::uint64_t seed);
}
namespace avx2 {
Worst worst_of_numeric(std::uint64_t seed);
}
namespace avx512 {
Worst worst_of_numeric(std::uint64_t seed);
}

}  // namespace convexlayers
