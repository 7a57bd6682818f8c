// The cones of a program: projection, scaling, steps and correctors, and their block of the matrix.
//
// The matrix H of a cone is the Nesterov-Todd W'W in an interior-point step, the identity for the first point, and
// M (I - M)^-1, M = D Proj_K(s - z), clipped, for polishing and for the derivative. A lane decides which by its phase;
// the code that factors does not know.
//
// Second-order cone, d = (t, x): with u a unit vector and e+- = (1, +-u) / sqrt 2, all three are of the form
//
//     H = rest (I - e+e+' - e-e-') + plus e+e+' + minus e-e-'       (SecondOrderSpectrum)
//
// Nesterov-Todd (Andersen, Roos, Terlaky, "On implementing a primal-dual interior-point method for conic quadratic
// optimization", 2003): s^ = s / sqrt(s'Js), z^ = z / sqrt(z'Jz), w = (s^ + J z^) / |s^ + J z^|_J, eta^2 =
// sqrt(s'Js / z'Jz), W'W = eta^2 (2 w w' - J): eigenvalues eta^2 (1, a^2, a^-2), a = w_0 + |w_1|, u = w_1 / |w_1|.
// Derivative of the projection at v: u = x / |x|, mu = (step(t + |x|), step(t - |x|)) along e+-, and
// (t + |x|) / 2|x| on the complement where t + |x| > 0 > t - |x|.
#pragma once

#include "lanes/workspace.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

using plan::SecondOrderBlock;

// Stands for an infinite eigenvalue of H where it is the only one of its cone, and where it is not.
inline constexpr double kInfinite = 1e30;
inline constexpr double kLarge = 1e7;
// Between those two: the eigenvalue on the complement, and the smallest one as a share of it.
inline constexpr double kLargestRest = 1e5;
inline constexpr double kSmallestRest = 1e-7;
inline constexpr double kSmall = 1e-8;
inline constexpr double kHalfRoot = 0.70710678118654752440;

template <int W>
struct Cones {
    using V = Vec<W>;
    using M = Mask<W>;
    using Spectrum = SecondOrderSpectrum<W>;

    static double degree(const Plan& plan) {
        return static_cast<double>(plan.kkt.nonnegative_rows.size() + plan.kkt.second_order.size());
    }

    // ---------------------------------------------------------------------------------------------- H

    // H at (s, z); `first` marks lanes at their first point, `exact` those that want the derivative of the projection.
    static void scale(const Plan& plan, Workspace<W>& w, const M& first, const M& exact) {
        const V one = broadcast<W>(1.0);
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) w.H[i] = V{};
        for (const Int i : plan.kkt.nonnegative_rows) {
            w.inverse_s[i] = one / w.s[i];
            w.inverse_z[i] = one / w.z[i];
            const V limit = select(w.s[i] > w.z[i], broadcast<W>(kInfinite), V{});
            w.H[i] = select(first, one, select(exact, limit, w.s[i] * w.inverse_z[i]));
        }
        for (std::size_t c = 0; c < plan.kkt.second_order.size(); ++c)
            scale(plan.kkt.second_order[c], w, w.spectra[c], first, exact);
    }

    // out = H in, in the form that keeps small eigenvalues exact.
    static void multiply(const Plan& plan, const Workspace<W>& w, const V* in, V* out) {
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) out[i] = V{};
        for (const Int i : plan.kkt.nonnegative_rows) out[i] = w.H[i] * in[i];
        for (std::size_t c = 0; c < plan.kkt.second_order.size(); ++c) {
            const SecondOrderBlock& cone = plan.kkt.second_order[c];
            apply(cone.dim, w.spectra[c], w.u + cone.row, in + cone.row, out + cone.row);
        }
    }

    // P + eps I and -(H + eps I), with the vectors of expanded blocks, into the arrays of the factorization.
    static void write(const Plan& plan, Workspace<W>& w) {
        const Int n = plan.n();
        const V eps = w.eps;
        for (Int j = 0; j < n; ++j) {
            const Int source = plan.kkt.P_diagonal[j];
            w.panels[plan.diagonal[j]] = source < 0 ? eps : w.numbers[source] + eps;
        }
        const Int* const rows = plan.diagonal.data() + n;
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) w.panels[rows[i]] = -eps;
        for (const Int i : plan.kkt.nonnegative_rows) w.panels[rows[i]] = -(w.H[i] + eps);
        const Int *v = plan.v_targets.data(), *u = plan.u_targets.data();
        for (std::size_t c = 0; c < plan.kkt.second_order.size(); ++c) {
            const SecondOrderBlock& cone = plan.kkt.second_order[c];
            write_expanded(plan, cone, w, w.spectra[c], v, u);
            v += cone.dim, u += cone.dim;
        }
    }

    // ------------------------------------------------------------------------------- interior-point steps

    // The first point: s and z moved into the interior of the cone along its axis, by lanes.
    static void center(const Plan& plan, V* s, const M& lanes) {
        V margin = broadcast<W>(kInfinite);
        for (const Int i : plan.kkt.nonnegative_rows) margin = min(s[i], margin);
        for (const SecondOrderBlock& cone : plan.kkt.second_order)
            margin = min(s[cone.row] - norm(s + cone.row + 1, cone.dim - 1), margin);
        const V shift = select(lanes & (margin < 1e-4), 1.0 - margin, V{});
        for (const Int i : plan.kkt.nonnegative_rows) s[i] = s[i] + shift;
        for (const SecondOrderBlock& cone : plan.kkt.second_order) s[cone.row] = s[cone.row] + shift;
    }

    // 1 / largest step to the boundary along (ds, dz): the largest of the rates at which s and z leave their cones.
    static V exit_rate(const Plan& plan, const Workspace<W>& w, const V* ds, const V* dz) {
        V rate{};
        for (const Int i : plan.kkt.nonnegative_rows)
            rate = max(max(-(ds[i] * w.inverse_s[i]), -(dz[i] * w.inverse_z[i])), rate);
        for (const SecondOrderBlock& cone : plan.kkt.second_order) {
            rate = max(exit_rate(cone.dim, w.s + cone.row, ds + cone.row), rate);
            rate = max(exit_rate(cone.dim, w.z + cone.row, dz + cone.row), rate);
        }
        return rate;
    }

    // d_s of ds + H dz = -d_s for the predictor: s itself.
    static void predictor(const Plan& plan, const Workspace<W>& w, V* target) {
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) target[i] = V{};
        for (Int i = plan.pattern.cones.zero; i < plan.m(); ++i) target[i] = w.s[i];
    }

    // d_s = s + W (lambda \ (weight W^-1 ds_a o W dz_a - sigma mu e)), lambda = W z, for the predictor's ds_a, dz_a.
    static void corrector(const Plan& plan, const Workspace<W>& w, const V* ds, const V* dz, const V& weight,
                          const V& sigma_mu, V* target) {
        for (const Int i : plan.kkt.nonnegative_rows)
            target[i] = fma(fma(weight * ds[i], dz[i], -sigma_mu), w.inverse_z[i], w.s[i]);
        for (std::size_t c = 0; c < plan.kkt.second_order.size(); ++c) {
            const SecondOrderBlock& cone = plan.kkt.second_order[c];
            const Int row = cone.row;
            V *const lambda = w.out_m + row, *const a = w.jordan + row, *const b = target + row;
            const Spectrum root = power(w.spectra[c], 1), inverse = power(w.spectra[c], -1);
            apply(cone.dim, root, w.u + row, w.z + row, lambda);
            apply(cone.dim, inverse, w.u + row, ds + row, a);
            apply(cone.dim, root, w.u + row, dz + row, b);
            jordan_product(cone.dim, a, b);
            for (Int i = 0; i < cone.dim; ++i) a[i] = weight * a[i];
            a[0] = a[0] - sigma_mu;
            jordan_divide(cone.dim, lambda, a);
            apply(cone.dim, root, w.u + row, a, b);
            for (Int i = 0; i < cone.dim; ++i) b[i] = w.s[row + i] + b[i];
        }
    }

    // -------------------------------------------------------------------------------------- projections

    // s = Proj_K(v), z = s - v for v given in s, by lanes.
    static void project(const Plan& plan, V* s, V* z, const M& lanes) {
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) {
            z[i] = select(lanes, -s[i], z[i]);
            s[i] = select(lanes, V{}, s[i]);
        }
        for (const Int i : plan.kkt.nonnegative_rows) {
            const V v = s[i];
            s[i] = select(lanes, max(v, V{}), v);
            z[i] = select(lanes, max(-v, V{}), z[i]);
        }
        for (const SecondOrderBlock& cone : plan.kkt.second_order)
            project(cone.dim, s + cone.row, z + cone.row, lanes);
    }

    // ds = M dv, dz = -(I - M) dv for dv given in ds, M = D Proj_K as H describes it (lanes marked exact in `scale`).
    static void split(const Plan& plan, const Workspace<W>& w, V* ds, V* dz) {
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) {
            dz[i] = -ds[i];
            ds[i] = V{};
        }
        for (const Int i : plan.kkt.nonnegative_rows) {
            const M positive = w.H[i] > 0.0;
            const V dv = ds[i];
            ds[i] = select(positive, dv, V{});
            dz[i] = select(positive, V{}, -dv);
        }
        for (std::size_t c = 0; c < plan.kkt.second_order.size(); ++c) {
            const SecondOrderBlock& cone = plan.kkt.second_order[c];
            const Spectrum& H = w.spectra[c];
            // The two outer eigenvalues of M are 0 or 1.
            const V one = broadcast<W>(1.0);
            const Spectrum mu{H.mu, select(H.plus > 0.0, one, V{}), select(H.minus >= kInfinite, one, V{}), V{}};
            V *const s = ds + cone.row, *const z = dz + cone.row;
            apply(cone.dim, mu, w.u + cone.row, s, z);
            for (Int i = 0; i < cone.dim; ++i) {
                const V dv = s[i];
                s[i] = z[i];
                z[i] = z[i] - dv;
            }
        }
    }

private:
    static V dot(const V* a, const V* b, Int count) {
        V sum{};
        for (Int i = 0; i < count; ++i) sum = fma(a[i], b[i], sum);
        return sum;
    }

    static V norm(const V* a, Int count) { return sqrt(dot(a, a, count)); }

    static V determinant(Int dim, const V* s) {
        const V length = norm(s + 1, dim - 1);
        return (s[0] - length) * (s[0] + length);
    }

    // u = x / |x|, the first axis where x = 0; returns |x|.
    static V direction(const V* x, Int count, V* u) {
        V largest{};
        for (Int i = 0; i < count; ++i) largest = max(abs(x[i]), largest);
        const M nonzero = largest > 0.0;
        // Division by the largest entry first: the norms of tiny and huge vectors do not under- or overflow.
        const V unit = 1.0 / select(nonzero, largest, broadcast<W>(1.0));
        V squares{};
        for (Int i = 0; i < count; ++i) {
            u[i] = x[i] * unit;
            squares = fma(u[i], u[i], squares);
        }
        const V length = sqrt(squares);
        const V inverse = 1.0 / select(nonzero, length, broadcast<W>(1.0));
        for (Int i = 0; i < count; ++i) u[i] = u[i] * inverse;
        u[0] = select(nonzero, u[0], broadcast<W>(1.0));
        return length * largest;
    }

    static void apply(Int dim, const Spectrum& H, const V* u, const V* in, V* out) {
        const V along = dot(u + 1, in + 1, dim - 1);
        const V plus = (in[0] + along) * H.plus, minus = (in[0] - along) * H.minus;
        const V shift = fnma(H.rest, along, 0.5 * (plus - minus));
        for (Int i = 1; i < dim; ++i) out[i] = fma(u[i], shift, H.rest * in[i]);
        out[0] = 0.5 * (plus + minus);
    }

    // H^(1/2) or H^(-1/2).
    static Spectrum power(const Spectrum& H, int sign) {
        const Spectrum root{sqrt(H.rest), sqrt(H.plus), sqrt(H.minus), V{}};
        if (sign > 0) return root;
        return {1.0 / root.rest, 1.0 / root.plus, 1.0 / root.minus, V{}};
    }

    static void scale(const SecondOrderBlock& cone, Workspace<W>& w, Spectrum& H, const M& first, const M& exact) {
        const V *const s = w.s + cone.row, *const z = w.z + cone.row;
        V* const u = w.u + cone.row;
        const V one = broadcast<W>(1.0);
        const V root_s = sqrt(determinant(cone.dim, s)), root_z = sqrt(determinant(cone.dim, z));
        const V inverse_s = one / root_s, inverse_z = one / root_z;
        const V cosine = dot(s, z, cone.dim) * (inverse_s * inverse_z);
        const V factor = 1.0 / sqrt(2.0 * (1.0 + cosine));
        V* const x = w.out_m + cone.row;
        for (Int i = 1; i < cone.dim; ++i) {
            const V scaling = (s[i] * inverse_s - z[i] * inverse_z) * factor;
            x[i] = select(first, V{}, select(exact, s[i] - z[i], scaling));
        }
        const V length = direction(x + 1, cone.dim - 1, u + 1);
        const V a = fma(s[0], inverse_s, z[0] * inverse_z) * factor + length;
        const V eta = root_s * inverse_z, square = a * a;
        const Spectrum limit = projection_spectrum(s[0] - z[0], length);
        H.mu = limit.mu;
        H.rest = select(first, one, select(exact, limit.rest, eta));
        H.plus = select(first, one, select(exact, limit.plus, eta * square));
        H.minus = select(first, one, select(exact, limit.minus, eta / square));
    }

    // M (I - M)^-1 at v = (t, x), clipped.
    static Spectrum projection_spectrum(const V& t, const V& length) {
        const V upper = t + length, lower = t - length;
        const M inside = (upper > 0.0) & (lower >= 0.0), mixed = (upper > 0.0) & (lower < 0.0);
        const V infinite = broadcast<W>(kInfinite), large = broadcast<W>(kLarge);
        const V ratio = upper / select(mixed, -lower, broadcast<W>(1.0));
        const V clipped = min(max(ratio, broadcast<W>(kSmallestRest)), broadcast<W>(kLargestRest));
        const V rest = select(inside, infinite, select(mixed, clipped, V{}));
        const V plus = select(inside, infinite, select(upper > 0.0, large * max(rest, broadcast<W>(1.0)), V{}));
        const V minus = select(inside & (lower > 0.0), infinite, select(mixed, kSmall * rest, V{}));
        const V mu = select(inside, broadcast<W>(1.0), select(mixed, upper / (2.0 * select(mixed, length, large)), V{}));
        return {rest, plus, minus, mu};
    }

    static void write_expanded(const Plan& plan, const SecondOrderBlock& cone, Workspace<W>& w, const Spectrum& H,
                               const Int* v_targets, const Int* u_targets) {
        const Int first = plan.n() + cone.row;
        const V* const u = w.u + cone.row;
        // -(rest I + (plus - rest) e+e+' - (rest - minus) e-e-').
        const V along_u = sqrt(max(H.plus - H.rest, V{})) * kHalfRoot;
        const V along_v = sqrt(max(H.rest - H.minus, V{})) * kHalfRoot;
        w.panels[u_targets[0]] = along_u;
        w.panels[v_targets[0]] = along_v;
        for (Int i = 1; i < cone.dim; ++i) {
            w.panels[u_targets[i]] = along_u * u[i];
            w.panels[v_targets[i]] = -(along_v * u[i]);
        }
        for (Int i = 0; i < cone.dim; ++i) w.panels[plan.diagonal[first + i]] = -(H.rest + w.eps);
        w.panels[plan.diagonal[cone.v_node]] = broadcast<W>(-1.0);
        w.panels[plan.diagonal[cone.u_node]] = broadcast<W>(1.0);
    }

    // With c + 2 b a + k a^2 = det(s + a ds) the smallest positive root is c / (-b + sqrt(b^2 - c k)), where that
    // denominator is positive; elsewhere s + a ds never leaves the cone.
    static V exit_rate(Int dim, const V* s, const V* ds) {
        const V c = determinant(dim, s);
        const V b = s[0] * ds[0] - dot(s + 1, ds + 1, dim - 1);
        const V k = ds[0] * ds[0] - dot(ds + 1, ds + 1, dim - 1);
        const V discriminant = b * b - c * k;
        const M meets = discriminant >= 0.0;
        return select(meets, (sqrt(max(discriminant, V{})) - b) / c, V{});
    }

    // a = a o b = (a'b, a_0 b_1 + b_0 a_1).
    static void jordan_product(Int dim, V* a, const V* b) {
        const V head = dot(a, b, dim), a0 = a[0], b0 = b[0];
        for (Int i = 1; i < dim; ++i) a[i] = fma(a0, b[i], b0 * a[i]);
        a[0] = head;
    }

    // a = lambda \ a: the x with lambda o x = a.
    static void jordan_divide(Int dim, const V* lambda, V* a) {
        const V head = (lambda[0] * a[0] - dot(lambda + 1, a + 1, dim - 1)) / determinant(dim, lambda);
        const V inverse = 1.0 / lambda[0];
        for (Int i = 1; i < dim; ++i) a[i] = fnma(head, lambda[i], a[i]) * inverse;
        a[0] = head;
    }

    static void project(Int dim, V* s, V* z, const M& lanes) {
        const V length = norm(s + 1, dim - 1);
        const V upper = s[0] + length, lower = s[0] - length;
        const V a = max(upper, V{}), b = max(lower, V{});
        // Inside the cone and inside its polar nothing is rounded.
        const M inside = lower >= 0.0, outside = upper <= 0.0;
        const V inverse = 1.0 / select(length > 0.0, length, broadcast<W>(1.0));
        const V share = 0.5 * (a - b) * inverse;
        for (Int i = 0; i < dim; ++i) {
            const V v = s[i];
            const V boundary = i == 0 ? 0.5 * (a + b) : share * v;
            const V projected = select(inside, v, select(outside, V{}, boundary));
            s[i] = select(lanes, projected, v);
            z[i] = select(lanes, projected - v, z[i]);
        }
    }
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
