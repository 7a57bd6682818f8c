#include "team.hpp"

#include <chrono>
#include <thread>

#if defined(CONVEXLAYERS_X86)
#include <immintrin.h>
#endif

namespace convexlayers {

namespace {

thread_local Team* leading = nullptr;

// Waiting is short where work is shared and long where it is not: look often at first, then let others run.
class Patience {
public:
    void wait() {
        ++looks_;
        if (looks_ < 2000) {
#if defined(CONVEXLAYERS_X86)
            _mm_pause();
#endif
        } else if (looks_ < 4000) {
            std::this_thread::yield();
        } else {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }
    void renew() { looks_ = 0; }

private:
    int looks_ = 0;
};

}  // namespace

Team& Team::current() {
    static Team alone(0);
    return leading != nullptr ? *leading : alone;
}

Team::Leading::Leading(Team& team) : team_(team), before_(leading) { leading = &team; }

Team::Leading::~Leading() {
    leading = before_;
    team_.leave();
}

bool Team::take_part() {
    std::uint64_t state = state_.load(std::memory_order_acquire);
    for (;;) {
        const auto taken = static_cast<std::uint32_t>(state), parts = static_cast<std::uint32_t>(state >> 32);
        if (taken >= parts) return false;
        if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
        const Task task = task_;
        task.call(task.context, static_cast<std::int32_t>(taken));
        done_.fetch_add(1, std::memory_order_acq_rel);
        return true;
    }
}

void Team::run(std::int32_t parts, const Task& task) {
    task_ = task;
    done_.store(0, std::memory_order_relaxed);
    state_.store(static_cast<std::uint64_t>(parts) << 32, std::memory_order_release);
    while (take_part()) {
    }
    Patience patience;
    while (done_.load(std::memory_order_acquire) < static_cast<std::uint32_t>(parts)) patience.wait();
}

void Team::help() {
    Patience patience;
    while (!closed_.load(std::memory_order_acquire)) {
        if (take_part())
            patience.renew();
        else
            patience.wait();
    }
}

}  // namespace convexlayers
