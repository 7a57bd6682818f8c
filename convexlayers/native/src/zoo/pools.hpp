// Robust means of scalars, and the root of the sparse softmax; derivations in zoo/pools.py and zoo/entmax.py.
#pragma once

#include "zoo/rows.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

enum PoolOption { kPseudoHuber = 0, kHuber = 1 };

// phi' and phi'' of the penalty at distance r, and d phi' / dalpha.
template <class T>
struct Slopes {
    T first, second, in_alpha;
};

template <class T>
struct PseudoHuber {
    T alpha, inverse;
    explicit PseudoHuber(T scale) : alpha(scale), inverse(1 / scale) {}
    Slopes<T> operator()(T r) const {
        const T z = r * inverse, w = 1 / std::sqrt(1 + z * z), share = z * w;
        return {w * r, w * w * w, share * share * share};
    }
};

template <class T>
struct Huber {
    T alpha;
    explicit Huber(T scale) : alpha(scale) {}
    Slopes<T> operator()(T r) const {
        const bool up = r > alpha, down = r < -alpha;
        return {up ? alpha : down ? -alpha : r, up | down ? T(0) : T(1), up ? T(1) : down ? T(-1) : T(0)};
    }
};

// The zero of the objective's derivative, by Newton's method in a bracket.
template <class T, class Penalty>
T pool_root(const T* x, Size n, const Penalty& penalty) {
    constexpr int kMaxSteps = 100;
    T low = -largest<T>(n, [x](Size i) { return -x[i]; }), high = largest<T>(n, [x](Size i) { return x[i]; });
    const T rounding = 4 * kEps<T> * std::max(std::abs(low), std::abs(high));
    T y = sum<T>(n, [x](Size i) { return x[i]; }) / static_cast<T>(n), following = y;
    for (int step = 0; step < kMaxSteps; ++step) {
        T slope = 0, curvature = 0;
#pragma omp simd reduction(+ : slope, curvature)
        for (Size i = 0; i < n; ++i) {
            const auto at = penalty(y - x[i]);
            slope += at.first;
            curvature += at.second;
        }
        if (slope <= 0) low = y;
        if (slope >= 0) high = y;
        following = y - slope / curvature;
        const bool inside = (following > low && following < high) || std::abs(following - y) <= rounding;
        if (!inside) following = (low + high) / 2;
        if (!(std::abs(following - y) > rounding)) break;
        y = following;
    }
    return following;
}

template <class T, class Penalty>
void pool_row(const Task& task, Size row) {
    const Size n = task.n;
    const T* const x = task.row<T>(0, row, n);
    const T alpha = *task.row<T>(1, row, 1);
    T* const y = task.row<T>(2, row, 1);
    // The difference of infinities, and of NaN, is NaN.
    const bool finite = sum<T>(n, [x](Size i) { return x[i] - x[i]; }) == 0;
    *y = finite && alpha > 0 ? pool_root(x, n, Penalty(alpha)) : kNan<T>;
}

// x (n), alpha (1) -> y (1)
template <class T>
std::int64_t pool(const Task& task, Size begin, Size end) {
    const auto work = task.option == kHuber ? pool_row<T, Huber<T>> : pool_row<T, PseudoHuber<T>>;
    for (Size row = begin; row < end; ++row) work(task, row);
    return 0;
}

template <class T, class Penalty>
void pool_adjoint_row(const Task& task, Size row) {
    const Size n = task.n;
    const T* const x = task.row<T>(0, row, n);
    const Penalty penalty(*task.row<T>(1, row, 1));
    const T y = *task.row<T>(2, row, 1), grad = *task.row<T>(3, row, 1);
    T* __restrict const grad_x = task.row<T>(4, row, n);
    T H = 0, slope = 0;
#pragma omp simd reduction(+ : H, slope)
    for (Size i = 0; i < n; ++i) {
        const auto at = penalty(y - x[i]);
        grad_x[i] = at.second;
        H += at.second;
        slope += at.in_alpha;
    }
    // Where H is 0 the solution is not unique, and the derivative returned is 0.
    const T u = H == 0 ? T(0) : grad / H;
    for (Size i = 0; i < n; ++i) grad_x[i] *= u;
    fill(task.row<T>(5, row, 1), 1, -u * slope);
}

// x (n), alpha (1), y (1), cotangent (1) -> of x (n), of alpha (1)
template <class T>
std::int64_t pool_adjoint(const Task& task, Size begin, Size end) {
    const auto work = task.option == kHuber ? pool_adjoint_row<T, Huber<T>> : pool_adjoint_row<T, PseudoHuber<T>>;
    for (Size row = begin; row < end; ++row) work(task, row);
    return 0;
}

// z (n) -> p (n) with alpha = 1.5
template <class T>
std::int64_t entmax15(const Task& task, Size begin, Size end) {
    constexpr int kMaxSteps = 100;
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const z = task.row<T>(0, row, n);
        T* const p = task.row<T>(1, row, n);
        const T most = largest<T>(n, [z](Size i) { return z[i]; });
        if (std::isinf(most) || std::isnan(sum<T>(n, [z](Size i) { return z[i]; }))) {
            fill(p, n, kNan<T>);
            continue;
        }
        T tau = -1, total = 1;
        for (int step = 0; step < kMaxSteps; ++step) {
            T first = 0;
            total = 0;
#pragma omp simd reduction(+ : first, total)
            for (Size i = 0; i < n; ++i) {
                const T shifted = (z[i] - most) / 2 - tau, u = shifted > 0 ? shifted : T(0);
                first += u;
                total += u * u;
            }
            const T following = tau + (total - 1) / (2 * first);
            if (total - 1 <= 4 * kEps<T> || !(following > tau)) break;
            tau = following;
        }
        assign(p, n, [z, most, tau, total](Size i) {
            const T shifted = (z[i] - most) / 2 - tau, u = shifted > 0 ? shifted : T(0);
            return u * u / total;
        });
    }
    return 0;
}

// p (n), direction (n) -> derivative along it (n), which is its own adjoint
template <class T>
std::int64_t entmax15_derivative(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const p = task.row<T>(0, row, n);
        const T* const direction = task.row<T>(1, row, n);
        T* __restrict const out = task.row<T>(2, row, n);
        T total = 0, along = 0;
#pragma omp simd reduction(+ : total, along)
        for (Size i = 0; i < n; ++i) {
            const T s = std::sqrt(p[i]);
            total += s;
            along += s > 0 ? s * direction[i] : T(0);
            out[i] = s;
        }
        const T mean = along / total;
        for (Size i = 0; i < n; ++i) out[i] = out[i] == 0 ? T(0) : out[i] * (direction[i] - mean);
    }
    return 0;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
