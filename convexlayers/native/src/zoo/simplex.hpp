// Projections onto the simplex, the capped simplex and the 1-norm's ball and sphere; derivations in zoo/simplex.py.
#pragma once

#include "zoo/rows.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

enum Norm1Option { kSimplex = 0, kBall = 1, kSphere = 2 };

// tau with sum(max(size(i) - tau, 0)) = radius, by Newton's method from the left; NaN where there is none.
template <class T, class Entry>
T threshold(Size n, T radius, Entry size) {
    const T total = sum<T>(n, size), most = largest<T>(n, size);
    // A row with entries -infinity is one without these entries.
    if (!(radius > 0) || std::isnan(total) || std::isinf(most)) return kNan<T>;
    T tau = std::max(most - radius, (total - radius) / static_cast<T>(n));
    for (Size step = 0; step <= n + 3; ++step) {
        T excess = 0, count = 0;
#pragma omp simd reduction(+ : excess, count)
        for (Size i = 0; i < n; ++i) {
            const T above = size(i) - tau;
            excess += above > 0 ? above : T(0);
            count += above > 0 ? T(1) : T(0);
        }
        const T following = tau + (excess - radius) / count;
        if (!(following > tau)) break;
        tau = following;
    }
    return tau;
}

// v (n), radius (1) -> x (n)
template <class T>
std::int64_t simplex(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        const T radius = *task.row<T>(1, row, 1);
        T* const x = task.row<T>(2, row, n);
        if (task.option == kSimplex) {
            const T tau = threshold<T>(n, radius, [v](Size i) { return v[i]; });
            if (std::isnan(tau))
                fill(x, n, tau);
            else
                assign(x, n, [v, tau](Size i) { return v[i] > tau ? v[i] - tau : T(0); });
            continue;
        }
        T tau = threshold<T>(n, radius, [v](Size i) { return std::abs(v[i]); });
        if (std::isnan(tau)) {
            fill(x, n, tau);
            continue;
        }
        if (task.option == kBall) tau = tau > 0 ? tau : T(0);
        const bool sphere = task.option == kSphere;
        assign(x, n, [v, tau, sphere](Size i) {
            const T size = std::abs(v[i]) > tau ? std::abs(v[i]) - tau : T(0);
            // On a sphere an entry -0 moves to the positive side.
            return std::copysign(size, sphere ? v[i] + T(0) : v[i]);
        });
    }
    return 0;
}

// v (n), radius (1), x (n), cotangent (n) -> of v (n), of radius (1)
template <class T>
std::int64_t simplex_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const x = task.row<T>(2, row, n);
        const T* const grad = task.row<T>(3, row, n);
        T* const grad_v = task.row<T>(4, row, n);
        T* const grad_radius = task.row<T>(5, row, 1);
        if (std::isnan(x[0])) {
            fill(grad_v, n, kNan<T>);
            fill(grad_radius, 1, kNan<T>);
            continue;
        }
        if (task.option == kBall) {
            const T* const v = task.row<T>(0, row, n);
            if (!(sum<T>(n, [v](Size i) { return std::abs(v[i]); }) > *task.row<T>(1, row, 1))) {
                std::copy(grad, grad + n, grad_v);
                fill(grad_radius, 1, T(0));
                continue;
            }
        }
        // Along the face's normal, the signs of x.
        const auto sign = [x](Size i) { return x[i] > 0 ? T(1) : x[i] < 0 ? T(-1) : T(0); };
        const T count = sum<T>(n, [sign](Size i) { return std::abs(sign(i)); });
        const T total = sum<T>(n, [x, grad](Size i) { return x[i] > 0 ? grad[i] : x[i] < 0 ? -grad[i] : T(0); });
        const T mean = total / std::max(count, T(1));
        assign(grad_v, n, [x, grad, mean](Size i) {
            return x[i] > 0 ? grad[i] - mean : x[i] < 0 ? grad[i] + mean : T(0);
        });
        fill(grad_radius, 1, mean);
    }
    return 0;
}

// v (n), radius (1), cap (n) -> x (n): Newton's method in a bracket.
template <class T>
std::int64_t capped_simplex(const Task& task, Size begin, Size end) {
    constexpr int kMaxSteps = 200;
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        const T radius = *task.row<T>(1, row, 1);
        const T* const cap = task.row<T>(2, row, n);
        T* const x = task.row<T>(3, row, n);
        const T total = sum<T>(n, [v](Size i) { return v[i]; });
        const T most = sum<T>(n, [cap](Size i) { return cap[i]; });
        const bool capped = largest<T>(n, [cap](Size i) { return -cap[i]; }) <= 0;
        T low = -largest<T>(n, [v, cap](Size i) { return cap[i] - v[i]; });
        T high = largest<T>(n, [v](Size i) { return v[i]; });
        if (std::isnan(total) || !capped || !(radius >= 0 && radius <= most) || !std::isfinite(high - low)) {
            fill(x, n, kNan<T>);
            continue;
        }
        const T rounding = 4 * kEps<T> * std::max(std::abs(low), std::abs(high));
        T tau = (low + high) / 2, following = tau;
        for (int step = 0; step < kMaxSteps; ++step) {
            T excess = 0, count = 0;
#pragma omp simd reduction(+ : excess, count)
            for (Size i = 0; i < n; ++i) {
                const T shifted = v[i] - tau;
                const T positive = shifted > 0 ? shifted : T(0);
                excess += positive < cap[i] ? positive : cap[i];
                count += (shifted > 0) & (shifted < cap[i]) ? T(1) : T(0);
            }
            excess -= radius;
            if (excess >= 0) low = tau;
            if (excess <= 0) high = tau;
            following = tau + excess / count;
            const bool inside = (following > low && following < high) || std::abs(following - tau) <= rounding;
            if (!inside) following = (low + high) / 2;
            if (!(std::abs(following - tau) > rounding)) break;
            tau = following;
        }
        assign(x, n, [v, cap, following](Size i) {
            const T positive = v[i] > following ? v[i] - following : T(0);
            return positive < cap[i] ? positive : cap[i];
        });
    }
    return 0;
}

// cap (n), x (n), cotangent (n) -> of v (n), of radius (1), of cap (n)
template <class T>
std::int64_t capped_simplex_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const cap = task.row<T>(0, row, n);
        const T* const x = task.row<T>(1, row, n);
        const T* const grad = task.row<T>(2, row, n);
        T* const grad_v = task.row<T>(3, row, n);
        T* const grad_radius = task.row<T>(4, row, 1);
        T* const grad_cap = task.row<T>(5, row, n);
        if (std::isnan(x[0])) {
            fill(grad_v, n, kNan<T>);
            fill(grad_radius, 1, kNan<T>);
            fill(grad_cap, n, kNan<T>);
            continue;
        }
        T total = 0, count = 0;
#pragma omp simd reduction(+ : total, count)
        for (Size i = 0; i < n; ++i) {
            const bool is_free = (x[i] > 0) & (x[i] < cap[i]);
            total += is_free ? grad[i] : T(0);
            count += is_free ? T(1) : T(0);
        }
        const T mean = total / std::max(count, T(1));
        assign(grad_v, n, [x, cap, grad, mean](Size i) {
            return (x[i] > 0) & (x[i] < cap[i]) ? grad[i] - mean : T(0);
        });
        fill(grad_radius, 1, mean);
        if (grad_cap != nullptr)
            assign(grad_cap, n, [x, cap, grad, mean](Size i) { return x[i] >= cap[i] ? grad[i] - mean : T(0); });
    }
    return 0;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
