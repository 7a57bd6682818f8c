// The same work on several threads at once.
#pragma once

#include <functional>

namespace convexlayers {

// Calls work() on `count` threads, this one included, and rethrows the first exception. The other threads belong to a
// pool that is made when it is first needed and made anew in a forked child; a call that finds it busy starts threads
// of its own.
void run_on_threads(int count, const std::function<void()>& work);

}  // namespace convexlayers
