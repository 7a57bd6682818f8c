#include "solver.hpp"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

#include "lanes/kernels.hpp"
#include "threads.hpp"

namespace convexlayers {

namespace {

// A thread that gets less than this many multiplications in all costs more than it brings.
constexpr double kWorkPerThread = 1e6;
constexpr std::int64_t kMostChunks = 32;

int useful_threads(const plan::Plan& plan, std::int64_t elements, int asked, double passes) {
    const Kernels& chosen = kernels();
    const std::int64_t blocks = (elements + chosen.lanes - 1) / chosen.lanes;
    const double work = passes * static_cast<double>(elements) * (plan.panels.flops + 8.0 * plan.panels.size);
    const double most = std::min(static_cast<double>(blocks), work / kWorkPerThread);
    return std::max(1, static_cast<int>(std::min(static_cast<double>(asked), most)));
}

void divide(Chunks& chunks, int lanes) {
    const auto total = static_cast<std::int64_t>(chunks.elements.size());
    const std::int64_t blocks = (total + lanes - 1) / lanes;
    chunks.size = std::max<std::int64_t>(1, (blocks + kMostChunks - 1) / kMostChunks) * lanes;
    chunks.count = (total + chunks.size - 1) / chunks.size;
}

// Patterns of dense matrices that have been asked for; few orders occur in a program.
const plan::DensePattern& dense_pattern(plan::Int order) {
    static std::mutex mutex;
    static auto* const patterns = new std::map<plan::Int, std::unique_ptr<plan::DensePattern>>;
    const std::lock_guard<std::mutex> lock(mutex);
    std::unique_ptr<plan::DensePattern>& pattern = (*patterns)[order];
    if (!pattern) pattern = std::make_unique<plan::DensePattern>(order);
    return *pattern;
}

}  // namespace

void find_indefinite(const double* values, std::int64_t count, plan::Int order, double sign, double slack,
                     bool* suspect, int threads) {
    const plan::DensePattern& pattern = dense_pattern(order);
    SquareMatrices matrices{pattern, values, count, sign, slack, suspect};
    const double work = static_cast<double>(count) * (pattern.panels.flops + 8.0 * pattern.panels.size);
    const double useful = std::min(work / kWorkPerThread, static_cast<double>(threads));
    run_on_threads(std::max(1, static_cast<int>(useful)), [&] { kernels().find_indefinite(matrices); });
}

void solve_batch(const plan::Plan& plan, const Settings& settings, const Values* values, std::int64_t batch,
                 const Solutions& out, int threads) {
    Queue queue(batch);
    run_on_threads(useful_threads(plan, batch, threads, 10.0),
                   [&] { kernels().solve(plan, settings, values, out, queue); });
}

void adjoint_batch(const plan::Plan& plan, const Values* values, const Solutions& at, const Reports& reports,
                   std::vector<std::int64_t> elements, const Cotangents& cotangents, const double* grad_objective,
                   const std::vector<BlockGradientTarget>& targets, int threads) {
    if (elements.empty()) return;
    Chunks chunks;
    chunks.elements = std::move(elements);
    divide(chunks, kernels().lanes);
    // Partial sums of shared blocks, one per chunk.
    const std::size_t blocks = targets.size();
    std::vector<std::vector<double>> partial(chunks.count * blocks);
    std::vector<double*> sums(chunks.count * blocks, nullptr), rows(blocks, nullptr);
    for (std::size_t block = 0; block < blocks; ++block) {
        rows[block] = targets[block].rows;
        if (targets[block].sum == nullptr) continue;
        for (std::int64_t chunk = 0; chunk < chunks.count; ++chunk) {
            partial[chunk * blocks + block].assign(plan.blocks[block].width, 0.0);
            sums[chunk * blocks + block] = partial[chunk * blocks + block].data();
        }
    }
    const Gradients out{grad_objective, rows.data()};
    run_on_threads(useful_threads(plan, static_cast<std::int64_t>(chunks.elements.size()), threads, 1.5), [&] {
        kernels().adjoint(plan, values, at, reports, chunks, cotangents, out, sums.data());
    });
    for (std::size_t block = 0; block < blocks; ++block)
        for (std::int64_t chunk = 0; targets[block].sum != nullptr && chunk < chunks.count; ++chunk)
            for (plan::Int c = 0; c < plan.blocks[block].width; ++c)
                targets[block].sum[c] += partial[chunk * blocks + block][c];
}

void tangent_batch(const plan::Plan& plan, const Values* values, const Solutions& at, const Reports& reports,
                   std::vector<std::int64_t> elements, const Values* dtheta, const Tangents& out, int threads) {
    if (elements.empty()) return;
    Chunks chunks;
    chunks.elements = std::move(elements);
    divide(chunks, kernels().lanes);
    run_on_threads(useful_threads(plan, static_cast<std::int64_t>(chunks.elements.size()), threads, 1.5),
                   [&] { kernels().tangent(plan, values, at, reports, chunks, dtheta, out); });
}

}  // namespace convexlayers
