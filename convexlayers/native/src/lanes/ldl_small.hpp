// Runs of equal small groups of columns (plan/panels.hpp) with their sizes known to the compiler.
//
// Sparse programs have as many groups as variables, most of them of one or two columns with a few rows below: what a loop
// over such a group costs besides its arithmetic is most of the time. The operations on every entry and their order are
// those of lanes/ldl.hpp.
#pragma once

#include <utility>

#include "lanes/vec.hpp"
#include "plan/panels.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

using plan::Int;
using plan::Panels;
using plan::Run;

// Pivots below this (times the expected sign) are replaced by `kReplacedPivot`.
inline constexpr double kSmallestPivot = 1e-13;
inline constexpr double kReplacedPivot = 1e-7;

template <int W>
inline Vec<W> invert_pivot(const Vec<W>& pivot, double sign) {
    const Vec<W> size = pivot * sign;
    return sign / select(size > kSmallestPivot, size, broadcast<W>(kReplacedPivot));
}

// A number that consecutive groups change, kept in a register while it is the same one.
template <int W, int N>
class Held {
    using V = Vec<W>;

public:
    // The N numbers at array[place * N].
    V* at(V* array, Int place) {
        if (place != place_) {
            release();
            place_ = place;
            from_ = array + static_cast<std::int64_t>(place) * N;
            for (int q = 0; q < N; ++q) values_[q] = from_[q];
        }
        return values_;
    }
    // Before what stands at begin .. begin + count is read.
    void release_within(const V* begin, int count) {
        if (from_ >= begin && from_ < begin + count) release();
    }
    void release() {
        if (place_ < 0) return;
        for (int q = 0; q < N; ++q) from_[q] = values_[q];
        place_ = -1;
        from_ = nullptr;
    }

private:
    Int place_ = -1;
    V* from_ = nullptr;
    V values_[N] = {};
};

template <int W, bool kChain, int K, int R>
struct SmallGroups {
    using V = Vec<W>;
    static constexpr int kHead = kChain ? K : 1, kSize = (kHead + R) * K, kPairs = R * (R + 1) / 2;

    static void factor(const Panels& S, const Run& run, V* panels, V* D_inverse) {
        const double* signs = S.signs.data() + run.first;
        const Int* places = S.pairs.data() + run.pairs;
        V *own = panels + run.offset, *d = D_inverse + run.first;
        Held<W, 1> held;
        for (Int g = 0; g < run.count; ++g, own += kSize, d += K, signs += K, places += kPairs) {
            V *const U = own + kHead * K, L[R * K];
            held.release_within(own, kSize);
            eliminate(own, d, signs);
            for (int p = 0; p < R; ++p)
                for (int c = 0; c < K; ++c) L[p * K + c] = U[p * K + c] * d[c];
            int pair = 0;
            for (int i = 0; i < R; ++i)
                for (int j = 0; j <= i; ++j, ++pair) {
                    V* const target = R == 1 ? held.at(panels, places[0]) : panels + places[pair];
                    V sum = *target;
                    for (int c = 0; c < K; ++c) sum = fnma(U[i * K + c], L[j * K + c], sum);
                    *target = sum;
                }
        }
        held.release();
    }

    // L y = y, then y = D^-1 y.
    template <int N>
    static void forward(const Panels& S, const Run& run, const V* panels, const V* D_inverse, V* y) {
        const Int* rows = S.rows.data() + run.rows;
        const V *own = panels + run.offset, *d = D_inverse + run.first;
        V* x = y + static_cast<std::int64_t>(run.first) * N;
        Held<W, N> held;
        for (Int g = 0; g < run.count; ++g, own += kSize, d += K, x += K * N, rows += R) {
            held.release_within(x, K * N);
            for (int i = 0; i < K; ++i)
                for (int q = 0; q < N; ++q) {
                    V sum = x[i * N + q];
                    if (kChain)
                        for (int l = 0; l < i; ++l) sum = fnma(own[i * K + l], x[l * N + q], sum);
                    x[i * N + q] = sum * d[i];
                }
            const V* const U = own + kHead * K;
            for (int p = 0; p < R; ++p) {
                V* const target = R == 1 ? held.at(y, rows[0]) : y + static_cast<std::int64_t>(rows[p]) * N;
                for (int q = 0; q < N; ++q) {
                    V sum = target[q];
                    for (int c = 0; c < K; ++c) sum = fnma(U[p * K + c], x[c * N + q], sum);
                    target[q] = sum;
                }
            }
        }
        held.release();
    }

    // L' y = y.
    template <int N>
    static void backward(const Panels& S, const Run& run, const V* panels, const V* D_inverse, V* y) {
        const Int last = run.count - 1;
        const Int* rows = S.rows.data() + run.rows + last * R;
        const V *own = panels + run.offset + static_cast<std::int64_t>(last) * kSize, *d = D_inverse + run.first + last * K;
        V* x = y + static_cast<std::int64_t>(run.first + last * K) * N;
        for (Int g = last; g >= 0; --g, own -= kSize, d -= K, x -= K * N, rows -= R) {
            const V* const U = own + kHead * K;
            for (int i = K - 1; i >= 0; --i)
                for (int q = 0; q < N; ++q) {
                    V sum{};
                    for (int p = 0; p < R; ++p)
                        sum = fma(U[p * K + i], y[static_cast<std::int64_t>(rows[p]) * N + q], sum);
                    if (kChain)
                        for (int l = i + 1; l < K; ++l) sum = fma(own[l * K + i], x[l * N + q], sum);
                    x[i * N + q] = fnma(d[i], sum, x[i * N + q]);
                }
        }
    }

private:
    static void eliminate(V* own, V* d, const double* signs) {
        V L[K * K];
        for (int i = 0; i < K; ++i) {
            V pivot = own[kChain ? i * K + i : i];
            if (kChain)
                for (int l = 0; l < i; ++l) {
                    reduce(own + i * K, l, L);
                    L[i * K + l] = own[i * K + l] * d[l];
                    pivot = fnma(own[i * K + l], L[i * K + l], pivot);
                }
            d[i] = invert_pivot<W>(pivot, signs[i]);
        }
        if (kChain)
            for (int p = K; p < K + R; ++p)
                for (int c = 1; c < K; ++c) reduce(own + p * K, c, L);
    }

    // Column c of a row loses those before it.
    static void reduce(V* row, int c, const V* L) {
        V sum = row[c];
        for (int l = 0; l < c; ++l) sum = fnma(row[l], L[c * K + l], sum);
        row[c] = sum;
    }
};

// Calls work(SmallGroups<...>) for the sizes of a run; false if there is none for them.
template <int W, class Work>
bool with_small_groups(const Run& run, Work work) {
    const auto rows = [&](auto chain, auto k) {
        constexpr bool kChain = decltype(chain)::value;
        constexpr int K = decltype(k)::value;
        switch (run.r) {
            case 1: return work(SmallGroups<W, kChain, K, 1>{}), true;
            case 2: return work(SmallGroups<W, kChain, K, 2>{}), true;
            case 3: return work(SmallGroups<W, kChain, K, 3>{}), true;
            default: return false;
        }
    };
    using std::integral_constant;
    if (run.k == 1) return rows(std::true_type{}, integral_constant<int, 1>{});
    if (run.k == 2 && run.chain) return rows(std::true_type{}, integral_constant<int, 2>{});
    if (run.k == 2) return rows(std::false_type{}, integral_constant<int, 2>{});
    if (run.k == 3 && run.chain) return rows(std::true_type{}, integral_constant<int, 3>{});
    return false;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA
