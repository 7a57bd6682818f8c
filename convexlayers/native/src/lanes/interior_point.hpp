// The interior-point method on one block of lanes.
//
// Homogeneous embedding with a quadratic objective (Goulart, Chen, "Clarabel: An interior-point solver for conic
// programs with quadratic objectives", arXiv 2405.12762): find (x, s, z, tau, kappa) with s in K, z in K*, tau, kappa >= 0,
//
//     r_x   = P x + A'z + q tau                     = 0
//     r_z   = A x + s - b tau                       = 0
//     r_tau = kappa + q'x + b'z + x'Px / tau        = 0,      s'z = 0, tau kappa = 0.
//
// tau > 0 gives a solution (x, s, z) / tau; kappa > 0 a proof that there is none. A step with centering sigma solves
//
//     P dx + A'dz + q dtau   = -(1 - sigma) r_x
//     A dx + ds - b dtau     = -(1 - sigma) r_z,               ds + H dz = -d_s
//     dkappa + (q + 2 P xi)'dx + b'dz - xi'P xi dtau = -(1 - sigma) r_tau,   tau dkappa + kappa dtau = -d_kappa
//
// with xi = x / tau, by two right-hand sides for K = [P A'; A -H]: K (dx1, dz1) = (-(1-sigma) r_x, -(1-sigma) r_z + d_s)
// and K (dx2, dz2) = (-q, b), dx = dx1 + dtau dx2,
//
//     dtau = ((1-sigma) r_tau - d_kappa / tau + (q + 2 P xi)'dx1 + b'dz1)
//            / (kappa / tau + |dx2 - xi|_P^2 + |dz2|_H^2).
//
// (The denominator is (q + 2 P xi)'dx2 + b'dz2 - xi'P xi with the sign changed, rewritten by K's own rows.)
//
// Polishing: once the residuals are small, Newton steps on the conditions in (x, v), s = Proj_K(v), z = s - v,
//
//     P dx + A'dz = -r_x,   A dx + ds = -r_z,   ds = M dv,  dz = -(I - M) dv,   M = D Proj_K(v),
//
// with the same matrix, H = M (I - M)^-1 clipped (Busseti, Moursi, Boyd, "Solution refinement at regular points of conic
// problems", 2019). With only zero and nonnegative cones one step solves the active set to machine precision. A lane
// whose residual does not fall to rounding goes back to where it was and iterates on.
//
// Warm start: a lane that is given a point, say the solution for parameters nearby, polishes at it first. Where that
// arrives, the optimality conditions hold to rounding, and it does not matter who proposed the point; where it does not,
// the element is solved as if no point had been given. (An interior-point method cannot begin near the boundary.)
//
// Every lane has its own phase. Lanes advance together and finish alone; their places are filled from the queue.
#pragma once

#include <limits>
#include <vector>

#include "lanes/numbers.hpp"
#include "lanes/system.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

// A step goes this far towards the boundary.
inline constexpr double kStepShare = 0.99;
// Steps shorter than this make no progress; so many in a row end the iteration.
inline constexpr double kShortStep = 1e-3;
inline constexpr int kMostShortSteps = 10;
// A lane that has not reduced its residuals by this factor in so many steps is damped.
inline constexpr double kProgress = 0.9;
inline constexpr int kMostIdleSteps = 4;
inline constexpr double kDampedCentering = 0.3;
// A lane that breaks down starts anew with this much regularization: a pivot of eps alone, as equalities have, costs
// 1e-16 / eps of accuracy in P, which may be more than there is of P.
inline constexpr double kHeavyRegularization = 1e-6;
// First try of polishing; where it fails, the next comes when the residual has fallen by this factor.
inline constexpr double kPolishLinear = 1e-4;
inline constexpr double kPolishCurved = 1e-5;
inline constexpr double kPolishFactor = 1e-2;
inline constexpr int kMostPolishSteps = 3;
inline constexpr int kLastPolishSteps = 6;
// A lane that begins at a given point gets so many, as long as each reduces the residual by this factor.
inline constexpr int kMostWarmSteps = 6;
inline constexpr double kWarmProgress = 0.5;
// Bounds this many times the typical size, after scaling, are out of proportion to the others.
inline constexpr double kOutOfProportion = 1e10;
// What polishing has to reach, relative.
inline constexpr double kPolished = 1e-12;
// A point whose residuals, in scaled numbers, are below this gets no second step.
inline constexpr double kConvergedPoint = 1e-14;
// A linear system is refined where its residual exceeds this share of the residuals it is to reduce.
inline constexpr double kForcing = 0.02;
// As in convexlayers/solution.py.
inline constexpr double kCertificate = 1e-6;
inline constexpr double kSmallestTolerance = 1e-9;
inline constexpr double kToleranceFactor = 10.0;

enum class Phase : std::uint8_t { idle, first, interior, polish };

struct LaneState {
    Phase phase = Phase::idle;
    std::int64_t element = -1;
    int iterations = 0, short_steps = 0, idle_steps = 0, polish_steps = 0;
    int spent = 0;  // iterations at a given point that did not arrive; they do not count for the limit
    bool heavy = false, warm = false;
    double polish_at = 0, kept_residual = 0, best = std::numeric_limits<double>::infinity();
    // The best certificates that were seen.
    double infeasible = std::numeric_limits<double>::infinity(), unbounded = std::numeric_limits<double>::infinity();
};

template <int W>
class InteriorPoint {
    using V = Vec<W>;
    using M = Mask<W>;

public:
    InteriorPoint(const Plan& plan, const Settings& settings, const Values* values, const Solutions& out, Queue& queue)
        : plan_(plan),
          settings_(settings),
          values_(values),
          out_(out),
          queue_(queue),
          w_(plan, queue.size >= W),
          linear_(plan.kkt.expanded.empty() && plan.kkt.semidefinite.empty()),
          apart_(broadcast<W>(plan.pattern.q_start() == 0 ? 1.0 : 0.0) > 0.0),
          degree_(Cones<W>::degree(plan)),
          shared_(Numbers<W>::matrix_is_shared(plan, values)) {}

    void run() {
        fill();
        while (active() > 0) {
            iterate();
            if (active() <= W - refill_at()) fill();
        }
    }

private:
    // ------------------------------------------------------------------------------------------ lanes

    int active() const {
        int count = 0;
        for (const LaneState& lane : lanes_) count += lane.phase != Phase::idle;
        return count;
    }

    // Idle lanes that make loading worth its cost.
    static constexpr int refill_at() { return W >= 4 ? W / 4 : 1; }

    M in_phase(Phase phase) const {
        M mask = no_lane<W>();
        for (int lane = 0; lane < W; ++lane) set_mask<W>(mask, lane, lanes_[lane].phase == phase);
        return mask;
    }

    // New elements in idle lanes, until one of them has numbers that can be worked with or there are no more.
    void fill() {
        do {
            refill();
        } while (active() == 0 && !queue_.empty());
    }

    void refill() {
        M fresh = no_lane<W>();
        std::int64_t elements[W] = {};
        for (int lane = 0; lane < W; ++lane) {
            if (lanes_[lane].phase != Phase::idle) continue;
            const std::int64_t element = queue_.take();
            if (element < 0) break;
            elements[lane] = element;
            occupy(lane, element, kRegularization);
            set_mask<W>(fresh, lane, true);
        }
        if (!any(fresh)) return;
        const M finite = Numbers<W>::load(plan_, w_, values_, elements, fresh);
        for (int lane = 0; lane < W; ++lane)
            if (get_mask<W>(fresh, lane) && !get_mask<W>(finite, lane)) {
                fail(lane, Outcome::invalid_data);
                set_mask<W>(fresh, lane, false);
                factored_ = false;  // its numbers are not scaled
            }
        if (any(fresh)) begin(fresh);
    }

    // A lane at the beginning of an element.
    void occupy(int lane, std::int64_t element, double regularization) {
        lanes_[lane] = LaneState{};
        lanes_[lane].phase = Phase::first;
        lanes_[lane].element = element;
        lanes_[lane].polish_at = linear_ ? kPolishLinear : kPolishCurved;
        set_mask<W>(damped_, lane, false);
        set<W>(w_.eps, lane, regularization);
    }

    void begin(const M& fresh) {
        auto original = Numbers<W>::sizes(plan_, w_);
        original.b = Numbers<W>::ordinary(plan_, w_, original.b);
        Numbers<W>::equilibrate(plan_, w_, fresh);
        const auto scaled = Numbers<W>::sizes(plan_, w_);
        for (int lane = 0; lane < W; ++lane) {
            if (!get_mask<W>(fresh, lane)) continue;
            const Units user = find_units(original.P, original.q, original.A, original.b, lane);
            const Units own = find_units(scaled.P, scaled.q, scaled.A, scaled.b, lane);
            // A linear system does not depend on the size of its right-hand side; so its matrix can be shared.
            set<W>(sigma_, lane, degree_ == 0 ? 1.0 : own.sigma);
            set<W>(zeta_, lane, degree_ == 0 ? 1.0 : own.omega / own.sigma);
            set<W>(floor_primal_, lane, user.sigma);
            set<W>(floor_dual_, lane, user.omega / user.tau);
            set<W>(floor_gap_, lane, user.omega);
            set<W>(unit_x_, lane, user.tau);
        }
        Numbers<W>::shrink_far_rows(plan_, w_, fresh, sigma_);
        const V one = broadcast<W>(1.0);
        Numbers<W>::scale_units(plan_, w_, select(fresh, sigma_, one), select(fresh, zeta_, one));
        System<W>::place_lasting(plan_, w_);
        start(fresh);
        // Equalities alone are one linear system in any case.
        if (settings_.warm && degree_ > 0) start_warm(fresh);
        if (any(moved_)) revisit();
    }

    // The iterate before the first point.
    void start(const M& fresh) {
        tau_ = select(fresh, broadcast<W>(1.0), tau_);
        kappa_ = select(fresh, broadcast<W>(1.0), kappa_);
        for (V* v : {w_.x, w_.Px, w_.Atz, w_.rx}) clear(v, plan_.n(), fresh);
        for (V* v : {w_.s, w_.z, w_.Ax, w_.rz}) clear(v, plan_.m(), fresh);
        if (!plan_.kkt.exponents.empty()) begin_at_center(fresh);
    }

    // Exponential and power cones have no axis to move along: the first point is x = 0 and the centers of the cones.
    void begin_at_center(const M& fresh) {
        Cones<W>::central_point(plan_, w_.s, w_.z, fresh);
        for (int lane = 0; lane < W; ++lane)
            if (get_mask<W>(fresh, lane)) lanes_[lane].phase = Phase::interior;
        moved_ = moved_ | fresh;
    }

    // Lanes whose element comes with a point polish at it.
    void start_warm(const M& fresh) {
        M warm = no_lane<W>();
        for (int lane = 0; lane < W; ++lane) {
            if (!get_mask<W>(fresh, lane) || !take_point(lane)) continue;
            lanes_[lane].phase = Phase::polish;
            lanes_[lane].warm = true;
            lanes_[lane].kept_residual = std::numeric_limits<double>::infinity();
            set_mask<W>(warm, lane, true);
        }
        Cones<W>::find_guesses(plan_, w_, warm);
        moved_ = moved_ | warm;
    }

    // The point in the lane's units, if it is one.
    bool take_point(int lane) {
        const Int n = plan_.n(), m = plan_.m();
        const double sigma = get<W>(sigma_, lane), zeta = get<W>(zeta_, lane);
        const double *const x = out_.x + lanes_[lane].element * n, *const s = out_.s + lanes_[lane].element * m;
        const double* const z = out_.z + lanes_[lane].element * m;
        const auto finite = [](const double* v, Int count) {
            return std::all_of(v, v + count, [](double value) { return std::isfinite(value); });
        };
        if (!(finite(x, n) && finite(s, m) && finite(z, m))) return false;
        for (Int j = 0; j < n; ++j) set<W>(w_.x[j], lane, x[j] / (sigma * get<W>(w_.D[j], lane)));
        for (Int i = 0; i < m; ++i) {
            const double E = get<W>(w_.E[i], lane);
            set<W>(w_.s[i], lane, s[i] * (E / sigma));
            set<W>(w_.z[i], lane, z[i] / (zeta * E));
        }
        return true;
    }

    static void clear(V* v, Int count, const M& lanes) {
        for (Int i = 0; i < count; ++i) v[i] = select(lanes, V{}, v[i]);
    }

    // -------------------------------------------------------------------------------------- iteration

    void iterate() {
        const M first = in_phase(Phase::first), interior = in_phase(Phase::interior), polish = in_phase(Phase::polish);
        Cones<W>::scale(plan_, w_, first, polish);
        if (!(shared_ && factored_)) System<W>::factor(plan_, w_);
        factored_ = true;
        solve_both(first, polish);
        if (any(interior)) find_direction(interior);
        // Lanes in the other phases hand over their new point instead of a direction.
        if (any(polish)) polished_point(polish);
        if (any(first)) first_point(first);
        Numbers<W>::multiply(plan_, w_, w_.dx, w_.dz, w_.out_x, w_.out_n, w_.out_m);
        if (any(first | polish)) move(first | polish);
        correct(interior, polish);
        if (any(interior)) step(interior);
        measure();
        for (int lane = 0; lane < W; ++lane) decide(lane);
        if (any(moved_)) revisit();
    }

    const V& q(Int j) const { return w_.numbers[plan_.pattern.q_start() + j]; }
    const V& b(Int i) const { return w_.numbers[plan_.pattern.b_start() + i]; }
    V& right(Int node) { return System<W>::template at<1>(plan_, w_, node); }
    V& right(Int node, int side) { return System<W>::template at<2>(plan_, w_, node, side); }

    // (x2, z2) for (-q, b), or the polishing step for (-r_x, -r_z); (dx, dz) for the predictor, or for (-q, 0) in lanes
    // whose first point is made of two parts, (x2, z2) being for (0, b) there.
    void solve_both(const M& first, const M& polish) {
        const Int n = plan_.n(), m = plan_.m();
        const M apart = first & apart_;
        Cones<W>::predictor(plan_, w_, w_.target);
        for (Int j = 0; j < n; ++j) {
            right(j, 0) = -select(apart, V{}, select(polish, w_.rx[j], q(j)));
            right(j, 1) = -select(apart, q(j), w_.rx[j]);
        }
        for (Int i = 0; i < m; ++i) {
            right(n + i, 0) = select(polish, -w_.rz[i], b(i));
            right(n + i, 1) = select(apart, V{}, w_.target[i] - w_.rz[i]);
        }
        System<W>::template solve<2>(plan_, w_);
        System<W>::take_both(plan_, w_);
        // Directions of other lanes are about to take the place of dz.
        if (any(apart))
            for (Int i = 0; i < m; ++i) w_.kept_z[i] = select(apart, w_.dz[i], w_.kept_z[i]);
    }

    // (dx, dz) for the one right-hand side that stands in y.
    void solve_one(V* dx, V* dz) {
        System<W>::template solve<1>(plan_, w_);
        System<W>::template take<1>(plan_, w_, 0, dx, dz);
    }

    // (q + 2 P xi)'dx + b'dz.
    V slope(const V* dx, const V* dz) const {
        const V twice = 2.0 / tau_;
        return sum_of<W>(plan_.n(), [&](Int j, V sum) { return fma(fma(twice, w_.Px[j], q(j)), dx[j], sum); }) +
               sum_of<W>(plan_.m(), [&](Int i, V sum) { return fma(b(i), dz[i], sum); });
    }

    // kappa / tau + |dx2 - xi|_P^2 + |dz2|_H^2.
    V denominator() {
        const V inverse = 1.0 / tau_;
        V cross{}, own{}, linear{};
        for (Int j = 0; j < plan_.n(); ++j) {
            const V Pxi = w_.Px[j] * inverse;
            cross = fma(Pxi, w_.x2[j], cross);
            own = fma(Pxi, w_.x[j] * inverse, own);
            linear = fma(q(j), w_.x2[j], linear);
        }
        Cones<W>::multiply(plan_, w_, w_.z2, w_.ds);
        const V H_norm = sum_of<W>(plan_.m(), [&](Int i, V sum) { return fma(w_.ds[i], w_.z2[i], sum); });
        linear = linear + sum_of<W>(plan_.m(), [&](Int i, V sum) { return fma(b(i), w_.z2[i], sum); });
        const V P_norm = max(-linear - H_norm, V{});
        return kappa_ * inverse + max(P_norm - 2.0 * cross + own, V{}) + H_norm;
    }

    // dtau, dkappa and the whole direction from (dx1, dz1) in (dx, dz) and (x2, z2).
    void combine(const V& zeta, const V& d_kappa, const V& bottom) {
        const V c = slope(w_.dx, w_.dz);
        dtau_ = (zeta * r_tau_ - d_kappa / tau_ + c) / bottom;
        dkappa_ = -(d_kappa + kappa_ * dtau_) / tau_;
        const V dtau = dtau_;
        for (Int j = 0; j < plan_.n(); ++j) w_.dx[j] = fma(dtau, w_.x2[j], w_.dx[j]);
        for (Int i = 0; i < plan_.m(); ++i) w_.dz[i] = fma(dtau, w_.z2[i], w_.dz[i]);
        slack_direction();
    }

    // ds = -d_s - H dz.
    void slack_direction() {
        Cones<W>::multiply(plan_, w_, w_.dz, w_.ds);
        for (Int i = 0; i < plan_.m(); ++i) w_.ds[i] = -(w_.target[i] + w_.ds[i]);
    }

    V exit_rate(const M& interior) const {
        const V scalars = max(-dtau_ / tau_, -dkappa_ / kappa_);
        return max(Cones<W>::exit_rate(plan_, w_, w_.ds, w_.dz, interior), scalars);
    }

    M first_step() const {
        M mask = no_lane<W>();
        for (int lane = 0; lane < W; ++lane) set_mask<W>(mask, lane, linear_ && lanes_[lane].iterations == 0);
        return mask;
    }

    // Mehrotra's predictor, then the combined direction.
    void find_direction(const M& interior) {
        const V one = broadcast<W>(1.0);
        const V bottom = denominator();
        const V product = tau_ * kappa_;
        combine(one, product, bottom);
        const V affine = 1.0 / max(exit_rate(interior), one);
        const V rest = 1.0 - affine;
        const V sigma = max(rest * rest * rest, select(damped_, broadcast<W>(kDampedCentering), V{}));
        // A first point far from the central path has a predictor that says little of second order. (With second-order
        // cones the full correction is the faster one.)
        const V weight = select(first_step(), affine, select(damped_, affine * affine, one));
        const V mu = product + sum_of<W>(plan_.m(), [&](Int i, V sum) { return fma(w_.s[i], w_.z[i], sum); });
        const V sigma_mu = sigma * mu * (1.0 / (degree_ + 1.0));
        Cones<W>::corrector(plan_, w_, w_.ds, w_.dz, weight, sigma_mu, w_.target);
        zeta_step_ = 1.0 - sigma;
        const V d_kappa = product + weight * (dkappa_ * dtau_) - sigma_mu;
        const V zeta = zeta_step_;
        for (Int j = 0; j < plan_.n(); ++j) right(j) = -(zeta * w_.rx[j]);
        for (Int i = 0; i < plan_.m(); ++i) right(plan_.n() + i) = fnma(zeta, w_.rz[i], w_.target[i]);
        // Lanes in other phases do not need the second solve; their new point is made from (x2, z2).
        solve_one(w_.dx, w_.dz);
        combine(zeta_step_, d_kappa, bottom);
    }

    // With the same factor: iterative refinement of directions that miss their equations by too much, and a second
    // Newton step of the points that are polished.
    void correct(const M& interior, const M& polish) {
        const V error = direction_error(interior, polish);
        const M needed = (interior & (error > max(kForcing * goal_, broadcast<W>(1e-2 * settings_.tolerance)))) |
                         (polish & (error > kConvergedPoint) & (error < 0.1 * goal_));
        if (!any(needed)) return;
        solve_one(w_.step_x, w_.step_z);
        for (Int j = 0; j < plan_.n(); ++j) w_.dx[j] = select(needed, w_.dx[j] + w_.step_x[j], w_.dx[j]);
        for (Int i = 0; i < plan_.m(); ++i)
            w_.dz[i] = select(needed & interior, w_.dz[i] + w_.step_z[i], w_.dz[i]);
        const M again = needed & polish;
        if (any(interior)) slack_direction();
        if (any(again)) newton_point(again, w_.step_z);
        Numbers<W>::multiply(plan_, w_, w_.dx, w_.dz, w_.out_x, w_.out_n, w_.out_m);
        if (any(again)) move(again);
    }

    // What is left of the equations, as the next right-hand side; its largest entry.
    V direction_error(const M& interior, const M& polish) {
        const Int n = plan_.n(), m = plan_.m();
        V error{};
        if (any(interior)) Cones<W>::multiply(plan_, w_, w_.dz, w_.jordan);
        for (Int j = 0; j < n; ++j) {
            const V wanted = fma(zeta_step_, w_.rx[j], q(j) * dtau_);
            const V left = wanted + w_.out_x[j] + w_.out_n[j];
            const V e = -select(polish, w_.Px[j] + w_.Atz[j] + q(j), left);
            right(j) = e;
            error = max(abs(e), error);
        }
        for (Int i = 0; i < m; ++i) {
            const V wanted = fma(b(i), dtau_, fnma(zeta_step_, w_.rz[i], w_.target[i]));
            const V left = wanted - w_.out_m[i] + w_.jordan[i];
            const V e = select(polish, b(i) - w_.Ax[i] - w_.s[i], left);
            right(n + i) = e;
            error = max(abs(e), error);
        }
        return error;
    }

    void step(const M& interior) {
        const V length = kStepShare / max(exit_rate(interior), broadcast<W>(1.0));
        const V a = select(interior, length, V{});
        for (Int j = 0; j < plan_.n(); ++j) {
            w_.x[j] = advance(interior, w_.x[j], a, w_.dx[j]);
            w_.Px[j] = advance(interior, w_.Px[j], a, w_.out_x[j]);
            w_.Atz[j] = advance(interior, w_.Atz[j], a, w_.out_n[j]);
        }
        for (Int i = 0; i < plan_.m(); ++i) {
            w_.s[i] = advance(interior, w_.s[i], a, w_.ds[i]);
            w_.z[i] = advance(interior, w_.z[i], a, w_.dz[i]);
            w_.Ax[i] = advance(interior, w_.Ax[i], a, w_.out_m[i]);
        }
        tau_ = advance(interior, tau_, a, dtau_);
        kappa_ = advance(interior, kappa_, a, dkappa_);
        length_ = length;
    }

    static V advance(const M& lanes, const V& from, const V& length, const V& direction) {
        return select(lanes, fma(length, direction, from), from);
    }

    // dx, dz, s: the first point, from K (x, z) = (-q, b) with H = I, s = -z, both moved into the cone. Without P, x and s
    // come from (0, b) and z from (-q, 0): then a large b does not make z large, from where steps are short.
    void first_point(const M& first) {
        const Int zero = plan_.pattern.cones.zero;
        for (Int j = 0; j < plan_.n(); ++j) w_.dx[j] = select(first, w_.x2[j], w_.dx[j]);
        for (Int i = 0; i < plan_.m(); ++i) {
            w_.s[i] = select(first, i < zero ? V{} : -w_.z2[i], w_.s[i]);
            w_.dz[i] = select(first, select(apart_, w_.kept_z[i], w_.z2[i]), w_.dz[i]);
        }
        Cones<W>::center(plan_, w_, w_.s, first);
        Cones<W>::center(plan_, w_, w_.dz, first);
    }

    // dx, dz, s: the point after one Newton step.
    void polished_point(const M& polish) {
        for (Int j = 0; j < plan_.n(); ++j) w_.dx[j] = select(polish, w_.x[j] + w_.x2[j], w_.dx[j]);
        newton_point(polish, w_.z2);
    }

    // s = Proj_K(v), dz = s - v after a step dz in v = s - z. From the second row of the system ds = -(H + eps) dz.
    void newton_point(const M& lanes, const V* dz) {
        Cones<W>::multiply(plan_, w_, dz, w_.jordan);
        for (Int i = 0; i < plan_.m(); ++i) {
            const V slack = -fma(w_.eps, dz[i], w_.jordan[i]);
            w_.s[i] = select(lanes, (w_.s[i] - w_.z[i]) + (slack - dz[i]), w_.s[i]);
        }
        Cones<W>::project(plan_, w_, w_.s, w_.dz, lanes);
    }

    void move(const M& lanes) {
        for (Int j = 0; j < plan_.n(); ++j) {
            w_.x[j] = select(lanes, w_.dx[j], w_.x[j]);
            w_.Px[j] = select(lanes, w_.out_x[j], w_.Px[j]);
            w_.Atz[j] = select(lanes, w_.out_n[j], w_.Atz[j]);
        }
        for (Int i = 0; i < plan_.m(); ++i) {
            w_.z[i] = select(lanes, w_.dz[i], w_.z[i]);
            w_.Ax[i] = select(lanes, w_.out_m[i], w_.Ax[i]);
        }
    }

    // ------------------------------------------------------------------------------------- judgement

    // Residuals of the embedding, and those of (x, s, z) / tau as convexlayers/solution.py defines them.
    void measure() {
        const Int n = plan_.n(), m = plan_.m();
        V dual{}, Px{}, Atz{}, q_size{}, primal{}, Ax{}, s_size{}, b_size{}, goal{};
        V xPx{}, qx{}, bz{}, x_size{}, z_size{};
        for (Int j = 0; j < n; ++j) {
            const V scale = zeta_ / w_.D[j], linear = q(j) * tau_;
            x_size = max(abs(w_.x[j]) * w_.D[j], x_size);
            w_.rx[j] = w_.Px[j] + w_.Atz[j] + linear;
            goal = max(abs(w_.rx[j]), goal);
            dual = max(abs(w_.rx[j]) * scale, dual);
            Px = max(abs(w_.Px[j]) * scale, Px);
            Atz = max(abs(w_.Atz[j]) * scale, Atz);
            q_size = max(abs(linear) * scale, q_size);
            xPx = fma(w_.x[j], w_.Px[j], xPx);
            qx = fma(w_.x[j], q(j), qx);
        }
        V certified{};
        const V none{};
        for (Int i = 0; i < m; ++i) {
            const V scale = sigma_ / w_.E[i], right = b(i) * tau_;
            const V sum = w_.Ax[i] + w_.s[i];
            w_.rz[i] = sum - right;
            goal = max(abs(w_.rz[i]), goal);
            certified = max(abs(sum) * scale, certified);
            // A bound out of proportion is measured beside itself, and nothing else is measured beside it.
            const M far = (scale > kOutOfProportion * floor_primal_) & (abs(b(i)) > 0.25 * kFar);
            const V weight = select(far, floor_primal_ / abs(b(i)), scale);
            const V share = select(far, none, scale);
            primal = max(abs(w_.rz[i]) * weight, primal);
            Ax = max(abs(w_.Ax[i]) * share, Ax);
            s_size = max(abs(w_.s[i]) * share, s_size);
            z_size = max(abs(w_.z[i]) * w_.E[i], z_size);
            b_size = max(abs(right) * share, b_size);
            bz = fma(w_.z[i], b(i), bz);
        }
        const V inverse = 1.0 / tau_, unit = sigma_ * zeta_;
        r_tau_ = kappa_ + qx + bz + xPx * inverse;
        goal_ = goal;
        primal_ = primal * inverse / max((Ax + b_size + s_size) * inverse, floor_primal_);
        dual_ = dual * inverse / max((Px + q_size + Atz) * inverse, floor_dual_);
        const V quadratic = xPx * inverse * inverse, linear = qx * inverse, constant = bz * inverse;
        const V gap_size = max((abs(quadratic) + abs(linear) + abs(constant)) * unit, floor_gap_);
        gap_ = abs(quadratic + linear + constant) * unit / gap_size;
        objective_ = (0.5 * quadratic + linear) * unit;
        // Rays: z with A'z = 0, b'z < 0; x with Px = 0, A x + s = 0, q'x < 0; in user's units of size one. What should be
        // zero is small beside the slope, and beside the ray: a bounded problem with one large entry of q or b has only
        // the first.
        const V farkas = -bz * unit, descent = -qx * unit;
        const V dual_off = Atz * unit_x_, primal_off = max(Px * unit_x_, certified * (floor_gap_ / floor_primal_));
        const V z_off = dual_off / (z_size * zeta_ * floor_primal_), x_off = primal_off * unit_x_ / (x_size * sigma_ * floor_gap_);
        infeasible_ = select(farkas > 0.0, max(dual_off / farkas, z_off), broadcast<W>(kInfinite));
        unbounded_ = select(descent > 0.0, max(primal_off / descent, x_off), broadcast<W>(kInfinite));
    }

    double residual(int lane) const {
        const double p = get<W>(primal_, lane), d = get<W>(dual_, lane), g = get<W>(gap_, lane);
        const double worst = std::max(std::max(p, d), g);
        return p == p && d == d && g == g ? worst : std::numeric_limits<double>::infinity();
    }

    void decide(int lane) {
        LaneState& state = lanes_[lane];
        switch (state.phase) {
            case Phase::idle: return;
            case Phase::first:
                state.phase = Phase::interior;
                // Equalities alone: the first point solves them, up to regularization.
                if (degree_ == 0) keep(lane);
                return;
            case Phase::interior: return decide_interior(lane);
            case Phase::polish: return decide_polished(lane);
        }
    }

    void decide_interior(int lane) {
        LaneState& state = lanes_[lane];
        ++state.iterations;
        const double worst = residual(lane);
        const double tau = get<W>(tau_, lane), kappa = get<W>(kappa_, lane);
        if (worst <= std::max(state.polish_at, settings_.tolerance)) {
            if (worst <= settings_.tolerance && state.polish_at < settings_.tolerance * kPolishFactor)
                return finish(lane, Outcome::solved);
            return keep(lane);
        }
        if (kappa > tau) recheck(lane);
        if (kappa > tau && get<W>(infeasible_, lane) <= kCertificate * 1e-2)
            return fail(lane, Outcome::primal_infeasible);
        if (kappa > tau && get<W>(unbounded_, lane) <= kCertificate * 1e-2) return fail(lane, Outcome::dual_infeasible);
        if (kappa > tau) {
            state.infeasible = std::min(state.infeasible, get<W>(infeasible_, lane));
            state.unbounded = std::min(state.unbounded, get<W>(unbounded_, lane));
        }
        watch(lane, worst);
        const double length = get<W>(length_, lane);
        state.short_steps = length > kShortStep ? 0 : state.short_steps + 1;
        const bool lost = !(tau > 0 && kappa >= 0 && worst < std::numeric_limits<double>::infinity());
        if (lost || state.short_steps >= kMostShortSteps) return give_up(lane, Outcome::numerical_error);
        if (state.iterations >= settings_.max_iterations) return give_up(lane, Outcome::max_iterations);
    }

    // The full second-order correction is fastest, and may cycle; a lane that has not got better for a while takes a share
    // of it, and at least so much centering, until it does (Salahi, Peng, Terlaky, "On Mehrotra-type predictor-corrector algorithms", 2007).
    void watch(int lane, double worst) {
        LaneState& state = lanes_[lane];
        const bool better = worst < kProgress * state.best;
        state.best = better ? worst : state.best;
        state.idle_steps = better ? 0 : state.idle_steps + 1;
        set_mask<W>(damped_, lane, state.idle_steps >= kMostIdleSteps);
    }

    // The iterate is kept, normalized to tau = 1, and the lane polishes from its next iteration on.
    void keep(int lane) {
        LaneState& state = lanes_[lane];
        const double inverse = 1.0 / get<W>(tau_, lane);
        const auto normalize = [&](V* v, Int count) {
            for (Int i = 0; i < count; ++i) set<W>(v[i], lane, get<W>(v[i], lane) * inverse);
        };
        for (V* v : {w_.x, w_.Px, w_.Atz, w_.rx}) normalize(v, plan_.n());
        for (V* v : {w_.s, w_.z, w_.Ax, w_.rz}) normalize(v, plan_.m());
        set<W>(kappa_, lane, get<W>(kappa_, lane) * inverse);
        set<W>(tau_, lane, 1.0);
        copy_lane(lane, w_.x, w_.kept_x, plan_.n());
        copy_lane(lane, w_.s, w_.kept_s, plan_.m());
        copy_lane(lane, w_.z, w_.kept_z, plan_.m());
        state.kept_residual = residual(lane);
        state.polish_steps = 0;
        state.phase = Phase::polish;
        set_mask<W>(moved_, lane, true);
    }

    static void copy_lane(int lane, const V* from, V* to, Int count) {
        for (Int i = 0; i < count; ++i) set<W>(to[i], lane, get<W>(from[i], lane));
    }

    void decide_polished(int lane) {
        LaneState& state = lanes_[lane];
        ++state.iterations;
        ++state.polish_steps;
        const double worst = residual(lane);
        if (worst <= std::min(kPolished, settings_.tolerance)) return finish(lane, Outcome::solved);
        if (state.warm) return decide_warm(lane, worst);
        // The last chance gets more steps than those before it.
        const bool last = state.kept_residual <= settings_.tolerance;
        if (state.polish_steps < (last ? kLastPolishSteps : kMostPolishSteps)) return;
        if (worst <= std::min(1e-3 * settings_.tolerance, 0.1 * state.kept_residual))
            return finish(lane, Outcome::solved);
        // Not yet at the solution's active set: back to where the polishing began.
        copy_lane(lane, w_.kept_x, w_.x, plan_.n());
        copy_lane(lane, w_.kept_s, w_.s, plan_.m());
        copy_lane(lane, w_.kept_z, w_.z, plan_.m());
        state.phase = Phase::interior;
        state.polish_at = std::min(state.polish_at, state.kept_residual) * kPolishFactor;
        set_mask<W>(moved_, lane, true);
    }

    void decide_warm(int lane, double worst) {
        LaneState& state = lanes_[lane];
        const bool better = worst <= kWarmProgress * state.kept_residual;
        state.kept_residual = worst;
        if (better && state.polish_steps < kMostWarmSteps) return;
        start_over(lane, kRegularization);
        state.spent = state.iterations;
        state.iterations = 0;
    }

    // Products and residuals at points that were moved by other means than a step.
    void revisit() {
        const M kept = moved_ & in_phase(Phase::polish);
        if (any(kept)) {
            // Newton's residuals are those of (Proj_K(v), Proj_K(v) - v).
            for (Int i = 0; i < plan_.m(); ++i) w_.s[i] = select(kept, w_.s[i] - w_.z[i], w_.s[i]);
            Cones<W>::project(plan_, w_, w_.s, w_.z, kept);
        }
        renew_products(moved_);
        measure();
        for (int lane = 0; lane < W; ++lane) {
            const LaneState& state = lanes_[lane];
            if (get_mask<W>(moved_, lane) && state.phase == Phase::interior) {
                if (residual(lane) <= settings_.tolerance)
                    finish(lane, Outcome::solved);
                else if (state.iterations >= settings_.max_iterations)
                    give_up(lane, Outcome::max_iterations);
            }
            set_mask<W>(moved_, lane, false);
        }
    }

    // Steps add to the products, and where x or z grows by orders of magnitude along a null vector their error grows with
    // it: what looks like a certificate is measured again, with products of its own.
    void recheck(int lane) {
        if (!(std::min(get<W>(infeasible_, lane), get<W>(unbounded_, lane)) <= kCertificate)) return;
        M only = no_lane<W>();
        set_mask<W>(only, lane, true);
        renew_products(only);
        measure();
    }

    // P x, A'z and A x of the lanes, not from those of the steps.
    void renew_products(const M& lanes) {
        Numbers<W>::multiply(plan_, w_, w_.x, w_.z, w_.out_x, w_.out_n, w_.out_m);
        for (Int j = 0; j < plan_.n(); ++j) {
            w_.Px[j] = select(lanes, w_.out_x[j], w_.Px[j]);
            w_.Atz[j] = select(lanes, w_.out_n[j], w_.Atz[j]);
        }
        for (Int i = 0; i < plan_.m(); ++i) w_.Ax[i] = select(lanes, w_.out_m[i], w_.Ax[i]);
    }

    // An iterate that will not get better is what its residuals say.
    void give_up(int lane, Outcome outcome) {
        const double worst = residual(lane);
        if (worst <= kToleranceFactor * std::max(settings_.tolerance, kSmallestTolerance))
            return finish(lane, Outcome::solved);
        recheck(lane);
        // Rounding may have lost a certificate again that was good enough.
        const LaneState& state = lanes_[lane];
        if (std::min(state.infeasible, get<W>(infeasible_, lane)) <= kCertificate)
            return fail(lane, Outcome::primal_infeasible);
        if (std::min(state.unbounded, get<W>(unbounded_, lane)) <= kCertificate)
            return fail(lane, Outcome::dual_infeasible);
        if (outcome == Outcome::numerical_error && !state.heavy && state.iterations < settings_.max_iterations)
            return start_heavy(lane);
        finish(lane, outcome);
    }

    void start_heavy(int lane) {
        start_over(lane, kHeavyRegularization);
        lanes_[lane].heavy = true;
    }

    // The same element once more, from its scaled numbers; its iterations count on.
    void start_over(int lane, double regularization) {
        const LaneState old = lanes_[lane];
        occupy(lane, old.element, regularization);
        lanes_[lane].iterations = old.iterations;
        lanes_[lane].spent = old.spent;
        shared_ = false;
        M only = no_lane<W>();
        set_mask<W>(only, lane, true);
        start(only);
    }

    // --------------------------------------------------------------------------------------- results

    void finish(int lane, Outcome outcome) {
        const LaneState& state = lanes_[lane];
        const Int n = plan_.n(), m = plan_.m();
        const double inverse = 1.0 / get<W>(tau_, lane);
        const double sigma = get<W>(sigma_, lane), zeta = get<W>(zeta_, lane);
        std::int16_t* const scales = out_.scales + state.element * (n + m + 2);
        double* const x = out_.x + state.element * n;
        for (Int j = 0; j < n; ++j) {
            const double D = get<W>(w_.D[j], lane);
            x[j] = get<W>(w_.x[j], lane) * inverse * (sigma * D);
            scales[j] = static_cast<std::int16_t>(std::ilogb(D));
        }
        double *const s = out_.s + state.element * m, *const z = out_.z + state.element * m;
        for (Int i = 0; i < m; ++i) {
            const double E = get<W>(w_.E[i], lane);
            s[i] = get<W>(w_.s[i], lane) * inverse * (sigma / E);
            z[i] = get<W>(w_.z[i], lane) * inverse * (zeta * E);
            scales[n + i] = static_cast<std::int16_t>(std::ilogb(E));
        }
        scales[n + m] = static_cast<std::int16_t>(std::ilogb(sigma));
        scales[n + m + 1] = static_cast<std::int16_t>(std::ilogb(zeta));
        const double offset = get<W>(w_.numbers[plan_.pattern.offset_start()], lane);
        out_.objective[state.element] = get<W>(objective_, lane) + offset;
        out_.primal[state.element] = get<W>(primal_, lane);
        out_.dual[state.element] = get<W>(dual_, lane);
        out_.gap[state.element] = get<W>(gap_, lane);
        close(lane, outcome);
    }

    // Without a point.
    void fail(int lane, Outcome outcome) {
        const std::int64_t element = lanes_[lane].element;
        const double nan = std::numeric_limits<double>::quiet_NaN();
        std::fill_n(out_.x + element * plan_.n(), plan_.n(), nan);
        std::fill_n(out_.s + element * plan_.m(), plan_.m(), nan);
        std::fill_n(out_.z + element * plan_.m(), plan_.m(), nan);
        for (double* v : {out_.objective, out_.primal, out_.dual, out_.gap}) v[element] = nan;
        close(lane, outcome);
    }

    void close(int lane, Outcome outcome) {
        LaneState& state = lanes_[lane];
        out_.status[state.element] = static_cast<std::int64_t>(outcome);
        out_.iterations[state.element] = state.iterations + state.spent;
        state.phase = Phase::idle;
    }

    const Plan& plan_;
    const Settings& settings_;
    const Values* values_;
    const Solutions& out_;
    Queue& queue_;
    Workspace<W> w_;
    const bool linear_;
    // Whether the first point is made of two parts: programs without P, in all lanes.
    const M apart_;
    const double degree_;
    bool shared_;  // one factorization serves all
    bool factored_ = false;
    LaneState lanes_[W];
    M moved_ = no_lane<W>(), damped_ = no_lane<W>();
    // Of the iterate and its direction.
    V tau_ = broadcast<W>(1.0), kappa_ = broadcast<W>(1.0), dtau_{}, dkappa_{}, r_tau_{}, length_{}, zeta_step_{}, goal_{};
    // Units: of the scaled numbers, and of the user's (Units).
    V sigma_ = broadcast<W>(1.0), zeta_ = broadcast<W>(1.0), unit_x_ = broadcast<W>(1.0);
    V floor_primal_ = broadcast<W>(1.0), floor_dual_ = broadcast<W>(1.0), floor_gap_ = broadcast<W>(1.0);
    // What `measure` found.
    V primal_{}, dual_{}, gap_{}, objective_{}, infeasible_{}, unbounded_{};
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
