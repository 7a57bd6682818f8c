// Projections onto the ball and sphere of the 2-norm and of the maximum norm, and onto the second-order cone;
// derivations in zoo/balls.py and zoo/second_order.py.
#pragma once

#include "zoo/rows.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

// |v|_2, without squares that over- or underflow.
template <class T>
T norm2(const T* v, Size n) {
    const T square = sum<T>(n, [v](Size i) { return v[i] * v[i]; });
    if (square > std::numeric_limits<T>::min() / kEps<T> && square < std::numeric_limits<T>::max()) return std::sqrt(square);
    const T most = largest<T>(n, [v](Size i) { return std::abs(v[i]); });
    if (!(most > 0) || std::isinf(most) || std::isnan(square)) return most > 0 || std::isnan(square) ? kNan<T> : T(0);
    return most * std::sqrt(sum<T>(n, [v, most](Size i) { return (v[i] / most) * (v[i] / most); }));
}

// v (n), radius (1) -> x (n); option 1: onto the sphere
template <class T>
std::int64_t norm2_projection(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        const T radius = *task.row<T>(1, row, 1);
        T* const x = task.row<T>(2, row, n);
        const T norm = norm2(v, n);
        if (!(radius > 0) || std::isnan(norm)) {
            fill(x, n, kNan<T>);
        } else if (task.option == 0 && norm <= radius) {
            std::copy(v, v + n, x);
        } else if (norm == 0) {
            fill(x, n, T(0));
            x[0] = radius;
        } else if (const T scale = radius / norm; scale > std::numeric_limits<T>::min() && scale < kInfinity<T>) {
            assign(x, n, [v, scale](Size i) { return v[i] * scale; });
        } else {
            assign(x, n, [v, norm, radius](Size i) { return v[i] / norm * radius; });
        }
    }
    return 0;
}

// v (n), radius (1), x (n), cotangent (n) -> of v (n), of radius (1)
template <class T>
std::int64_t norm2_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        const T radius = *task.row<T>(1, row, 1);
        const T* const x = task.row<T>(2, row, n);
        const T* const grad = task.row<T>(3, row, n);
        T* const grad_v = task.row<T>(4, row, n);
        T* const grad_radius = task.row<T>(5, row, 1);
        const T norm = norm2(v, n);
        if (task.option == 0 && norm <= radius) {
            std::copy(grad, grad + n, grad_v);
            fill(grad_radius, 1, T(0));
            continue;
        }
        const T along = sum<T>(n, [x, grad](Size i) { return x[i] * grad[i]; }) / radius;
        // At the centre of a sphere: the mean over all the nearest points.
        const T scale = norm == 0 ? T(0) : radius / norm, share = scale * along / radius;
        assign(grad_v, n, [x, grad, scale, share](Size i) { return scale * grad[i] - share * x[i]; });
        fill(grad_radius, 1, along);
    }
    return 0;
}

// The first of the largest entries by magnitude.
template <class T>
Size first_largest(const T* v, Size n) {
    Size found = 0;
    for (Size i = 1; i < n; ++i)
        if (std::abs(v[i]) > std::abs(v[found])) found = i;
    return found;
}

// v (n), radius (1) -> x (n); option 1: onto the sphere
template <class T>
std::int64_t norm_inf_projection(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        const T radius = *task.row<T>(1, row, 1);
        T* const x = task.row<T>(2, row, n);
        if (!(radius > 0)) {
            fill(x, n, kNan<T>);
            continue;
        }
        // NaN is neither above nor below, and stays.
        assign(x, n, [v, radius](Size i) { return v[i] > radius ? radius : v[i] < -radius ? -radius : v[i]; });
        if (task.option == 1)
            if (const Size first = first_largest(v, n); std::abs(v[first]) < radius) x[first] = v[first] >= 0 ? radius : -radius;
    }
    return 0;
}

// v (n), x (n), cotangent (n) -> of v (n), of radius (1)
template <class T>
std::int64_t norm_inf_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        const T* const x = task.row<T>(1, row, n);
        const T* const grad = task.row<T>(2, row, n);
        T* const grad_v = task.row<T>(3, row, n);
        T* const grad_radius = task.row<T>(4, row, 1);
        T along = 0, moved = 0;
#pragma omp simd reduction(+ : along, moved)
        for (Size i = 0; i < n; ++i) {
            const bool clipped = x[i] != v[i];
            grad_v[i] = clipped ? T(0) : grad[i];
            along += clipped ? (x[i] < 0 ? -grad[i] : grad[i]) : T(0);
            moved += clipped ? T(1) : T(0);
        }
        if (task.option == 1 && moved == 0) {
            // A point of the sphere stays where it is, and its largest entry moves with the radius.
            const Size first = first_largest(x, n);
            along = x[first] < 0 ? -grad[first] : grad[first];
            grad_v[first] = 0;
        }
        fill(grad_radius, 1, std::isnan(x[0]) ? kNan<T> : along);
    }
    return 0;
}

// v (n), its first entry that of the cone's axis -> x (n)
template <class T>
std::int64_t second_order(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        T* const x = task.row<T>(1, row, n);
        const T t = v[0], norm = norm2(v + 1, n - 1);
        if (std::isnan(t) || std::isnan(norm)) {
            fill(x, n, kNan<T>);
        } else if (t >= norm) {
            std::copy(v, v + n, x);
        } else if (const T s = (t + norm) / 2; s > 0) {
            const T scale = s / norm;
            assign(x, n, [v, scale](Size i) { return v[i] * scale; });
            x[0] = s;
        } else {
            fill(x, n, T(0));
        }
    }
    return 0;
}

// v (n), direction (n) -> derivative along it (n), which is its own adjoint
template <class T>
std::int64_t second_order_derivative(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        const T* const direction = task.row<T>(1, row, n);
        T* const out = task.row<T>(2, row, n);
        const T t = v[0], norm = norm2(v + 1, n - 1);
        if (std::isnan(t) || std::isnan(norm)) {
            fill(out, n, kNan<T>);
        } else if (norm > std::abs(t)) {
            const T along = sum<T>(n - 1, [v, direction](Size i) { return v[i + 1] * direction[i + 1]; }) / norm;
            const T ds = (direction[0] + along) / 2, scale = (t + norm) / (2 * norm);
            const T share = (ds - scale * along) / norm;
            assign(out, n, [v, direction, share, scale](Size i) { return share * v[i] + scale * direction[i]; });
            out[0] = ds;
        } else if (t >= 0) {  // at the apex too
            std::copy(direction, direction + n, out);
        } else {
            fill(out, n, T(0));
        }
    }
    return 0;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
