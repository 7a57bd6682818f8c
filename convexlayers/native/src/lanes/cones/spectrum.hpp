// The matrix H of a cone whose boundary is smooth: three eigenvalues, of which the middle one may be multiple.
#pragma once

#include "lanes/vec.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

// Added to P and to H so that the factor exists; refinement removes the effect.
inline constexpr double kRegularization = 1e-8;
// Stands for an infinite eigenvalue of H where it is the only one of its cone, and where it is not.
inline constexpr double kInfinite = 1e30;
inline constexpr double kLarge = 1e7;
// Between those two: the middle eigenvalue, and the smallest one as a share of it.
inline constexpr double kLargestRest = 1e5;
inline constexpr double kSmallestRest = 1e-7;
inline constexpr double kSmall = 1e-8;

// H = rest (I - p p' - m m') + plus p p' + minus m m' with orthonormal p, m; `mu` is the middle eigenvalue of D Proj_K,
// without the clipping that H has.
template <int W>
struct Spectrum {
    Vec<W> rest, plus, minus, mu;
};

// M (I - M)^-1, clipped, for M with eigenvalues 1 (plus), 0 (minus), mu (rest), ratio = mu / (1 - mu); M = I inside K and
// M = 0 inside its polar.
template <int W>
inline Spectrum<W> curved_spectrum(const Mask<W>& inside, const Mask<W>& outside, const Vec<W>& ratio, const Vec<W>& mu) {
    const Vec<W> infinite = broadcast<W>(kInfinite), one = broadcast<W>(1.0), zero{};
    const Vec<W> clipped = min(max(ratio, broadcast<W>(kSmallestRest)), broadcast<W>(kLargestRest));
    const auto choose = [&](const Vec<W>& yes, const Vec<W>& no, const Vec<W>& between) {
        return select(inside, yes, select(outside, no, between));
    };
    return {choose(infinite, zero, clipped), choose(infinite, zero, kLarge * max(clipped, one)),
            choose(infinite, zero, kSmall * clipped), choose(one, zero, mu)};
}

}  // namespace convexlayers::CONVEXLAYERS_ISA
