// The kernels of one instruction set, as a table of functions; kernels.cpp is compiled once for each.
#pragma once

#include <vector>

#include "lanes/batch.hpp"
#include "plan/plan.hpp"

namespace convexlayers {

// Elements of a derivative, in chunks that do not depend on the number of threads: a block of theta that the batch
// shares is summed within each chunk, and the chunks are added up in order.
struct Chunks {
    std::vector<std::int64_t> elements;
    std::int64_t size = 1, count = 0;
    std::atomic<std::int64_t> next{0};

    const std::int64_t* begin(std::int64_t chunk) const { return elements.data() + chunk * size; }
    std::int64_t length(std::int64_t chunk) const {
        const auto total = static_cast<std::int64_t>(elements.size());
        return (chunk + 1) * size <= total ? size : total - chunk * size;
    }
};

// Quasi-definite matrices of one pattern and their right-hand sides, in the original numbering of nodes.
struct LinearSystems {
    const plan::Panels& panels;
    std::int64_t entries;              // of one triangle and the diagonal
    const plan::Int *rows, *cols;      // (entries)
    std::int64_t count;                // systems
    const double* values;              // (count, entries)
    int sides;                         // right-hand sides of a system, 1 or 2
    double* y;                         // (count, sides, nodes), overwritten by the solutions
};

struct Attributes;

// Each function is the work of one thread; those that get a queue or chunks take from it until there are none.
struct Kernels {
    const char* name;
    int lanes;
    void (*solve)(const plan::Plan&, const Settings&, const Values*, const Solutions&, Queue&);
    // sums[chunk * blocks + block]: where a shared block is added up, or null.
    void (*adjoint)(const plan::Plan&, const Values*, const Solutions&, const Reports&, Chunks&, const Cotangents&,
                    const Gradients&, double* const* sums);
    void (*tangent)(const plan::Plan&, const Values*, const Solutions&, const Reports&, Chunks&, const Values* dtheta,
                    const Tangents&);
    void (*solve_linear)(const LinearSystems&);
    // As in validate.hpp.
    bool (*have_attributes)(const Attributes&, const double* values, std::int64_t count, double slack);
    // Seconds of one factorization of `lanes` matrices; operations per second that the registers allow.
    double (*time_factorization)(const plan::Plan&, int repeats);
    double (*peak)();
};

// For what the processor has; the environment variable CONVEXLAYERS_ISA = baseline, avx2 or avx512 asks for less.
const Kernels& kernels();

}  // namespace convexlayers
