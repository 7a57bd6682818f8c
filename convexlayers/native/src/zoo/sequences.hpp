// Isotonic regression and denoising by total variation; derivations in zoo/isotonic.py and zoo/total_variation.py.
#pragma once

#include "zoo/rows.hpp"

namespace convexlayers::CONVEXLAYERS_ISA::zoo {

// The end of the run of equal values that begins here.
template <class T>
Size run_end(const T* x, Size n, Size start) {
    Size end = start + 1;
    while (end < n && x[end] == x[start]) ++end;
    return end;
}

// v (n), weight (n) -> x (n), by pooling adjacent violators. A stack holds the blocks so far.
template <class T>
std::int64_t isotonic(const Task& task, Size begin, Size end) {
    struct Block {
        T total, width, mean;
        Size stop;
    };
    const Size n = task.n;
    Block* const blocks = scratch<Block>(n);
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        const T* const weight = task.row<T>(1, row, n);
        T* const x = task.row<T>(2, row, n);
        const bool finite = sum<T>(n, [v](Size i) { return v[i] - v[i]; }) == 0;
        const T wrong = sum<T>(n, [weight](Size i) { return weight[i] > 0 ? T(0) : T(1); });
        if (!finite || wrong > 0) {
            fill(x, n, kNan<T>);
            continue;
        }
        Size count = 0;
        for (Size i = 0; i < n; ++i) {
            Block block{weight[i] * v[i], weight[i], v[i], i + 1};
            for (; count > 0 && blocks[count - 1].mean > block.mean; --count) {
                block.total += blocks[count - 1].total;
                block.width += blocks[count - 1].width;
                block.mean = block.total / block.width;
            }
            blocks[count++] = block;
        }
        for (Size k = 0, i = 0; k < count; ++k)
            for (; i < blocks[k].stop; ++i) x[i] = blocks[k].mean;
    }
    return 0;
}

// v (n), weight (n), x (n), cotangent (n) -> of v (n), of weight (n)
template <class T>
std::int64_t isotonic_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const v = task.row<T>(0, row, n);
        const T* const weight = task.row<T>(1, row, n);
        const T* const x = task.row<T>(2, row, n);
        const T* const grad = task.row<T>(3, row, n);
        T* const grad_v = task.row<T>(4, row, n);
        T* const grad_weight = task.row<T>(5, row, n);
        if (std::isnan(x[0])) {
            fill(grad_v, n, kNan<T>);
            fill(grad_weight, n, kNan<T>);
            continue;
        }
        for (Size start = 0, stop; start < n; start = stop) {
            stop = run_end(x, n, start);
            T total = 0, width = 0;
            for (Size i = start; i < stop; ++i) {
                total += grad[i];
                width += weight[i];
            }
            const T share = total / width;
            for (Size i = start; i < stop; ++i) grad_v[i] = weight[i] * share;
            if (grad_weight != nullptr)
                for (Size i = start; i < stop; ++i) grad_weight[i] = share * (v[i] - x[i]);
        }
    }
    return 0;
}

// Where a string that is pulled taut between two walls bends.
//
// The walls stand at height[i] - strength and height[i] + strength for 0 < i < n and meet at both ends. From the last
// bend, the apex, a chain along the upper wall with rising slopes (its convex minorant) and one along the lower wall
// with falling slopes bound all strings. When a new piece of wall lets them cross, the string bends at the first vertex
// of the chain that is in the way, which becomes the apex (Davies and Kovac, "Local extremes, runs, strings and
// multiresolution", 2001). Every point enters and leaves a chain once.
class TautString {
public:
    TautString(const double* height, double strength, Size n, Size* memory)
        : height_(height), strength_(strength), n_(n), upper_{memory, 0, 0, 1}, lower_{memory + n + 1, 0, 0, -1} {}

    // turn[i]: 1 or -1 where the string touches the upper or lower wall between entries i - 1 and i, and bends; else 0.
    template <class T>
    void pull(T* turn) {
        std::fill(turn, turn + n_ + 1, T(0));
        upper_.vertices[0] = lower_.vertices[0] = 0;
        upper_.first = upper_.last = lower_.first = lower_.last = 0;
        apex_height_ = 0;
        for (Size i = 1; i <= n_; ++i) {
            push(upper_, lower_, i, turn);
            // The end belongs to both walls; once it is on one of the chains the string is known.
            if (i < n_) push(lower_, upper_, i, turn);
        }
        for (Size k = upper_.first + 1; k < upper_.last; ++k) turn[upper_.vertices[k]] = T(1);
    }

private:
    // Vertices [first, last] of a wall, the first one being the apex.
    struct Chain {
        Size* vertices;
        Size first, last;
        double side;
    };

    double at(const Chain& chain, Size k) const {
        if (k == chain.first) return apex_height_;
        const Size i = chain.vertices[k];
        return i == n_ ? height_[i] : height_[i] + chain.side * strength_;
    }

    // A direction, not reduced: slopes are compared without a division.
    struct Direction {
        double rise, run;
        double compare(const Direction& other) const { return rise * other.run - other.rise * run; }
    };

    Direction direction(const Chain& chain, Size k, Size i, double y) const {
        return {y - at(chain, k), static_cast<double>(i - chain.vertices[k])};
    }

    // From a vertex of the chain to the next one.
    Direction edge(const Chain& chain, Size k) const {
        return direction(chain, k, chain.vertices[k + 1], at(chain, k + 1));
    }

    template <class T>
    void push(Chain& chain, Chain& other, Size i, T* turn) {
        const double side = chain.side, y = i == n_ ? height_[i] : height_[i] + side * strength_;
        while (chain.last > chain.first &&
               side * edge(chain, chain.last - 1).compare(direction(chain, chain.last, i, y)) >= 0)
            --chain.last;
        // Straight from the apex: does it cross the other chain?
        while (chain.last == chain.first && other.last > other.first) {
            if (side * direction(chain, chain.first, i, y).compare(edge(other, other.first)) >= 0) break;
            const double height = at(other, other.first + 1);
            ++other.first;
            apex_height_ = height;
            const Size apex = other.vertices[other.first];
            turn[apex] = static_cast<T>(other.side);
            chain.vertices[chain.first] = apex;
        }
        chain.vertices[++chain.last] = i;
    }

    const double* height_;
    double strength_;
    Size n_;
    Chain upper_, lower_;
    double apex_height_ = 0;
};

// y (n), strength (1) -> x (n): bends of the taut string, then the means of its pieces, exact.
template <class T>
std::int64_t total_variation(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    std::vector<double> height(n + 1);
    T* const turn = scratch<T>(n + 1);
    Size* const memory = scratch<Size>(2 * (n + 1));
    for (Size row = begin; row < end; ++row) {
        const T* const y = task.row<T>(0, row, n);
        const T strength = *task.row<T>(1, row, 1);
        T* const x = task.row<T>(2, row, n);
        const bool finite = sum<T>(n, [y](Size i) { return y[i] - y[i]; }) == 0;
        if (!finite || !(strength >= 0) || std::isinf(strength)) {
            fill(x, n, kNan<T>);
            continue;
        }
        if (strength == 0) {
            std::copy(y, y + n, x);
            continue;
        }
        const double mean = sum<double>(n, [y](Size i) { return static_cast<double>(y[i]); }) / static_cast<double>(n);
        for (Size i = 0; i < n; ++i) height[i + 1] = height[i] + (static_cast<double>(y[i]) - mean);
        TautString(height.data(), static_cast<double>(strength), n, memory).pull(turn);
        for (Size start = 0, stop; start < n; start = stop) {
            for (stop = start + 1; stop < n && turn[stop] == 0; ++stop) {
            }
            const T total = sum<T>(stop - start, [y, start](Size i) { return y[start + i]; });
            const T ends = (stop < n ? turn[stop] : T(0)) - (start > 0 ? turn[start] : T(0));
            std::fill(x + start, x + stop, (total + strength * ends) / static_cast<T>(stop - start));
        }
    }
    return 0;
}

// x (n), cotangent (n) -> of y (n), of strength (1)
template <class T>
std::int64_t total_variation_adjoint(const Task& task, Size begin, Size end) {
    const Size n = task.n;
    for (Size row = begin; row < end; ++row) {
        const T* const x = task.row<T>(0, row, n);
        const T* const grad = task.row<T>(1, row, n);
        T* const grad_y = task.row<T>(2, row, n);
        if (std::isnan(x[0])) {
            fill(grad_y, n, kNan<T>);
            fill(task.row<T>(3, row, 1), 1, kNan<T>);
            continue;
        }
        T along = 0, before = 0;
        for (Size start = 0, stop; start < n; start = stop) {
            stop = run_end(x, n, start);
            T total = 0;
            for (Size i = start; i < stop; ++i) total += grad[i];
            const T mean = total / static_cast<T>(stop - start);
            std::fill(grad_y + start, grad_y + stop, mean);
            // Sum over the block of the sign of the step after an entry less that of the step before it.
            const T after = stop == n ? T(0) : x[stop] > x[start] ? T(1) : T(-1);
            along += mean * (after - before);
            before = after;
        }
        fill(task.row<T>(3, row, 1), 1, along);
    }
    return 0;
}

}  // namespace convexlayers::CONVEXLAYERS_ISA::zoo
