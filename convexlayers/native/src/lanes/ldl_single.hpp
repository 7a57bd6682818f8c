// One matrix alone, its large groups of columns in vectors: what lanes/ldl.hpp does for W matrices at a time.
//
// Every entry of L and D is the same chain of operations as there, to the last bit: entry (i, j) starts as the matrix's
// own number and loses U_ic L_jc for the columns c < j in ascending order. Vectors and tiles only hold several entries at
// once; no sum is split. That is also why rows can be divided between threads.
//
// A group of k columns and r rows below is brought into transposed form, columns contiguous, where the elimination of one
// column from the others is an operation on vectors of rows:
//
//     head[c * stride + i]                       U of the triangle at the top, i >= c
//     scaled[c * r + p]                          L of row p below
//     tiles[(p / T * k + c) * T + p % T]         U of row p below, T = kTileRows
//
// An update of a later group takes its columns j in strips of `kStrip`, packed, and its rows in tiles.
#pragma once

#include <algorithm>

#include "lanes/ldl.hpp"
#include "team.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

class SingleLdl {
    using V = Native;
    static constexpr Int kWide = kLanes;
    static constexpr Int kMost = plan::kLongestLargeChain;
    // Tiles of registers: AVX-512 has 32, the others 16.
    static constexpr Int kTileRows = kLanes == 8 ? 12 : 6;
    static constexpr Int kStrip = 2 * kWide;
    static constexpr Int kStripsOfMost = (kMost + kStrip - 1) / kStrip;
    // Rows below that are eliminated together, in registers.
    static constexpr Int kRows = 24;
    static constexpr int kVectors = kRows / kWide;
    static constexpr int kTileColumns = 4 * kWide / 8 > 0 ? 4 * kWide / 8 : 1;
    static_assert(kRows % kTileRows == 0 && kRows % kWide == 0);
    // Rows of an update that one thread takes.
    static constexpr Int kBand = 192;
    static_assert(kBand % kTileRows == 0);
    // Multiplications from which vectors, and threads, are worth their preparation.
    static constexpr std::int64_t kVectorWork = 600;
    static constexpr std::int64_t kSharedWork = 400'000;

public:
    // As Ldl<1>::factor; `team` divides the work on large groups between threads.
    static void factor(const Panels& S, double* panels, double* D_inverse, double* scratch, Team& team) {
        SingleLdl(S, panels, D_inverse, scratch, team).run();
    }

private:
    SingleLdl(const Panels& S, double* panels, double* D_inverse, double* scratch, Team& team)
        : S_(S),
          panels_(panels),
          D_inverse_(D_inverse),
          block_(scratch),
          scaled_(scratch + static_cast<std::int64_t>(S.longest) * S.longest),
          tiles_(scaled_ + S.widest),
          team_(team) {}

    void run() {
        for (const Run& run : S_.runs) {
            if (Ldl<1>::factor_small(S_, run, panels_, D_inverse_)) continue;
            const Group& group = S_.groups[run.group];
            const std::int64_t work = static_cast<std::int64_t>(group.k) * group.r * group.r;
            if (group.r < kWide || work < 8 * kVectorWork)
                Ldl<1>::factor_group(S_, group, panels_, D_inverse_, block_, scaled_);
            else
                factor_group(group, work);
        }
    }

    // The steps have to follow each other; each divides into parts that do not touch each other's entries.
    void factor_group(const Group& group, std::int64_t work) {
        const bool shared = work >= kSharedWork;
        if (group.chain)
            eliminate_head(group);
        else
            for (Int c = 0; c < group.k; ++c) invert(group, c, panels_[group.offset + c]);
        divide(shared, (group.r + kRows - 1) / kRows, [&](Int part) {
            eliminate_below(group, part * kRows, std::min((part + 1) * kRows, group.r));
        });
        // The rows of every update in bands.
        const Int bands = shared ? (group.r + kBand - 1) / kBand : 1, height = shared ? kBand : group.r;
        divide(shared, bands * (group.last_update - group.first_update), [&](Int part) {
            const Int begin = part % bands * height;
            update(group, S_.updates[group.first_update + part / bands], begin, std::min(begin + height, group.r));
        });
    }

    template <class Work>
    void divide(bool shared, Int parts, const Work& work) {
        if (shared && parts > 1)
            team_.divide(parts, work);
        else
            for (Int part = 0; part < parts; ++part) work(part);
    }

    static V load(const double* from) { return gathered<kLanes>(from); }
    static V splat(double value) { return value - V{}; }
    static void store(const V& v, double* to) { std::memcpy(to, &v, sizeof v); }

    void invert(const Group& group, Int c, double pivot) {
        D_inverse_[group.first + c] = Ldl<1>::invert(pivot, S_.signs[group.first + c]);
    }

    // U of the triangle, column by column; its L in `block`, row by row.
    void eliminate_head(const Group& group) {
        const Int k = group.k;
        alignas(64) double head[kMost * kMost];
        double* const own = panels_ + group.offset;
        const Int stride = (k + kWide - 1) / kWide * kWide;
        std::fill_n(head, k * stride, 0.0);
        for (Int i = 0; i < k; ++i)
            for (Int c = 0; c <= i; ++c) head[c * stride + i] = own[i * k + c];
        for (Int c = 0; c < k; ++c) {
            double* const column = head + c * stride;
            const double* const multipliers = block_ + c * k;
            for (Int l = 0; l < c; ++l) block_[c * k + l] = head[l * stride + c] * D_inverse_[group.first + l];
            for (Int i = c / kWide * kWide; i < k; i += kWide) {
                V sum = load(column + i);
                for (Int l = 0; l < c; ++l) sum = fnma(load(head + l * stride + i), splat(multipliers[l]), sum);
                store(sum, column + i);
            }
            invert(group, c, column[c]);
        }
        for (Int i = 0; i < k; ++i)
            for (Int c = 0; c <= i; ++c) own[i * k + c] = head[c * stride + i];
    }

    // Rows begin .. end below, begin a multiple of kRows: U into the group's array and `tiles`, L into `scaled`.
    void eliminate_below(const Group& group, Int begin, Int end) {
        const Int k = group.k, count = end - begin;
        double* const rows = panels_ + group.below() + static_cast<std::int64_t>(begin) * k;
        alignas(64) double columns[kMost * kRows];
        if (count < kRows) std::fill_n(columns, k * kRows, 0.0);
        for (Int p = 0; p < count; ++p)
            for (Int c = 0; c < k; ++c) columns[c * kRows + p] = rows[p * k + c];
        if (group.chain) {
            Int c = 0;
            for (; c + kTileColumns <= k; c += kTileColumns) eliminate_columns<kTileColumns>(k, c, columns);
            for (; c < k; ++c) eliminate_columns<1>(k, c, columns);
            for (Int p = 0; p < count; ++p)
                for (c = 0; c < k; ++c) rows[p * k + c] = columns[c * kRows + p];
        }
        double* const tiles = tiles_ + static_cast<std::int64_t>(begin) * k;
        for (Int c = 0; c < k; ++c) {
            const double inverse = D_inverse_[group.first + c];
            const double* const column = columns + c * kRows;
            double* const to = scaled_ + static_cast<std::int64_t>(c) * group.r + begin;
            for (Int p = 0; p < count; ++p) to[p] = column[p] * inverse;
            for (Int t = 0; t < kRows; t += kTileRows) std::copy_n(column + t, kTileRows, tiles + t * k + c * kTileRows);
        }
    }

    // Columns c .. c + C lose those before them.
    template <int C>
    void eliminate_columns(Int k, Int c, double* columns) const {
        V sum[C][kVectors];
        const double* const multipliers = block_ + c * k;
#pragma GCC unroll 12
        for (int j = 0; j < C; ++j)
#pragma GCC unroll 12
            for (int v = 0; v < kVectors; ++v) sum[j][v] = load(columns + (c + j) * kRows + v * kWide);
        for (Int l = 0; l < c; ++l) {
            V U[kVectors];
#pragma GCC unroll 12
            for (int v = 0; v < kVectors; ++v) U[v] = load(columns + l * kRows + v * kWide);
#pragma GCC unroll 12
            for (int j = 0; j < C; ++j) {
                const V L = splat(multipliers[j * k + l]);
#pragma GCC unroll 12
                for (int v = 0; v < kVectors; ++v) sum[j][v] = fnma(U[v], L, sum[j][v]);
            }
        }
#pragma GCC unroll 12
        for (int j = 0; j < C; ++j) {
#pragma GCC unroll 12
            for (int before = 0; before < j; ++before) {
                const V L = splat(multipliers[j * k + c + before]);
#pragma GCC unroll 12
                for (int v = 0; v < kVectors; ++v) sum[j][v] = fnma(sum[before][v], L, sum[j][v]);
            }
#pragma GCC unroll 12
            for (int v = 0; v < kVectors; ++v) store(sum[j][v], columns + (c + j) * kRows + v * kWide);
        }
    }

    // Rows begin .. end of an update, begin a multiple of kTileRows; those above its first one have no part in it.
    void update(const Group& group, const Update& update, Int begin, Int end) {
        const Int width = update.last - update.first;
        const std::int64_t work = static_cast<std::int64_t>(group.k) * width * (group.r - update.first);
        if (width < kWide / 2 || work < kVectorWork) {
            if (begin == 0) Ldl<1>::update_rows(S_, group, update, panels_, scaled_, update.first, group.r);
            return;
        }
        if (end <= update.first) return;
        alignas(64) double packed[kStripsOfMost * kMost * kStrip];
        pack(group, update, packed);
        const Int* const columns = S_.columns.data() + update.columns;
        const bool together = columns[width - 1] - columns[0] == width - 1;
        for (Int i = std::max(begin, update.first / kTileRows * kTileRows); i < end; i += kTileRows)
            // Rows of the triangle at the top reach as far as their own column.
            for (Int j = 0; j < width && update.first + j < i + kTileRows; j += kStrip)
                tile(group, update, i, std::min(i + kTileRows, end), j, packed + j * group.k, together);
    }

    // Strips of columns of L', each (k, kStrip), the last one filled up with zeros.
    void pack(const Group& group, const Update& update, double* packed) const {
        const Int width = update.last - update.first;
        for (Int j = 0; j < width; j += kStrip) {
            const Int count = std::min(kStrip, width - j);
            const double* from = scaled_ + update.first + j;
            for (Int c = 0; c < group.k; ++c, from += group.r, packed += kStrip) {
                std::copy_n(from, count, packed);
                std::fill(packed + count, packed + kStrip, 0.0);
            }
        }
    }

    // Rows i .. end of one tile and a strip of columns. Entries of a strip that stand side by side are loaded and stored
    // as vectors; others, and tiles and strips that are not full, go through a buffer.
    void tile(const Group& group, const Update& update, Int i, Int end, Int j, const double* packed, bool together) {
        const Int* const offsets = S_.row_offsets.data() + update.rows - update.first + i;
        const Int* const columns = S_.columns.data() + update.columns + j;
        const Int count = std::min(kStrip, update.last - update.first - j);
        const double* const U = tiles_ + static_cast<std::int64_t>(i) * group.k;
        double* const C = panels_ + update.target;
        double* targets[kTileRows];
        const Int first = std::max(i, update.first) - i, last = end - i;
        if (together && count == kStrip && first == 0 && last == kTileRows) {
            for (Int p = 0; p < kTileRows; ++p) targets[p] = C + offsets[p] + columns[0];
            return multiply(U, packed, group.k, targets);
        }
        alignas(64) double buffer[kTileRows * kStrip] = {};
        for (Int p = 0; p < kTileRows; ++p) targets[p] = buffer + p * kStrip;
        for (Int p = first; p < last; ++p)
            for (Int q = 0; q < count; ++q) targets[p][q] = C[offsets[p] + columns[q]];
        multiply(U, packed, group.k, targets);
        for (Int p = first; p < last; ++p) {
            // An entry above the diagonal is none; what was computed for it is dropped.
            const Int stop = std::min(count, i + p - update.first - j + 1);
            for (Int q = 0; q < stop; ++q) C[offsets[p] + columns[q]] = targets[p][q];
        }
    }

    static void multiply(const double* U, const double* packed, Int k, double* const* targets) {
        V low[kTileRows], high[kTileRows];
#pragma GCC unroll 12
        for (int i = 0; i < kTileRows; ++i) low[i] = load(targets[i]), high[i] = load(targets[i] + kWide);
        for (Int c = 0; c < k; ++c, packed += kStrip, U += kTileRows) {
            const V first = load(packed), second = load(packed + kWide);
#pragma GCC unroll 12
            for (int i = 0; i < kTileRows; ++i) {
                const V u = splat(U[i]);
                low[i] = fnma(u, first, low[i]);
                high[i] = fnma(u, second, high[i]);
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < kTileRows; ++i) store(low[i], targets[i]), store(high[i], targets[i] + kWide);
    }

    const Panels& S_;
    double *panels_, *D_inverse_, *block_, *scaled_, *tiles_;
    Team& team_;
};

// panels (size): the lower triangle of the matrix on entry, U = L D on return; D_inverse (nodes); scratch
// (Panels::scratch).
template <int W>
void factor(const Panels& S, Vec<W>* panels, Vec<W>* D_inverse, Vec<W>* scratch) {
    if constexpr (W == 1)
        SingleLdl::factor(S, panels, D_inverse, scratch, Team::current());
    else
        Ldl<W>::factor(S, panels, D_inverse, scratch);
}

}  // namespace convexlayers::CONVEXLAYERS_ISA
