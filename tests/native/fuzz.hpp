// What the random tests of the kernels share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "plan/plan.hpp"

namespace convexlayers {

using plan::Int;
using Numbers = std::vector<double>;

class Random {
public:
    explicit Random(std::uint64_t seed) : bits_(seed) {}

    Int below(Int count) { return static_cast<Int>(bits_() % static_cast<std::uint64_t>(count)); }
    Int between(Int first, Int last) { return first + below(last - first + 1); }
    std::uint64_t bits() { return bits_(); }
    double uniform() { return static_cast<double>(bits_() >> 11) * 0x1p-53; }
    bool chance(double probability) { return uniform() < probability; }
    double normal() {
        double sum = 0;
        for (int i = 0; i < 12; ++i) sum += uniform();
        return sum - 6;
    }
    Numbers normals(std::size_t count) {
        Numbers out(count);
        for (double& value : out) value = normal();
        return out;
    }

private:
    std::mt19937_64 bits_;
};

inline std::uint64_t current_seed = 0;

inline void require(bool holds, const char* what, double value = 0) {
    if (holds) return;
    std::fprintf(stderr, "seed %llu: %s (%g)\n", static_cast<unsigned long long>(current_seed), what, value);
    std::exit(1);
}

// The sign of a NaN means nothing.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    const auto same = [](T x, T y) { return (std::isnan(x) && std::isnan(y)) || std::memcmp(&x, &y, sizeof x) == 0; };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
}

// The kernels of the zoo, fuzz_zoo.cpp.
void fuzz_zoo(Random& random);

}  // namespace convexlayers
