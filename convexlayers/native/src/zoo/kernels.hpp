// Layers of convexlayers.zoo whose rows are too small for operators of a tensor library: one loop over the rows each.
//
// A row is one element of the batch. It is computed alone, in an order of operations that depends on its size only, so
// that its numbers depend neither on its neighbours nor on the number of threads.
#pragma once

#include <cstdint>

namespace convexlayers::zoo {

// at: contiguous float or double tensors, in the order that each kernel states; 0 for a result that nobody wants, of those
// that tests/native/fuzz_zoo.cpp lists as optional.
struct Task {
    const std::uintptr_t* at = nullptr;
    std::int64_t rows = 0;
    std::int64_t n = 0;  // entries of a row
    std::int64_t m = 0;  // a second size, where there is one
    int option = 0;      // which variant of the layer

    template <class T>
    T* row(int position, std::int64_t index, std::int64_t size) const {
        T* const first = reinterpret_cast<T*>(at[position]);
        return first == nullptr ? nullptr : first + index * size;
    }
};

// Rows begin to end; the number of those that the kernel leaves to the caller.
using Rows = std::int64_t (*)(const Task&, std::int64_t begin, std::int64_t end);

struct Kernel {
    const char* name;
    int tensors;  // length of Task::at
    Rows in_float, in_double;
};

struct Table {
    const Kernel* kernels;
    int count;
};

// That of the instruction set in use; null where there is none of this name.
const Kernel* find(const char* name);

// All rows, on at most so many threads; the number of rows left to the caller.
std::int64_t run(const Kernel& kernel, const Task& task, bool single, int threads);

}  // namespace convexlayers::zoo
