// The cone of positive semidefinite matrices of order p, as svec vectors: the upper triangle by columns, entries off the
// diagonal times sqrt 2. Its three kinds of H are diagonal after a congruence with an orthogonal matrix U,
//
//     H y = svec(U' (h o (U Y U')) U),       the rows of U eigenvectors.
//
// Nesterov-Todd (Todd, Toh, Tutuncu, "On the Nesterov-Todd direction in semidefinite programming", 1998): with Cholesky
// factors S = L_s L_s', Z = L_z L_z' and singular values L_z'L_s = Q diag(lambda) V',
//
//     R = L_s V diag(lambda)^-1/2,   R^-1 = diag(lambda)^-1/2 Q'L_z',   R^-1 S R^-T = R'Z R = diag(lambda),
//
// and G = R R' has G Z G = S: H y = svec(G Y G). G = U' diag(g) U gives h_ij = g_i g_j.
// Derivative of the projection at V = U' diag(l) U: h_ij = infinite for l_i, l_j > 0, zero for both <= 0, and
// l_i / -l_j for l_i > 0 > l_j (convexlayers/cones/psd.py).
#pragma once

#include "lanes/cones/spectrum.hpp"
#include "lanes/dense.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

inline constexpr double kRootTwo = 1.41421356237309504880;
inline constexpr double kHalfRoot = 0.70710678118654752440;

// What one cone keeps between calls: plan::semidefinite_numbers vectors.
template <int W>
struct SemidefiniteMemory {
    using V = Vec<W>;
    V *U, *R, *R_inverse, *lambda;

    SemidefiniteMemory(Int p, V* numbers)
        : U(numbers), R(U + p * p), R_inverse(R + p * p), lambda(R_inverse + p * p) {}
};

template <int W>
class SemidefiniteCone {
    using V = Vec<W>;
    using M = Mask<W>;
    using D = Dense<W>;

public:
    // work: plan::semidefinite_work vectors, for one call.
    SemidefiniteCone(Int p, V* numbers, V* work)
        : p_(p), own_(p, numbers), a_(work), b_(a_ + p * p), c_(b_ + p * p), values_(c_ + p * p) {}

    // ---------------------------------------------------------------------------------------------- H

    // h (dim), and mu (dim), the eigenvalues of the projection's derivative, in lanes marked `exact`.
    void scale(const V* s, const V* z, V* h, V* mu, const M& first, const M& exact) {
        if (!all(exact | first)) scale_interior(s, z, h);
        // Elsewhere what stands in h is arbitrary.
        if (any(exact | first)) scale_exact(s, z, h, mu, first, exact);
    }

    // out = H in; in and out may be the same.
    void apply(const V* h, const V* in, V* out) {
        rotate(in, out);
        for (Int k = 0; k < dim(); ++k) out[k] = h[k] * out[k];
        rotate_back(out, out);
    }

    // svec(U Y U') and svec(U' Y U).
    void rotate(const V* in, V* out) {
        unpack(in, a_);
        D::congruence(p_, own_.U, a_, b_, c_);
        pack(b_, out);
    }

    void rotate_back(const V* in, V* out) {
        unpack(in, a_);
        D::template congruence<true>(p_, own_.U, a_, b_, c_);
        pack(b_, out);
    }

    // Rotates a sparse vector: `count` entries at places `rows` of the cone; out[targets[k]] gets entry k.
    void rotate_sparse(Int count, const Int* rows, const V* values, V* out, const Int* targets) {
        if (count > p_) {
            for (Int k = 0; k < dim(); ++k) values_dense(k) = V{};
            for (Int e = 0; e < count; ++e) values_dense(rows[e]) = values[e];
            rotate(b_, b_);
            for (Int k = 0; k < dim(); ++k) out[targets[k]] = values_dense(k);
            return;
        }
        for (Int k = 0; k < p_ * p_; ++k) c_[k] = V{};
        for (Int e = 0; e < count; ++e) add_outer(rows[e], values[e]);
        for (Int j = 0, k = 0; j < p_; ++j)
            for (Int i = 0; i <= j; ++i, ++k)
                out[targets[k]] = i == j ? c_[j * p_ + i] : kRootTwo * c_[j * p_ + i];
    }

    // ------------------------------------------------------------------------------- interior-point steps

    static void add_to_diagonal(Int p, V* s, const V& shift) {
        for (Int j = 0, k = 0; j < p; ++j, k += j + 1) s[k] = s[k] + shift;
    }

    V smallest_eigenvalue(const V* s) {
        unpack(s, a_);
        return D::smallest_eigenvalue(p_, a_, values_, 1e-3);
    }

    // The rate at which s and z leave the cone: -lambda_min of ds and dz in coordinates where s = z = I.
    V exit_rate(const V* ds, const V* dz) {
        V rate{};
        for (const bool primal : {true, false}) {
            primal ? scaled_slack(ds, a_) : scaled_dual(dz, a_);
            for (Int i = 0; i < p_; ++i) values_[i] = 1.0 / sqrt(own_.lambda[i]);
            for (Int i = 0; i < p_; ++i)
                for (Int j = 0; j < p_; ++j) a_[i * p_ + j] = a_[i * p_ + j] * (values_[i] * values_[j]);
            rate = max(-D::smallest_eigenvalue(p_, a_, values_, kRateShare), rate);
        }
        return rate;
    }

    // R (lambda \ (weight ds~ o dz~ - sigma mu I)) R' for ds~ = R^-1 ds R^-T, dz~ = R'dz R.
    void corrector(const V* ds, const V* dz, const V& weight, const V& sigma_mu, V* out) {
        scaled_slack(ds, a_);
        scaled_dual(dz, b_);
        for (Int i = 0; i < p_; ++i)
            for (Int j = 0; j <= i; ++j) {
                V sum{};
                for (Int k = 0; k < p_; ++k) {
                    sum = fma(a_[i * p_ + k], b_[k * p_ + j], sum);
                    sum = fma(b_[i * p_ + k], a_[k * p_ + j], sum);
                }
                const V product = 0.5 * weight * sum - (i == j ? sigma_mu : V{});
                c_[i * p_ + j] = c_[j * p_ + i] = 2.0 * product / (own_.lambda[i] + own_.lambda[j]);
            }
        D::congruence(p_, own_.R, c_, b_, a_);
        pack(b_, out);
    }

    // -------------------------------------------------------------------------------------- projection

    void project(V* s, V* z, const M& lanes) {
        unpack(s, a_);
        D::eigenvectors(p_, a_, c_, values_);
        for (Int j = 0, k = 0; j < p_; ++j)
            for (Int i = 0; i <= j; ++i, ++k) {
                V positive{}, negative{};
                for (Int e = 0; e < p_; ++e) {
                    const V outer = c_[e * p_ + i] * c_[e * p_ + j];
                    positive = fma(max(values_[e], V{}), outer, positive);
                    negative = fma(max(-values_[e], V{}), outer, negative);
                }
                const V weight = broadcast<W>(i == j ? 1.0 : kRootTwo);
                s[k] = select(lanes, positive * weight, s[k]);
                z[k] = select(lanes, negative * weight, z[k]);
            }
    }

private:
    static constexpr double kRateShare = 1e-3;

    Int dim() const { return p_ * (p_ + 1) / 2; }
    V& values_dense(Int k) { return b_[k]; }

    void unpack(const V* y, V* Y) const {
        for (Int j = 0, k = 0; j < p_; ++j)
            for (Int i = 0; i <= j; ++i, ++k) Y[i * p_ + j] = Y[j * p_ + i] = i == j ? y[k] : kHalfRoot * y[k];
    }

    void pack(const V* Y, V* y) const {
        for (Int j = 0, k = 0; j < p_; ++j)
            for (Int i = 0; i <= j; ++i, ++k) y[k] = i == j ? Y[j * p_ + i] : kRootTwo * Y[j * p_ + i];
    }

    // c_ += U E U' for the matrix E of one entry of a svec vector (lower triangle only).
    void add_outer(Int place, const V& value) {
        Int column = 0;
        while ((column + 1) * (column + 2) / 2 <= place) ++column;
        const Int row = place - column * (column + 1) / 2;
        const V weight = row == column ? value : kHalfRoot * value;
        for (Int i = 0; i < p_; ++i) {
            const V a = weight * own_.U[i * p_ + row], b = weight * own_.U[i * p_ + column];
            for (Int j = 0; j <= i; ++j) {
                V& entry = c_[i * p_ + j];
                entry = fma(a, own_.U[j * p_ + column], entry);
                if (row != column) entry = fma(b, own_.U[j * p_ + row], entry);
            }
        }
    }

    // R^-1 S R^-T.
    void scaled_slack(const V* s, V* out) {
        unpack(s, out);
        D::congruence(p_, own_.R_inverse, out, out, c_);
    }

    // R'Z R.
    void scaled_dual(const V* z, V* out) {
        unpack(z, out);
        D::template congruence<true>(p_, own_.R, out, out, c_);
    }

    void scale_interior(const V* s, const V* z, V* h) {
        V *const L_s = a_, *const L_z = b_, *const B = c_;
        unpack(s, own_.U);
        D::cholesky(p_, own_.U, L_s);
        unpack(z, own_.U);
        D::cholesky(p_, own_.U, L_z);
        // Rows of B: columns of L_z'L_s; rows of R: columns of L_s, turned along.
        for (Int i = 0; i < p_; ++i)
            for (Int j = 0; j < p_; ++j) {
                V sum{};
                for (Int k = i > j ? i : j; k < p_; ++k) sum = fma(L_z[k * p_ + i], L_s[k * p_ + j], sum);
                B[j * p_ + i] = sum;
            }
        V* const columns = own_.U;
        D::transpose(p_, L_s, columns);
        D::orthogonalize(p_, B, columns);
        for (Int i = 0; i < p_; ++i) {
            V squares{};
            for (Int k = 0; k < p_; ++k) squares = fma(B[i * p_ + k], B[i * p_ + k], squares);
            own_.lambda[i] = sqrt(squares);
            const V root = sqrt(own_.lambda[i]), inverse = 1.0 / root, share = inverse / own_.lambda[i];
            for (Int k = 0; k < p_; ++k) own_.R[k * p_ + i] = columns[i * p_ + k] * inverse;
            // Row i of R^-1: the i-th row of Q', over the root, times L_z'.
            for (Int j = 0; j < p_; ++j) {
                V sum{};
                for (Int k = 0; k <= j; ++k) sum = fma(B[i * p_ + k], L_z[j * p_ + k], sum);
                own_.R_inverse[i * p_ + j] = sum * share;
            }
        }
        decompose_scaling(h);
    }

    // G = R R' = U' diag(g) U: singular vectors of R.
    void decompose_scaling(V* h) {
        V* const rows = own_.U;
        D::transpose(p_, own_.R, rows);
        D::orthogonalize(p_, rows, nullptr);
        for (Int i = 0; i < p_; ++i) {
            V squares{};
            for (Int k = 0; k < p_; ++k) squares = fma(rows[i * p_ + k], rows[i * p_ + k], squares);
            values_[i] = squares;
            const V inverse = 1.0 / sqrt(squares);
            for (Int k = 0; k < p_; ++k) rows[i * p_ + k] = rows[i * p_ + k] * inverse;
        }
        for (Int j = 0, k = 0; j < p_; ++j)
            for (Int i = 0; i <= j; ++i, ++k) h[k] = values_[i] * values_[j];
    }

    void scale_exact(const V* s, const V* z, V* h, V* mu, const M& first, const M& exact) {
        for (Int k = 0; k < dim(); ++k) mu[k] = s[k] - z[k];
        unpack(mu, a_);
        D::eigenvectors(p_, a_, c_, values_);
        const V one = broadcast<W>(1.0), zero{}, infinite = broadcast<W>(kInfinite);
        V smallest = values_[0];
        for (Int i = 1; i < p_; ++i) smallest = min(values_[i], smallest);
        const V large = select(smallest > 0.0, infinite, broadcast<W>(kLarge));
        for (Int i = 0; i < p_; ++i)
            for (Int j = 0; j < p_; ++j) {
                const V axis = broadcast<W>(i == j ? 1.0 : 0.0);
                V& entry = own_.U[i * p_ + j];
                entry = select(first, axis, select(exact, c_[i * p_ + j], entry));
            }
        for (Int j = 0, k = 0; j < p_; ++j)
            for (Int i = 0; i <= j; ++i, ++k) {
                const V upper = max(values_[i], values_[j]), lower = min(values_[i], values_[j]);
                const M mixed = (upper > 0.0) & (lower < 0.0), both = (lower >= 0.0) & (upper > 0.0);
                const V ratio = upper / select(mixed, -lower, one);
                mu[k] = select(mixed, upper / select(mixed, upper - lower, one), select(both, one, zero));
                const V limit = select(mixed, min(ratio, broadcast<W>(kLarge)), select(both, large, zero));
                h[k] = select(first, one, select(exact, limit, h[k]));
            }
    }

    Int p_;
    SemidefiniteMemory<W> own_;
    V *a_, *b_, *c_, *values_;
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
