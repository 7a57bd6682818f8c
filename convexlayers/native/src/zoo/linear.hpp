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
            const bool solved = sum<T>(n_, [x](Size i) { return x[i] - x[i]; }) == 0;
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
#pragma omp simd
            for (int l = 0; l < kSide; ++l) {
                // A pivot 0 has no inverse. The chain from x to x is as short as can be: no division is on it.
                const T inverse = 1 / (D[l] == 0 ? kNan<T> : D[l]);
                const T rest = x[l] - (has_after ? second[l] * after[l] : T(0));
                x[l] = (rest - (has_next ? U[l] * next[l] : T(0))) * inverse;
            }
        }
    }

    Size n_;
    std::vector<T> memory_;
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
// `option` are left out of the norm. A is transposed once, so that all long loops run over the equations.
template <class T>
class Fit {
public:
    explicit Fit(const Task& task)
        : m_(task.m), n_(task.n), shrunk_(n_ - task.option), memory_(static_cast<std::size_t>((n_ + 1) * m_ + n_)),
          columns_(memory_.data()), scaled_(columns_ + n_ * m_), extra_(scaled_ + m_) {}

    void read(const Task& task, Size row) {
        const T* const A = task.row<T>(0, row, m_ * n_);
        for (Size i = 0; i < m_; ++i)
            for (Size k = 0; k < n_; ++k) columns_[k * m_ + i] = A[i * n_ + k];
        b_ = task.row<T>(1, row, m_);
        w_ = task.row<T>(2, row, m_);
        ridge_ = *task.row<T>(3, row, 1);
    }

    // x, and a factor of A'WA + ridge I; false where there is none to working precision.
    bool fit(T* x, T* L) {
        for (Size j = 0; j < n_; ++j) {
            assign(scaled_, m_, [this, column = column(j)](Size i) { return w_[i] * column[i]; });
            for (Size k = j; k < n_; ++k) L[j * n_ + k] = dot(scaled_, column(k), m_);
            x[j] = dot(scaled_, b_, m_);
            if (j < shrunk_) L[j * n_ + j] += ridge_;
        }
        if (!factor(L)) return false;
        solve(L, x);
        // One step of refinement, with the residual of the data.
        residual(x, scaled_);
        for (Size i = 0; i < m_; ++i) scaled_[i] *= w_[i];
        for (Size j = 0; j < n_; ++j) extra_[j] = dot(column(j), scaled_, m_) - (j < shrunk_ ? ridge_ * x[j] : T(0));
        solve(L, extra_);
        for (Size j = 0; j < n_; ++j) x[j] += extra_[j];
        return true;
    }

    // Cotangents from that of x; of A, w and ridge they may be null.
    void adjoint(const T* x, const T* L, const T* grad, T* grad_A, T* grad_b, T* grad_w, T* grad_ridge) {
        T* const u = extra_;
        std::copy(grad, grad + n_, u);
        solve(L, u);
        residual(x, scaled_);
        std::fill(grad_b, grad_b + m_, T(0));
        for (Size k = 0; k < n_; ++k) add(grad_b, u[k], column(k), m_);
        if (grad_w != nullptr) assign(grad_w, m_, [=](Size i) { return scaled_[i] * grad_b[i]; });
        for (Size i = 0; i < m_; ++i) {
            const T of_u = w_[i] * scaled_[i], of_x = w_[i] * grad_b[i];
            grad_b[i] = of_x;
            if (grad_A != nullptr) assign(grad_A + i * n_, n_, [=](Size k) { return of_u * u[k] - of_x * x[k]; });
        }
        fill(grad_ridge, 1, -dot(u, x, shrunk_));
    }

private:
    const T* column(Size k) const { return columns_ + k * m_; }

    // b - A x
    void residual(const T* x, T* r) const {
        std::copy(b_, b_ + m_, r);
        for (Size k = 0; k < n_; ++k) add(r, -x[k], column(k), m_);
    }

    // From the upper triangle of a matrix, its Cholesky factor: L below the diagonal, L' above it, and on it the inverse
    // pivots. So all loops, here and in `solve`, add multiples of rows, and none waits for a sum.
    bool factor(T* L) const {
        T least = kInfinity<T>, most = 0;
        for (Size j = 0; j < n_; ++j) {
            T* const row = L + j * n_;
            const T pivot = row[j];
            if (!(pivot > 0)) return false;
            least = std::min(least, pivot);
            most = std::max(most, pivot);
            const T inverse = 1 / std::sqrt(pivot);
            for (Size k = j + 1; k < n_; ++k) L[k * n_ + j] = row[k] *= inverse;
            row[j] = inverse;
            for (Size i = j + 1; i < n_; ++i) add(L + i * n_ + i, -row[i], row + i, n_ - i);
        }
        return least > static_cast<T>(n_) * kEps<T> * most && std::isfinite(most);
    }

    // In place.
    void solve(const T* L, T* x) const {
        for (Size j = 0; j < n_; ++j) {
            x[j] *= L[j * n_ + j];
            add(x + j + 1, -x[j], L + j * n_ + j + 1, n_ - j - 1);
        }
        for (Size j = n_ - 1; j >= 0; --j) {
            x[j] *= L[j * n_ + j];
            add(x, -x[j], L + j * n_, j);
        }
    }

    static void add(T* __restrict out, T scale, const T* __restrict v, Size n) {
#pragma omp simd
        for (Size k = 0; k < n; ++k) out[k] += scale * v[k];
    }

    static T dot(const T* a, const T* c, Size n) {
        return sum<T>(n, [a, c](Size k) { return a[k] * c[k]; });
    }

    Size m_, n_, shrunk_;
    std::vector<T> memory_;
    T *columns_, *scaled_, *extra_;
    const T *b_ = nullptr, *w_ = nullptr;
    T ridge_ = 0;
};

// A (m, n), b (m), w (m), ridge (1) -> x (n), a factor (n, n): NaN, and counted, where a row is singular to rounding.
template <class T>
std::int64_t least_squares(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    std::int64_t left = 0;
    Fit<T> fit(task);
    for (Size row = begin; row < end; ++row) {
        T* const x = task.row<T>(4, row, n);
        T* const L = task.row<T>(5, row, n * n);
        fit.read(task, row);
        if (fit.fit(x, L)) continue;
        fill(L, n * n, kNan<T>);
        fill(x, n, kNan<T>);
        ++left;
    }
    return left;
}

// A, b, w, ridge, x, factor, cotangent (n) -> of A (m, n), of b (m), of w (m), of ridge (1)
template <class T>
std::int64_t least_squares_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n, m = task.m;
    Fit<T> fit(task);
    for (Size row = begin; row < end; ++row) {
        fit.read(task, row);
        fit.adjoint(task.row<T>(4, row, n), task.row<T>(5, row, n * n), task.row<T>(6, row, n), task.row<T>(7, row, m * n),
                    task.row<T>(8, row, m), task.row<T>(9, row, m), task.row<T>(10, row, 1));
    }
    return 0;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
