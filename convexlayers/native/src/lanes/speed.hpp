// What the factorization reaches, and what the processor could: for benchmarks/kernel.py.
#pragma once

#include <chrono>
#include <cmath>

#include "lanes/ldl.hpp"
#include "lanes/workspace.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

template <int W>
struct Speed {
    using V = Vec<W>;

    // Best seconds of one factorization of W matrices of the plan's pattern, quasi-definite and well conditioned, over
    // `repeats` runs; the arrays are filled anew, untimed, before each.
    static double factorization(const plan::Plan& plan, int repeats) {
        Workspace<W> w(plan, false);
        double best = 1e300;
        for (int run = 0; run < repeats; ++run) {
            for (Int i = 0; i < plan.panels.size; ++i) w.panels[i] = broadcast<W>(0.1 * std::sin(1.0 + i));
            for (Int node = 0; node < plan.kkt.nodes; ++node)
                w.panels[plan.diagonal[node]] = broadcast<W>(plan.kkt.signs[node] * (10.0 + plan.kkt.nodes));
            const auto start = std::chrono::steady_clock::now();
            Ldl<W>::factor(plan.panels, w.panels, w.D_inverse, w.scratch);
            const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
            best = taken.count() < best ? taken.count() : best;
        }
        return best;
    }

    // Multiplications and additions per second of independent fused operations on registers alone.
    static double peak() {
        constexpr int kChains = 16, kSteps = 1 << 20;
        V sums[kChains];
        for (int i = 0; i < kChains; ++i) sums[i] = broadcast<W>(1.0 + i);
        const V factor = broadcast<W>(0.999999999), term = broadcast<W>(1e-9);
        double best = 1e300;
        for (int run = 0; run < 5; ++run) {
            const auto start = std::chrono::steady_clock::now();
            for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 16
                for (int i = 0; i < kChains; ++i) sums[i] = fma(sums[i], factor, term);
            const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
            best = taken.count() < best ? taken.count() : best;
        }
        // Used, so that the loop is not removed.
        double total = 0.0;
        for (int i = 0; i < kChains; ++i) total += get<W>(sums[i], 0);
        return total == total ? 2.0 * W * kChains * kSteps / best : 0.0;
    }
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
