#include "memory.hpp"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(_WIN32)
#include <malloc.h>
#else
#include <pthread.h>
#endif

namespace convexlayers {

namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kMostBuffers = 16;
constexpr std::size_t kMostBytes = std::size_t{64} << 20;

struct Buffer {
    void* memory;
    std::size_t bytes;
};

struct Pool {
    std::mutex mutex;
    std::vector<Buffer> buffers;
    std::size_t bytes = 0;
};

// Never destroyed: threads may still give buffers back while the process ends. A fork waits for whoever holds the lock,
// so that the child does not inherit one that nobody will open.
Pool& pool();

Pool* make_pool() {
#if !defined(_WIN32)
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
#endif
    return new Pool;
}

Pool& pool() {
    static Pool* const only = make_pool();
    return *only;
}

std::size_t rounded(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

// Not std::aligned_alloc: it wants a multiple of the alignment, and Windows and old macOS do not have it.
void* allocate_aligned(std::size_t bytes) {
    bytes = bytes > 0 ? bytes : 1;
#if defined(_WIN32)
    void* const memory = _aligned_malloc(bytes, kAlignment);
    if (memory == nullptr) throw std::bad_alloc();
#else
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, bytes) != 0) throw std::bad_alloc();
#endif
    return memory;
}

void free_aligned(void* memory) noexcept {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    std::free(memory);
#endif
}

void* take_buffer(std::size_t bytes) {
    bytes = rounded(bytes);
    {
        Pool& shared = pool();
        const std::lock_guard<std::mutex> lock(shared.mutex);
        for (Buffer& buffer : shared.buffers)
            if (buffer.bytes == bytes) {
                void* const memory = buffer.memory;
                buffer = shared.buffers.back();
                shared.buffers.pop_back();
                shared.bytes -= bytes;
                return memory;
            }
    }
    return allocate_aligned(bytes);
}

void give_buffer(void* memory, std::size_t bytes) noexcept {
    bytes = rounded(bytes);
    Pool& shared = pool();
    const std::lock_guard<std::mutex> lock(shared.mutex);
    // The oldest make room.
    while (!shared.buffers.empty() && (shared.buffers.size() >= kMostBuffers || shared.bytes + bytes > kMostBytes)) {
        free_aligned(shared.buffers.front().memory);
        shared.bytes -= shared.buffers.front().bytes;
        shared.buffers.erase(shared.buffers.begin());
    }
    try {
        if (shared.bytes + bytes <= kMostBytes) {
            shared.buffers.push_back({memory, bytes});
            shared.bytes += bytes;
            return;
        }
    } catch (const std::bad_alloc&) {
    }
    free_aligned(memory);
}

}  // namespace convexlayers
