// Batches: elements over lanes and threads. What the bindings call; numbers come and go as plain pointers.
#pragma once

#include <cstdint>
#include <vector>

#include "lanes/batch.hpp"
#include "plan/plan.hpp"

namespace convexlayers {

// Solves `batch` elements. values: one per block of theta.
void solve_batch(const plan::Plan& plan, const Settings& settings, const Values* values, std::int64_t batch,
                 const Solutions& out, int threads);

// Where the cotangent of a block goes: to (B, width) rows, or, if the batch shares it, summed to (width); null: nowhere.
struct BlockGradientTarget {
    double* rows = nullptr;
    double* sum = nullptr;
};

// Cotangents of theta at the elements of the list; rows of other elements are not written.
void adjoint_batch(const plan::Plan& plan, const Values* values, const Solutions& at, const Reports& reports,
                   std::vector<std::int64_t> elements, const Cotangents& cotangents, const double* grad_objective,
                   const std::vector<BlockGradientTarget>& targets, int threads);

// Tangents of the solution at the elements of the list. dtheta[i].data is null for a zero block.
void tangent_batch(const plan::Plan& plan, const Values* values, const Solutions& at, const Reports& reports,
                   std::vector<std::int64_t> elements, const Values* dtheta, const Tangents& out, int threads);

}  // namespace convexlayers
