// The same work on several threads at once.
#pragma once

#include <functional>

namespace convexlayers {

// Calls work() on `count` threads, this one included, and rethrows the first exception.
//
// The other threads are OpenMP's where there is OpenMP: torch's operators run on the same ones, and they wait for the
// next operator by spinning, so that threads of our own would have to share the cores with them. A forked child must not
// touch OpenMP's threads; there, and without OpenMP, they belong to a pool that is made when it is first needed and made
// anew in a child. A call that finds the pool busy starts threads of its own.
void run_on_threads(int count, const std::function<void()>& work);

}  // namespace convexlayers
