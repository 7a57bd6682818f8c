// Whether values are what a parameter's attributes promise, with vectors along their entries; see validate.hpp.
#pragma once

#include <algorithm>
#include <limits>

#include "lanes/definite.hpp"
#include "lanes/vec.hpp"
#include "validate.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

inline double largest_lane(const Native& v) {
    double most = v[0];
    for (int lane = 1; lane < kLanes; ++lane) most = max(most, v[lane]);
    return most;
}

// For maxima: calls work(i), i = 0, kLanes, ..., for vectors that together hold `count` numbers. The last one overlaps the one
// before it, and where there are fewer numbers than lanes, `load` repeats the first.
template <class Work>
inline void for_each_vector(std::int64_t count, const Work& work) {
    const std::int64_t last = std::max<std::int64_t>(count - kLanes, 0);
    for (std::int64_t i = 0; i < last; i += kLanes) work(i);
    if (count > 0) work(last);
}

inline Native load(const double* values, std::int64_t i, std::int64_t count) {
    if (count >= kLanes) return gathered<kLanes>(values + i);
    Native out;
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = values[lane < count ? lane : 0];
    return out;
}

struct Range {
    double least, most;
    bool finite;

    // The largest absolute value.
    double size() const { return max(-least, most); }
};

// Of at least one number; without a meaning if one is not finite.
inline Range range_of(const double* values, std::int64_t count) {
    Native most = broadcast<kLanes>(-std::numeric_limits<double>::infinity()), negated = most, broken{};
    for_each_vector(count, [&](std::int64_t i) {
        const Native v = load(values, i, count);
        most = max(v, most);
        negated = max(-v, negated);
        broken = fma(v, Native{}, broken);  // NaN once a number is not finite
    });
    return {-largest_lane(negated), largest_lane(most), all(broken == 0.0)};
}

// How far one value of finite entries is from its set; nothing positive if it is inside.
class Excess {
public:
    static double of_bounds(std::int64_t count, const double* values, const double* lowers, const double* uppers) {
        Native worst = broadcast<kLanes>(-std::numeric_limits<double>::infinity());
        for_each_vector(count, [&](std::int64_t i) {
            const Native v = load(values, i, count);
            worst = max(max(load(lowers, i, count) - v, v - load(uppers, i, count)), worst);
        });
        return largest_lane(worst);
    }

    // The largest entry whose mask is 1.
    static double of_masked(std::int64_t count, const double* values, const double* mask) {
        Native worst{};
        for_each_vector(count, [&](std::int64_t i) {
            worst = max(abs(load(values, i, count)) * load(mask, i, count), worst);
        });
        return largest_lane(worst);
    }

    // The largest entry off the diagonal, whose entries are n + 1 apart.
    static double of_diagonal(Int n, const double* matrix) {
        Native worst{};
        for (Int i = 0; i + 1 < n; ++i) {
            const double* const between = matrix + static_cast<std::int64_t>(i) * (n + 1) + 1;
            for_each_vector(n, [&](std::int64_t k) { worst = max(abs(load(between, k, n)), worst); });
        }
        return largest_lane(worst);
    }

    // The largest difference between mirrored entries.
    static double of_symmetry(Int n, const double* matrix) {
        Native worst{};
        mirror(n, matrix, [&](Int, Int, const Native& entries, const Native& mirrored) {
            worst = max(abs(entries - mirrored), worst);
        });
        return largest_lane(worst);
    }
};

// Whether one value is what it has to be, definiteness apart. within: whether all entries are known to be within the limits.
inline bool holds_up_to(const Attributes& asked, const double* value, double slack, bool within) {
    const auto is_allowed = [&](double excess) {
        return excess <= 0.0 || excess <= slack * range_of(value, asked.size).size();
    };
    if (!within) {
        const Range range = range_of(value, asked.size);
        if (!is_allowed(max(asked.lower - range.least, range.most - asked.upper))) return false;
    }
    if (!asked.lowers.empty() &&
        !is_allowed(Excess::of_bounds(asked.size, value, asked.lowers.data(), asked.uppers.data())))
        return false;
    if (!asked.outside.empty() && Excess::of_masked(asked.size, value, asked.outside.data()) != 0.0) return false;
    const std::int64_t entries = static_cast<std::int64_t>(asked.order) * asked.order;
    for (std::int64_t at = 0; at < asked.size && (asked.symmetric || asked.diagonal); at += entries) {
        if (asked.symmetric && !is_allowed(Excess::of_symmetry(asked.order, value + at))) return false;
        if (asked.diagonal && !is_allowed(Excess::of_diagonal(asked.order, value + at))) return false;
    }
    return true;
}

inline bool are_definite(const Attributes& asked, const double* values, std::int64_t count, double slack) {
    if (asked.signs.empty()) return true;
    if (asked.order > kLargestDefinite) return false;
    const std::int64_t entries = static_cast<std::int64_t>(asked.order) * asked.order;
    const std::int64_t matrices = count * (asked.size / entries);
    for (const double sign : asked.signs) {
        // Few matrices leave most lanes empty.
        const bool good = asked.pattern && 2 * matrices > kLanes
                              ? DefiniteInLanes<kLanes>(*asked.pattern, sign, slack).check(values, matrices)
                              : DefiniteAlone(asked.order, sign, slack).check(values, matrices);
        if (!good) return false;
    }
    return true;
}

inline bool have_attributes(const Attributes& asked, const double* values, std::int64_t count, double slack) {
    if (count * asked.size == 0) return true;
    // Nearly all values end here: no allowance is needed.
    const Range range = range_of(values, count * asked.size);
    if (!range.finite || (asked.positive && !(range.least > 0.0)) || (asked.negative && !(range.most < 0.0)))
        return false;
    const bool within = range.least >= asked.lower && range.most <= asked.upper;
    if (asked.need_entries() || !within)
        for (std::int64_t i = 0; i < count; ++i)
            if (!holds_up_to(asked, values + i * asked.size, slack, within)) return false;
    return are_definite(asked, values, count, slack);
}

}  // namespace convexlayers::CONVEXLAYERS_ISA
