// Tridiagonal systems and small least squares; derivations in zoo/tridiagonal.py and zoo/least_squares.py.
#pragma once

#include "zoo/rows.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

// Rows of the batch that are eliminated side by side: one waits for its division while another computes.
inline constexpr int kSide = 8;

// Elimination with partial pivoting of kSide systems at once, the entries of one position next to each other.
template <class T>
class Tridiagonals {
public:
    explicit Tridiagonals(Size n) : n_(n), memory_(static_cast<std::size_t>(5 * n * kSide)) {}

    // Systems first to first + count; transposed: of the matrices' transposes.
    void solve(const Task& task, Size first, int count, bool transposed, int rhs, int solution) {
        load(task, first, count, transposed, rhs);
        eliminate();
        substitute();
        for (int l = 0; l < count; ++l) {
            T* const x = task.row<T>(solution, first + l, n_);
            for (Size i = 0; i < n_; ++i) x[i] = b(i)[l];
            const bool solved = sum<T>(n_, [x](Size i) { return x[i] - x[i]; }) == 0 && !singular_[l];
            if (!solved) fill(x, n_, kNan<T>);
        }
    }

private:
    T* at(int array, Size i) { return memory_.data() + (array * n_ + i) * kSide; }
    T* below(Size i) { return at(0, i); }  // later the second diagonal above
    T* pivot(Size i) { return at(1, i); }
    T* above(Size i) { return at(2, i); }
    T* b(Size i) { return at(3, i); }

    void load(const Task& task, Size first, int count, bool transposed, int rhs) {
        const int lower = transposed ? 2 : 0, upper = transposed ? 0 : 2;
        for (int l = 0; l < kSide; ++l) {
            // Places without a system repeat the last one.
            const Size row = first + std::min(l, count - 1);
            const T *const L = task.row<T>(lower, row, n_ - 1), *const U = task.row<T>(upper, row, n_ - 1);
            const T *const D = task.row<T>(1, row, n_), *const right = task.row<T>(rhs, row, n_);
            for (Size i = 0; i + 1 < n_; ++i) {
                below(i)[l] = L[i];
                above(i)[l] = U[i];
            }
            for (Size i = 0; i < n_; ++i) {
                pivot(i)[l] = D[i];
                b(i)[l] = right[i];
            }
            below(n_ - 1)[l] = above(n_ - 1)[l] = 0;
            singular_[l] = false;
        }
    }

    void eliminate() {
        for (Size i = 0; i + 1 < n_; ++i) {
            T *const L = below(i), *const D = pivot(i), *const U = above(i), *const y = b(i);
            T *const next_D = pivot(i + 1), *const next_U = above(i + 1), *const next_y = b(i + 1);
#pragma omp simd
            for (int l = 0; l < kSide; ++l) {
                const bool swap = std::abs(L[l]) > std::abs(D[l]);
                const T top = swap ? L[l] : D[l], factor = (swap ? D[l] : L[l]) / top;
                const T first = swap ? next_D[l] : U[l], second = swap ? next_U[l] : T(0);
                const T right = swap ? next_y[l] : y[l];
                next_D[l] = (swap ? U[l] : next_D[l]) - factor * first;
                next_U[l] = swap ? -factor * second : next_U[l];
                next_y[l] = (swap ? y[l] : next_y[l]) - factor * right;
                D[l] = top;
                U[l] = first;
                L[l] = second;
                y[l] = right;
            }
        }
    }

    void substitute() {
        for (Size i = n_ - 1; i >= 0; --i) {
            const T *const D = pivot(i), *const U = above(i), *const second = below(i);
            const T *const next = b(std::min(i + 1, n_ - 1)), *const after = b(std::min(i + 2, n_ - 1));
            const bool has_next = i + 1 < n_, has_after = i + 2 < n_;
            T* const x = b(i);
            for (int l = 0; l < kSide; ++l) {
                T value = x[l];
                value -= has_next ? U[l] * next[l] : T(0);
                value -= has_after ? second[l] * after[l] : T(0);
                singular_[l] = singular_[l] | (D[l] == 0);
                x[l] = value / D[l];
            }
        }
    }

    Size n_;
    std::vector<T> memory_;
    bool singular_[kSide] = {};
};

// lower (n - 1), diagonal (n), upper (n - 1), b (n) -> x (n)
template <class T>
std::int64_t tridiagonal(const Task& task, Size begin, Size end) {
    Tridiagonals<T> systems(task.n);
    for (Size row = begin; row < end; row += kSide)
        systems.solve(task, row, static_cast<int>(std::min<Size>(kSide, end - row)), false, 3, 4);
    return 0;
}

// lower, diagonal, upper, x, cotangent -> of lower, of diagonal, of upper, of b
template <class T>
std::int64_t tridiagonal_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    Tridiagonals<T> systems(n);
    for (Size row = begin; row < end; row += kSide)
        systems.solve(task, row, static_cast<int>(std::min<Size>(kSide, end - row)), true, 4, 8);
    for (Size row = begin; row < end; ++row) {
        const T *const x = task.row<T>(3, row, n), *const w = task.row<T>(8, row, n);
        T* const grad_lower = task.row<T>(5, row, n - 1);
        T* const grad_upper = task.row<T>(7, row, n - 1);
        assign(task.row<T>(6, row, n), n, [w, x](Size i) { return -w[i] * x[i]; });
        assign(grad_lower, n - 1, [w, x](Size i) { return -w[i + 1] * x[i]; });
        assign(grad_upper, n - 1, [w, x](Size i) { return -w[i] * x[i + 1]; });
    }
    return 0;
}

// One problem: minimize 1/2 sum_i w_i (a_i'x - b_i)^2 + 1/2 ridge |x|^2 with m equations, n unknowns, of which the last
// `option` are left out of the norm.
template <class T>
struct Fit {
    Size m, n, shrunk;
    const T *A, *b, *w;
    T ridge;

    Fit(const Task& task, Size row)
        : m(task.m), n(task.n), shrunk(n - task.option), A(task.row<T>(0, row, m * n)), b(task.row<T>(1, row, m)),
          w(task.row<T>(2, row, m)), ridge(*task.row<T>(3, row, 1)) {}

    // The lower Cholesky factor of A'WA + ridge I, zero above; false where there is none to working precision.
    bool factor(T* L) const {
        std::fill(L, L + n * n, T(0));
        for (Size i = 0; i < m; ++i)
            for (Size j = 0; j < n; ++j) add(L + j * n, w[i] * A[i * n + j], A + i * n);
        for (Size j = 0; j < shrunk; ++j) L[j * n + j] += ridge;
        T least = kInfinity<T>, most = 0;
        for (Size j = 0; j < n; ++j) {
            T* const row = L + j * n;
            for (Size k = 0; k < j; ++k) {
                const T* const other = L + k * n;
                row[k] = (row[k] - dot(row, other, k)) / other[k];
            }
            const T pivot = row[j] - dot(row, row, j);
            if (!(pivot > 0)) return false;
            least = std::min(least, pivot);
            most = std::max(most, pivot);
            row[j] = std::sqrt(pivot);
            std::fill(row + j + 1, row + n, T(0));
        }
        return least > static_cast<T>(n) * kEps<T> * most && std::isfinite(most);
    }

    static void add(T* __restrict out, T scale, const T* __restrict v, Size n) {
#pragma omp simd
        for (Size k = 0; k < n; ++k) out[k] += scale * v[k];
    }
    void add(T* out, T scale, const T* v) const { add(out, scale, v, n); }

    static T dot(const T* a, const T* c, Size n) {
        T total = 0;
#pragma omp simd reduction(+ : total)
        for (Size k = 0; k < n; ++k) total += a[k] * c[k];
        return total;
    }

    // In place.
    void solve(const T* L, T* x) const {
        for (Size j = 0; j < n; ++j) x[j] = (x[j] - dot(L + j * n, x, j)) / L[j * n + j];
        for (Size j = n - 1; j >= 0; --j) {
            x[j] /= L[j * n + j];
            add(x, -x[j], L + j * n, j);
        }
    }
};

// A (m, n), b (m), w (m), ridge (1) -> x (n), factor (n, n): NaN, and counted, where a row is singular to rounding.
template <class T>
std::int64_t least_squares(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    std::int64_t left = 0;
    T* const correction = scratch<T>(n);
    for (Size row = begin; row < end; ++row) {
        const Fit<T> fit(task, row);
        T* const x = task.row<T>(4, row, n);
        T* const L = task.row<T>(5, row, n * n);
        if (!fit.factor(L)) {
            fill(L, n * n, kNan<T>);
            fill(x, n, kNan<T>);
            ++left;
            continue;
        }
        std::fill(x, x + n, T(0));
        for (Size i = 0; i < fit.m; ++i) fit.add(x, fit.w[i] * fit.b[i], fit.A + i * n);
        fit.solve(L, x);
        // One step of refinement, with the residual of the data.
        assign(correction, n, [&fit, x](Size j) { return j < fit.shrunk ? -fit.ridge * x[j] : T(0); });
        for (Size i = 0; i < fit.m; ++i) {
            const T* const a = fit.A + i * n;
            fit.add(correction, fit.w[i] * (fit.b[i] - fit.dot(a, x, n)), a);
        }
        fit.solve(L, correction);
        for (Size j = 0; j < n; ++j) x[j] += correction[j];
    }
    return left;
}

// A, b, w, ridge, x, factor, cotangent (n) -> of A (m, n), of b (m), of w (m), of ridge (1)
template <class T>
std::int64_t least_squares_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    T* const u = scratch<T>(n);
    for (Size row = begin; row < end; ++row) {
        const Fit<T> fit(task, row);
        const T* const x = task.row<T>(4, row, n);
        const T* const grad = task.row<T>(6, row, n);
        T* const grad_A = task.row<T>(7, row, fit.m * n);
        T* const grad_b = task.row<T>(8, row, fit.m);
        T* const grad_w = task.row<T>(9, row, fit.m);
        std::copy(grad, grad + n, u);
        fit.solve(task.row<T>(5, row, n * n), u);
        for (Size i = 0; i < fit.m; ++i) {
            const T* const a = fit.A + i * n;
            const T r = fit.b[i] - fit.dot(a, x, n), Au = fit.dot(a, u, n);
            const T of_u = fit.w[i] * r, of_x = fit.w[i] * Au;
            grad_b[i] = of_x;
            if (grad_w != nullptr) grad_w[i] = r * Au;
            if (grad_A != nullptr) assign(grad_A + i * n, n, [=](Size k) { return of_u * u[k] - of_x * x[k]; });
        }
        fill(task.row<T>(10, row, 1), 1, -fit.dot(u, x, fit.shrunk));
    }
    return 0;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
