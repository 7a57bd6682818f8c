// Factorization and solves of linear systems of any quasi-definite pattern: a face of lanes/ldl.hpp for tests.
#pragma once

#include <algorithm>
#include <memory>

#include "lanes/kernels.hpp"
#include "lanes/ldl_single.hpp"
#include "memory.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

template <int W>
class LinearSolver {
    using V = Vec<W>;

public:
    explicit LinearSolver(const LinearSystems& systems)
        : systems_(systems),
          S_(systems.panels),
          panels_(allocate(S_.size)),
          D_inverse_(allocate(S_.nodes)),
          // Not a number more than lanes/ldl.hpp asks for, so that a sanitizer sees what reaches beyond.
          scratch_(allocate(S_.scratch(W))),
          y_(allocate(static_cast<std::size_t>(S_.nodes) * systems.sides)) {}

    void run() {
        for (std::int64_t first = 0; first < systems_.count; first += W) {
            const auto lanes = static_cast<int>(std::min<std::int64_t>(W, systems_.count - first));
            load(first, lanes);
            factor<W>(S_, panels_.get(), D_inverse_.get(), scratch_.get());
            if (systems_.sides == 1)
                Ldl<W>::template solve<1>(S_, panels_.get(), D_inverse_.get(), y_.get());
            else
                Ldl<W>::template solve<2>(S_, panels_.get(), D_inverse_.get(), y_.get());
            store(first, lanes);
        }
    }

private:
    struct Free {
        void operator()(V* memory) const { free_aligned(memory); }
    };
    using Array = std::unique_ptr<V[], Free>;

    static Array allocate(std::size_t count) {
        V* const memory = static_cast<V*>(allocate_aligned(count * sizeof(V)));
        std::fill_n(memory, count, V{});
        return Array(memory);
    }

    void load(std::int64_t first, int lanes) {
        std::fill_n(panels_.get(), S_.size, V{});
        for (std::int64_t e = 0; e < systems_.entries; ++e) {
            const Int i = S_.position[systems_.rows[e]], j = S_.position[systems_.cols[e]];
            V& entry = panels_[S_.locate(i, j)];
            for (int lane = 0; lane < lanes; ++lane)
                set<W>(entry, lane, systems_.values[(first + lane) * systems_.entries + e]);
        }
        for_each_right_side(first, lanes, [](V& y, int lane, double& number) { set<W>(y, lane, number); });
    }

    void store(std::int64_t first, int lanes) {
        for_each_right_side(first, lanes, [](V& y, int lane, double& number) { number = get<W>(y, lane); });
    }

    template <class Function>
    void for_each_right_side(std::int64_t first, int lanes, Function work) {
        for (int lane = 0; lane < lanes; ++lane)
            for (int side = 0; side < systems_.sides; ++side) {
                double* const y = systems_.y + ((first + lane) * systems_.sides + side) * S_.nodes;
                for (Int node = 0; node < S_.nodes; ++node)
                    work(y_[S_.position[node] * systems_.sides + side], lane, y[node]);
            }
    }

    const LinearSystems& systems_;
    const Panels& S_;
    Array panels_, D_inverse_, scratch_, y_;
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
