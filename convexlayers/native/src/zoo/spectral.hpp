// Functions of symmetric matrices from their eigenvalues, and their derivative; derivations in zoo/spectral.py.
#pragma once

#include "zoo/rows.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

// f of the eigenvalues, ascending: their positive parts, or with a count 1 for so many of the largest and 0 for the rest.
template <class T>
struct SpectralFunction {
    Size n, count;
    const T* eigenvalues;

    bool inside(Size i) const { return count == 0 ? eigenvalues[i] > 0 : i >= n - count; }
    T value(Size i) const { return !inside(i) ? T(0) : count == 0 ? eigenvalues[i] : T(1); }

    // The divided difference; equal eigenvalues across the groups count as 0.
    T difference(Size i, Size j) const {
        if (inside(i) == inside(j)) return inside(i) && count == 0 ? T(1) : T(0);
        const T gap = eigenvalues[i] - eigenvalues[j];
        return gap == 0 ? T(0) : (value(i) - value(j)) / gap;
    }
};

// out += scale v
template <class T>
void add_row(T* __restrict out, T scale, const T* __restrict v, Size n) {
#pragma omp simd
    for (Size k = 0; k < n; ++k) out[k] += scale * v[k];
}

// C = A B
template <class T>
void multiply(const T* A, const T* B, T* C, Size n) {
    std::fill(C, C + n * n, T(0));
    for (Size i = 0; i < n; ++i)
        for (Size k = 0; k < n; ++k) add_row(C + i * n, A[i * n + k], B + k * n, n);
}

template <class T>
void transpose(const T* A, T* B, Size n) {
    for (Size i = 0; i < n; ++i)
        for (Size j = 0; j < n; ++j) B[j * n + i] = A[i * n + j];
}

// eigenvalues (n), eigenvectors (n, n) in columns -> X (n, n); option: the count
template <class T>
std::int64_t spectral_map(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    T* const rows = scratch<T>(n * n);
    for (Size row = begin; row < end; ++row) {
        const SpectralFunction<T> f{n, task.option, task.row<T>(0, row, n)};
        const T* const V = task.row<T>(1, row, n * n);
        T* const X = task.row<T>(2, row, n * n);
        transpose(V, rows, n);
        std::fill(X, X + n * n, T(0));
        for (Size k = 0; k < n; ++k)
            if (const T value = f.value(k); value != 0)
                for (Size i = 0; i < n; ++i) add_row(X + i * n, value * rows[k * n + i], rows + k * n, n);
    }
    return 0;
}

// eigenvalues, eigenvectors, direction (n, n) -> derivative along its symmetric part (n, n), its own adjoint
template <class T>
std::int64_t spectral_derivative(const Task& task, Size begin, Size end) {
    const Size n = task.n, size = n * n;
    T* const memory = scratch<T>(3 * size);
    T *const first = memory, *const second = memory + size, *const rows = memory + 2 * size;
    for (Size row = begin; row < end; ++row) {
        const SpectralFunction<T> f{n, task.option, task.row<T>(0, row, n)};
        const T* const V = task.row<T>(1, row, size);
        const T* const G = task.row<T>(2, row, size);
        T* const out = task.row<T>(3, row, size);
        for (Size i = 0; i < n; ++i)
            for (Size j = 0; j < n; ++j) first[i * n + j] = (G[i * n + j] + G[j * n + i]) / 2;
        transpose(V, rows, n);
        multiply(first, V, second, n);
        multiply(rows, second, first, n);
        for (Size i = 0; i < n; ++i)
            for (Size j = 0; j < n; ++j) first[i * n + j] *= f.difference(i, j);
        multiply(first, rows, second, n);
        multiply(V, second, out, n);
    }
    return 0;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
