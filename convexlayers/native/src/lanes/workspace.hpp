// The memory of one block of lanes: taken once per call and thread, reused for every element that passes through.
#pragma once

#include <cstring>
#include <vector>

#include "lanes/cones/spectrum.hpp"
#include "memory.hpp"
#include "plan/plan.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

using plan::Int;
using plan::Plan;

template <int W>
struct Workspace {
    using V = Vec<W>;

    // `full`: every lane will hold an element. Lanes that stay idle hold zeros, not whatever was there: numbers that are
    // denormal or not numbers at all would slow down the others.
    Workspace(const Plan& plan, bool full) {
        const std::size_t n = plan.n(), m = plan.m(), nodes = plan.kkt.nodes;
        const std::size_t scratch_size = plan.panels.scratch(W);
        struct Part {
            V** pointer;
            std::size_t size;
        };
        const Part parts[] = {
            {&numbers, static_cast<std::size_t>(plan.pattern.size())},
            {&theta, static_cast<std::size_t>(plan.theta_width())},
            {&panels, static_cast<std::size_t>(plan.panels.size)},
            {&D_inverse, nodes}, {&scratch, scratch_size}, {&y, 2 * nodes},
            {&D, n}, {&x, n}, {&Px, n}, {&Atz, n}, {&rx, n}, {&dx, n}, {&x2, n}, {&step_x, n}, {&kept_x, n}, {&out_x, n}, {&out_n, n}, {&probe_x, n},
            {&E, m}, {&s, m}, {&z, m}, {&Ax, m}, {&rz, m}, {&ds, m}, {&dz, m}, {&z2, m}, {&step_z, m}, {&target, m},
            {&kept_s, m}, {&kept_z, m}, {&out_m, m}, {&H, m}, {&u, m}, {&jordan, m}, {&probe_z, m}, {&inverse_s, m}, {&inverse_z, m},
            {&cone_numbers, static_cast<std::size_t>(plan.kkt.cone_numbers)},
            {&cone_work, static_cast<std::size_t>(plan.kkt.cone_work)},
        };
        std::size_t total = 0;
        for (const Part& part : parts) total += part.size;
        bytes_ = total * sizeof(V);
        memory_ = static_cast<V*>(take_buffer(bytes_));
        if (!full) std::memset(static_cast<void*>(memory_), 0, bytes_);
        V* next = memory_;
        for (const Part& part : parts) {
            *part.pointer = next;
            next += part.size;
        }
        spectra.resize(plan.kkt.expanded.size());
    }
    ~Workspace() { give_buffer(memory_, bytes_); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    V *numbers, *theta;                      // P | q | A | b | offset, scaled; the blocks of theta one after the other
    V *panels, *D_inverse, *scratch, *y;     // of the factorization; right-hand sides in elimination order
    V *D, *E;                                // scaling of columns and rows
    V *x, *s, *z;                            // the iterate
    V *Px, *Atz, *Ax;                        // P x, A'z, A x
    V *rx, *rz;                              // residuals
    V *dx, *ds, *dz;                         // direction
    V *x2, *z2;                              // direction of the constant right-hand side
    V *step_x, *step_z;                      // correction of a direction
    V *target;                               // d_s of the linearized complementarity
    V *probe_x, *probe_z;                    // image of a fixed vector under the inverse
    V *kept_x, *kept_s, *kept_z;             // the iterate before it was polished
    V *out_x, *out_n, *out_m;                // results of products
    V *H, *u;                                // H of the rows that have a diagonal one; directions of second-order cones, mu of semidefinite ones
    V *inverse_s, *inverse_z, *jordan;       // scratch of the cones
    V *cone_numbers, *cone_work;             // what the cones keep, and scratch of one call
    std::vector<Spectrum<W>> spectra;        // H of the expanded blocks
    V eps = broadcast<W>(kRegularization);   // what the matrix is regularized by

private:
    V* memory_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
