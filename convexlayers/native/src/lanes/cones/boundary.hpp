// The exponential and the power cone: three dimensions and a smooth boundary. Both are given by a dual barrier
//
//     f*(z) = -log phi(z) - w_0 log |z_0| - w_1 log z_1 - w_2 log z_2,
//
//     exponential   K  = cl{(x, y, z): y exp(x / y) <= z, y > 0},   K* = cl{(u, v, w): -u exp(v / u) <= e w, u < 0},
//                   phi = v - u - u log(-w / u),                     w = (1, 0, 1)
//     power         K  = {x^a y^b >= |z|, x, y >= 0}, b = 1 - a,     K* = {(u / a)^a (v / b)^b >= |w|, u, v >= 0},
//                   phi = (u / a)^2a (v / b)^2b - w^2,               w = (b, a, 0)
//
// Scaling (Tuncel 2001; Dahl, Andersen, "A primal-dual interior-point algorithm for nonsymmetric exponential-cone
// optimization", 2022), in the form for three dimensions. With z~ the point where s = -D f*(z~), s~ = -D f*(z),
// mu = s'z / 3, mu~ = s~'z~ / 3, ds = s - mu s~, dz = z - mu z~, n orthogonal to z and z~, |n| = 1,
//
//     H = ss' / s'z + ds ds' / ds'dz + t nn',   t = mu |D2f*(z) - s~s~' / 3 - rr' / r'z~|_F,   r = D2f*(z) z~ - mu~ s~,
//
// has H z = s, H z~ = s~ and is close to mu D2f*(z), which stands in where z is nearly central (ds ~ 0).
//
// Corrector: s = -mu D f*(z) along the central path; differentiated twice, with H_f = D2f*(z) and the predictor's steps,
//
//     ds + H dz = -(s + sigma mu D f*(z) - 1/2 D3f*(z)[H_f^-1 ds_a, dz_a]).
//
// Projection and its derivative: convexlayers/cones/exponential.py, power.py and boundary.py have the derivations. All
// three kinds of H have an orthonormal basis (plus, rest, minus) with eigenvalues in this order, so that the block of the
// matrix has the form that a second-order cone's has (plan/kkt.hpp).
#pragma once

#include "lanes/cones/spectrum.hpp"
#include "lanes/dense.hpp"
#include "lanes/functions.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

template <int W>
struct Three {
    Vec<W> v[3];
    Vec<W>& operator[](int i) { return v[i]; }
    const Vec<W>& operator[](int i) const { return v[i]; }
};

template <int W>
inline Three<W> load_three(const Vec<W>* v) {
    return {v[0], v[1], v[2]};
}

template <int W>
inline Vec<W> dot(const Three<W>& a, const Three<W>& b) {
    return fma(a[0], b[0], fma(a[1], b[1], a[2] * b[2]));
}

template <int W>
inline Three<W> combine(const Vec<W>& a, const Three<W>& x, const Vec<W>& b, const Three<W>& y) {
    return {fma(a, x[0], b * y[0]), fma(a, x[1], b * y[1]), fma(a, x[2], b * y[2])};
}

template <int W>
inline Three<W> scaled(const Vec<W>& a, const Three<W>& x) {
    return {a * x[0], a * x[1], a * x[2]};
}

template <int W>
inline Three<W> cross(const Three<W>& a, const Three<W>& b) {
    return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

// x / |x| without overflow; zero stays zero.
template <int W>
inline Three<W> unit(const Three<W>& x) {
    const Vec<W> largest = max(max(abs(x[0]), abs(x[1])), abs(x[2])), one = broadcast<W>(1.0);
    const Three<W> y = scaled<W>(1.0 / select(largest > 0.0, largest, one), x);
    const Vec<W> norm = sqrt(dot<W>(y, y));
    return scaled<W>(1.0 / select(norm > 0.0, norm, one), y);
}

template <int W>
inline Three<W> select_three(const Mask<W>& mask, const Three<W>& yes, const Three<W>& no) {
    return {select(mask, yes[0], no[0]), select(mask, yes[1], no[1]), select(mask, yes[2], no[2])};
}

// Value and derivatives of a dual barrier at z.
template <int W>
class DualBarrier {
    using V = Vec<W>;
    using T = Three<W>;
    using F = Functions<W>;

public:
    // exponent: of a power cone, 0 for the exponential cone.
    DualBarrier(double exponent, const T& z) : power_(exponent > 0), a_(exponent), b_(1.0 - exponent), z_(z) {
        // The coordinate without a logarithm may be zero.
        for (int i = 0; i < 3; ++i) inverse_[i] = i == (power_ ? 2 : 1) ? V{} : 1.0 / z[i];
        if (power_) {
            const V log_bound = 2.0 * (a_ * F::log(z[0] / a_) + b_ * F::log(z[1] / b_));
            bound_ = F::exp(log_bound);
            phi_ = bound_ - z[2] * z[2];
            first_ = {2.0 * a_ * inverse_[0], 2.0 * b_ * inverse_[1], V{}};
            gradient_ = {bound_ * first_[0], bound_ * first_[1], -2.0 * z[2]};
            weights_[0] = b_, weights_[1] = a_, weights_[2] = 0.0;
        } else {
            const V logarithm = F::log(-z[2] * inverse_[0]);
            phi_ = z[1] - z[0] - z[0] * logarithm;
            gradient_ = {-logarithm, broadcast<W>(1.0), -z[0] * inverse_[2]};
            weights_[0] = 1.0, weights_[1] = 0.0, weights_[2] = 1.0;
        }
        inverse_phi_ = 1.0 / phi_;
    }

    T gradient() const {
        T out;
        for (int i = 0; i < 3; ++i) out[i] = -(gradient_[i] * inverse_phi_ + weights_[i] * inverse_[i]);
        return out;
    }

    // D2f*(z) v = grad phi (grad phi'v) / phi^2 - D2phi v / phi + W z^-2 v.
    T hessian(const T& v) const {
        const V along = dot<W>(gradient_, v) * inverse_phi_ * inverse_phi_;
        const T curved = phi_hessian(v);
        T out;
        for (int i = 0; i < 3; ++i)
            out[i] = fma(gradient_[i], along, weights_[i] * inverse_[i] * inverse_[i] * v[i] - curved[i] * inverse_phi_);
        return out;
    }

    // D3f*(z)[u, v].
    T third(const T& u, const T& v) const {
        const V gu = dot<W>(gradient_, u) * inverse_phi_, gv = dot<W>(gradient_, v) * inverse_phi_;
        const T Hu = phi_hessian(u), Hv = phi_hessian(v), cubic = phi_third(u, v);
        const V huv = dot<W>(Hu, v) * inverse_phi_;
        T out;
        for (int i = 0; i < 3; ++i) {
            const V outer = gradient_[i] * (huv - 2.0 * gu * gv);
            const V mixed = fma(gu, Hv[i], gv * Hu[i]) - cubic[i];
            const V weight = weights_[i] * inverse_[i] * inverse_[i] * inverse_[i];
            out[i] = fma(outer + mixed, inverse_phi_, -2.0 * weight * u[i] * v[i]);
        }
        return out;
    }

    // Lower triangular L (row-major) with L L' = D2f*(z).
    void factor(V* L) const {
        V H[9];
        for (int j = 0; j < 3; ++j) {
            T e{};
            e[j] = broadcast<W>(1.0);
            const T column = hessian(e);
            for (int i = 0; i < 3; ++i) H[i * 3 + j] = column[i];
        }
        Dense<W>::cholesky(3, H, L);
    }

private:
    T phi_hessian(const T& v) const {
        if (power_) {
            const V along = dot<W>(first_, v);
            return {bound_ * (first_[0] * along - first_[0] * inverse_[0] * v[0]),
                    bound_ * (first_[1] * along - first_[1] * inverse_[1] * v[1]), -2.0 * v[2]};
        }
        const V ratio = z_[0] * inverse_[2];
        return {fma(inverse_[0], v[0], -inverse_[2] * v[2]), V{}, inverse_[2] * fma(ratio, v[2], -v[0])};
    }

    T phi_third(const T& u, const T& v) const {
        if (power_) {
            // exp(L), L = 2a log z_0 + 2b log z_1 + const: derivative of exp(L) (Lu Lv + Luv).
            const V Lu = dot<W>(first_, u), Lv = dot<W>(first_, v);
            V second[2], Luv{};
            for (int i = 0; i < 2; ++i) {
                second[i] = -first_[i] * inverse_[i];
                Luv = fma(second[i] * u[i], v[i], Luv);
            }
            T out{};
            for (int i = 0; i < 2; ++i) {
                const V inner = fma(second[i] * u[i], Lv, second[i] * v[i] * Lu);
                const V own = -2.0 * second[i] * inverse_[i] * u[i] * v[i];
                out[i] = bound_ * (fma(first_[i], fma(Lu, Lv, Luv), inner) + own);
            }
            return out;
        }
        const V w2 = inverse_[2] * inverse_[2];
        const V cross_term = fma(u[0], v[2], u[2] * v[0]);
        return {fma(w2 * u[2], v[2], -inverse_[0] * inverse_[0] * u[0] * v[0]), V{},
                w2 * fma(-2.0 * z_[0] * inverse_[2] * u[2], v[2], cross_term)};
    }

    bool power_;
    double a_, b_, weights_[3];
    T z_, inverse_, gradient_, first_{};
    V phi_, inverse_phi_, bound_{};
};

// Where a cone's three kinds of H are kept: eigenvalues in a Spectrum, eigenvectors in `basis` (plus | rest | minus).
template <int W>
struct BoundaryCone {
    using V = Vec<W>;
    using M = Mask<W>;
    using T = Three<W>;
    using F = Functions<W>;
    using H = Spectrum<W>;

    // The point with s = z = -D f*(z).
    static T center(double exponent) {
        if (exponent > 0)
            return {broadcast<W>(std::sqrt(1.0 + exponent)), broadcast<W>(std::sqrt(2.0 - exponent)), V{}};
        return {broadcast<W>(-1.051383945322714), broadcast<W>(0.556409619469370), broadcast<W>(1.258967884768947)};
    }

    // ------------------------------------------------------------------------------------ interior point

    // z~ with s = -D f*(z~), for s in the interior of K.
    static T shadow(double exponent, const T& s) {
        if (exponent > 0) return power_shadow(exponent, s);
        // With l = log(-w / u), the three equations leave q + log(1 + q) = log(z / y) - x / y for q = -1 / (u y).
        const V inverse = 1.0 / s[1], ratio = s[0] * inverse, delta = F::log(s[2] * inverse) - ratio;
        // Halley's method; the first guess is off by at most 9 %, and two steps take it to rounding.
        V q = max(delta - F::log1p(0.5 * delta), V{});
        for (int step = 0; step < 2; ++step) {
            const V bend = 1.0 / (1.0 + q), slope = 1.0 + bend, value = q + F::log1p(q) - delta;
            q = q - 2.0 * value * slope / fma(2.0 * slope, slope, value * bend * bend);
        }
        const V factor = 1.0 / q;
        return {-inverse * factor, inverse * factor * (2.0 * q - 1.0 + ratio), (1.0 + factor) / s[2]};
    }

    static void scale(double exponent, const V* s_in, const V* z_in, H& spectrum, V* basis) {
        const T s = load_three<W>(s_in), z = load_three<W>(z_in);
        const DualBarrier<W> barrier(exponent, z);
        const V sz = dot<W>(s, z), mu = sz * (1.0 / 3.0), zero{};
        const T near_s = scaled<W>(broadcast<W>(-1.0), barrier.gradient()), near_z = shadow(exponent, s);
        const V near_mu = dot<W>(near_s, near_z) * (1.0 / 3.0);
        const V one = broadcast<W>(1.0);
        const T ds = combine<W>(one, s, -mu, near_s), dz = combine<W>(one, z, -mu, near_z);
        const T image = barrier.hessian(near_z), r = combine<W>(one, image, -near_mu, near_s);
        const V ds_dz = dot<W>(ds, dz), r_z = dot<W>(r, near_z), n_own = dot<W>(near_z, image);
        const T n = unit<W>(cross<W>(z, near_z));
        V L[9];
        barrier.factor(L);
        const V t = mu * rank_one_size(L, near_s, r, r_z);
        const M usable = (abs(mu * near_mu - 1.0) > 1e-8) & (r_z > 1e-12 * n_own) & (ds_dz > 1e-12 * sz) & (sz > zero) &
                         (t > zero);
        // Rows of F with H = F'F.
        V F_rows[9];
        const V a = 1.0 / sqrt(max(sz, broadcast<W>(1e-300)));
        const V b = 1.0 / sqrt(select(usable, ds_dz, one)), c = sqrt(select(usable, t, one)), root = sqrt(mu);
        for (int i = 0; i < 3; ++i) {
            F_rows[i] = select(usable, a * s[i], root * L[i * 3]);
            F_rows[3 + i] = select(usable, b * ds[i], root * L[i * 3 + 1]);
            F_rows[6 + i] = select(usable, c * n[i], root * L[i * 3 + 2]);
        }
        decompose(F_rows, spectrum, basis);
    }

    // out = (plus p p' + rest r r' + minus m m') in, (p | r | m) the basis; in and out differ.
    static void apply(const V& plus, const V& rest, const V& minus, const V* basis, const V* in, V* out) {
        const T x = load_three<W>(in);
        const V a = plus * dot<W>(load_three<W>(basis), x), b = rest * dot<W>(load_three<W>(basis + 3), x);
        const V c = minus * dot<W>(load_three<W>(basis + 6), x);
        for (int i = 0; i < 3; ++i) out[i] = fma(a, basis[i], fma(b, basis[3 + i], c * basis[6 + i]));
    }

    // d_s of the corrector; see above.
    static void corrector(double exponent, const V* s, const V* z, const V* ds, const V* dz, const V& weight,
                          const V& sigma_mu, V* target) {
        const DualBarrier<W> barrier(exponent, load_three<W>(z));
        V L[9];
        barrier.factor(L);
        T u = load_three<W>(ds);
        for (int i = 0; i < 3; ++i) {
            for (int k = 0; k < i; ++k) u[i] = fnma(L[i * 3 + k], u[k], u[i]);
            u[i] = u[i] / L[i * 3 + i];
        }
        for (int i = 2; i >= 0; --i) {
            for (int k = i + 1; k < 3; ++k) u[i] = fnma(L[k * 3 + i], u[k], u[i]);
            u[i] = u[i] / L[i * 3 + i];
        }
        const T gradient = barrier.gradient(), cubic = barrier.third(u, load_three<W>(dz));
        const V half = -0.5 * weight;
        for (int i = 0; i < 3; ++i) target[i] = s[i] + fma(sigma_mu, gradient[i], half * cubic[i]);
    }

    // 1 / the largest step that stays inside both cones, at least `rate`: halfway to where it leaves, a few times.
    static V exit_rate(double exponent, const V* s, const V* z, const V* ds, const V* dz, const V& rate, const M& lanes) {
        V step = 1.0 / max(rate, broadcast<W>(1.0));
        const auto inside = [&](const V& a) {
            T p, d;
            for (int i = 0; i < 3; ++i) p[i] = fma(a, ds[i], s[i]), d[i] = fma(a, dz[i], z[i]);
            return in_primal(exponent, p) & in_dual(exponent, d);
        };
        const M left = lanes & negate<W>(inside(step));
        M outside = left;
        if (!any(outside)) return rate;
        V upper = step;
        for (int k = 0; k < 60 && any(outside); ++k) {
            upper = select(outside, step, upper);
            step = select(outside, 0.7 * step, step);
            outside = outside & negate<W>(inside(step));
        }
        for (int k = 0; k < 4; ++k) {
            const V middle = 0.5 * (step + upper);
            const M ok = inside(middle) & (upper > step);
            step = select(ok, middle, step);
            upper = select(ok, upper, max(middle, step));
        }
        return select(left, max(1.0 / step, rate), rate);
    }

    // -------------------------------------------------------------------------------------- projection

    // guess: of what `find_pair` searches for, near the solution.
    static void project(double exponent, V* s, V* z, const V& guess, const M& lanes) {
        const T v = load_three<W>(s);
        const Pair pair = find_pair(exponent, v, guess, lanes);
        T point = select_three<W>(pair.flat, pair.flat_point, pair.s);
        point = select_three<W>(pair.outside, T{}, point);
        for (int i = 0; i < 3; ++i) {
            const V projected = select(pair.inside, v[i], point[i]);
            s[i] = select(lanes, projected, v[i]);
            z[i] = select(lanes, projected - v[i], z[i]);
        }
    }

    // H = M (I - M)^-1 at v = s - z, clipped as `curved_spectrum` does.
    static void derivative(double exponent, const V* s, const V* z, H& spectrum, V* basis, const V& guess, const M& lanes) {
        const T v = {s[0] - z[0], s[1] - z[1], s[2] - z[2]};
        const Pair pair = find_pair(exponent, v, guess, lanes);
        // Orthonormal (s, z, s x z).
        const T first = unit<W>(pair.s_ray);
        T second = unit<W>(pair.z_ray);
        second = unit<W>(combine<W>(broadcast<W>(1.0), second, -dot<W>(first, second), first));
        const T third = cross<W>(first, second);
        const V bend = pair.curvature(exponent, third);
        const V one = broadcast<W>(1.0), zero{};
        // M = diag(1, mu, 0) in (first, third, second); on the flat parts the axes are the eigenvectors.
        const M flat = pair.flat, whole = pair.inside, none = pair.outside;
        const V mu = select(flat, pair.flat_mu, 1.0 / (1.0 + bend));
        const V ratio = select(flat, pair.flat_mu / max(1.0 - pair.flat_mu, broadcast<W>(1e-300)),
                               1.0 / max(bend, broadcast<W>(1e-300)));
        spectrum = curved_spectrum<W>(whole, none, ratio, mu);
        const T axis_plus = pair.flat_plus, axis_minus = pair.flat_minus, axis_rest{zero, zero, one};
        const T plus = select_three<W>(flat | whole | none, axis_plus, first);
        const T rest = select_three<W>(flat | whole | none, axis_rest, third);
        const T minus = select_three<W>(flat | whole | none, axis_minus, second);
        for (int i = 0; i < 3; ++i) basis[i] = plus[i], basis[3 + i] = rest[i], basis[6 + i] = minus[i];
    }

    // What `find_pair` searches for, from s = a p and z = c d: of the larger of the two, which is the more accurate.
    static V find_guess(double exponent, const V* s, const V* z) {
        const V one = broadcast<W>(1.0);
        const V height_s = abs(s[2]), height_z = abs(z[2]);
        if (exponent > 0) {
            const M defined = (height_s > 0.0) & (height_z > 0.0);
            return F::log(select(defined, height_s, one)) - F::log(select(defined, height_z, one));
        }
        const V size_s = max(max(abs(s[0]), abs(s[1])), height_s), size_z = max(max(abs(z[0]), abs(z[1])), height_z);
        const V own = select(size_s < size_z, 1.0 - z[1] / select(z[0] < 0.0, z[0], -one), s[0] / select(s[1] > 0.0, s[1], one));
        return own;
    }

private:
    // What a point v = s - z projects to.
    struct Pair {
        M inside, outside, flat;     // v in K, in -K*, where the projection keeps to the axes; in this order
        T s{}, s_ray{}, z_ray{};     // elsewhere: s, and directions of s and z
        V scale_s{}, scale_z{}, r{};
        T flat_point{}, flat_plus{}, flat_minus{};
        V flat_mu{};

        // k h of convexlayers/cones/boundary.py: the third eigenvalue is 1 / (1 + k h).
        V curvature(double exponent, const T& w) const {
            if (exponent > 0) {
                const V d = w[0] / s[0] - w[1] / s[1];
                return scale_z * exponent * (1.0 - exponent) * scale_s * d * d;
            }
            const V d = w[0] - r * w[1], kh = scale_z * d * d;
            return select(kh > 0.0, kh / scale_s, kh);
        }
    };

    // |D2f*(z) - s~s~' / 3 - rr' / r'z~|_F, D2f*(z) = LL'.
    static V rank_one_size(const V* L, const T& s, const T& r, const V& r_z) {
        const V inverse = 1.0 / select(r_z > 0.0, r_z, broadcast<W>(1.0));
        V sum{};
        for (int i = 0; i < 3; ++i)
            for (int j = 0; j < 3; ++j) {
                V entry = -fma(s[i] * (1.0 / 3.0), s[j], r[i] * inverse * r[j]);
                for (int k = 0; k < 3; ++k) entry = fma(L[i * 3 + k], L[j * 3 + k], entry);
                sum = fma(entry, entry, sum);
            }
        return sqrt(sum);
    }

    // Eigenvalues and eigenvectors of F'F by the rows of F, in descending order: one-sided Jacobi, as Dense has it, in
    // registers.
    static void decompose(const V* rows, H& spectrum, V* basis) {
        T f[3] = {load_three<W>(rows), load_three<W>(rows + 3), load_three<W>(rows + 6)};
        M open = negate<W>(no_lane<W>());
        for (int sweep = 0; sweep < Dense<W>::kMostSweeps && any(open); ++sweep)
            open = open & (turn(open, f[0], f[1]) | turn(open, f[0], f[2]) | turn(open, f[1], f[2]));
        V norms[3];
        for (int i = 0; i < 3; ++i) norms[i] = dot<W>(f[i], f[i]);
        sort(0, 1, norms, f), sort(1, 2, norms, f), sort(0, 1, norms, f);
        for (int i = 0; i < 3; ++i) {
            const V inverse = 1.0 / sqrt(norms[i]);
            for (int k = 0; k < 3; ++k) basis[3 * i + k] = f[i][k] * inverse;
        }
        spectrum = {norms[1], norms[0], norms[2], V{}};
    }

    // Makes two rows orthogonal, by lanes; returns those in which they were far from it.
    static M turn(const M& lanes, T& a, T& b) {
        const V alpha = dot<W>(a, a), beta = dot<W>(b, b), gamma = dot<W>(a, b);
        const V squared = gamma * gamma, sizes = alpha * beta;
        const M needed = lanes & (squared > Dense<W>::kParallel * sizes);
        V c, s;
        Dense<W>::angle(needed, beta - alpha, gamma, c, s);
        for (int k = 0; k < 3; ++k) {
            const V old = a[k];
            a[k] = fnma(s, b[k], c * old);
            b[k] = fma(s, old, c * b[k]);
        }
        return squared > Dense<W>::kNearlyParallel * sizes;
    }

    // Puts the larger of two first.
    static void sort(int i, int j, V* norms, T* f) {
        const M swap = norms[i] < norms[j];
        exchange(swap, norms[i], norms[j]);
        for (int k = 0; k < 3; ++k) exchange(swap, f[i][k], f[j][k]);
    }

    static void exchange(const M& mask, V& a, V& b) {
        const V old = a;
        a = select(mask, b, a);
        b = select(mask, old, b);
    }

    static M in_primal(double a, const T& s) {
        if (a > 0) {
            const M quadrant = (s[0] > 0.0) & (s[1] > 0.0);
            return quadrant & (a * F::log(s[0]) + (1.0 - a) * F::log(s[1]) > F::log(abs(s[2])));
        }
        return (s[1] > 0.0) & (s[2] > 0.0) & (s[1] * F::log(s[2] / s[1]) > s[0]);
    }

    static M in_dual(double a, const T& z) {
        if (a > 0) {
            const M quadrant = (z[0] > 0.0) & (z[1] > 0.0);
            return quadrant & (a * F::log(z[0] / a) + (1.0 - a) * F::log(z[1] / (1.0 - a)) > F::log(abs(z[2])));
        }
        return (z[0] < 0.0) & (z[2] > 0.0) & (z[1] - z[0] - z[0] * F::log(-z[2] / z[0]) > 0.0);
    }

    // With r = Phi / phi - 1 (DualBarrier): z~ = ((1 + a + 2 a r) / x, (1 + b + 2 b r) / y, -2 r / z), and
    // log 4r(1 + r) - 2 log |z| = 2a log(z~_0 / a) + 2b log(z~_1 / b), which increases in log r.
    static T power_shadow(double a, const T& s) {
        const double b = 1.0 - a;
        const V height = max(abs(s[2]), broadcast<W>(1e-140)), log_height = F::log(height);
        const V x = 1.0 / s[0], y = 1.0 / s[1];
        const V known = 2.0 * log_height - std::log(4.0) - 2.0 * (a * F::log(s[0] * a) + b * F::log(s[1] * b));
        const auto excess = [&](const V& t) {
            const V r = F::exp(t);
            const V right = a * F::log((1.0 + a) + 2.0 * a * r) + b * F::log((1.0 + b) + 2.0 * b * r);
            return t + F::log1p(r) - known - 2.0 * right;
        };
        const V limit = 2.0 * (a * F::log(s[0]) + b * F::log(s[1]) - log_height);
        const V first = known + 2.0 * (a * std::log(1.0 + a) + b * std::log(1.0 + b));
        const V last = max(F::log(3.0 / max(limit, broadcast<W>(1e-300))), first + 1.0);
        const V r = F::exp(F::increasing_root(excess, first - 1e-6, last));
        const V third = 2.0 * r / height;
        return {((1.0 + a) + 2.0 * a * r) * x, ((1.0 + b) + 2.0 * b * r) * y, select(s[2] > 0.0, -third, third)};
    }

    // The multiples a of p(r) and c of d(r), from the first two of the three equations; returns 1 / D.
    static V coefficients(const T& v, const V& r, V& a, V& c) {
        const V inverse = 1.0 / fma(r, r, 1.0 - r);
        a = fma(r - 1.0, v[0], v[1]) * inverse;
        c = fnma(r, v[1], v[0]) * inverse;
        return inverse;
    }

    // The root of the third equation, a exp(r) - c exp(-r) = v_2, whose left side increases between lower and upper:
    // Newton's method, and bisection where a step would leave the bracket or is not half of the last one: far out, where
    // the exponential is what counts, Newton's steps have length one.
    static V exponential_root(const T& v, V lower, V upper, const V& guess) {
        V r = select((guess > lower) & (guess < upper), guess, 0.5 * (lower + upper));
        V last = upper - lower;
        M done = negate<W>(upper > lower);
        for (int step = 0; step < kMostRootSteps && !all(done); ++step) {
            V a, c;
            const V inverse = coefficients(v, r, a, c), bend = fma(broadcast<W>(2.0), r, broadcast<W>(-1.0)) * inverse;
            const V da = fnma(a, bend, v[0] * inverse), dc = -fma(c, bend, v[1] * inverse);
            // Both divided by exp(|r|), so that nothing overflows.
            const V decay = F::exp(-abs(r)), square = decay * decay;
            const M left = r < 0.0;
            const V up = select(left, square, broadcast<W>(1.0)), down = select(left, broadcast<W>(1.0), square);
            const V value = fma(a, up, -fma(c, down, v[2] * decay));
            const V slope = fma(a + da, up, (c - dc) * down);
            lower = select(value < 0.0, r, lower);
            upper = select(value < 0.0, upper, r);
            const V newton = r - value / slope;
            const V rounding = kRootRounding * max(abs(r), broadcast<W>(1.0)), reach = max(0.5 * last, 1e6 * rounding);
            const M inside = (slope > 0.0) & (newton >= lower) & (newton <= upper) & (abs(newton - r) <= reach);
            const V next = select(inside, newton, 0.5 * (lower + upper)), length = abs(next - r);
            const M still = (length < 1e6 * rounding) & (length >= 0.5 * last);
            const M finished = done | still | negate<W>(length > rounding);
            r = select(done, r, next);
            last = length;
            done = finished;
        }
        return r;
    }

    static Pair find_pair(double exponent, const T& v, const V& guess, const M& lanes) {
        return exponent > 0 ? power_pair(exponent, v, guess, lanes) : exponential_pair(v, guess, lanes);
    }

    static Pair exponential_pair(const T& v, const V& guess, const M& lanes) {
        const V one = broadcast<W>(1.0), zero{}, infinity = broadcast<W>(kUnbounded);
        Pair out;
        const M positive = v[1] > 0.0, negative = v[0] > 0.0;
        const V upper_ratio = v[0] / select(positive, v[1], one), lower_ratio = v[1] / select(negative, v[0], one);
        out.inside = (positive & (v[1] * F::exp(upper_ratio) <= v[2])) |
                     ((v[1] == 0.0) & (v[0] <= 0.0) & (v[2] >= 0.0));
        // -v = (u, w, t) in K*: u < 0 and -u exp(w / u - 1) <= t, or u = 0 and w, t >= 0.
        out.outside = (negative & (v[0] * F::exp(lower_ratio - 1.0) <= -v[2])) |
                      ((v[0] == 0.0) & (v[1] <= 0.0) & (v[2] <= 0.0));
        out.flat = (v[0] <= 0.0) & (v[1] <= 0.0);
        out.flat_point = {v[0], zero, max(v[2], zero)};
        out.flat_plus = {one, zero, zero};
        out.flat_minus = {zero, one, zero};
        out.flat_mu = select(v[2] > 0.0, one, zero);
        const V from_a = 1.0 - v[1] / select(v[0] == 0.0, one, v[0]);
        const V from_c = v[0] / select(v[1] == 0.0, one, v[1]);
        V lower = max(select(v[0] > 0.0, from_a, -infinity), select(v[1] < 0.0, from_c, -infinity));
        V upper = min(select(v[0] < 0.0, from_a, infinity), select(v[1] > 0.0, from_c, infinity));
        lower = select(lower <= -kUnbounded, min(upper, zero) - kExponentRange, lower);
        upper = select(upper >= kUnbounded, max(lower, zero) + kExponentRange, upper);
        const M solved = lanes & negate<W>(out.inside | out.outside | out.flat);
        const V r = exponential_root(v, select(solved, lower, zero), select(solved, max(lower, upper), zero), guess);
        V a, c;
        coefficients(v, r, a, c);
        a = max(a, zero), c = max(c, zero);
        const V decay = F::exp(-abs(r));
        const V height = select(r > 1.0, max(fma(c, decay, v[2]), zero), a * F::exp(min(r, one)));
        a = select(r > 1.0, height * decay, a);
        c = select(r < -1.0, max(height - v[2], zero) * decay, c);
        out.r = r, out.scale_s = a, out.scale_z = c;
        out.s = {a * r, a, height};
        const V shrink_p = select(r > 0.0, decay, one), shrink_d = select(r < 0.0, decay, one);
        out.s_ray = {r * shrink_p, shrink_p, select(r > 0.0, one, decay)};
        out.z_ray = {-shrink_d, (r - 1.0) * shrink_d, select(r < 0.0, one, decay)};
        return out;
    }

    // log of (x + sqrt(x^2 + 4 product)) / 2 from that of the product, without cancellation for x < 0.
    static V log_larger_root(const V& x, const V& log_product) {
        const V root = sqrt(fma(x, x, 4.0 * F::exp(log_product)));
        const M negative = x < 0.0;
        const V one = broadcast<W>(1.0);
        const V conjugate = std::log(2.0) + log_product - F::log(select(negative, root - x, one));
        const V direct = F::log(select(negative, one, 0.5 * (x + root)));
        return select(negative, conjugate, select(x == 0.0, 0.5 * log_product, direct));
    }

    static Pair power_pair(double a, const T& v, const V& guess, const M& lanes) {
        const double b = 1.0 - a;
        const V one = broadcast<W>(1.0), zero{};
        Pair out;
        const auto bound = [&](const V& x, const V& y) {
            return F::exp(a * F::log(max(x, zero)) + b * F::log(max(y, zero)));
        };
        const V height_in = abs(v[2]);
        out.inside = (v[0] >= 0.0) & (v[1] >= 0.0) & (bound(v[0], v[1]) >= height_in);
        out.outside = (v[0] <= 0.0) & (v[1] <= 0.0) & (bound(-v[0] / a, -v[1] / b) >= height_in);
        set_flat(a, v, out);
        // The projection is homogeneous: at size one nothing over- or underflows that matters.
        const V largest = max(max(abs(v[0]), abs(v[1])), height_in), size = select(largest > 0.0, largest, one);
        const V inverse = 1.0 / size, x = v[0] * inverse, y = v[1] * inverse;
        const V log_height = F::log(select(height_in > 0.0, height_in * inverse, one));
        V log_x, log_y, log_r, log_rest;
        const auto point = [&](const V& t) {
            const V softplus = F::log1p(F::exp(-abs(t)));
            log_r = log_height - (softplus + max(-t, zero));
            log_rest = log_height - (softplus + max(t, zero));
            log_x = log_larger_root(x, log_r + log_rest + std::log(a));
            log_y = log_larger_root(y, log_r + log_rest + std::log(b));
            return log_r - a * log_x - b * log_y;
        };
        const M solved = lanes & negate<W>(out.inside | out.outside | out.flat);
        const V limit = select(solved, broadcast<W>(kLogitLimit), zero);
        point(F::increasing_root(point, -limit, limit, guess));
        const V px = size * F::exp(log_x), py = size * F::exp(log_y), r = size * F::exp(log_r);
        const V sign = select(v[2] < 0.0, broadcast<W>(-1.0), one);
        out.s = out.s_ray = {px, py, sign * r};
        out.z_ray = {a * r / px, b * r / py, -sign};
        out.scale_s = r, out.scale_z = size * F::exp(log_rest);
        return out;
    }

    // On the plane z = 0 with one of x, y negative; convexlayers/cones/power.py.
    static void set_flat(double a, const T& v, Pair& out) {
        const V one = broadcast<W>(1.0), zero{};
        const M first = v[0] > v[1];
        const V exponent = select(v[0] > 0.0, broadcast<W>(a), broadcast<W>(1.0 - a));
        const V positive = max(max(v[0], v[1]), zero), negative = max(-min(v[0], v[1]), zero);
        const V total = fma(broadcast<W>(2.0), negative, positive);
        const V at_half = positive / select(total > 0.0, total, one);
        out.flat = v[2] == 0.0;
        out.flat_point = {max(v[0], zero), max(v[1], zero), zero};
        out.flat_plus = {select(first, one, zero), select(first, zero, one), zero};
        out.flat_minus = {select(first, zero, one), select(first, one, zero), zero};
        out.flat_mu = select(exponent == 0.5, at_half, select(exponent > 0.5, one, zero));
    }

    static constexpr double kUnbounded = 1e300;
    static constexpr int kMostRootSteps = 200;
    static constexpr double kRootRounding = 4.5e-16;
    static constexpr double kExponentRange = 1400.0;
    static constexpr double kLogitLimit = 700.0;
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
