#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace convexlayers {

namespace {

// One call: its work, and the first exception.
struct Job {
    const std::function<void()>& work;
    std::mutex mutex;
    std::exception_ptr failure;

    void run() noexcept {
        try {
            work();
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!failure) failure = std::current_exception();
        }
    }
};

class Pool {
public:
    // Runs the job on `count` threads besides this one; false if another call has the pool.
    bool run(int count, Job& job) {
        std::unique_lock<std::mutex> owner(busy_, std::try_to_lock);
        if (!owner.owns_lock()) return false;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < count && add_worker()) {
            }
            job_ = &job;
            wanted_ = running_ = std::min(count, static_cast<int>(workers_.size()));
        }
        start_.notify_all();
        job.run();
        std::unique_lock<std::mutex> lock(mutex_);
        // Workers that have not begun have nothing left to do: the queue of elements is empty.
        running_ -= wanted_;
        wanted_ = 0;
        done_.wait(lock, [&] { return running_ == 0; });
        job_ = nullptr;
        return true;
    }

private:
    bool add_worker() {
        try {
            workers_.emplace_back([this] { loop(); });
            return true;
        } catch (...) {  // no more threads to be had: those that run do the work
            return false;
        }
    }

    void loop() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            start_.wait(lock, [&] { return wanted_ > 0; });
            --wanted_;
            Job* const job = job_;
            lock.unlock();
            job->run();
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex busy_, mutex_;
    std::condition_variable start_, done_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    int wanted_ = 0, running_ = 0;
};

// Never destroyed: its threads end with the process. A forked child has none of them, and gets a pool of its own.
std::atomic<Pool*> current{nullptr};
[[maybe_unused]] std::atomic<bool> is_forked_child{false};

[[maybe_unused]] const bool fork_is_watched = [] {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] {
        current.store(nullptr);
        is_forked_child.store(true);
    });
#endif
    return true;
}();

Pool& pool() {
    Pool* existing = current.load();
    if (existing == nullptr) {
        Pool* const made = new Pool;
        if (current.compare_exchange_strong(existing, made)) return *made;
        delete made;
    }
    return *existing;
}

bool run_with_openmp([[maybe_unused]] int count, [[maybe_unused]] Job& job) {
#if defined(_OPENMP)
    if (!is_forked_child.load()) {
#pragma omp parallel num_threads(count)
        job.run();
        return true;
    }
#endif
    return false;
}

void run_on_new_threads(int count, Job& job) {
    std::vector<std::thread> others;
    others.reserve(count);
    for (int i = 0; i < count; ++i) {
        try {
            others.emplace_back([&job] { job.run(); });
        } catch (...) {
            break;
        }
    }
    job.run();
    for (std::thread& other : others) other.join();
}

}  // namespace

void run_on_threads(int count, const std::function<void()>& work) {
    Job job{work, {}, nullptr};
    if (count <= 1)
        job.run();
    else if (!run_with_openmp(count, job) && !pool().run(count - 1, job))
        run_on_new_threads(count - 1, job);
    if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace convexlayers
