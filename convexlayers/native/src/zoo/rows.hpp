// What the kernels of the zoo share: sums over a row, vectorized in an order that depends on its length only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "zoo/kernels.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

using convexlayers::zoo::Kernel;
using convexlayers::zoo::Table;
using convexlayers::zoo::Task;
using Size = std::int64_t;

template <class T>
inline constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
template <class T>
inline constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
inline constexpr T kEps = std::numeric_limits<T>::epsilon();

// term(0) + ... + term(n - 1)
template <class T, class Term>
inline T sum(Size n, Term term) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (Size i = 0; i < n; ++i) total += term(i);
    return total;
}

// The largest term that is not NaN, or -infinity.
template <class T, class Term>
inline T largest(Size n, Term term) {
    T most = -kInfinity<T>;
#pragma omp simd reduction(max : most)
    for (Size i = 0; i < n; ++i) {
        const T value = term(i);
        most = value > most ? value : most;
    }
    return most;
}

template <class T>
inline void fill(T* values, Size n, T value) {
    if (values != nullptr) std::fill(values, values + n, value);
}

template <class Term, class T>
inline void assign(T* __restrict out, Size n, Term term) {
#pragma omp simd
    for (Size i = 0; i < n; ++i) out[i] = term(i);
}

// Scratch memory of this thread, for one type; what was there before is lost.
template <class T>
inline T* scratch(Size size) {
    thread_local std::vector<T> memory;
    if (static_cast<Size>(memory.size()) < size) memory.resize(size);
    return memory.data();
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
