// The linear system of a block of lanes: numbers and H into the arrays of the factorization, right-hand sides in and out.
#pragma once

#include "lanes/cones.hpp"
#include "lanes/ldl_single.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

template <int W>
struct System {
    using V = Vec<W>;

    // Entries of P and A that no factorization overwrites: once after the numbers have changed.
    static void place_lasting(const Plan& plan, Workspace<W>& w) {
        for (const plan::Copy& copy : plan.lasting) w.panels[copy.target] = w.numbers[copy.source];
    }

    // Factors [P + eps I, A'; A, -(H + eps I)], H as Cones::scale left it.
    static void factor(const Plan& plan, Workspace<W>& w) {
        for (const auto& range : plan.cleared)
            for (Int i = range.begin; i < range.end; ++i) w.panels[i] = V{};
        for (const plan::Copy& copy : plan.renewed) w.panels[copy.target] = w.numbers[copy.source];
        Cones<W>::write(plan, w);
        convexlayers::CONVEXLAYERS_ISA::factor<W>(plan.panels, w.panels, w.D_inverse, w.scratch);
    }

    // Place of node in the right-hand side `side` of R.
    template <int R>
    static V& at(const Plan& plan, Workspace<W>& w, Int node, int side = 0) {
        return w.y[plan.panels.position[node] * R + side];
    }

    // Solves for the R right-hand sides that stand in y; the nodes of expanded cones have none.
    template <int R>
    static void solve(const Plan& plan, Workspace<W>& w) {
        for (Int node = plan.n() + plan.m(); node < plan.kkt.nodes; ++node)
            for (int side = 0; side < R; ++side) at<R>(plan, w, node, side) = V{};
        rotate<R>(plan, w, false);
        Ldl<W>::template solve<R>(plan.panels, w.panels, w.D_inverse, w.y);
        rotate<R>(plan, w, true);
    }

    // The two solutions in y, into (x2, z2) and (dx, dz).
    static void take_both(const Plan& plan, Workspace<W>& w) {
        const auto take = [&](Int node, V& first, V& second) {
            const V* const both = w.y + static_cast<std::int64_t>(plan.panels.position[node]) * 2;
            first = both[0];
            second = both[1];
        };
        for (Int j = 0; j < plan.n(); ++j) take(j, w.x2[j], w.dx[j]);
        for (Int i = 0; i < plan.m(); ++i) take(plan.n() + i, w.z2[i], w.dz[i]);
    }

    // One of the R solutions in y.
    template <int R>
    static void take(const Plan& plan, Workspace<W>& w, int side, V* dx, V* dz) {
        for (Int j = 0; j < plan.n(); ++j) dx[j] = at<R>(plan, w, j, side);
        for (Int i = 0; i < plan.m(); ++i) dz[i] = at<R>(plan, w, plan.n() + i, side);
    }

private:
    // Rows of semidefinite cones to the coordinates of the matrix, and back.
    template <int R>
    static void rotate(const Plan& plan, Workspace<W>& w, bool back) {
        for (int side = 0; side < R; ++side)
            Cones<W>::rotate(plan, w, back, [&](Int row) -> V& { return at<R>(plan, w, plan.n() + row, side); });
    }
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
