// Buffers that outlive a call: taking one again costs neither system calls nor page faults.
#pragma once

#include <cstddef>

namespace convexlayers {

// 64-byte aligned memory of `bytes`, not rounded up, so that a sanitizer sees what reaches beyond; throws std::bad_alloc.
void* allocate_aligned(std::size_t bytes);
void free_aligned(void* memory) noexcept;

// 64-byte aligned memory of at least `bytes`, with whatever it held before; throws std::bad_alloc.
void* take_buffer(std::size_t bytes);

// Gives it back. A few buffers are kept, up to a total; the others are freed.
void give_buffer(void* buffer, std::size_t bytes) noexcept;

}  // namespace convexlayers
