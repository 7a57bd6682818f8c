#include "solver.hpp"

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>

#include "lanes/kernels.hpp"
#include "team.hpp"
#include "threads.hpp"

namespace convexlayers {

namespace {

// A thread that gets less than this many multiplications in all costs more than it brings.
constexpr double kWorkPerThread = 1e6;
constexpr std::int64_t kMostChunks = 32;

int lanes_of(const plan::Plan& plan) { return plan.panels.large() ? 1 : kernels().lanes; }

int useful_threads(const plan::Plan& plan, std::int64_t elements, int asked, double passes) {
    const int lanes = lanes_of(plan);
    const std::int64_t blocks = (elements + lanes - 1) / lanes;
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

// Calls work() on the threads that are of use. Where elements are large and fewer than the threads, each has a team: the
// threads that come first lead one each, the others help. Leaders do not wait for helpers, so it does no harm if fewer
// threads come than were asked for.
void run_elements(const plan::Plan& plan, std::int64_t elements, int asked, double passes,
                  const std::function<void()>& work) {
    if (!plan.panels.large() || elements >= asked)
        return run_on_threads(useful_threads(plan, elements, asked, passes), work);
    std::deque<Team> teams;
    for (std::int64_t leader = 0; leader < elements; ++leader)
        teams.emplace_back(static_cast<int>(asked / elements + (leader < asked % elements) - 1));
    std::atomic<std::size_t> arrived{0};
    run_on_threads(asked, [&] {
        const std::size_t place = arrived.fetch_add(1);
        Team& team = teams[place % teams.size()];
        if (place >= teams.size()) return team.help();
        const Team::Leading leading(team);
        work();
    });
}

}  // namespace

void solve_batch(const plan::Plan& plan, const Settings& settings, const Values* values, std::int64_t batch,
                 const Solutions& out, int threads) {
    Queue queue(batch);
    run_elements(plan, batch, threads, 10.0, [&] { kernels().solve(plan, settings, values, out, queue); });
}

void adjoint_batch(const plan::Plan& plan, const Values* values, const Solutions& at, const Reports& reports,
                   std::vector<std::int64_t> elements, const Cotangents& cotangents, const double* grad_objective,
                   const std::vector<BlockGradientTarget>& targets, int threads) {
    if (elements.empty()) return;
    Chunks chunks;
    chunks.elements = std::move(elements);
    divide(chunks, lanes_of(plan));
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
    run_elements(plan, static_cast<std::int64_t>(chunks.elements.size()), threads, 1.5, [&] {
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
    divide(chunks, lanes_of(plan));
    run_elements(plan, static_cast<std::int64_t>(chunks.elements.size()), threads, 1.5,
                 [&] { kernels().tangent(plan, values, at, reports, chunks, dtheta, out); });
}

}  // namespace convexlayers
