// From parameters to scaled numbers, inside the block, and products with P and A.
//
// Every element is solved in units of its own. With diagonal D, E and positive sigma, zeta, all powers of two so that
// nothing is rounded,
//
//     P~ = sigma / zeta D P D,   q~ = D q / zeta,   A~ = E A D,   b~ = E b / sigma
//
// has the solution x~ = x / (sigma D), s~ = E s / sigma, z~ = z / (zeta E). D and E come from Ruiz's equilibration of
// [P A'; A 0] (Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices", 2001), E being
// constant on the rows of a cone that is not a product; sigma and zeta bring b and q to size one.
#pragma once

#include <algorithm>

#include "lanes/batch.hpp"
#include "lanes/workspace.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

inline constexpr int kEquilibrationSteps = 5;
// Right-hand sides this many times the typical one are out of proportion.
inline constexpr double kFar = 1024.0;
// By this power of two.
inline constexpr double kFarAboveMean = 20;
// As in convexlayers/functional.py.
inline constexpr double kNoBound = 1e20;

// Units in which an element's numbers have size one, as convexlayers/scaling.py has them, from geometric means.
struct Units {
    double tau = 1, sigma = 1, omega = 1;
};

// Numbers below this are zero for the choice of units: one of 1e-300 would pull a mean of logarithms anywhere.
inline constexpr std::int64_t kSmallestExponent = 1023 - 200;
// So are numbers of P, q and A this much below both 1 and the largest of their kind: what rounding leaves of a zero.
inline constexpr double kRounding = 0x1p-32;

// Per lane: the sum of the exponents of the entries that are not zero, and their number.
template <int W>
struct Exponents {
    Bits<W> sum{}, count{};

    void add(const Vec<W>& v) {
        const Bits<W> e = biased_exponent<W>(v);
        if constexpr (W == 1) {
            sum += e > kSmallestExponent ? e : 0;
            count += e > kSmallestExponent;
        } else {
            sum += e & (e > kSmallestExponent);
            count -= (e > kSmallestExponent);
        }
    }
    bool present(int lane) const { return get_bits<W>(count, lane) > 0; }
    // log2 of the geometric mean, rounded.
    double mean(int lane) const {
        const double number = static_cast<double>(get_bits<W>(count, lane));
        return number > 0 ? std::floor(static_cast<double>(get_bits<W>(sum, lane)) / number + 0.5) - 1023 : 0.0;
    }
};

// A right-hand side below 2^kTiny, and smaller than A x at the minimum of the objective alone by this power of two, is
// rounding, not a unit.
inline constexpr double kRightSideNoise = 20, kTiny = -28;

// log2 of typical sizes of P, q, A, b -> log2 of tau, sigma, omega. See convexlayers/scaling.py.
template <int W>
Units find_units(const Exponents<W>& P, const Exponents<W>& q, const Exponents<W>& A, const Exponents<W>& b, int lane) {
    const double from_objective = P.present(lane) && q.present(lane) ? q.mean(lane) - P.mean(lane) : 0.0;
    const double natural = A.mean(lane) + from_objective;
    const bool tiny = b.mean(lane) < kTiny && b.mean(lane) < natural - kRightSideNoise;
    const bool noise = P.present(lane) && q.present(lane) && tiny;
    const double sigma = b.present(lane) && !noise ? b.mean(lane) : natural;
    const double tau = A.present(lane) ? sigma - A.mean(lane) : from_objective;
    double omega = 0.0;
    if (q.present(lane)) omega = tau + q.mean(lane);
    if (P.present(lane)) {
        const double quadratic = 2 * tau + P.mean(lane);
        omega = q.present(lane) ? std::max(omega, quadratic) : quadratic;
    }
    return {std::exp2(tau), std::exp2(sigma), std::exp2(omega)};
}

template <int W>
struct Numbers {
    using V = Vec<W>;
    using M = Mask<W>;

    // Numbers of the lanes in `fresh` at the elements' parameters; returns the lanes whose numbers are all finite.
    static M load(const Plan& plan, Workspace<W>& w, const Values* values, const std::int64_t* elements, const M& fresh) {
        int first = 0;
        while (!get_mask<W>(fresh, first)) ++first;
        for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
            const double* rows[W];
            for (int lane = 0; lane < W; ++lane) {
                const std::int64_t element = elements[get_mask<W>(fresh, lane) ? lane : first];
                rows[lane] = values[b].data + element * values[b].stride;
            }
            interleave(rows, plan.blocks[b].width, w.theta + plan.block_starts[b]);
        }
        V finite{};
        const Int* const indptr = plan.map_indptr.data();
        for (Int i = 0; i < plan.pattern.size(); ++i) {
            V value = broadcast<W>(plan.constant[i]);
            for (Int e = indptr[i]; e < indptr[i + 1]; ++e)
                value = fma(w.theta[plan.map_cols[e]], broadcast<W>(plan.map_values[e]), value);
            finite = finite + value * 0.0;
            w.numbers[i] = select(fresh, value, w.numbers[i]);
        }
        return finite == 0.0;
    }

    // Whether the matrix of the linear system is the same for every element and every iteration: there is no cone but the
    // zero cone, and nothing that P or A depends on differs within the batch.
    static bool matrix_is_shared(const Plan& plan, const Values* values) {
        if (plan.pattern.cones.zero < plan.m()) return false;
        for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
            const plan::BlockGradient& parts = plan.gradients[b];
            if (values[b].stride != 0 && !(parts.P.empty() && parts.A.empty())) return false;
        }
        return true;
    }

    // W rows side by side.
    static void interleave(const double* const* rows, Int width, V* out) {
        if constexpr (W == 1) {
            std::copy(rows[0], rows[0] + width, out);
        } else {
            double* const flat = reinterpret_cast<double*>(out);
            for (Int c = 0; c < width; ++c)
                for (int lane = 0; lane < W; ++lane) flat[static_cast<std::int64_t>(c) * W + lane] = rows[lane][c];
        }
    }

    // Calls f with the places of P's entries on the diagonal, which are the last of their columns.
    template <class F>
    static void for_diagonal(const plan::Pattern& p, F f) {
        for (Int j = 0; j < p.n; ++j) {
            const Int last = p.P_indptr[j + 1] - 1;
            if (last >= p.P_indptr[j] && p.P_rows[last] == j) f(last);
        }
    }

    // Exponents of the four parts, P's those of its diagonal.
    struct Sizes {
        Exponents<W> P, q, A, b;
    };

    static Sizes sizes(const Plan& plan, const Workspace<W>& w) {
        Sizes out;
        const plan::Pattern& p = plan.pattern;
        // The diagonal of a positive semidefinite matrix bounds its entries: small ones beside it say nothing.
        V diagonal{};
        for_diagonal(p, [&](Int i) { diagonal = max(diagonal, abs(w.numbers[i])); });
        const V smallest = min(diagonal, broadcast<W>(1.0)) * kRounding;
        for_diagonal(p, [&](Int i) { out.P.add(select(abs(w.numbers[i]) < smallest, V{}, w.numbers[i])); });
        add(out.q, w.numbers, p.q_start(), p.A_start());
        add(out.A, w.numbers, p.A_start(), p.b_start());
        // What stands for no bound says nothing about the size of the others.
        for (Int i = p.b_start(); i < p.offset_start(); ++i)
            out.b.add(select(abs(w.numbers[i]) < kNoBound, w.numbers[i], V{}));
        return out;
    }

    // Sizes of b without what is far above its mean: one bound of 1e16 beside a number of size one says that nobody minds
    // the bound, not that residuals of 1e-4 are rounding.
    static Exponents<W> ordinary(const Plan& plan, const Workspace<W>& w, const Exponents<W>& all) {
        const plan::Pattern& p = plan.pattern;
        V limit{};
        for (int lane = 0; lane < W; ++lane)
            set<W>(limit, lane, std::min(std::exp2(all.mean(lane) + kFarAboveMean), kNoBound));
        Exponents<W> out;
        for (Int i = p.b_start(); i < p.offset_start(); ++i)
            out.add(select(abs(w.numbers[i]) < limit, w.numbers[i], V{}));
        return out;
    }

    // D and E of the lanes in `fresh`; the numbers of these lanes are scaled by them.
    static void equilibrate(const Plan& plan, Workspace<W>& w, const M& fresh) {
        const Int n = plan.n(), m = plan.m();
        V *const column = w.dx, *const row = w.dz;
        V *const d = w.x2, *const e = w.z2;
        for (Int j = 0; j < n; ++j) d[j] = broadcast<W>(1.0);
        for (Int i = 0; i < m; ++i) e[i] = broadcast<W>(1.0);
        for (int step = 0; step < kEquilibrationSteps; ++step) {
            norms(plan, w, d, e, column, row);
            // A lane whose rows are balanced is left alone, so that it does not depend on the others.
            V largest = broadcast<W>(1.0), smallest = broadcast<W>(1.0);
            for (Int j = 0; j < n; ++j) widen(column[j], largest, smallest);
            for (Int i = 0; i < m; ++i) widen(row[i], largest, smallest);
            const M unbalanced = fresh & ((largest >= 4.0) | (smallest < 0.25));
            if (!any(unbalanced)) break;
            for (Int j = 0; j < n; ++j) d[j] = select(unbalanced, d[j] * inverse_root(column[j]), d[j]);
            for (Int i = 0; i < m; ++i) e[i] = select(unbalanced, e[i] * inverse_root(row[i]), e[i]);
        }
        const V one = broadcast<W>(1.0);
        for (Int j = 0; j < n; ++j) {
            w.D[j] = select(fresh, d[j], w.D[j]);
            d[j] = select(fresh, d[j], one);
        }
        for (Int i = 0; i < m; ++i) {
            w.E[i] = select(fresh, e[i], w.E[i]);
            e[i] = select(fresh, e[i], one);
        }
        scale(plan, w.numbers, d, e, one, one);
    }

    // Rows of the nonnegative cone whose right-hand side is out of proportion to `unit`, the typical one, are scaled down
    // with it: bounds so far away that they will not hold with equality, whose slacks should not drown the others.
    static void shrink_far_rows(const Plan& plan, Workspace<W>& w, const M& fresh, const V& unit) {
        const plan::Pattern& p = plan.pattern;
        V *const A = w.numbers + p.A_start(), *const b = w.numbers + p.b_start(), *const factor = w.dz;
        const V one = broadcast<W>(1.0), limit = kFar * unit;
        M found = no_lane<W>();
        for (Int i = 0; i < p.m; ++i) factor[i] = one;
        for (const Int i : plan.kkt.nonnegative_rows) {
            const M far = fresh & (abs(b[i]) > limit);
            found = found | far;
            // Of the quotient the power of two alone.
            factor[i] = select(far, power_of_two<W>(biased_exponent<W>(limit / b[i])), one);
        }
        if (!any(found)) return;
        for (Int i = 0; i < p.m; ++i) {
            b[i] = b[i] * factor[i];
            w.E[i] = w.E[i] * factor[i];
        }
        for (Int j = 0; j < p.n; ++j)
            for (Int k = p.A_indptr[j]; k < p.A_indptr[j + 1]; ++k) A[k] = A[k] * factor[p.A_rows[k]];
    }

    // P, q, A, b of the given numbers to P~, q~, A~, b~.
    static void scale(const Plan& plan, V* numbers, const V* d, const V* e, const V& sigma, const V& zeta) {
        const plan::Pattern& p = plan.pattern;
        V *const P = numbers, *const A = numbers + p.A_start();
        const V P_factor = sigma / zeta, q_factor = 1.0 / zeta, b_factor = 1.0 / sigma;
        for (Int j = 0; j < p.n; ++j) {
            const V dj = d[j], P_dj = dj * P_factor;
            for (Int k = p.P_indptr[j]; k < p.P_indptr[j + 1]; ++k) P[k] = P[k] * (d[p.P_rows[k]] * P_dj);
            for (Int k = p.A_indptr[j]; k < p.A_indptr[j + 1]; ++k) A[k] = A[k] * (e[p.A_rows[k]] * dj);
            numbers[p.q_start() + j] = numbers[p.q_start() + j] * (dj * q_factor);
        }
        for (Int i = 0; i < p.m; ++i) numbers[p.b_start() + i] = numbers[p.b_start() + i] * (e[i] * b_factor);
    }

    // The part of `scale` that sigma and zeta have in it.
    static void scale_units(const Plan& plan, Workspace<W>& w, const V& sigma, const V& zeta) {
        const plan::Pattern& p = plan.pattern;
        const V P_factor = sigma / zeta, q_factor = 1.0 / zeta, b_factor = 1.0 / sigma;
        for (Int k = 0; k < p.q_start(); ++k) w.numbers[k] = w.numbers[k] * P_factor;
        for (Int k = p.q_start(); k < p.A_start(); ++k) w.numbers[k] = w.numbers[k] * q_factor;
        for (Int k = p.b_start(); k < p.offset_start(); ++k) w.numbers[k] = w.numbers[k] * b_factor;
    }

    // P x, A'z, A x at the scaled numbers. Where the arrays of the factorization hold all of A, it is read from there, so
    // that there is one copy of it in the caches.
    static void multiply(const Plan& plan, const Workspace<W>& w, const V* x, const V* z, V* Px, V* Atz, V* Ax) {
        if (plan.A_places.empty())
            multiply(plan, w.numbers, x, z, Px, Atz, Ax);
        else
            multiply<true>(plan, w.numbers, w.panels, plan.A_places.data(), x, z, Px, Atz, Ax);
    }

    // The same at any numbers.
    static void multiply(const Plan& plan, const V* numbers, const V* x, const V* z, V* Px, V* Atz, V* Ax) {
        multiply<false>(plan, numbers, numbers + plan.pattern.A_start(), nullptr, x, z, Px, Atz, Ax);
    }

private:
    template <bool kPlaced>
    static void multiply(const Plan& plan, const V* P, const V* A, const Int* places, const V* x, const V* z, V* Px, V* Atz,
                         V* Ax) {
        const plan::Pattern& p = plan.pattern;
        const Int *const P_rows = p.P_rows.data(), *const A_rows = p.A_rows.data();
        for (Int j = 0; j < p.n; ++j) Px[j] = V{};
        for (Int i = 0; i < p.m; ++i) Ax[i] = V{};
        for (Int j = 0; j < p.n; ++j) {
            const V xj = x[j];
            const Int P_begin = p.P_indptr[j], P_end = p.P_indptr[j + 1];
            // The diagonal, if it is there, is the last entry of the column.
            const bool has_diagonal = P_end > P_begin && P_rows[P_end - 1] == j;
            const V below = column<false>(P, nullptr, P_rows, P_begin, has_diagonal ? P_end - 1 : P_end, xj, x, Px);
            const V own = has_diagonal ? fma(P[P_end - 1], xj, Px[j]) : Px[j];
            Px[j] = own + below;
            Atz[j] = column<kPlaced>(A, places, A_rows, p.A_indptr[j], p.A_indptr[j + 1], xj, z, Ax);
        }
    }

    static void add(Exponents<W>& exponents, const V* numbers, Int begin, Int end) {
        V largest{};
        for (Int i = begin; i < end; ++i) largest = max(largest, abs(numbers[i]));
        const V smallest = min(largest, broadcast<W>(1.0)) * kRounding;
        for (Int i = begin; i < end; ++i) exponents.add(select(abs(numbers[i]) < smallest, V{}, numbers[i]));
    }

    // out += a column times xj; returns its product with y.
    template <bool kPlaced>
    static inline V column(const V* __restrict values, const Int* __restrict places, const Int* __restrict rows,
                           Int begin, Int end, const V& xj, const V* y, V* out) {
        const auto entry = [&](Int k) -> const V& { return values[kPlaced ? places[k] : k]; };
        V even{}, odd{};
        Int k = begin;
        for (; k + 1 < end; k += 2) {
            const Int i0 = rows[k], i1 = rows[k + 1];
            const V a0 = entry(k), a1 = entry(k + 1);
            even = fma(a0, y[i0], even);
            odd = fma(a1, y[i1], odd);
            out[i0] = fma(a0, xj, out[i0]);
            out[i1] = fma(a1, xj, out[i1]);
        }
        if (k < end) {
            even = fma(entry(k), y[rows[k]], even);
            out[rows[k]] = fma(entry(k), xj, out[rows[k]]);
        }
        return even + odd;
    }

    static void widen(const V& norm, V& largest, V& smallest) {
        largest = max(norm, largest);
        smallest = select(norm > 0.0, min(norm, smallest), smallest);
    }

    // The power of two nearest below norm^(-1/2); 1 for zero.
    static V inverse_root(const V& norm) {
        // -(e - 1023) / 2 + 1023, e the biased exponent.
        const Bits<W> e = biased_exponent<W>(norm);
        const Bits<W> half = (3 * 1023 + 1 - e) >> 1;
        return select(norm > 0.0, power_of_two<W>(half), broadcast<W>(1.0));
    }

    static void norms(const Plan& plan, const Workspace<W>& w, const V* d, const V* e, V* column, V* row) {
        const plan::Pattern& p = plan.pattern;
        const V *const P = w.numbers, *const A = w.numbers + p.A_start();
        for (Int j = 0; j < p.n; ++j) column[j] = V{};
        for (Int i = 0; i < p.m; ++i) row[i] = V{};
        for (Int j = 0; j < p.n; ++j) {
            V largest = column[j];
            for (Int k = p.P_indptr[j]; k < p.P_indptr[j + 1]; ++k) {
                const Int i = p.P_rows[k];
                const V size = abs(P[k]) * (d[i] * d[j]);
                column[i] = max(size, column[i]);
                largest = max(size, largest);
            }
            for (Int k = p.A_indptr[j]; k < p.A_indptr[j + 1]; ++k) {
                const Int i = p.A_rows[k];
                const V size = abs(A[k]) * (e[i] * d[j]);
                row[i] = max(size, row[i]);
                largest = max(size, largest);
            }
            column[j] = max(largest, column[j]);
        }
        for (const plan::ExpandedBlock& cone : plan.kkt.expanded) level(cone.dim, row + cone.row);
        for (const plan::SemidefiniteBlock& cone : plan.kkt.semidefinite) level(cone.dim, row + cone.row);
    }

    // The rows of a cone that is not a product share one scale.
    static void level(Int dim, V* row) {
        V largest{};
        for (Int i = 0; i < dim; ++i) largest = max(row[i], largest);
        for (Int i = 0; i < dim; ++i) row[i] = largest;
    }
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
