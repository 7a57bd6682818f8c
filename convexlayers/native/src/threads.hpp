// The same work on several threads at once.
#pragma once

#include <exception>
#include <thread>
#include <vector>

namespace convexlayers {

// Calls work() on `count` threads, this one included; rethrows the first exception. Threads live for one call: a pool
// would not survive a fork, and starting one costs a few microseconds.
template <class Function>
void run_on_threads(int count, const Function& work) {
    std::vector<std::exception_ptr> failures(count);
    const auto guarded = [&](int index) {
        try {
            work();
        } catch (...) {
            failures[index] = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(count > 0 ? count - 1 : 0);
    for (int index = 1; index < count; ++index) {
        try {
            others.emplace_back(guarded, index);
        } catch (...) {  // no more threads to be had: those that run do the work
            break;
        }
    }
    guarded(0);
    for (std::thread& other : others) other.join();
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
}

}  // namespace convexlayers
