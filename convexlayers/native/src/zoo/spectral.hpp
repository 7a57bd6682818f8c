// Functions of small symmetric matrices through their eigenvalues; derivations in zoo/spectral.py. One matrix per lane,
// in double precision.
#pragma once

#include <numeric>

#include "lanes/dense.hpp"
#include "zoo/rows.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

using Lane = Vec<kLanes>;
using LaneMask = Mask<kLanes>;

// Matrices or vectors of `size` entries from rows first to first + count, entry by entry; missing lanes repeat the last.
template <class T>
void to_lanes(const Task& task, int position, Size first, int count, Size size, Lane* out) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const T* const values = task.row<T>(position, first + std::min(lane, count - 1), size);
        for (Size i = 0; i < size; ++i) out[i][lane] = static_cast<double>(values[i]);
    }
}

template <class T>
void from_lanes(const Task& task, int position, Size first, int count, Size size, const Lane* values) {
    for (int lane = 0; lane < count; ++lane) {
        T* const out = task.row<T>(position, first + lane, size);
        for (Size i = 0; i < size; ++i) out[i] = static_cast<T>(values[i][lane]);
    }
}

// A = (A + A') / 2
inline void symmetrize(Size n, Lane* A) {
    for (Size i = 0; i < n; ++i)
        for (Size j = 0; j < i; ++j) A[i * n + j] = A[j * n + i] = 0.5 * (A[i * n + j] + A[j * n + i]);
}

// f of an eigenvalue, the k-th from below: its positive part, or with a count 1 for so many of the largest, 0 for others.
struct SpectralFunction {
    Size n;
    Size count;

    LaneMask inside(Size k, const Lane& value) const {
        return count == 0 ? value > 0.0 : LaneMask{} - static_cast<std::int64_t>(k >= n - count);
    }
    Lane operator()(Size k, const Lane& value) const {
        return select(inside(k, value), count == 0 ? value : broadcast<kLanes>(1.0), Lane{});
    }
    // The divided difference; equal eigenvalues across the groups count as 0.
    Lane difference(Size i, const Lane& li, Size j, const Lane& lj) const {
        const LaneMask in_i = inside(i, li), in_j = inside(j, lj), across = in_i ^ in_j;
        const Lane gap = li - lj;
        const LaneMask divided = across & (gap != 0.0);
        const Lane slope = select(in_i & in_j, broadcast<kLanes>(count == 0 ? 1.0 : 0.0), Lane{});
        const Lane quotient = ((*this)(i, li) - (*this)(j, lj)) / select(divided, gap, broadcast<kLanes>(1.0));
        return select(divided, quotient, select(across, Lane{}, slope));
    }
};

// Eigenvalues in ascending order in each lane, and the eigenvectors, in rows, along with them. Adding 0 takes the sign from
// a zero: the turns of another lane, which subtract 0 times a number of any sign from it here, decide which one it has.
inline void sort_ascending(Size n, Lane* values, Lane* rows, Lane* copy) {
    std::vector<Size> order(n);
    std::copy(rows, rows + n * n, copy);
    for (int lane = 0; lane < kLanes; ++lane) {
        std::iota(order.begin(), order.end(), Size(0));
        std::vector<double> found(n);
        for (Size i = 0; i < n; ++i) found[i] = values[i][lane] + 0.0;
        std::sort(order.begin(), order.end(), [&](Size a, Size b) { return found[a] < found[b]; });
        for (Size i = 0; i < n; ++i) {
            values[i][lane] = found[order[i]];
            for (Size k = 0; k < n; ++k) rows[i * n + k][lane] = copy[order[i] * n + k][lane] + 0.0;
        }
    }
}

// A (n, n) -> X (n, n), eigenvalues (n) ascending, eigenvectors (n, n) in columns; option: the count. By Jacobi's method.
template <class T>
std::int64_t spectral(const Task& task, Size begin, Size end) {
    const Size n = task.n, size = n * n;
    std::vector<Lane> memory(4 * size + n);
    Lane *const A = memory.data(), *const rows = A + size, *const X = rows + size, *const work = X + size;
    Lane* const values = work + size;
    const SpectralFunction f{n, task.option};
    for (Size first = begin; first < end; first += kLanes) {
        const int count = static_cast<int>(std::min<Size>(kLanes, end - first));
        to_lanes<T>(task, 0, first, count, size, A);
        symmetrize(n, A);
        Lane most{}, defect{};
        for (Size i = 0; i < size; ++i) {
            most = max(abs(A[i]), most);
            defect += A[i] - A[i];
        }
        const LaneMask finite = defect == 0.0;
        // By a power of two near the largest entry, so that squares neither over- nor underflow.
        Lane scale = broadcast<kLanes>(1.0);
        for (int lane = 0; lane < kLanes; ++lane)
            if (finite[lane] && most[lane] > 0) scale[lane] = std::ldexp(1.0, std::clamp(std::ilogb(most[lane]), -1000, 1000));
        for (Size i = 0; i < size; ++i) A[i] = select(finite, A[i] / scale, Lane{});
        Dense<kLanes>::eigenvectors(static_cast<Int>(n), A, rows, values);
        sort_ascending(n, values, rows, work);
        for (Size k = 0; k < n; ++k) values[k] *= scale;
        for (Size i = 0; i < size; ++i) X[i] = Lane{};
        for (Size k = 0; k < n; ++k) {
            const Lane share = f(k, values[k]);
            for (Size i = 0; i < n; ++i)
                for (Size j = 0; j <= i; ++j)
                    X[i * n + j] = fma(share * rows[k * n + i], rows[k * n + j], X[i * n + j]);
        }
        for (Size i = 0; i < n; ++i)
            for (Size j = 0; j <= i; ++j)
                X[i * n + j] = X[j * n + i] = select(finite, X[i * n + j], broadcast<kLanes>(kNan<double>));
        Dense<kLanes>::transpose(static_cast<Int>(n), rows, work);
        from_lanes<T>(task, 1, first, count, size, X);
        from_lanes<T>(task, 2, first, count, n, values);
        from_lanes<T>(task, 3, first, count, size, work);
    }
    return 0;
}

// eigenvalues, eigenvectors, direction (n, n) -> derivative along its symmetric part (n, n), its own adjoint
template <class T>
std::int64_t spectral_derivative(const Task& task, Size begin, Size end) {
    const Size n = task.n, size = n * n;
    const Int order = static_cast<Int>(n);
    std::vector<Lane> memory(4 * size + n);
    Lane *const G = memory.data(), *const V = G + size, *const rows = V + size, *const work = rows + size;
    Lane* const values = work + size;
    const SpectralFunction f{n, task.option};
    for (Size first = begin; first < end; first += kLanes) {
        const int count = static_cast<int>(std::min<Size>(kLanes, end - first));
        to_lanes<T>(task, 0, first, count, n, values);
        to_lanes<T>(task, 1, first, count, size, V);
        to_lanes<T>(task, 2, first, count, size, G);
        symmetrize(n, G);
        Dense<kLanes>::transpose(order, V, rows);
        Dense<kLanes>::congruence(order, rows, G, G, work);
        for (Size i = 0; i < n; ++i)
            for (Size j = 0; j <= i; ++j)
                G[i * n + j] = G[j * n + i] = G[i * n + j] * f.difference(i, values[i], j, values[j]);
        Dense<kLanes>::congruence(order, V, G, G, work);
        from_lanes<T>(task, 3, first, count, size, G);
    }
    return 0;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
