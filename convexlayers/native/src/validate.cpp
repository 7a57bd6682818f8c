#include "validate.hpp"

#include <algorithm>
#include <atomic>

#include "lanes/kernels.hpp"
#include "threads.hpp"

namespace convexlayers {

namespace {

// A thread that gets less than this many multiplications in all costs more than it brings.
constexpr double kWorkPerThread = 1e6;
// Entries that a thread takes at a time.
constexpr std::int64_t kEntries = 1 << 14;

double work_of_one(const Attributes& asked) {
    const double order = asked.order, size = static_cast<double>(asked.size);
    return size * (1.0 + static_cast<double>(asked.signs.size()) * order / 6.0);
}

}  // namespace

void Attributes::prepare() {
    if (!signs.empty() && order <= kLargestInLanes) pattern = std::make_unique<plan::DensePattern>(order);
}

bool have_attributes(const Attributes& asked, const double* values, std::int64_t count, double slack, int threads) {
    const auto check = kernels().have_attributes;
    const std::int64_t lanes = kernels().lanes;
    const std::int64_t chunk = (kEntries / std::max<std::int64_t>(asked.size, 1) + lanes) / lanes * lanes;
    if (count <= chunk) return check(asked, values, count, slack);
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> good{true};
    const auto take_chunks = [&] {
        for (std::int64_t first; good && (first = next.fetch_add(chunk)) < count;)
            if (!check(asked, values + first * asked.size, std::min(chunk, count - first), slack)) good = false;
    };
    const double useful = static_cast<double>(count) * work_of_one(asked) / kWorkPerThread;
    run_on_threads(std::max(1, static_cast<int>(std::min(useful, static_cast<double>(threads)))), take_chunks);
    return good;
}

}  // namespace convexlayers
