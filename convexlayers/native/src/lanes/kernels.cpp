// Compiled once per instruction set, with CONVEXLAYERS_ISA its name (and namespace).
#include "lanes/kernels.hpp"

#include "lanes/attributes.hpp"
#include "lanes/derivative.hpp"
#include "lanes/interior_point.hpp"
#include "lanes/speed.hpp"
#include "lanes/ldl_check.hpp"

#define CONVEXLAYERS_STRING_(name) #name
#define CONVEXLAYERS_STRING(name) CONVEXLAYERS_STRING_(name)

namespace convexlayers::CONVEXLAYERS_ISA {

namespace {

void solve(const Plan& plan, const Settings& settings, const Values* values, const Solutions& out, Queue& queue) {
    if (queue.size == 1 || plan.panels.large())
        InteriorPoint<1>(plan, settings, values, out, queue).run();
    else
        InteriorPoint<kLanes>(plan, settings, values, out, queue).run();
}

// Work on every block of lanes of the chunks that this thread takes.
template <class Function>
void for_each_block(Chunks& chunks, int lanes, Function work) {
    for (std::int64_t chunk; (chunk = chunks.next.fetch_add(1)) < chunks.count;) {
        const std::int64_t length = chunks.length(chunk);
        for (std::int64_t start = 0; start < length; start += lanes)
            work(chunk, chunks.begin(chunk) + start, static_cast<int>(std::min<std::int64_t>(lanes, length - start)));
    }
}

template <int W>
void adjoint_lanes(const Plan& plan, const Values* values, const Solutions& at, const Reports& reports, Chunks& chunks,
                   const Cotangents& cotangents, const Gradients& out, double* const* sums) {
    Derivative<W> derivative(plan, values, at, reports);
    for_each_block(chunks, W, [&](std::int64_t chunk, const std::int64_t* elements, int count) {
        derivative.adjoint(elements, count, cotangents, out, sums + chunk * plan.blocks.size());
    });
}

template <int W>
void tangent_lanes(const Plan& plan, const Values* values, const Solutions& at, const Reports& reports, Chunks& chunks,
                   const Values* dtheta, const Tangents& out) {
    Derivative<W> derivative(plan, values, at, reports);
    for_each_block(chunks, W, [&](std::int64_t, const std::int64_t* elements, int count) {
        derivative.tangent(elements, count, dtheta, out);
    });
}

void adjoint(const Plan& plan, const Values* values, const Solutions& at, const Reports& reports, Chunks& chunks,
             const Cotangents& cotangents, const Gradients& out, double* const* sums) {
    const auto work = chunks.elements.size() == 1 || plan.panels.large() ? adjoint_lanes<1> : adjoint_lanes<kLanes>;
    work(plan, values, at, reports, chunks, cotangents, out, sums);
}

void tangent(const Plan& plan, const Values* values, const Solutions& at, const Reports& reports, Chunks& chunks,
             const Values* dtheta, const Tangents& out) {
    const auto work = chunks.elements.size() == 1 || plan.panels.large() ? tangent_lanes<1> : tangent_lanes<kLanes>;
    work(plan, values, at, reports, chunks, dtheta, out);
}

void solve_linear(const LinearSystems& systems) {
    if (systems.count == 1)
        LinearSolver<1>(systems).run();
    else
        LinearSolver<kLanes>(systems).run();
}

}  // namespace

extern const Kernels table;
const Kernels table = {CONVEXLAYERS_STRING(CONVEXLAYERS_ISA), kLanes, solve, adjoint, tangent,
                       solve_linear, have_attributes, Speed<kLanes>::factorization, Speed<kLanes>::peak};

}  // namespace convexlayers::CONVEXLAYERS_ISA
