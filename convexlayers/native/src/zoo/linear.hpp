// Tridiagonal systems and small least squares; derivations in zoo/tridiagonal.py and zoo/least_squares.py.
#pragma once

#include "zoo/sides.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

// Elimination with partial pivoting of kSide systems at once: one waits for its division while another computes.
template <class T>
class Tridiagonals {
public:
    explicit Tridiagonals(Size n) : n_(n), memory_(static_cast<std::size_t>(5 * n * kSide)) {}

    // Transposed: of the matrices' transposes.
    void solve(const Group& group, bool transposed, int rhs, int solution) {
        group.read(transposed ? 2 : 0, n_ - 1, 0, n_ - 1, below(0));
        group.read(1, n_, 0, n_, pivot(0));
        group.read(transposed ? 0 : 2, n_ - 1, 0, n_ - 1, above(0));
        group.read(rhs, n_, 0, n_, b(0));
        std::fill(below(n_ - 1), below(n_), T(0));
        std::fill(above(n_ - 1), above(n_), T(0));
        eliminate();
        substitute();
        group.write(solution, n_, 0, n_, b(0));
        for (int l = 0; l < group.count; ++l) {
            T* const x = group.task.row<T>(solution, group.first + l, n_);
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
        systems.solve({task, row, static_cast<int>(std::min<Size>(kSide, end - row))}, false, 3, 4);
    return 0;
}

// lower, diagonal, upper, x, cotangent -> of lower, of diagonal, of upper, of b
template <class T>
std::int64_t tridiagonal_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    Tridiagonals<T> systems(n);
    for (Size row = begin; row < end; row += kSide)
        systems.solve({task, row, static_cast<int>(std::min<Size>(kSide, end - row))}, true, 4, 8);
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

// kSide problems side by side: minimize 1/2 sum_i w_i (a_i'x - b_i)^2 + 1/2 ridge |x|^2 with m equations, n unknowns,
// of which the last `option` are left out of the norm. The equations are read a block at a time, as many as stay in the
// fastest cache.
template <class T>
class Fits {
public:
    explicit Fits(const Task& task)
        : m_(task.m), n_(task.n), shrunk_(n_ - task.option), block_(std::clamp<Size>(kInCache / n_, 1, m_)),
          A_(Sides<T>::scratch((block_ + n_) * n_ + 3 * block_ + 2 * n_ + 1)), b_(A_ + block_ * n_), w_(b_ + block_),
          r_(w_ + block_), L_(r_ + block_), x_(L_ + n_ * n_), u_(x_ + n_),
          ridge_(u_ + n_) {}

    // Of the problems of a group: x, and a factor of A'WA + ridge I; how many have none to working precision.
    int fit(const Group& group) {
        read(group, 3, 1, ridge_);
        std::fill(L_, x_ + n_, Side{});
        for (Size from = 0; from < m_; from += block_) accumulate(load(group, from));
        for (Size j = 0; j < shrunk_; ++j) L_[j * n_ + j] += *ridge_;
        const Side good = factor();
        solve(x_);
        // One step of refinement, with the residual of the data.
        std::fill(u_, u_ + n_, Side{});
        for (Size from = 0; from < m_; from += block_) {
            const Size rows = block_ < m_ ? load(group, from) : m_;
            for (Size i = 0; i < rows; ++i) {
                const Side* const a = A_ + i * n_;
                const Side scaled = w_[i] * (b_[i] - along(a, x_));
                for (Size k = 0; k < n_; ++k) u_[k] += a[k] * scaled;
            }
        }
        for (Size k = 0; k < shrunk_; ++k) u_[k] -= *ridge_ * x_[k];
        solve(u_);
        for (Size k = 0; k < n_; ++k) x_[k] += u_[k];
        write(group, 4, n_, x_);
        write(group, 5, n_ * n_, L_);
        int left = 0;
        for (int l = 0; l < group.count; ++l) {
            if (good[l] != 0) continue;
            fill(group.task.row<T>(4, group.first + l, n_), n_, kNan<T>);
            fill(group.task.row<T>(5, group.first + l, n_ * n_), n_ * n_, kNan<T>);
            ++left;
        }
        return left;
    }

    // Cotangents of A, b, w and ridge from that of x; how many have no factor.
    int adjoint(const Group& group) {
        read(group, 4, n_, x_);
        read(group, 5, n_ * n_, L_);
        read(group, 6, n_, u_);
        int left = 0;
        for (int l = 0; l < group.count; ++l) left += std::isnan(L_[0][l]) ? 1 : 0;
        solve(u_);
        for (Size from = 0; from < m_; from += block_) {
            const Size rows = load(group, from);
            for (Size i = 0; i < rows; ++i) {
                Side* const a = A_ + i * n_;
                const Side r = b_[i] - along(a, x_), Au = along(a, u_);
                const Side of_u = w_[i] * r, of_x = w_[i] * Au;
                for (Size k = 0; k < n_; ++k) a[k] = of_u * u_[k] - of_x * x_[k];
                b_[i] = of_x;
                r_[i] = r * Au;
            }
            group.write(7, m_ * n_, from * n_, rows * n_, numbers(A_));
            group.write(8, m_, from, rows, numbers(b_));
            group.write(9, m_, from, rows, numbers(r_));
        }
        *ridge_ = -dot(u_, x_, 1, shrunk_);
        write(group, 10, 1, ridge_);
        return left;
    }

private:
    using Side = typename Sides<T>::Side;
    static constexpr Size kInCache = 640;

    static T* numbers(Side* sides) { return reinterpret_cast<T*>(sides); }

    // Whole rows of a tensor.
    static void read(const Group& group, int tensor, Size width, Side* out) {
        group.read(tensor, width, 0, width, numbers(out));
    }
    static void write(const Group& group, int tensor, Size width, Side* values) {
        group.write(tensor, width, 0, width, numbers(values));
    }

    // A block of equations, and how many it has.
    Size load(const Group& group, Size from) {
        const Size rows = std::min(block_, m_ - from);
        group.read(0, m_ * n_, from * n_, rows * n_, numbers(A_));
        group.read(1, m_, from, rows, numbers(b_));
        group.read(2, m_, from, rows, numbers(w_));
        return rows;
    }

    // Adds A'WA to the upper triangle and A'Wb to x, four sums at a time.
    void accumulate(Size rows) {
        for (Size j = 0; j < n_; ++j) {
            const Side* const a = A_ + j;
            for (Size i = 0; i < rows; ++i) r_[i] = w_[i] * a[i * n_];
            Size k = j;
            for (; k + 4 <= n_; k += 4) {
                Side* const out = L_ + j * n_ + k;
                Side s0 = out[0], s1 = out[1], s2 = out[2], s3 = out[3];
                for (Size i = 0; i < rows; ++i) {
                    const Side *const c = A_ + i * n_ + k, scaled = r_[i];
                    s0 += scaled * c[0];
                    s1 += scaled * c[1];
                    s2 += scaled * c[2];
                    s3 += scaled * c[3];
                }
                out[0] = s0;
                out[1] = s1;
                out[2] = s2;
                out[3] = s3;
            }
            for (; k < n_; ++k) L_[j * n_ + k] += dot(r_, A_ + k, n_, rows);
            x_[j] += dot(r_, b_, 1, rows);
        }
    }

    // a'x, whose row has n entries.
    Side along(const Side* a, const Side* x) const { return dot(a, x, 1, n_); }

    // Of one number after the other and of every stride-th; as four sums, since one would wait for itself.
    static Side dot(const Side* a, const Side* c, Size stride, Size count) {
        Side s0{}, s1{}, s2{}, s3{};
        Size k = 0;
        for (; k + 4 <= count; k += 4) {
            const Side* const at = c + k * stride;
            s0 += a[k] * at[0];
            s1 += a[k + 1] * at[stride];
            s2 += a[k + 2] * at[2 * stride];
            s3 += a[k + 3] * at[3 * stride];
        }
        for (; k < count; ++k) s0 += a[k] * c[k * stride];
        return (s0 + s1) + (s2 + s3);
    }

    // From the upper triangle of a matrix, its Cholesky factor: L below the diagonal, L' above it, and on it the
    // inverse pivots. So all loops, here and in `solve`, add multiples of rows. 1 where there is one to working precision.
    Side factor() {
        const Side zero{}, one = zero + 1;
        Side least = zero + kInfinity<T>, most = zero;
        for (Size j = 0; j < n_; ++j) {
            Side* const row = L_ + j * n_;
            const Side pivot = row[j];
            least = pivot < least ? pivot : least;
            // Written so that NaN is not positive.
            least = pivot > zero ? least : zero;
            most = pivot > most ? pivot : most;
            Side inverse;
            for (int l = 0; l < kSide; ++l) inverse[l] = 1 / std::sqrt(pivot[l]);
            for (Size k = j + 1; k < n_; ++k) L_[k * n_ + j] = row[k] *= inverse;
            row[j] = inverse;
            for (Size i = j + 1; i < n_; ++i)
                for (Size k = i; k < n_; ++k) L_[i * n_ + k] -= row[i] * row[k];
        }
        const Side bound = most * (static_cast<T>(n_) * kEps<T>);
        return least > bound ? (most < zero + kInfinity<T> ? one : zero) : zero;
    }

    // In place.
    void solve(Side* x) const {
        for (Size j = 0; j < n_; ++j) {
            x[j] *= L_[j * n_ + j];
            for (Size k = j + 1; k < n_; ++k) x[k] -= x[j] * L_[j * n_ + k];
        }
        for (Size j = n_ - 1; j >= 0; --j) {
            x[j] *= L_[j * n_ + j];
            for (Size k = 0; k < j; ++k) x[k] -= x[j] * L_[j * n_ + k];
        }
    }

    Size m_, n_, shrunk_, block_;
    Side *A_, *b_, *w_, *r_, *L_, *x_, *u_, *ridge_;
};

// A (m, n), b (m), w (m), ridge (1) -> x (n), a factor (n, n): NaN, and counted, where a row is singular to rounding.
template <class T>
std::int64_t least_squares(const Task& task, Size begin, Size end) {
    std::int64_t left = 0;
    Fits<T> fits(task);
    for (Size row = begin; row < end; row += kSide)
        left += fits.fit({task, row, static_cast<int>(std::min<Size>(kSide, end - row))});
    return left;
}

// A, b, w, ridge, x, factor, cotangent (n) -> of A (m, n), of b (m), of w (m), of ridge (1)
template <class T>
std::int64_t least_squares_adjoint(const Task& task, Size begin, Size end) {
    std::int64_t left = 0;
    Fits<T> fits(task);
    for (Size row = begin; row < end; row += kSide)
        left += fits.adjoint({task, row, static_cast<int>(std::min<Size>(kSide, end - row))});
    return left;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
