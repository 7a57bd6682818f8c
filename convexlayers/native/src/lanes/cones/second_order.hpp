// The second-order cone {(t, x): |x| <= t} of dimension at least 2. With u a unit vector and e+- = (1, +-u) / sqrt 2 its
// three kinds of H are of the form
//
//     H = rest (I - e+e+' - e-e-') + plus e+e+' + minus e-e-'.
//
// Nesterov-Todd (Andersen, Roos, Terlaky, "On implementing a primal-dual interior-point method for conic quadratic
// optimization", 2003): s^ = s / sqrt(s'Js), z^ = z / sqrt(z'Jz), w = (s^ + J z^) / |s^ + J z^|_J, eta^2 =
// sqrt(s'Js / z'Jz), W'W = eta^2 (2 w w' - J): eigenvalues eta^2 (1, a^2, a^-2), a = w_0 + |w_1|, u = w_1 / |w_1|.
// Derivative of the projection at v = (t, x): u = x / |x|, mu = (step(t + |x|), step(t - |x|)) along e+-, and
// (t + |x|) / 2|x| on the complement where t + |x| > 0 > t - |x|.
#pragma once

#include "lanes/cones/spectrum.hpp"
#include "plan/program.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

using plan::Int;

template <int W>
struct SecondOrderCone {
    using V = Vec<W>;
    using M = Mask<W>;
    using H = Spectrum<W>;

    static V norm(const V* a, Int count) { return sqrt(dot(a, a, count)); }

    // H and u (from its second entry on) at (s, z); x: scratch.
    static void scale(Int dim, const V* s, const V* z, H& out, V* u, V* x, const M& first, const M& exact) {
        const V one = broadcast<W>(1.0);
        const V root_s = sqrt(determinant(dim, s)), root_z = sqrt(determinant(dim, z));
        const V inverse_s = one / root_s, inverse_z = one / root_z;
        const V cosine = dot(s, z, dim) * (inverse_s * inverse_z);
        const V factor = 1.0 / sqrt(2.0 * (1.0 + cosine));
        for (Int i = 1; i < dim; ++i) {
            const V scaling = (s[i] * inverse_s - z[i] * inverse_z) * factor;
            x[i] = select(first, V{}, select(exact, s[i] - z[i], scaling));
        }
        const V length = direction(x + 1, dim - 1, u + 1);
        const V a = fma(s[0], inverse_s, z[0] * inverse_z) * factor + length;
        const V eta = root_s * inverse_z, square = a * a;
        const H limit = projection_spectrum(s[0] - z[0], length);
        out.mu = limit.mu;
        out.rest = select(first, one, select(exact, limit.rest, eta));
        out.plus = select(first, one, select(exact, limit.plus, eta * square));
        out.minus = select(first, one, select(exact, limit.minus, eta / square));
    }

    static void apply(Int dim, const H& h, const V* u, const V* in, V* out) {
        const V along = dot(u + 1, in + 1, dim - 1);
        const V plus = (in[0] + along) * h.plus, minus = (in[0] - along) * h.minus;
        const V shift = fnma(h.rest, along, 0.5 * (plus - minus));
        for (Int i = 1; i < dim; ++i) out[i] = fma(u[i], shift, h.rest * in[i]);
        out[0] = 0.5 * (plus + minus);
    }

    // W (lambda \ (weight W^-1 ds o W dz - sigma mu e)), lambda = W z; lambda, a: scratch.
    static void corrector(Int dim, const H& h, const V* u, const V* z, const V* ds, const V* dz, const V& weight,
                          const V& sigma_mu, V* out, V* lambda, V* a) {
        const H root{sqrt(h.rest), sqrt(h.plus), sqrt(h.minus), V{}};
        const H inverse{1.0 / root.rest, 1.0 / root.plus, 1.0 / root.minus, V{}};
        apply(dim, root, u, z, lambda);
        apply(dim, inverse, u, ds, a);
        apply(dim, root, u, dz, out);
        jordan_product(dim, a, out);
        for (Int i = 0; i < dim; ++i) a[i] = weight * a[i];
        a[0] = a[0] - sigma_mu;
        jordan_divide(dim, lambda, a);
        apply(dim, root, u, a, out);
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

private:
    static V dot(const V* a, const V* b, Int count) {
        V sum{};
        for (Int i = 0; i < count; ++i) sum = fma(a[i], b[i], sum);
        return sum;
    }

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
        const V scale = 1.0 / select(nonzero, largest, broadcast<W>(1.0));
        V squares{};
        for (Int i = 0; i < count; ++i) {
            u[i] = x[i] * scale;
            squares = fma(u[i], u[i], squares);
        }
        const V length = sqrt(squares);
        const V inverse = 1.0 / select(nonzero, length, broadcast<W>(1.0));
        for (Int i = 0; i < count; ++i) u[i] = u[i] * inverse;
        u[0] = select(nonzero, u[0], broadcast<W>(1.0));
        return length * largest;
    }

    // M (I - M)^-1 at v = (t, x), clipped. Where v lies on the boundary the smallest eigenvalue is that of one side.
    static H projection_spectrum(const V& t, const V& length) {
        const V upper = t + length, lower = t - length, one = broadcast<W>(1.0);
        const M inside = (upper > 0.0) & (lower >= 0.0), outside = negate<W>(upper > 0.0);
        const M mixed = negate<W>(inside | outside);
        const V ratio = upper / select(mixed, -lower, one), mu = upper / (2.0 * select(mixed, length, one));
        H out = curved_spectrum<W>(inside, outside, ratio, mu);
        out.minus = select(inside & (lower == 0.0), V{}, out.minus);
        return out;
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
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
