#include <algorithm>
#include <atomic>
#include <cstring>

#include "lanes/kernels.hpp"
#include "threads.hpp"
#include "zoo/kernels.hpp"

namespace convexlayers {

namespace baseline {
extern const zoo::Table zoo_table;
}
#if defined(CONVEXLAYERS_X86)
namespace avx2 {
extern const zoo::Table zoo_table;
}
namespace avx512 {
extern const zoo::Table zoo_table;
}
#endif

namespace zoo {

namespace {

// Entries of all tensors that a thread takes at a time; less than two of these are not worth a second thread.
constexpr std::int64_t kEntries = 1 << 14;

const Table& table() {
#if defined(CONVEXLAYERS_X86)
    if (std::strcmp(kernels().name, "avx512") == 0) return avx512::zoo_table;
    if (std::strcmp(kernels().name, "avx2") == 0) return avx2::zoo_table;
#endif
    return baseline::zoo_table;
}

}  // namespace

const Kernel* find(const char* name) {
    const Table& known = table();
    const auto* const end = known.kernels + known.count;
    const auto* const found =
        std::find_if(known.kernels, end, [name](const Kernel& kernel) { return std::strcmp(kernel.name, name) == 0; });
    return found == end ? nullptr : found;
}

std::int64_t run(const Kernel& kernel, const Task& task, bool single, int threads) {
    const Rows work = single ? kernel.in_float : kernel.in_double;
    const std::int64_t entries = std::max<std::int64_t>(task.n * std::max<std::int64_t>(task.m, 1), 1);
    // A multiple of what kernels compute side by side.
    const std::int64_t chunk = (kEntries / entries + 16) / 16 * 16;
    const std::int64_t chunks = (task.rows + chunk - 1) / chunk;
    const int useful = static_cast<int>(std::min<std::int64_t>(threads, chunks));
    if (useful <= 1) return task.rows > 0 ? work(task, 0, task.rows) : 0;
    std::atomic<std::int64_t> next{0}, left{0};
    run_on_threads(useful, [&] {
        for (std::int64_t first; (first = next.fetch_add(chunk)) < task.rows;)
            left += work(task, first, std::min(first + chunk, task.rows));
    });
    return left;
}

}  // namespace zoo

}  // namespace convexlayers
