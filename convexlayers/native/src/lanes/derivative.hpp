// The derivative of solutions on one block of lanes, from parameters to parameters.
//
// With s = Proj_K(v), z = s - v, M = D Proj_K(v) (convexlayers/derivatives/exact.py has the derivation),
//
//     P dx + A'dz = r1,   A dx + ds = r2,   ds = M dv,   dz = -(I - M) dv.                                    (1)
//
//     tangent:   r1 = -dq - dP x - dA'z,        r2 = db - dA x
//     adjoint:   r1 = grad_x - A'grad_s,        r2 = grad_z,          (wx, wz) = (dx, dz),
//                grad_q = -wx,  grad_b = wz + grad_s,  grad_P = -1/2 (wx x' + x wx'),
//                grad_A = -z wx' - (wz + grad_s) x'
//
// and for a cotangent g of the optimal value (envelope theorem) g times 1/2 xx', x, -z, zx', 1 for P, q, b, A, offset.
//
// (1) is solved with the forward method's own factorization, H = M (I - M)^-1 clipped and regularized, and refined in
// the coordinates (dx, dv), which know no infinity: a correction solves K (dx, dz') = residual, its slack is
// ds' = -(H + eps) dz' by the second row, and dv += ds' - dz'. Where (1) is singular but consistent this converges to
// the solution of minimum norm. What does not converge is reported, contributes nothing here, and is left to the caller.
#pragma once

#include <limits>

#include "lanes/numbers.hpp"
#include "lanes/system.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

inline constexpr int kMostCorrections = 12;
// Corrections end when the relative residual is below this, or no longer falls by this factor.
inline constexpr double kConverged = 1e-13;
inline constexpr double kRefinementProgress = 0.5;
// A system is looked at for singularity when its inverse magnifies a fixed vector by more than this share of
// 1 / kRegularization, and called singular when this share of the image is left (singular values below about 1e-11).
inline constexpr double kSuspect = 1e-3;
inline constexpr double kSingular = 0.999;
// Solves that separate the null space from the rest.
inline constexpr int kNullSpacePower = 2;
// A residual up to this is that of a solution.
inline constexpr double kConsistent = 1e-12;
// A derivative in q below this share of the right-hand side is rounding.
inline constexpr double kVanishing = 1e-10;

template <int W>
class Derivative {
    using V = Vec<W>;
    using M = Mask<W>;

public:
    Derivative(const Plan& plan, const Values* values, const Solutions& at, const Reports& reports)
        : plan_(plan), values_(values), at_(at), reports_(reports), w_(plan, true), shared_(Numbers<W>::matrix_is_shared(plan, values)) {}

    // Cotangents of theta for `count` elements; see batch.hpp. `sums` is where blocks that are shared are added up.
    void adjoint(const std::int64_t* elements, int count, const Cotangents& cotangents, const Gradients& out,
                 double* const* sums) {
        prepare(elements, count);
        load_cotangents(cotangents);
        solve();
        report();
        report_constant();
        contract(out, sums);
    }

    void tangent(const std::int64_t* elements, int count, const Values* dtheta, const Tangents& out) {
        prepare(elements, count);
        tangent_right_side(dtheta);
        solve();
        report();
        write_tangents(out);
    }

private:
    // ------------------------------------------------------------------------------- numbers and point

    void prepare(const std::int64_t* elements, int count) {
        count_ = count;
        // Lanes without an element repeat the first one.
        for (int lane = 0; lane < W; ++lane) elements_[lane] = elements[lane < count ? lane : 0];
        Numbers<W>::load(plan_, w_, values_, elements_, every_lane());
        load_scaling();
        const Int n = plan_.n(), m = plan_.m();
        for (Int j = 0; j < n; ++j) w_.x[j] = row(at_.x, n, j) / (sigma_ * w_.D[j]);
        for (Int i = 0; i < m; ++i) {
            w_.s[i] = row(at_.s, m, i) * (w_.E[i] / sigma_);
            w_.z[i] = row(at_.z, m, i) / (zeta_ * w_.E[i]);
        }
        Numbers<W>::scale(plan_, w_.numbers, w_.D, w_.E, sigma_, zeta_);
        Cones<W>::scale(plan_, w_, no_lane<W>(), every_lane());
        System<W>::place_lasting(plan_, w_);
        if (!(shared_ && factored_)) System<W>::factor(plan_, w_);
        factored_ = true;
    }

    static M every_lane() { return negate<W>(no_lane<W>()); }

    // Entry `column` of the lanes' rows.
    V row(const double* data, std::int64_t width, Int column) const {
        double values[W];
        for (int lane = 0; lane < W; ++lane) values[lane] = data[elements_[lane] * width + column];
        return gathered<W>(values);
    }

    void load_scaling() {
        const Int n = plan_.n(), m = plan_.m();
        const std::int64_t width = n + m + 2;
        const auto power = [&](Int column) {
            // Biased, these are the exponents of normal numbers.
            Bits<W> biased{};
            for (int lane = 0; lane < W; ++lane)
                set_bits<W>(biased, lane, 1023 + static_cast<std::int64_t>(at_.scales[elements_[lane] * width + column]));
            return power_of_two<W>(biased);
        };
        for (Int j = 0; j < n; ++j) w_.D[j] = power(j);
        for (Int i = 0; i < m; ++i) w_.E[i] = power(n + i);
        sigma_ = power(n + m);
        zeta_ = power(n + m + 1);
    }

    // -------------------------------------------------------------------------------- right-hand sides

    // x2, z2: r1, r2; step_z: grad_s. All divided by a power of two, so that sizes from 1e-300 to 1e300 are alike.
    void load_cotangents(const Cotangents& g) {
        const Int n = plan_.n(), m = plan_.m();
        V largest{};
        poison_ = V{};
        for (Int j = 0; j < n; ++j) {
            w_.x2[j] = cotangent(g.x, n, j) * (sigma_ * w_.D[j]);
            largest = max(abs(w_.x2[j]), largest);
            w_.dx[j] = V{};
        }
        for (Int i = 0; i < m; ++i) {
            w_.step_z[i] = cotangent(g.s, m, i) * (sigma_ / w_.E[i]);
            w_.z2[i] = cotangent(g.z, m, i) * (zeta_ * w_.E[i]);
            largest = max(max(abs(w_.step_z[i]), abs(w_.z2[i])), largest);
        }
        normalize(largest);
        shrink(w_.x2, n);
        shrink(w_.step_z, m);
        shrink(w_.z2, m);
        if (g.s == nullptr) return;
        Numbers<W>::multiply(plan_, w_, w_.dx, w_.step_z, w_.out_x, w_.out_n, w_.out_m);
        for (Int j = 0; j < n; ++j) w_.x2[j] = w_.x2[j] - w_.out_n[j];
    }

    V cotangent(const double* data, Int width, Int column) const { return data == nullptr ? V{} : row(data, width, column); }

    // The power of two next to `largest`, 1 for zero.
    void normalize(const V& largest) {
        const Bits<W> exponent = biased_exponent<W>(largest);
        const V one = broadcast<W>(1.0);
        const M usable = (largest > 0.0) & (largest < std::numeric_limits<double>::infinity());
        // Biased exponents 1 to 2044 have an inverse that is a normal number.
        Bits<W> bounded = exponent;
        for (int lane = 0; lane < W; ++lane) {
            std::int64_t e = get_bits<W>(exponent, lane);
            e = e < 1 ? 1 : (e > 2044 ? 2044 : e);
            set_bits<W>(bounded, lane, e);
        }
        size_ = select(usable, power_of_two<W>(bounded), one);
        inverse_size_ = select(usable, power_of_two<W>(2046 - bounded), one);
    }

    // Divides by the size; what is not finite goes into `poison_`.
    void shrink(V* v, Int count) {
        for (Int i = 0; i < count; ++i) {
            poison_ = fma(v[i], V{}, poison_);
            v[i] = v[i] * inverse_size_;
        }
    }

    // x2, z2: r1, r2 of a tangent of theta.
    void tangent_right_side(const Values* dtheta) {
        const plan::Pattern& p = plan_.pattern;
        tangent_numbers_.assign(p.size() * W, 0.0);
        V* const d = reinterpret_cast<V*>(aligned_tangent());
        for (std::size_t block = 0; block < plan_.blocks.size(); ++block) {
            if (dtheta[block].data == nullptr) continue;
            const plan::ParameterBlock& map = plan_.blocks[block];
            V* const theta = w_.theta;
            const double* rows[W];
            for (int lane = 0; lane < W; ++lane) rows[lane] = dtheta[block].data + elements_[lane] * dtheta[block].stride;
            Numbers<W>::interleave(rows, map.width, theta);
            for (std::size_t e = 0; e < map.rows.size(); ++e)
                d[map.rows[e]] = fma(theta[map.cols[e]], broadcast<W>(map.values[e]), d[map.rows[e]]);
        }
        doffset_ = d[p.offset_start()];
        Numbers<W>::scale(plan_, d, w_.D, w_.E, sigma_, zeta_);
        Numbers<W>::multiply(plan_, d, w_.x, w_.z, w_.out_x, w_.out_n, w_.out_m);
        V value{}, largest{};
        for (Int j = 0; j < p.n; ++j) {
            const V dq = d[p.q_start() + j];
            value = fma(w_.x[j], fma(broadcast<W>(0.5), w_.out_x[j], dq), value);
            w_.x2[j] = -(dq + w_.out_x[j] + w_.out_n[j]);
            largest = max(abs(w_.x2[j]), largest);
        }
        for (Int i = 0; i < p.m; ++i) {
            w_.z2[i] = d[p.b_start() + i] - w_.out_m[i];
            value = fnma(w_.z[i], w_.z2[i], value);
            largest = max(abs(w_.z2[i]), largest);
        }
        dobjective_ = value * (sigma_ * zeta_) + doffset_;
        normalize(largest);
        poison_ = V{};
        shrink(w_.x2, p.n);
        shrink(w_.z2, p.m);
    }

    double* aligned_tangent() {
        tangent_numbers_.resize(plan_.pattern.size() * W + 8);
        const auto address = reinterpret_cast<std::uintptr_t>(tangent_numbers_.data());
        return tangent_numbers_.data() + (64 - address % 64) % 64 / 8;
    }

    // ------------------------------------------------------------------------------------- the system

    // (dx, ds, dz) in w_.dx, w_.ds, w_.dz for the right-hand side (x2, z2).
    void solve() {
        const Int n = plan_.n(), m = plan_.m();
        V size{};
        for (Int j = 0; j < n; ++j) {
            System<W>::template at<2>(plan_, w_, j, 0) = w_.rx[j] = w_.x2[j];
            System<W>::template at<2>(plan_, w_, j, 1) = probe(j);
            size = max(abs(w_.x2[j]), size);
            w_.dx[j] = V{};
        }
        for (Int i = 0; i < m; ++i) {
            System<W>::template at<2>(plan_, w_, n + i, 0) = w_.rz[i] = w_.z2[i];
            System<W>::template at<2>(plan_, w_, n + i, 1) = probe(n + i);
            size = max(abs(w_.z2[i]), size);
            w_.jordan[i] = w_.ds[i] = w_.dz[i] = V{};
        }
        System<W>::template solve<2>(plan_, w_);
        find_suspects();
        System<W>::template take<2>(plan_, w_, 0, w_.step_x, w_.target);
        inverse_right_side_ = 1.0 / select(size > 0.0, size, broadcast<W>(1.0));
        residual_ = select(size > 0.0, broadcast<W>(std::numeric_limits<double>::infinity()), V{});
        keep(every_lane());
        refine(size > 0.0);
        if (any(singular_)) remove_null_space(residual_ <= reports_.largest_residual);
        take_kept();
    }

    // Adds the correction in (step_x, target), and further ones until the residual is rounding or stops falling.
    void refine(const M& lanes) {
        M running = lanes;
        for (int step = 0;; ++step) {
            correct(running);
            const V now = remaining() * inverse_right_side_;
            const M kept = running & (now < residual_);
            const M progress = now < kRefinementProgress * residual_;
            keep(kept);
            residual_ = select(kept, now, residual_);
            running = running & progress & (now > kConverged);
            if (!any(running) || step == kMostCorrections) break;
            solve_for_remaining();
        }
    }

    // Where K is singular, all that stands in its null space is rounding divided by eps. With J = diag(I, -I),
    // T = eps (K + eps J)^-1 J leaves a null vector as it is and takes a factor of eps / sigma off everything else, so
    // w - T^k w is w without its part in the null space. On the image of the probe T tells whether there is a null space:
    // eps / (eps + sigma) of it is left, sigma the smallest singular value.
    void remove_null_space(const M& solved) {
        const Int n = plan_.n(), m = plan_.m();
        copy(w_.kept_x, w_.step_x, w_.dx, n);
        copy(w_.kept_z, w_.target, w_.dz, m);
        const V before = largest(w_.probe_x, w_.probe_z);
        for (int power = 1; power <= kNullSpacePower; ++power) {
            // The slack of T c is eps (c_z - (T c)_z) - H (T c)_z, so that a null vector goes with -H n_z.
            for (Int i = 0; i < m; ++i) w_.dz[i] = w_.target[i];
            shift_by_regularization();
            if (power > 1) continue;
            singular_ = singular_ & (largest(w_.probe_x, w_.probe_z) > kSingular * before);
            if (!any(singular_ & solved)) return;
        }
        const M lanes = singular_ & solved;
        Cones<W>::multiply(plan_, w_, w_.target, w_.ds);
        for (Int j = 0; j < n; ++j) w_.dx[j] = w_.kept_x[j] - w_.step_x[j];
        for (Int i = 0; i < m; ++i) {
            const V slack = fma(broadcast<W>(kRegularization), w_.dz[i] - w_.target[i], -w_.ds[i]);
            w_.jordan[i] = (w_.kept_s[i] - w_.kept_z[i]) - (slack - w_.target[i]);
        }
        const V now = remaining() * inverse_right_side_;
        const M better = lanes & (now <= max(residual_, broadcast<W>(kConsistent)));
        residual_ = select(better, now, residual_);
        keep(better);
    }

    // (step_x, target) and the image of the probe, each multiplied by T.
    void shift_by_regularization() {
        const V eps = broadcast<W>(kRegularization);
        for (Int j = 0; j < plan_.n(); ++j) {
            System<W>::template at<2>(plan_, w_, j, 0) = eps * w_.step_x[j];
            System<W>::template at<2>(plan_, w_, j, 1) = eps * w_.probe_x[j];
        }
        for (Int i = 0; i < plan_.m(); ++i) {
            System<W>::template at<2>(plan_, w_, plan_.n() + i, 0) = -(eps * w_.target[i]);
            System<W>::template at<2>(plan_, w_, plan_.n() + i, 1) = -(eps * w_.probe_z[i]);
        }
        System<W>::template solve<2>(plan_, w_);
        System<W>::template take<2>(plan_, w_, 0, w_.step_x, w_.target);
        System<W>::template take<2>(plan_, w_, 1, w_.probe_x, w_.probe_z);
    }

    static void copy(const V* from, V* to, V* other, Int count) {
        for (Int i = 0; i < count; ++i) to[i] = other[i] = from[i];
    }

    // (step_x, target) for what is left of the right-hand side.
    void solve_for_remaining() {
        const Int n = plan_.n(), m = plan_.m();
        for (Int j = 0; j < n; ++j) System<W>::template at<1>(plan_, w_, j) = w_.rx[j];
        for (Int i = 0; i < m; ++i) System<W>::template at<1>(plan_, w_, n + i) = w_.rz[i];
        System<W>::template solve<1>(plan_, w_);
        System<W>::template take<1>(plan_, w_, 0, w_.step_x, w_.target);
    }

    static V probe(Int k) { return broadcast<W>(std::cos(static_cast<double>(k + 1) * (k + 1))); }

    // Lanes whose inverse magnifies the probe as a null vector would be magnified. Its image is kept.
    void find_suspects() {
        System<W>::template take<2>(plan_, w_, 1, w_.probe_x, w_.probe_z);
        singular_ = largest(w_.probe_x, w_.probe_z) > kSuspect / kRegularization;
    }

    V largest(const V* x, const V* z) const {
        V out{};
        for (Int j = 0; j < plan_.n(); ++j) out = max(abs(x[j]), out);
        for (Int i = 0; i < plan_.m(); ++i) out = max(abs(z[i]), out);
        return out;
    }

    // The correction (step_x, target) is added to (dx, dv); dv stands in `jordan`.
    void correct(const M& running) {
        Cones<W>::multiply(plan_, w_, w_.target, w_.ds);
        for (Int j = 0; j < plan_.n(); ++j) w_.dx[j] = select(running, w_.dx[j] + w_.step_x[j], w_.dx[j]);
        for (Int i = 0; i < plan_.m(); ++i) {
            const V slack = -fma(broadcast<W>(kRegularization), w_.target[i], w_.ds[i]);
            w_.jordan[i] = select(running, w_.jordan[i] + (slack - w_.target[i]), w_.jordan[i]);
        }
    }

    // What is left of the right-hand side, in rx and rz; its largest entry.
    V remaining() {
        for (Int i = 0; i < plan_.m(); ++i) w_.ds[i] = w_.jordan[i];
        Cones<W>::split(plan_, w_, w_.ds, w_.dz);
        Numbers<W>::multiply(plan_, w_, w_.dx, w_.dz, w_.out_x, w_.out_n, w_.out_m);
        V largest_entry{}, broken{};
        for (Int j = 0; j < plan_.n(); ++j) {
            w_.rx[j] = w_.x2[j] - (w_.out_x[j] + w_.out_n[j]);
            largest_entry = max(abs(w_.rx[j]), largest_entry);
            broken = fma(w_.rx[j], V{}, broken);
        }
        for (Int i = 0; i < plan_.m(); ++i) {
            w_.rz[i] = w_.z2[i] - (w_.out_m[i] + w_.ds[i]);
            largest_entry = max(abs(w_.rz[i]), largest_entry);
            broken = fma(w_.rz[i], V{}, broken);
        }
        // A maximum passes over NaN.
        return select(broken == 0.0, largest_entry, broadcast<W>(std::numeric_limits<double>::infinity()));
    }

    void keep(const M& lanes) {
        for (Int j = 0; j < plan_.n(); ++j) w_.kept_x[j] = select(lanes, w_.dx[j], w_.kept_x[j]);
        for (Int i = 0; i < plan_.m(); ++i) {
            w_.kept_s[i] = select(lanes, w_.ds[i], w_.kept_s[i]);
            w_.kept_z[i] = select(lanes, w_.dz[i], w_.kept_z[i]);
        }
    }

    // The best point, zero where the system was not solved.
    void take_kept() {
        unsolved_ = negate<W>(residual_ <= reports_.largest_residual) & (poison_ == 0.0);
        residual_ = residual_ + poison_;
        for (Int j = 0; j < plan_.n(); ++j) w_.dx[j] = select(unsolved_, V{}, w_.kept_x[j]) + poison_;
        for (Int i = 0; i < plan_.m(); ++i) {
            w_.ds[i] = select(unsolved_, V{}, w_.kept_s[i]) + poison_;
            w_.dz[i] = select(unsolved_, V{}, w_.kept_z[i]) + poison_;
        }
    }

    void report() {
        for (int lane = 0; lane < count_; ++lane) {
            reports_.residual[elements_[lane]] = get<W>(residual_, lane);
            reports_.singular[elements_[lane]] = get_mask<W>(singular_, lane);
        }
    }

    // Of an adjoint: whether wx is zero up to rounding although the right-hand side is not.
    void report_constant() {
        if (reports_.constant == nullptr) return;
        V moved{}, size{};
        for (Int j = 0; j < plan_.n(); ++j) {
            moved = max(abs(w_.dx[j]), moved);
            size = max(abs(w_.x2[j]), size);
        }
        for (Int i = 0; i < plan_.m(); ++i) size = max(abs(w_.z2[i]), size);
        const M constant = (moved <= kVanishing * size) & (size > 0.0) & negate<W>(unsolved_);
        for (int lane = 0; lane < count_; ++lane) reports_.constant[elements_[lane]] = get_mask<W>(constant, lane);
    }

    // ---------------------------------------------------------------------------------------- results

    // Cotangents of theta from (wx, wz): in user's units wx = D wx~ / zeta and wz = E wz~ / sigma.
    void contract(const Gradients& out, double* const* sums) {
        const Int n = plan_.n(), m = plan_.m();
        const V g = select(unsolved_, V{}, cotangent(out.objective, 1, 0));
        V *const wx = w_.dx, *const wP = w_.x2, *const wA = w_.step_x, *const x = w_.x;
        V *const weight = w_.dz, *const wb = w_.ds, *const z = w_.z;
        const V half = broadcast<W>(0.5);
        for (Int j = 0; j < n; ++j) {
            wx[j] = wx[j] * (w_.D[j] / zeta_) * size_;
            x[j] = x[j] * (sigma_ * w_.D[j]);
            wP[j] = fnma(g * half, x[j], wx[j]);
            wA[j] = fnma(g, x[j], wx[j]);
        }
        for (Int i = 0; i < m; ++i) {
            const V slack = select(unsolved_, V{}, w_.step_z[i]);
            weight[i] = (weight[i] + slack) * (w_.E[i] / sigma_) * size_;
            z[i] = z[i] * (zeta_ * w_.E[i]);
            wb[i] = fnma(g, z[i], weight[i]);
        }
        for (std::size_t block = 0; block < plan_.blocks.size(); ++block) {
            if (out.blocks[block] == nullptr && sums[block] == nullptr) continue;
            contract(plan_.gradients[block], plan_.blocks[block].width, g);
            write(plan_.blocks[block].width, out.blocks[block], sums[block]);
        }
    }

    void contract(const plan::BlockGradient& map, Int width, const V& g) {
        V* const theta = w_.theta;
        const V *const wP = w_.x2, *const wA = w_.step_x, *const x = w_.x, *const weight = w_.dz, *const z = w_.z;
        for (Int c = 0; c < width; ++c) theta[c] = V{};
        const auto add = [&](const plan::MapEntry& e, const V& value) {
            theta[e.col] = fma(broadcast<W>(e.value), value, theta[e.col]);
        };
        for (const plan::MapEntry& e : map.P) add(e, -fma(wP[e.i], x[e.j], x[e.i] * wP[e.j]));
        for (const plan::MapEntry& e : map.q) add(e, -wA[e.j]);
        for (const plan::MapEntry& e : map.A) add(e, -fma(z[e.i], wA[e.j], weight[e.i] * x[e.j]));
        for (const plan::MapEntry& e : map.b) add(e, w_.ds[e.i]);
        for (const plan::MapEntry& e : map.offset) add(e, g);
    }

    void write(Int width, double* rows, double* sum) {
        if (rows != nullptr) {
            const double* const flat = reinterpret_cast<const double*>(w_.theta);
            double* targets[W] = {};
            for (int lane = 0; lane < count_; ++lane) targets[lane] = rows + elements_[lane] * width;
            for (Int c = 0; c < width; ++c)
                for (int lane = 0; lane < count_; ++lane) targets[lane][c] = flat[static_cast<std::int64_t>(c) * W + lane];
        } else {
            for (Int c = 0; c < width; ++c)
                for (int lane = 0; lane < count_; ++lane) sum[c] += get<W>(w_.theta[c], lane);
        }
    }

    void write_tangents(const Tangents& out) {
        const Int n = plan_.n(), m = plan_.m();
        for (Int j = 0; j < n; ++j) put(out.x, n, j, w_.dx[j] * (sigma_ * w_.D[j]) * size_);
        for (Int i = 0; i < m; ++i) {
            put(out.s, m, i, w_.ds[i] * (sigma_ / w_.E[i]) * size_);
            put(out.z, m, i, w_.dz[i] * (zeta_ * w_.E[i]) * size_);
        }
        put(out.objective, 1, 0, dobjective_);
    }

    void put(double* rows, std::int64_t width, Int column, const V& values) const {
        for (int lane = 0; lane < count_; ++lane) rows[elements_[lane] * width + column] = get<W>(values, lane);
    }

    const Plan& plan_;
    const Values* values_;
    const Solutions& at_;
    const Reports& reports_;
    Workspace<W> w_;
    const bool shared_;  // one factorization serves all
    bool factored_ = false;
    std::int64_t elements_[W] = {};
    int count_ = 0;
    V sigma_{}, zeta_{}, size_{}, inverse_size_{}, residual_{}, inverse_right_side_{}, dobjective_{}, doffset_{};
    V poison_{};  // NaN where what came from above is not finite: it is the caller's own and is not hidden
    M singular_ = no_lane<W>(), unsolved_ = no_lane<W>();
    std::vector<double> tangent_numbers_;
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
