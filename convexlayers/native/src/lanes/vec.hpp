// W problems of one structure side by side: one number of each in a vector register.
//
// Vec<W> holds W doubles, Mask<W> the outcome of a comparison, Bits<W> the same bits as integers. Every operation works
// on each lane alone and rounds once, the fused ones included, so a lane's numbers do not depend on its neighbours or on
// W. Compile with -ffp-contract=off: contraction chosen by the compiler could differ between one W and another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace convexlayers::CONVEXLAYERS_ISA {

template <int W>
struct Lanes {
    typedef double Vec __attribute__((vector_size(8 * W)));
    typedef std::int64_t Bits __attribute__((vector_size(8 * W)));
    using Mask = Bits;
};

template <>
struct Lanes<1> {
    using Vec = double;
    using Bits = std::int64_t;
    using Mask = bool;
};

template <int W>
using Vec = typename Lanes<W>::Vec;
template <int W>
using Bits = typename Lanes<W>::Bits;
template <int W>
using Mask = typename Lanes<W>::Mask;

// a b + c and c - a b, rounded once where the processor can.
inline double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}
inline double fnma(double a, double b, double c) { return fma(-a, b, c); }
inline double max(double a, double b) { return a > b ? a : b; }
inline double min(double a, double b) { return a < b ? a : b; }
inline double abs(double a) { return std::fabs(a); }
inline double sqrt(double a) { return std::sqrt(a); }
inline double select(bool mask, double yes, double no) { return mask ? yes : no; }
inline bool any(bool mask) { return mask; }
inline bool all(bool mask) { return mask; }

#if defined(__AVX512F__)
using Native = Lanes<8>::Vec;
inline Native fma(Native a, Native b, Native c) { return _mm512_fmadd_pd(a, b, c); }
inline Native fnma(Native a, Native b, Native c) { return _mm512_fnmadd_pd(a, b, c); }
inline Native max(Native a, Native b) { return _mm512_max_pd(a, b); }
inline Native min(Native a, Native b) { return _mm512_min_pd(a, b); }
inline Native abs(Native a) { return _mm512_abs_pd(a); }
inline Native sqrt(Native a) { return _mm512_sqrt_pd(a); }
#elif defined(__AVX2__)
using Native = Lanes<4>::Vec;
inline Native fma(Native a, Native b, Native c) { return _mm256_fmadd_pd(a, b, c); }
inline Native fnma(Native a, Native b, Native c) { return _mm256_fnmadd_pd(a, b, c); }
inline Native max(Native a, Native b) { return _mm256_max_pd(a, b); }
inline Native min(Native a, Native b) { return _mm256_min_pd(a, b); }
inline Native abs(Native a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
inline Native sqrt(Native a) { return _mm256_sqrt_pd(a); }
#else
using Native = Lanes<2>::Vec;
inline Native fma(Native a, Native b, Native c) { return Native{fma(a[0], b[0], c[0]), fma(a[1], b[1], c[1])}; }
inline Native fnma(Native a, Native b, Native c) { return Native{fnma(a[0], b[0], c[0]), fnma(a[1], b[1], c[1])}; }
inline Native max(Native a, Native b) { return a > b ? a : b; }
inline Native min(Native a, Native b) { return a < b ? a : b; }
inline Native abs(Native a) { return a < 0 ? -a : a; }
inline Native sqrt(Native a) { return Native{std::sqrt(a[0]), std::sqrt(a[1])}; }
#endif

inline constexpr int kLanes = sizeof(Native) / 8;
using NativeMask = Lanes<kLanes>::Mask;

inline Native select(NativeMask mask, Native yes, Native no) { return mask ? yes : no; }
inline bool any(NativeMask mask) {
    std::int64_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
    return found != 0;
}
inline bool all(NativeMask mask) {
    std::int64_t found = -1;
    for (int lane = 0; lane < kLanes; ++lane) found &= mask[lane];
    return found != 0;
}

// One number in every lane.
template <int W>
inline Vec<W> broadcast(double value) {
    if constexpr (W == 1) {
        return value;
    } else {
        return Vec<W>{} + value;
    }
}

template <int W>
inline double get(const Vec<W>& v, int lane) {
    if constexpr (W == 1) {
        return v;
    } else {
        return v[lane];
    }
}

template <int W>
inline void set(Vec<W>& v, int lane, double value) {
    if constexpr (W == 1) {
        v = value;
    } else {
        v[lane] = value;
    }
}

// W numbers in memory.
template <int W>
inline Vec<W> gathered(const double* values) {
    Vec<W> out;
    std::memcpy(&out, values, sizeof out);
    return out;
}

template <int W>
inline std::int64_t get_bits(const Bits<W>& bits, int lane) {
    if constexpr (W == 1) {
        return bits;
    } else {
        return bits[lane];
    }
}

template <int W>
inline void set_bits(Bits<W>& bits, int lane, std::int64_t value) {
    if constexpr (W == 1) {
        bits = value;
    } else {
        bits[lane] = value;
    }
}

template <int W>
inline void set_mask(Mask<W>& mask, int lane, bool value) {
    if constexpr (W == 1) {
        mask = value;
    } else {
        mask[lane] = value ? -1 : 0;
    }
}

template <int W>
inline bool get_mask(const Mask<W>& mask, int lane) {
    if constexpr (W == 1) {
        return mask;
    } else {
        return mask[lane] != 0;
    }
}

template <int W>
inline Mask<W> no_lane() {
    return Mask<W>{};
}

template <int W>
inline Mask<W> negate(const Mask<W>& mask) {
    if constexpr (W == 1) {
        return !mask;
    } else {
        return ~mask;
    }
}

template <int W>
inline Bits<W> to_bits(const Vec<W>& v) {
    Bits<W> out;
    std::memcpy(&out, &v, sizeof out);
    return out;
}

template <int W>
inline Vec<W> from_bits(const Bits<W>& b) {
    Vec<W> out;
    std::memcpy(&out, &b, sizeof out);
    return out;
}

// The sum of term(i, sum), which adds term i to a sum, over i < count: four sums side by side, since each addition waits for
// the one before it.
template <int W, class Term>
inline Vec<W> sum_of(std::int32_t count, const Term& term) {
    Vec<W> a{}, b{}, c{}, d{};
    std::int32_t i = 0;
    for (; i + 4 <= count; i += 4) {
        a = term(i, a);
        b = term(i + 1, b);
        c = term(i + 2, c);
        d = term(i + 3, d);
    }
    for (; i < count; ++i) a = term(i, a);
    return (a + b) + (c + d);
}

// Biased exponent of |v|: floor(log2 |v|) + 1023 for a normal number, 0 for zero.
template <int W>
inline Bits<W> biased_exponent(const Vec<W>& v) {
    return (to_bits<W>(v) >> 52) & 0x7ff;
}

// 2^(biased - 1023) for 0 < biased < 2047.
template <int W>
inline Vec<W> power_of_two(const Bits<W>& biased) {
    return from_bits<W>(biased << 52);
}

}  // namespace convexlayers::CONVEXLAYERS_ISA
