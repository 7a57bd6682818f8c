// The cones of a program: projection, scaling, steps and correctors, and their block of the matrix. Each kind of cone has
// a file of its own in lanes/cones; here is what becomes of the rows of a program.
//
// The matrix H of a cone is the Nesterov-Todd W'W or its counterpart in an interior-point step, the identity for the
// first point, and M (I - M)^-1, M = D Proj_K(s - z), clipped, for polishing and for the derivative. A lane decides which
// by its phase; the code that factors does not know.
#pragma once

#include "lanes/cones/boundary.hpp"
#include "lanes/cones/second_order.hpp"
#include "lanes/cones/semidefinite.hpp"
#include "lanes/workspace.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

using plan::ExpandedBlock;
using plan::SemidefiniteBlock;

template <int W>
struct Cones {
    using V = Vec<W>;
    using M = Mask<W>;
    using Second = SecondOrderCone<W>;
    using Boundary = BoundaryCone<W>;

    static double degree(const Plan& plan) {
        const plan::KktPattern& kkt = plan.kkt;
        Int degree = static_cast<Int>(kkt.nonnegative_rows.size()) + kkt.second_orders + 3 * boundaries(plan);
        for (const SemidefiniteBlock& cone : kkt.semidefinite) degree += cone.order;
        return degree;
    }

    // ---------------------------------------------------------------------------------------------- H

    // H at (s, z); `first` marks lanes at their first point, `exact` those that want the derivative of the projection.
    static void scale(const Plan& plan, Workspace<W>& w, const M& first, const M& exact) {
        const V one = broadcast<W>(1.0);
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) w.H[i] = V{};
        const V *const s = w.s, *const z = w.z;
        V *const inverse_s = w.inverse_s, *const inverse_z = w.inverse_z, *const H = w.H;
        plan.kkt.for_each_nonnegative([=](Int i) {
            const V si = s[i], zi = z[i], inverse = one / zi;
            inverse_s[i] = one / si;
            inverse_z[i] = inverse;
            const V limit = select(si > zi, broadcast<W>(kInfinite), V{});
            H[i] = select(first, one, select(exact, limit, si * inverse));
        });
        for_each_second_order(plan, [&](const ExpandedBlock& cone, std::size_t c) {
            const Int row = cone.row;
            Second::scale(cone.dim, w.s + row, w.z + row, w.spectra[c], w.u + row, w.out_m + row, first, exact);
        });
        for_each_boundary(plan, [&](const ExpandedBlock& cone, std::size_t c, double exponent) {
            scale_boundary(cone, exponent, w, w.spectra[c], basis(plan, w, c), exact);
        });
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite) {
            const Int row = cone.row;
            semidefinite(cone, w).scale(w.s + row, w.z + row, w.H + row, w.u + row, first, exact);
        }
    }

    // out = H in, in the form that keeps small eigenvalues exact.
    static void multiply(const Plan& plan, const Workspace<W>& w, const V* in, V* out) {
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) out[i] = V{};
        const V* const H = w.H;
        plan.kkt.for_each_nonnegative([=](Int i) { out[i] = H[i] * in[i]; });
        for_each_second_order(plan, [&](const ExpandedBlock& cone, std::size_t c) {
            Second::apply(cone.dim, w.spectra[c], w.u + cone.row, in + cone.row, out + cone.row);
        });
        for_each_boundary(plan, [&](const ExpandedBlock& cone, std::size_t c, double) {
            const Spectrum<W>& own = w.spectra[c];
            Boundary::apply(own.plus, own.rest, own.minus, basis(plan, w, c), in + cone.row, out + cone.row);
        });
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite)
            semidefinite(cone, w).apply(w.H + cone.row, in + cone.row, out + cone.row);
    }

    // P + eps I, -(H + eps I), the vectors of expanded blocks and the rotated rows of A, into the arrays of the
    // factorization.
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
        for (std::size_t c = 0; c < plan.kkt.expanded.size(); ++c) {
            const ExpandedBlock& cone = plan.kkt.expanded[c];
            write_expanded(plan, w, c, v, u);
            v += cone.dim, u += cone.dim;
        }
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite) write_rotated(plan, cone, w);
    }

    // Right-hand sides and solutions of the factorized system: rows of semidefinite cones stand there rotated. at(i) is
    // row i of a vector of rows.
    template <class At>
    static void rotate(const Plan& plan, const Workspace<W>& w, bool back, At at) {
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite) {
            V* const y = w.cone_work;
            for (Int k = 0; k < cone.dim; ++k) y[k] = at(cone.row + k);
            SemidefiniteCone<W> rotation = semidefinite(cone, w, y + cone.dim);
            back ? rotation.rotate_back(y, y) : rotation.rotate(y, y);
            for (Int k = 0; k < cone.dim; ++k) at(cone.row + k) = y[k];
        }
    }

    // ------------------------------------------------------------------------------- interior-point steps

    // The first point: s and z moved into the interior of the cone along its axis, by lanes.
    static void center(const Plan& plan, const Workspace<W>& w, V* s, const M& lanes) {
        V margin = broadcast<W>(kInfinite);
        for (const Int i : plan.kkt.nonnegative_rows) margin = min(s[i], margin);
        for_each_second_order(plan, [&](const ExpandedBlock& cone, std::size_t) {
            margin = min(s[cone.row] - Second::norm(s + cone.row + 1, cone.dim - 1), margin);
        });
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite)
            margin = min(semidefinite(cone, w).smallest_eigenvalue(s + cone.row), margin);
        move_along_axis(plan, s, select(lanes & (margin < 1e-4), 1.0 - margin, V{}));
    }

    // s and z at the centers of the cones, in `lanes`: the first point where a cone has no linear one.
    static void central_point(const Plan& plan, V* s, V* z, const M& lanes) {
        for (Int i = 0; i < plan.m(); ++i) s[i] = select(lanes, V{}, s[i]);
        move_along_axis(plan, s, select(lanes, broadcast<W>(1.0), V{}));
        for_each_boundary(plan, [&](const ExpandedBlock& cone, std::size_t, double exponent) {
            const Three<W> point = Boundary::center(exponent);
            for (int k = 0; k < 3; ++k) s[cone.row + k] = select(lanes, point[k], s[cone.row + k]);
        });
        for (Int i = 0; i < plan.m(); ++i) z[i] = select(lanes, s[i], z[i]);
    }

    // What `project` is helped by at points that no step led to.
    static void find_guesses(const Plan& plan, Workspace<W>& w, const M& lanes) {
        for_each_boundary(plan, [&](const ExpandedBlock& cone, std::size_t c, double exponent) {
            V& guess = basis(plan, w, c)[9];
            guess = select(lanes, Boundary::find_guess(exponent, w.s + cone.row, w.z + cone.row), guess);
        });
    }

    // 1 / largest step to the boundary along (ds, dz): the largest of the rates at which s and z leave their cones.
    // In `lanes`; elsewhere the result is arbitrary.
    static V exit_rate(const Plan& plan, const Workspace<W>& w, const V* ds, const V* dz, const M& lanes) {
        V rate{};
        plan.kkt.for_each_nonnegative([&](Int i) {
            rate = max(max(-(ds[i] * w.inverse_s[i]), -(dz[i] * w.inverse_z[i])), rate);
        });
        for_each_second_order(plan, [&](const ExpandedBlock& cone, std::size_t) {
            rate = max(Second::exit_rate(cone.dim, w.s + cone.row, ds + cone.row), rate);
            rate = max(Second::exit_rate(cone.dim, w.z + cone.row, dz + cone.row), rate);
        });
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite)
            rate = max(semidefinite(cone, w).exit_rate(ds + cone.row, dz + cone.row), rate);
        for_each_boundary(plan, [&](const ExpandedBlock& cone, std::size_t, double exponent) {
            const Int row = cone.row;
            rate = Boundary::exit_rate(exponent, w.s + row, w.z + row, ds + row, dz + row, rate, lanes);
        });
        return rate;
    }

    // d_s of ds + H dz = -d_s for the predictor: s itself.
    static void predictor(const Plan& plan, const Workspace<W>& w, V* target) {
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) target[i] = V{};
        for (Int i = plan.pattern.cones.zero; i < plan.m(); ++i) target[i] = w.s[i];
    }

    // d_s = s + W (lambda \ (weight W^-1 ds_a o W dz_a - sigma mu e)), lambda = W z, for the predictor's ds_a, dz_a, and
    // what takes its place in the exponential and power cones.
    static void corrector(const Plan& plan, const Workspace<W>& w, const V* ds, const V* dz, const V& weight,
                          const V& sigma_mu, V* target) {
        const V *const s = w.s, *const inverse_z = w.inverse_z;
        const V share = weight, centering = -sigma_mu;
        plan.kkt.for_each_nonnegative([=](Int i) {
            target[i] = fma(fma(share * ds[i], dz[i], centering), inverse_z[i], s[i]);
        });
        for_each_second_order(plan, [&](const ExpandedBlock& cone, std::size_t c) {
            const Int row = cone.row;
            Second::corrector(cone.dim, w.spectra[c], w.u + row, w.z + row, ds + row, dz + row, weight, sigma_mu,
                              target + row, w.out_m + row, w.jordan + row);
            for (Int i = row; i < row + cone.dim; ++i) target[i] = w.s[i] + target[i];
        });
        for_each_boundary(plan, [&](const ExpandedBlock& cone, std::size_t, double exponent) {
            const Int row = cone.row;
            Boundary::corrector(exponent, w.s + row, w.z + row, ds + row, dz + row, weight, sigma_mu, target + row);
        });
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite) {
            const Int row = cone.row;
            semidefinite(cone, w).corrector(ds + row, dz + row, weight, sigma_mu, target + row);
            for (Int i = row; i < row + cone.dim; ++i) target[i] = w.s[i] + target[i];
        }
    }

    // -------------------------------------------------------------------------------------- projections

    // s = Proj_K(v), z = s - v for v given in s, by lanes; v near the s - z that `scale` was called with.
    static void project(const Plan& plan, const Workspace<W>& w, V* s, V* z, const M& lanes) {
        for (Int i = 0; i < plan.pattern.cones.zero; ++i) {
            z[i] = select(lanes, -s[i], z[i]);
            s[i] = select(lanes, V{}, s[i]);
        }
        for (const Int i : plan.kkt.nonnegative_rows) {
            const V v = s[i];
            s[i] = select(lanes, max(v, V{}), v);
            z[i] = select(lanes, max(-v, V{}), z[i]);
        }
        for_each_second_order(plan, [&](const ExpandedBlock& cone, std::size_t) {
            Second::project(cone.dim, s + cone.row, z + cone.row, lanes);
        });
        for_each_boundary(plan, [&](const ExpandedBlock& cone, std::size_t c, double exponent) {
            Boundary::project(exponent, s + cone.row, z + cone.row, basis(plan, w, c)[9], lanes);
        });
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite)
            semidefinite(cone, w).project(s + cone.row, z + cone.row, lanes);
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
        const V one = broadcast<W>(1.0);
        for (std::size_t c = 0; c < plan.kkt.expanded.size(); ++c) {
            const ExpandedBlock& cone = plan.kkt.expanded[c];
            const Spectrum<W>& H = w.spectra[c];
            // The two outer eigenvalues of M are 0 or 1.
            const Spectrum<W> mu{H.mu, select(H.plus > 0.0, one, V{}), select(H.minus >= kInfinite, one, V{}), V{}};
            V *const s = ds + cone.row, *const z = dz + cone.row;
            if (is_boundary(plan, c))
                Boundary::apply(mu.plus, mu.rest, mu.minus, basis(plan, w, c), s, z);
            else
                Second::apply(cone.dim, mu, w.u + cone.row, s, z);
            exchange_rest(cone.dim, s, z);
        }
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite) {
            V *const s = ds + cone.row, *const z = dz + cone.row;
            semidefinite(cone, w).apply(w.u + cone.row, s, z);
            exchange_rest(cone.dim, s, z);
        }
    }

private:
    static Int boundaries(const Plan& plan) { return static_cast<Int>(plan.kkt.exponents.size()); }

    static bool is_boundary(const Plan& plan, std::size_t c) {
        return c >= static_cast<std::size_t>(plan.kkt.second_orders);
    }

    // The expanded blocks are second-order cones first, then exponential and power cones.
    template <class Work>
    static void for_each_second_order(const Plan& plan, Work work) {
        const auto count = static_cast<std::size_t>(plan.kkt.second_orders);
        for (std::size_t c = 0; c < count; ++c) work(plan.kkt.expanded[c], c);
    }

    template <class Work>
    static void for_each_boundary(const Plan& plan, Work work) {
        const auto first = static_cast<std::size_t>(plan.kkt.second_orders);
        for (std::size_t c = first; c < plan.kkt.expanded.size(); ++c)
            work(plan.kkt.expanded[c], c, plan.kkt.exponents[c - first]);
    }

    static V* basis(const Plan& plan, const Workspace<W>& w, std::size_t c) {
        const std::size_t place = c - static_cast<std::size_t>(plan.kkt.second_orders);
        return w.cone_numbers + plan.kkt.basis_start + plan::kBoundaryNumbers * place;
    }

    static SemidefiniteCone<W> semidefinite(const SemidefiniteBlock& cone, const Workspace<W>& w) {
        return semidefinite(cone, w, w.cone_work);
    }

    static SemidefiniteCone<W> semidefinite(const SemidefiniteBlock& cone, const Workspace<W>& w, V* work) {
        return {cone.order, w.cone_numbers + cone.numbers, work};
    }

    static void move_along_axis(const Plan& plan, V* s, const V& shift) {
        for (const Int i : plan.kkt.nonnegative_rows) s[i] = s[i] + shift;
        for_each_second_order(plan, [&](const ExpandedBlock& cone, std::size_t) { s[cone.row] = s[cone.row] + shift; });
        for (const SemidefiniteBlock& cone : plan.kkt.semidefinite)
            SemidefiniteCone<W>::add_to_diagonal(cone.order, s + cone.row, shift);
    }

    // (s, z) = (dv, M dv) to (M dv, M dv - dv).
    static void exchange_rest(Int dim, V* s, V* z) {
        for (Int i = 0; i < dim; ++i) {
            const V dv = s[i];
            s[i] = z[i];
            z[i] = z[i] - dv;
        }
    }

    static void scale_boundary(const ExpandedBlock& cone, double exponent, Workspace<W>& w, Spectrum<W>& H, V* own,
                               const M& exact) {
        const V *const s = w.s + cone.row, *const z = w.z + cone.row;
        own[9] = Boundary::find_guess(exponent, s, z);
        if (!all(exact)) Boundary::scale(exponent, s, z, H, own);
        if (!any(exact)) return;
        Spectrum<W> limit;
        V axes[9];
        Boundary::derivative(exponent, s, z, limit, axes, own[9], exact);
        H.rest = select(exact, limit.rest, H.rest);
        H.plus = select(exact, limit.plus, H.plus);
        H.minus = select(exact, limit.minus, H.minus);
        H.mu = limit.mu;
        for (int k = 0; k < 9; ++k) own[k] = select(exact, axes[k], own[k]);
    }

    // The columns of a block of the matrix's expanded form: -(rest I + (plus - rest) p p' - (rest - minus) m m').
    static void write_expanded(const Plan& plan, Workspace<W>& w, std::size_t c, const Int* v_targets,
                               const Int* u_targets) {
        const ExpandedBlock& cone = plan.kkt.expanded[c];
        const Spectrum<W>& H = w.spectra[c];
        const V along_u = sqrt(max(H.plus - H.rest, V{})), along_v = sqrt(max(H.rest - H.minus, V{}));
        if (is_boundary(plan, c)) {
            const V* const own = basis(plan, w, c);
            for (int i = 0; i < 3; ++i) {
                w.panels[u_targets[i]] = along_u * own[i];
                w.panels[v_targets[i]] = along_v * own[6 + i];
            }
        } else {
            const V* const u = w.u + cone.row;
            const V half_u = along_u * kHalfRoot, half_v = along_v * kHalfRoot;
            w.panels[u_targets[0]] = half_u;
            w.panels[v_targets[0]] = half_v;
            for (Int i = 1; i < cone.dim; ++i) {
                w.panels[u_targets[i]] = half_u * u[i];
                w.panels[v_targets[i]] = -(half_v * u[i]);
            }
        }
        const Int* const rows = plan.diagonal.data() + plan.n() + cone.row;
        for (Int i = 0; i < cone.dim; ++i) w.panels[rows[i]] = -(H.rest + w.eps);
        w.panels[plan.diagonal[cone.v_node]] = broadcast<W>(-1.0);
        w.panels[plan.diagonal[cone.u_node]] = broadcast<W>(1.0);
    }

    // The rows of a semidefinite cone in the coordinates in which its H is diagonal.
    static void write_rotated(const Plan& plan, const SemidefiniteBlock& cone, Workspace<W>& w) {
        const Int* const rows = plan.diagonal.data() + plan.n() + cone.row;
        for (Int k = 0; k < cone.dim; ++k) w.panels[rows[k]] = -(w.H[cone.row + k] + w.eps);
        SemidefiniteCone<W> rotation = semidefinite(cone, w);
        const V* const A = w.numbers + plan.pattern.A_start();
        for (Int c = cone.first_column; c < cone.last_column; ++c) {
            const plan::RotatedColumn& column = plan.kkt.rotated_columns[c];
            rotation.rotate_sparse(column.count, plan.kkt.rotated_places.data() + column.places, A + column.first_entry,
                                   w.panels, plan.rotated_targets.data() + column.targets);
        }
    }
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
