// exp, log and the root of an increasing function, lane by lane, from the four operations alone: libraries round
// differently from one width to another.
#pragma once

#include <limits>

#include "lanes/vec.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

// ln 2 in two parts; the last 32 bits of the first are zero, so that small multiples of it are exact.
inline constexpr double kLn2High = 6.93147180369123816490e-01;
inline constexpr double kLn2Low = 1.90821492927058770002e-10;

template <int W>
struct Functions {
    using V = Vec<W>;
    using M = Mask<W>;

    // With x = k ln 2 + r, |r| <= ln 2 / 2: 2^k times Taylor's polynomial of exp(r), whose next term is below 1e-17.
    static V exp(const V& x) {
        constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
        const V bounded = min(max(x, broadcast<W>(-746.0)), broadcast<W>(710.0));
        const V shifted = fma(bounded, broadcast<W>(1.4426950408889634074), broadcast<W>(kRound));
        const V k = shifted - kRound;
        const V r = fnma(k, broadcast<W>(kLn2Low), fnma(k, broadcast<W>(kLn2High), bounded));
        constexpr double kInverseFactorials[] = {
            1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0,
            1.0 / 5040.0,       1.0 / 720.0,       1.0 / 120.0,      1.0 / 24.0,      1.0 / 6.0,      0.5};
        V sum{};
        for (const double coefficient : kInverseFactorials) sum = fma(sum, r, broadcast<W>(coefficient));
        const V value = 1.0 + fma(sum, r * r, r);
        // In two halves, because 2^k itself may be outside the range.
        const Bits<W> whole = to_bits<W>(shifted) - to_bits<W>(broadcast<W>(kRound));
        const Bits<W> half = whole >> 1;
        const V scaled = value * power_of_two<W>(half + 1023) * power_of_two<W>(whole - half + 1023);
        const V infinity = broadcast<W>(std::numeric_limits<double>::infinity());
        const V inside = select(x > 709.78, infinity, select(x < -745.2, V{}, scaled));
        return select(x == x, inside, x);
    }

    // With x = 2^k m, m between sqrt(1/2) and sqrt 2: k ln 2 + 2 artanh((m - 1) / (m + 1)).
    static V log(const V& x) {
        const M tiny = x < std::numeric_limits<double>::min();
        const V normal = select(tiny, x * 18014398509481984.0, x);  // 2^54
        const V m_high = from_bits<W>((to_bits<W>(normal) & 0xfffffffffffff) | (std::int64_t{1023} << 52));
        const M large = m_high > 1.4142135623730951;
        const V m = select(large, 0.5 * m_high, m_high);
        const V exponent = exponent_of(normal) + select(large, broadcast<W>(1.0), V{}) - select(tiny, broadcast<W>(54.0), V{});
        const V f = m - 1.0, ratio = f / (2.0 + f), square = ratio * ratio;
        V sum{};
        for (int k = 23; k >= 3; k -= 2) sum = fma(sum, square, broadcast<W>(2.0 / k));
        const V series = fma(sum * square, ratio, ratio + ratio);
        const V value = fma(exponent, broadcast<W>(kLn2High), fma(exponent, broadcast<W>(kLn2Low), series));
        const V infinity = broadcast<W>(std::numeric_limits<double>::infinity());
        const V outside = select(x == 0.0, -infinity, infinity - infinity);
        return select(x > 0.0, select(x < infinity, value, x), outside);
    }

    // log(1 + x) for x >= 0: the logarithm of what 1 + x is rounded to, and what rounding lost.
    static V log1p(const V& x) {
        const V sum = 1.0 + x;
        return log(sum) + (x - (sum - 1.0)) / sum;
    }

    // The root of a function that increases, between two points that enclose it, or the end that it is nearest to.
    // Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without
    // using derivatives", Advances in Engineering Software 28 (1997): inverse quadratic interpolation where its test
    // says that it is safe, bisection elsewhere.
    template <class Function>
    static V increasing_root(Function function, const V& lower, const V& upper) {
        V a = upper, b = lower, fa = function(a), fb = function(b), c = a, fc = fa, t = broadcast<W>(0.5);
        const M at_lower = fb >= 0.0, at_upper = (fa <= 0.0) & (fb < 0.0);
        M done = at_lower | at_upper;
        for (int step = 0; step < kMostRootSteps && !all(done); ++step) {
            const V next = fma(t, b - a, a), value = function(next);
            const M same = (value > 0.0) == (fa > 0.0);
            c = select(done, c, select(same, a, b)), fc = select(done, fc, select(same, fa, fb));
            b = select(done | same, b, a), fb = select(done | same, fb, fa);
            a = select(done, a, next), fa = select(done, fa, value);
            const V nearest = select(abs(fa) < abs(fb), a, b);
            const V limit = fma(abs(nearest), broadcast<W>(kEpsilon), broadcast<W>(1e-300)) / abs(b - a);
            done = done | negate<W>(limit < 0.5) | (fa == 0.0);
            const V bounded = min(limit, broadcast<W>(0.5));
            t = min(max(interpolate(a, b, c, fa, fb, fc), bounded), 1.0 - bounded);
        }
        const V root = select(abs(fa) < abs(fb), a, b);
        return select(at_lower, lower, select(at_upper, upper, root));
    }

    // The same with a guess, whose neighbourhood is looked at first.
    template <class Function>
    static V increasing_root(Function function, const V& lower, const V& upper, const V& guess) {
        const V width = kNeighbourhood * max(abs(guess), broadcast<W>(1.0));
        const V left = min(max(guess - width, lower), upper), right = min(max(guess + width, lower), upper);
        const M enclosed = (function(left) <= 0.0) & (function(right) >= 0.0);
        return increasing_root(function, select(enclosed, left, lower), select(enclosed, right, upper));
    }

private:
    static constexpr double kNeighbourhood = 1e-4;
    static constexpr int kMostRootSteps = 200;
    static constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

    // floor(log2 x) of a normal number.
    static V exponent_of(const V& x) {
        constexpr double kShift = 4503599627370496.0;  // 2^52: its low bits count ones
        const Bits<W> biased = biased_exponent<W>(x);
        return from_bits<W>(biased | to_bits<W>(broadcast<W>(kShift))) - (kShift + 1023.0);
    }

    // Where between a and b to look next, as a share of b - a.
    static V interpolate(const V& a, const V& b, const V& c, const V& fa, const V& fb, const V& fc) {
        const V position = (a - b) / (c - b), height = (fa - fb) / (fc - fb), rest = 1.0 - height;
        const M safe = (height * height < position) & (rest * rest < 1.0 - position);
        const V t = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb);
        return select(safe & (t - t == 0.0), t, broadcast<W>(0.5));
    }
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
