// What goes into and comes out of a batch: pointers to rows, and the queue of elements that the threads share.
#pragma once

#include <atomic>
#include <cstdint>

namespace convexlayers {

// As in convexlayers/status.py.
enum class Outcome : std::int64_t {
    solved = 0,
    inaccurate = 1,
    primal_infeasible = 2,
    dual_infeasible = 3,
    max_iterations = 4,
    numerical_error = 5,
    invalid_data = 6,
};

// A block of theta: element e's row begins at data + e * stride; stride 0 if the batch shares it.
struct Values {
    const double* data;
    std::int64_t stride;
};

struct Settings {
    double tolerance = 1e-8;
    std::int64_t max_iterations = 100;
    bool warm = false;  // x, s, z of the solutions hold points to begin at, NaN for elements without one
};

// One row per element, row-major; see convexlayers/solution.py. `scales` holds the exponents of D, E, sigma, zeta.
struct Solutions {
    double *x, *s, *z;                         // (B, n), (B, m), (B, m)
    std::int64_t *status, *iterations;         // (B)
    double *primal, *dual, *gap, *objective;   // (B)
    std::int16_t* scales;                      // (B, n + m + 2)
};

// Cotangents of a batch of solutions; null stands for zero.
struct Cotangents {
    const double *x, *s, *z;  // (B, n), (B, m), (B, m)
};

// Where cotangents of the blocks of theta go: (B, k_i), or null where not wanted or where the block is shared.
struct Gradients {
    const double* objective;  // cotangent of the objective, (B) or null
    double* const* blocks;
};

struct Tangents {
    double *x, *s, *z, *objective;  // (B, n), (B, m), (B, m), (B)
};

// What is known of a derivative, per element.
struct Reports {
    double* residual;
    bool* singular;
    double largest_residual;  // systems with a larger one contribute nothing
    bool* constant = nullptr;  // whether the adjoint finds no gradient in q, if anybody wants to know
};

// Elements not yet begun.
struct Queue {
    std::int64_t size;
    std::atomic<std::int64_t> next{0};

    explicit Queue(std::int64_t count) : size(count) {}
    bool empty() const { return next.load(std::memory_order_relaxed) >= size; }
    // The next element, -1 if there is none.
    std::int64_t take() {
        if (next.load(std::memory_order_relaxed) >= size) return -1;
        const std::int64_t element = next.fetch_add(1, std::memory_order_relaxed);
        return element < size ? element : -1;
    }
};

}  // namespace convexlayers
