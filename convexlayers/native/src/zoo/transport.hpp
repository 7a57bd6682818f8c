// Entropic optimal transport; the problem, its method and derivative are in zoo/transport.py, the linear system in
// zoo/_marginals.py. One problem per lane, in double precision; lanes that have finished stay as they are.
#pragma once

#include "lanes/functions.hpp"
#include "zoo/spectral.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

// n >= m, after a transposition where that is needed.
class TransportLanes {
public:
    TransportLanes(Size n, Size m) : n_(n), m_(m), memory_(static_cast<std::size_t>(3 * n * m + 2 * m * m + 6 * (n + m))) {
        Lane* next = memory_.data();
        for (Lane** part : {&K, &P, &scaled_}) *part = take(next, n * m);
        for (Lane** part : {&complement_, &factor_}) *part = take(next, m * m);
        for (Lane** part : {&a, &f, &r, &df, &u_, &rows_}) *part = take(next, n);
        for (Lane** part : {&b, &g, &c, &dg, &v_, &right_}) *part = take(next, m);
    }

    Lane *K, *P;                            // (n, m)
    Lane *a, *f, *r, *df, *b, *g, *c, *dg;  // (n), (m)

    // f, g and P = exp(f 1' + 1 g' - K) with the marginals a, b, to rounding of numbers of this relative precision; in
    // lanes where that is not found P is NaN.
    void solve(double eps) {
        sinkhorn();
        Lane allowed = broadcast<kLanes>(1.0);
        for (Size k = 0; k < n_ * m_; ++k) allowed = max(abs(K[k]) + 1.0, allowed);
        Lane heaviest{};
        for (Size i = 0; i < n_; ++i) heaviest = max(a[i], heaviest);
        for (Size j = 0; j < m_; ++j) heaviest = max(b[j], heaviest);
        allowed = 16.0 * eps * heaviest * allowed;
        Lane error = broadcast<kLanes>(kInfinity<double>), previous = error;
        plan(f, g);
        for (int step = 0; step < kMaxSteps; ++step) {
            error = residuals();
            // At the level of rounding, no progress is the end.
            const LaneMask stuck = (error <= 1000.0 * allowed) & (error >= 0.5 * previous);
            const LaneMask moving = (error > allowed) & ~stuck;
            previous = error;
            if (!any(moving)) break;
            potentials();
            ascend(moving, eps);
        }
        const LaneMask found = error <= 1000.0 * allowed;
        for (Size k = 0; k < n_ * m_; ++k) P[k] = select(found, P[k], broadcast<kLanes>(kNan<double>));
    }

    // df, dg with diag(P 1) df + P dg = r, P' df + diag(P' 1) dg = c.
    void potentials() {
        Lane most{};
        for (Size i = 0; i < n_; ++i) {
            Lane total{};
            for (Size j = 0; j < m_; ++j) total += P[i * m_ + j];
            // A row without entries has no equation; nothing of its potential is used.
            rows_[i] = select(total > 0.0, total, broadcast<kLanes>(1.0));
            for (Size j = 0; j < m_; ++j) scaled_[i * m_ + j] = P[i * m_ + j] / rows_[i];
        }
        for (Size j = 0; j < m_; ++j) {
            Lane total{}, side = c[j];
            for (Size i = 0; i < n_; ++i) {
                total += P[i * m_ + j];
                side = fnma(scaled_[i * m_ + j], r[i], side);
            }
            right_[j] = side;
            most = max(total, most);
            for (Size k = 0; k <= j; ++k) {
                Lane entry = j == k ? total : Lane{};
                for (Size i = 0; i < n_; ++i) entry = fnma(P[i * m_ + j], scaled_[i * m_ + k], entry);
                complement_[j * m_ + k] = complement_[k * m_ + j] = entry;
            }
        }
        const Lane ridge = kRidge * max(most, broadcast<kLanes>(std::numeric_limits<double>::min()));
        for (Size j = 0; j < m_; ++j) complement_[j * m_ + j] += ridge;
        Dense<kLanes>::cholesky(static_cast<Int>(m_), complement_, factor_);
        for (Size j = 0; j < m_; ++j) {
            complement_[j * m_ + j] -= ridge;
            dg[j] = Lane{};
        }
        for (int refinement = 0; refinement < 3; ++refinement) {
            for (Size j = 0; j < m_; ++j) {
                Lane residual = right_[j];
                for (Size k = 0; k < m_; ++k) residual = fnma(complement_[j * m_ + k], dg[k], residual);
                v_[j] = residual;
            }
            substitute();
            for (Size j = 0; j < m_; ++j) dg[j] += v_[j];
        }
        for (Size i = 0; i < n_; ++i) {
            Lane side = r[i];
            for (Size j = 0; j < m_; ++j) side = fnma(P[i * m_ + j], dg[j], side);
            df[i] = side / rows_[i];
        }
    }

private:
    using Math = Functions<kLanes>;
    static constexpr int kSweeps = 10, kRounds = 3, kMaxSteps = 60, kHalvings = 30;
    static constexpr double kRidge = 1e-10;

    static Lane* take(Lane*& next, Size count) {
        Lane* const found = next;
        next += count;
        return found;
    }

    void plan(const Lane* along, const Lane* across) {
        for (Size i = 0; i < n_; ++i)
            for (Size j = 0; j < m_; ++j) P[i * m_ + j] = Math::exp(along[i] + across[j] - K[i * m_ + j]);
    }

    // v_ = (L L')^-1 v_
    void substitute() {
        for (Size j = 0; j < m_; ++j) {
            for (Size k = 0; k < j; ++k) v_[j] = fnma(factor_[j * m_ + k], v_[k], v_[j]);
            v_[j] /= factor_[j * m_ + j];
        }
        for (Size j = m_ - 1; j >= 0; --j) {
            for (Size k = j + 1; k < m_; ++k) v_[j] = fnma(factor_[k * m_ + j], v_[k], v_[j]);
            v_[j] /= factor_[j * m_ + j];
        }
    }

    // r = a - P 1, c = b - P' 1, and the largest of them; NaN if one is.
    Lane residuals() {
        Lane worst{}, defect{};
        std::copy(b, b + m_, c);
        for (Size i = 0; i < n_; ++i) {
            r[i] = a[i];
            for (Size j = 0; j < m_; ++j) {
                r[i] -= P[i * m_ + j];
                c[j] -= P[i * m_ + j];
            }
            worst = max(abs(r[i]), worst);
            defect += r[i] - r[i];
        }
        for (Size j = 0; j < m_; ++j) {
            worst = max(abs(c[j]), worst);
            defect += c[j] - c[j];
        }
        return worst + defect;
    }

    // f and g in turn: once with logarithms, then by scaling rows and columns of P, whose potentials are renewed so that
    // they neither over- nor underflow.
    void sinkhorn() {
        for (Size i = 0; i < n_; ++i) {
            Lane most = broadcast<kLanes>(-kInfinity<double>), total{};
            for (Size j = 0; j < m_; ++j) most = max(-K[i * m_ + j], most);
            for (Size j = 0; j < m_; ++j) total += Math::exp(-K[i * m_ + j] - most);
            f[i] = Math::log(a[i]) - most - Math::log(total);
        }
        for (Size j = 0; j < m_; ++j) {
            Lane most = broadcast<kLanes>(-kInfinity<double>), total{};
            for (Size i = 0; i < n_; ++i) most = max(f[i] - K[i * m_ + j], most);
            for (Size i = 0; i < n_; ++i) total += Math::exp(f[i] - K[i * m_ + j] - most);
            g[j] = Math::log(b[j]) - most - Math::log(total);
        }
        for (int round = 0; round < kRounds; ++round) {
            plan(f, g);
            std::fill(v_, v_ + m_, broadcast<kLanes>(1.0));
            for (int sweep = 0; sweep < kSweeps; ++sweep) scale();
            Lane defect{};
            for (Size i = 0; i < n_; ++i) {
                df[i] = Math::log(u_[i]);
                defect += df[i] - df[i];
            }
            for (Size j = 0; j < m_; ++j) {
                dg[j] = Math::log(v_[j]);
                defect += dg[j] - dg[j];
            }
            const LaneMask ordinary = defect == 0.0;
            for (Size i = 0; i < n_; ++i) f[i] = select(ordinary, f[i] + df[i], f[i]);
            for (Size j = 0; j < m_; ++j) g[j] = select(ordinary, g[j] + dg[j], g[j]);
        }
    }

    // u = a / P v, v = b / P'u
    void scale() {
        std::fill(right_, right_ + m_, Lane{});
        for (Size i = 0; i < n_; ++i) {
            Lane total{};
            for (Size j = 0; j < m_; ++j) total = fma(P[i * m_ + j], v_[j], total);
            u_[i] = a[i] / total;
            for (Size j = 0; j < m_; ++j) right_[j] = fma(P[i * m_ + j], u_[i], right_[j]);
        }
        for (Size j = 0; j < m_; ++j) v_[j] = b[j] / right_[j];
    }

    // a'f + b'g - sum(P), where P is that of f and g
    Lane dual(const Lane* along, const Lane* across) const {
        Lane value{};
        for (Size i = 0; i < n_; ++i) value = fma(a[i], along[i], value);
        for (Size j = 0; j < m_; ++j) value = fma(b[j], across[j], value);
        for (Size k = 0; k < n_ * m_; ++k) value -= P[k];
        return value;
    }

    // Newton's step, halved until the dual does not fall; then g is made exact, which keeps a long step from mattering.
    void ascend(const LaneMask& moving, double eps) {
        const Lane before = dual(f, g), least = before - 64.0 * eps * (1.0 + abs(before));
        Lane step = broadcast<kLanes>(1.0);
        for (int halving = 0; halving < kHalvings; ++halving) {
            for (Size i = 0; i < n_; ++i) u_[i] = select(moving, f[i] + step * df[i], f[i]);
            for (Size j = 0; j < m_; ++j) v_[j] = select(moving, g[j] + step * dg[j], g[j]);
            plan(u_, v_);
            // NaN and infinity are no rise.
            const LaneMask falling = moving & ~(dual(u_, v_) >= least);
            if (!any(falling)) break;
            step = select(falling, 0.5 * step, step);
        }
        std::copy(u_, u_ + n_, f);
        for (Size j = 0; j < m_; ++j) {
            Lane total{};
            for (Size i = 0; i < n_; ++i) total += P[i * m_ + j];
            const Lane change = Math::log(b[j] / total);
            g[j] = select(moving & (change - change == 0.0), v_[j] + change, v_[j]);
        }
        plan(f, g);
    }

    Size n_, m_;
    std::vector<Lane> memory_;
    Lane *scaled_, *complement_, *factor_, *u_, *rows_, *v_, *right_;
};

// (n, m) to and from lanes, as its transpose where m > n.
template <class T>
void load_matrix(const Task& task, int position, Size first, int count, Lane* out) {
    const Size n = task.n, m = task.m;
    for (int lane = 0; lane < kLanes; ++lane) {
        const T* const values = task.row<T>(position, first + std::min(lane, count - 1), n * m);
        for (Size i = 0; i < n; ++i)
            for (Size j = 0; j < m; ++j) out[m > n ? j * n + i : i * m + j][lane] = static_cast<double>(values[i * m + j]);
    }
}

template <class T>
void store_matrix(const Task& task, int position, Size first, int count, const Lane* values) {
    const Size n = task.n, m = task.m;
    for (int lane = 0; lane < count; ++lane) {
        T* const out = task.row<T>(position, first + lane, n * m);
        for (Size i = 0; i < n; ++i)
            for (Size j = 0; j < m; ++j) out[i * m + j] = static_cast<T>(values[m > n ? j * n + i : i * m + j][lane]);
    }
}

// C (n, m), a (n), b (m), eps (1) -> P (n, m)
template <class T>
std::int64_t transport(const Task& task, Size begin, Size end) {
    const Size n = task.n, m = task.m;
    const bool turned = m > n;
    TransportLanes problem(std::max(n, m), std::min(n, m));
    for (Size first = begin; first < end; first += kLanes) {
        const int count = static_cast<int>(std::min<Size>(kLanes, end - first));
        Lane eps;
        load_matrix<T>(task, 0, first, count, problem.K);
        to_lanes<T>(task, 1, first, count, n, turned ? problem.b : problem.a);
        to_lanes<T>(task, 2, first, count, m, turned ? problem.a : problem.b);
        to_lanes<T>(task, 3, first, count, 1, &eps);
        eps = select(eps > 0.0, eps, broadcast<kLanes>(kNan<double>));
        for (Size k = 0; k < n * m; ++k) problem.K[k] /= eps;
        problem.solve(static_cast<double>(kEps<T>));
        store_matrix<T>(task, 4, first, count, problem.P);
    }
    return 0;
}

// C (n, m), eps (1), P (n, m), cotangent (n, m) -> of C (n, m), of a (n), of b (m), of eps (1)
template <class T>
std::int64_t transport_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n, m = task.m, tall = std::max(n, m), narrow = std::min(n, m);
    const bool turned = m > n;
    TransportLanes problem(tall, narrow);
    std::vector<Lane> memory(2 * n * m);
    Lane *const R = memory.data(), *const cost = R + n * m;
    for (Size first = begin; first < end; first += kLanes) {
        const int count = static_cast<int>(std::min<Size>(kLanes, end - first));
        Lane eps, along{};
        load_matrix<T>(task, 0, first, count, cost);
        to_lanes<T>(task, 1, first, count, 1, &eps);
        load_matrix<T>(task, 2, first, count, problem.P);
        load_matrix<T>(task, 3, first, count, R);
        std::fill(problem.c, problem.c + narrow, Lane{});
        for (Size i = 0; i < tall; ++i) {
            problem.r[i] = Lane{};
            for (Size j = 0; j < narrow; ++j) {
                const Size k = i * narrow + j;
                R[k] *= problem.P[k];
                problem.r[i] += R[k];
                problem.c[j] += R[k];
            }
        }
        problem.potentials();
        for (Size i = 0; i < tall; ++i)
            for (Size j = 0; j < narrow; ++j) {
                const Size k = i * narrow + j;
                R[k] = fma(problem.P[k], problem.df[i] + problem.dg[j], -R[k]) / eps;
                along = fnma(R[k], cost[k], along);
            }
        along /= eps;
        store_matrix<T>(task, 4, first, count, R);
        from_lanes<T>(task, 5, first, count, n, turned ? problem.dg : problem.df);
        from_lanes<T>(task, 6, first, count, m, turned ? problem.df : problem.dg);
        from_lanes<T>(task, 7, first, count, 1, &along);
    }
    return 0;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
