// Small dense matrices, one per lane: Cholesky's factor, singular values, eigenvalues. Row-major, order p.
//
// Jacobi's methods, because they find the small singular values of a product as accurately as the large ones (Demmel,
// Veselic, "Jacobi's method is more accurate than QR", 1992), and because all lanes take the same steps: a lane that has
// converged turns by nothing at all while the others go on.
#pragma once

#include "lanes/vec.hpp"
#include "plan/program.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

using plan::Int;

template <int W>
struct Dense {
    using V = Vec<W>;
    using M = Mask<W>;

    static constexpr int kMostSweeps = 40;
    // Squared cosines of angles between rows that are turned, and that make another sweep necessary: convergence is
    // quadratic.
    static constexpr double kParallel = 1e-31;
    static constexpr double kNearlyParallel = 1e-20;

    // L L' = A by the lower triangle of A; L's upper triangle is set to zero. NaN where A is not positive definite.
    static void cholesky(Int p, const V* A, V* L) {
        for (Int i = 0; i < p; ++i) {
            for (Int j = 0; j <= i; ++j) {
                V sum = A[i * p + j];
                for (Int k = 0; k < j; ++k) sum = fnma(L[i * p + k], L[j * p + k], sum);
                L[i * p + j] = j < i ? sum * L[j * p + j] : 1.0 / sqrt(sum);
            }
            for (Int j = i + 1; j < p; ++j) L[i * p + j] = V{};
        }
        // The diagonal held inverses.
        for (Int i = 0; i < p; ++i) L[i * p + i] = 1.0 / L[i * p + i];
    }

    // Turns the rows of B (p of them) until they are orthogonal to each other; the rows of C, if there is one, turn along.
    // With B = M', that is one-sided Jacobi on the columns of M.
    static void orthogonalize(Int p, V* B, V* C) {
        // Lanes that have converged stay as they are while others go on.
        M open = negate<W>(no_lane<W>());
        for (int sweep = 0; sweep < kMostSweeps && any(open); ++sweep) {
            M turned = no_lane<W>();
            for (Int i = 0; i + 1 < p; ++i)
                for (Int j = i + 1; j < p; ++j) {
                    V *const a = B + i * p, *const b = B + j * p;
                    V alpha{}, beta{}, gamma{};
                    for (Int k = 0; k < p; ++k) {
                        alpha = fma(a[k], a[k], alpha);
                        beta = fma(b[k], b[k], beta);
                        gamma = fma(a[k], b[k], gamma);
                    }
                    const M needed = open & (gamma * gamma > kParallel * alpha * beta);
                    if (!any(needed)) continue;
                    turned = turned | (gamma * gamma > kNearlyParallel * alpha * beta);
                    V c, s;
                    angle(needed, beta - alpha, gamma, c, s);
                    turn(p, c, s, a, b);
                    if (C != nullptr) turn(p, c, s, C + i * p, C + j * p);
                }
            open = open & turned;
        }
    }

    // A = U diag(values) U' for a symmetric A, which is overwritten; the rows of Ut are eigenvectors.
    static void eigenvectors(Int p, V* A, V* Ut, V* values) {
        V size{};
        for (Int i = 0; i < p * p; ++i) size = fma(A[i], A[i], size);
        const V negligible = 1e-34 * size;
        for (Int i = 0; i < p; ++i)
            for (Int j = 0; j < p; ++j) Ut[i * p + j] = broadcast<W>(i == j ? 1.0 : 0.0);
        for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
            M turned = no_lane<W>();
            for (Int i = 0; i + 1 < p; ++i)
                for (Int j = i + 1; j < p; ++j) turned = turned | eliminate(p, A, Ut, i, j, negligible);
            if (!any(turned)) break;
        }
        for (Int i = 0; i < p; ++i) values[i] = A[i * p + i];
    }

    // A lower bound of the smallest eigenvalue of a symmetric A, which is overwritten, within `share` of max(1, its size).
    // Householder's reduction to tridiagonal form, then bisection with Sturm's count of negative pivots. work: 3 p.
    static V smallest_eigenvalue(Int p, V* A, V* work, double share) {
        V *const diagonal = work, *const off = work + p, *const v = work + 2 * p;
        tridiagonalize(p, A, diagonal, off, v);
        // Gershgorin's interval.
        V lower = broadcast<W>(std::numeric_limits<double>::infinity()), upper = lower;
        for (Int i = 0; i < p; ++i) {
            const V radius = (i > 0 ? abs(off[i - 1]) : V{}) + (i + 1 < p ? abs(off[i]) : V{});
            lower = min(diagonal[i] - radius, lower);
            upper = min(diagonal[i], upper);
        }
        for (int step = 0; step < 200; ++step) {
            const M open = upper - lower > share * max(abs(upper), broadcast<W>(1.0));
            if (!any(open)) break;
            const V middle = 0.5 * (lower + upper);
            const M below = has_negative_pivot(p, diagonal, off, middle);
            upper = select(open & below, middle, upper);
            lower = select(open & negate<W>(below), middle, lower);
        }
        return lower;
    }

    // out = T Y T', or T'Y T, for symmetric Y; out and Y may be the same. work: p^2. T is given by its rows.
    template <bool kTransposed = false>
    static void congruence(Int p, const V* T, const V* Y, V* out, V* work) {
        const auto t = [=](Int i, Int k) -> const V& { return kTransposed ? T[k * p + i] : T[i * p + k]; };
        for (Int i = 0; i < p; ++i)
            for (Int j = 0; j < p; ++j) {
                V sum{};
                for (Int k = 0; k < p; ++k) sum = fma(t(i, k), Y[k * p + j], sum);
                work[i * p + j] = sum;
            }
        for (Int i = 0; i < p; ++i)
            for (Int j = 0; j <= i; ++j) {
                V sum{};
                for (Int k = 0; k < p; ++k) sum = fma(work[i * p + k], t(j, k), sum);
                out[i * p + j] = out[j * p + i] = sum;
            }
    }

    static void transpose(Int p, const V* A, V* out) {
        for (Int i = 0; i < p; ++i)
            for (Int j = 0; j < p; ++j) out[j * p + i] = A[i * p + j];
    }

    // The smaller angle that diagonalizes [alpha gamma; gamma beta], difference = beta - alpha; none in other lanes.
    static void angle(const M& lanes, const V& difference, const V& gamma, V& c, V& s) {
        const V one = broadcast<W>(1.0);
        const V twice = 2.0 * gamma, signed_twice = select(difference < 0.0, -twice, twice);
        const V reach = abs(difference) + sqrt(fma(difference, difference, twice * twice));
        const V t = signed_twice / select(lanes, reach, one);
        const V cosine = 1.0 / sqrt(fma(t, t, one));
        c = select(lanes, cosine, one);
        s = select(lanes, cosine * t, V{});
    }

private:
    static void turn(Int p, const V& c, const V& s, V* a, V* b) {
        for (Int k = 0; k < p; ++k) {
            const V old = a[k];
            a[k] = fnma(s, b[k], c * old);
            b[k] = fma(s, old, c * b[k]);
        }
    }

    // Turns rows and columns i, j of A so that entry (i, j) vanishes.
    static M eliminate(Int p, V* A, V* Ut, Int i, Int j, const V& negligible) {
        const V gamma = A[i * p + j];
        const M needed = gamma * gamma > negligible;
        if (!any(needed)) return needed;
        V c, s;
        angle(needed, A[j * p + j] - A[i * p + i], gamma, c, s);
        turn(p, c, s, A + i * p, A + j * p);
        for (Int k = 0; k < p; ++k) {
            const V old = A[k * p + i];
            A[k * p + i] = fnma(s, A[k * p + j], c * old);
            A[k * p + j] = fma(s, old, c * A[k * p + j]);
        }
        A[i * p + j] = select(needed, V{}, A[i * p + j]);
        A[j * p + i] = select(needed, V{}, A[j * p + i]);
        turn(p, c, s, Ut + i * p, Ut + j * p);
        return needed;
    }

    static void tridiagonalize(Int p, V* A, V* diagonal, V* off, V* v) {
        for (Int k = 0; k + 2 < p; ++k) {
            // v reflects the column below the diagonal onto its first entry: I - 2 v v' / v'v.
            V squares{};
            for (Int i = k + 1; i < p; ++i) {
                v[i] = A[i * p + k];
                squares = fma(v[i], v[i], squares);
            }
            const V length = sqrt(squares);
            const V first = v[k + 1], image = select(first > 0.0, -length, length);
            off[k] = image;
            v[k + 1] = first - image;
            const V norm = squares - first * image;  // v'v / 2
            reflect(p, k + 1, A, v, select(norm > 0.0, 1.0 / select(norm > 0.0, norm, broadcast<W>(1.0)), V{}), diagonal);
        }
        if (p > 1) off[p - 2] = A[(p - 1) * p + p - 2];
        for (Int i = 0; i < p; ++i) diagonal[i] = A[i * p + i];
    }

    // A = H A H, H = I - v v' inverse on rows and columns from `first` on; u: scratch.
    static void reflect(Int p, Int first, V* A, const V* v, const V& inverse, V* u) {
        V along{};
        for (Int i = first; i < p; ++i) {
            V sum{};
            for (Int j = first; j < p; ++j) sum = fma(A[i * p + j], v[j], sum);
            u[i] = sum * inverse;
            along = fma(u[i], v[i], along);
        }
        along = 0.5 * along * inverse;
        for (Int i = first; i < p; ++i) u[i] = fnma(along, v[i], u[i]);
        for (Int i = first; i < p; ++i)
            for (Int j = first; j < p; ++j) A[i * p + j] = fnma(u[i], v[j], fnma(v[i], u[j], A[i * p + j]));
    }

    static M has_negative_pivot(Int p, const V* diagonal, const V* off, const V& shift) {
        const V tiny = broadcast<W>(1e-300);
        V pivot = diagonal[0] - shift;
        M found = pivot < 0.0;
        for (Int i = 1; i < p; ++i) {
            const V nonzero = select(abs(pivot) > tiny, pivot, tiny);
            pivot = diagonal[i] - shift - off[i - 1] * off[i - 1] / nonzero;
            found = found | (pivot < 0.0);
        }
        return found;
    }
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
