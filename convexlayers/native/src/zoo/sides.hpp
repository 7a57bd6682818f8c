// kSide rows of a batch side by side: the numbers of one position next to each other.
#pragma once

#include <cstring>
#include <memory>

#include "zoo/rows.hpp"

#if !defined(__clang__) && __GNUC__ < 12
#define CONVEXLAYERS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#else
#define CONVEXLAYERS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

inline constexpr int kSide = 8;

template <class T>
struct Sides {
    typedef T Side __attribute__((vector_size(kSide * sizeof(T))));
    using Order [[maybe_unused]] = decltype(Side{} < Side{});

    // Scratch memory of this thread (rows.hpp) from the first place where a Side may stand.
    static Side* scratch(Size sides) {
        void* place = zoo::scratch<T>((sides + 1) * kSide);
        std::size_t space = static_cast<std::size_t>(sides + 1) * sizeof(Side);
        return static_cast<Side*>(std::align(alignof(Side), sizeof(Side), place, space));
    }

    // Rows and columns of kSide by kSide numbers change places: blocks of 4, of 2, of 1.
    static void transpose(Side* v) {
        for (int i : {0, 1, 2, 3}) {
            const Side a = v[i], b = v[i + 4];
            v[i] = CONVEXLAYERS_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
            v[i + 4] = CONVEXLAYERS_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
        }
        for (int i : {0, 1, 4, 5}) {
            const Side a = v[i], b = v[i + 2];
            v[i] = CONVEXLAYERS_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
            v[i + 2] = CONVEXLAYERS_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
        }
        for (int i : {0, 2, 4, 6}) {
            const Side a = v[i], b = v[i + 1];
            v[i] = CONVEXLAYERS_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
            v[i + 1] = CONVEXLAYERS_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
        }
    }
};

// Rows first to first + count of a batch.
struct Group {
    const Task& task;
    Size first;
    int count;

    // Numbers from to from + items of the rows of a tensor; places without a row repeat the last one.
    template <class T>
    void read(int tensor, Size width, Size from, Size items, T* out) const {
        const T* rows[kSide];
        for (int l = 0; l < kSide; ++l) rows[l] = task.row<T>(tensor, first + std::min(l, count - 1), width) + from;
        typename Sides<T>::Side block[kSide];
        Size i = 0;
        for (; i + kSide <= items; i += kSide) {
            for (int l = 0; l < kSide; ++l) std::memcpy(&block[l], rows[l] + i, sizeof block[l]);
            Sides<T>::transpose(block);
            std::memcpy(out + i * kSide, block, sizeof block);
        }
        for (; i < items; ++i)
            for (int l = 0; l < kSide; ++l) out[i * kSide + l] = rows[l][i];
    }

    // The other way; nothing where nobody wants the tensor.
    template <class T>
    void write(int tensor, Size width, Size from, Size items, const T* values) const {
        if (task.row<T>(tensor, first, width) == nullptr) return;
        typename Sides<T>::Side block[kSide];
        Size i = 0;
        for (; i + kSide <= items; i += kSide) {
            std::memcpy(block, values + i * kSide, sizeof block);
            Sides<T>::transpose(block);
            for (int l = 0; l < count; ++l)
                std::memcpy(task.row<T>(tensor, first + l, width) + from + i, &block[l], sizeof block[l]);
        }
        for (; i < items; ++i)
            for (int l = 0; l < count; ++l) task.row<T>(tensor, first + l, width)[from + i] = values[i * kSide + l];
    }
};

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
