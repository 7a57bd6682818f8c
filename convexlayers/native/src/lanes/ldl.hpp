// Numeric LDL' factorization and solves of W matrices of one pattern at a time (storage: plan/panels.hpp).
//
// No pivoting: the matrices are quasi-definite (Vanderbei, "Symmetric quasidefinite matrices", 1995), so every order of
// elimination has a factor whose pivots have known signs. A pivot of the wrong sign, or too small, is rounding; it is
// replaced, and iterative refinement by the caller removes the effect.
//
// Nothing here allocates. flops: see symbolic::factorization_flops, times W.
#pragma once

#include <type_traits>

#include "lanes/ldl_small.hpp"
#include "lanes/vec.hpp"
#include "plan/panels.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

using plan::Group;
using plan::Int;
using plan::Panels;
using plan::Update;

template <int W>
struct Ldl {
    using V = Vec<W>;

    // panels (size): the lower triangle of the matrix on entry, U = L D on return; D_inverse (nodes);
    // scratch (Panels::scratch).
    static void factor(const Panels& S, V* panels, V* D_inverse, V* scratch) {
        V* const block = scratch;
        V* const scaled = scratch + S.longest * S.longest;
        for (const Run& run : S.runs)
            if (!factor_small(S, run, panels, D_inverse))
                factor_group(S, S.groups[run.group], panels, D_inverse, block, scaled);
    }

    // The group's own columns, and what they change in later ones. block (longest^2), scaled (widest): scratch.
    static void factor_group(const Panels& S, const Group& group, V* panels, V* D_inverse, V* block, V* scaled) {
        if (group.chain)
            eliminate_chain(S, group, panels, D_inverse, block);
        else
            for (Int c = 0; c < group.k; ++c)
                D_inverse[group.first + c] = invert(panels[group.offset + c], S.signs[group.first + c]);
        if (group.r == 0) return;
        scale(group, panels, D_inverse, scaled);
        for (Int u = group.first_update; u < group.last_update; ++u)
            update_rows(S, group, S.updates[u], panels, scaled, S.updates[u].first, group.r);
    }

    // y (nodes x R, the R right-hand sides of a node side by side): L D L' y = y, in elimination order.
    template <int R>
    static void solve(const Panels& S, const V* panels, const V* D_inverse, V* y) {
        for (const Run& run : S.runs)
            if (!small(run, [&](auto groups) { groups.template forward<R>(S, run, panels, D_inverse, y); }))
                forward<R>(S, S.groups[run.group], panels, D_inverse, y);
        for (auto run = S.runs.rbegin(); run != S.runs.rend(); ++run)
            if (!small(*run, [&](auto groups) { groups.template backward<R>(S, *run, panels, D_inverse, y); }))
                backward<R>(S, S.groups[run->group], panels, D_inverse, y);
    }

    // Whether the run is one of small groups; then they have been factored.
    static bool factor_small(const Panels& S, const Run& run, V* panels, V* D_inverse) {
        return small(run, [&](auto groups) { groups.factor(S, run, panels, D_inverse); });
    }

    static V invert(V pivot, double sign) {
        return invert_pivot<W>(pivot, sign);
    }

    // Rows begin .. end of an update, begin at least its first one.
    static void update_rows(const Panels& S, const Group& group, const Update& update, V* panels, const V* scaled,
                            Int begin, Int end) {
        for (Int band = begin; band < end; band += kBand)
            update_band(S, group, update, panels, scaled, band, band + kBand < end ? band + kBand : end);
    }

private:
    template <class Work>
    static bool small(const Run& run, const Work& work) {
        return run.pairs >= 0 && with_small_groups<W>(run, work);
    }

    // Rows of a chain: u_c = a_c - sum_{l < c} u_l L_cl, one row after the other; L of the head is kept in `block`.
    static void eliminate_chain(const Panels& S, const Group& group, V* panels, V* D_inverse, V* block) {
        const Int k = group.k, height = k + group.r;
        V* row = panels + group.offset;
        for (Int i = 0; i < k; ++i, row += k) {
            reduce_row(row, i, k, block);
            V pivot = row[i];
            for (Int l = 0; l < i; ++l) {
                block[i * k + l] = row[l] * D_inverse[group.first + l];
                pivot = fnma(row[l], block[i * k + l], pivot);
            }
            D_inverse[group.first + i] = invert(pivot, S.signs[group.first + i]);
        }
        if (k == 1) return;
        Int i = k;
        for (; i + 4 <= height; i += 4, row += 4 * k) reduce_four_rows(row, k, block);
        for (; i < height; ++i, row += k) reduce_row(row, k, k, block);
    }

    static void reduce_row(V* row, Int columns, Int k, const V* block) {
        for (Int c = 1; c < columns; ++c) {
            V sum = row[c];
            for (Int l = 0; l < c; ++l) sum = fnma(row[l], block[c * k + l], sum);
            row[c] = sum;
        }
    }

    static void reduce_four_rows(V* row, Int k, const V* block) {
        for (Int c = 1; c < k; ++c) {
            V s0 = row[c], s1 = row[k + c], s2 = row[2 * k + c], s3 = row[3 * k + c];
            const V* const multipliers = block + c * k;
            for (Int l = 0; l < c; ++l) {
                const V multiplier = multipliers[l];
                s0 = fnma(row[l], multiplier, s0);
                s1 = fnma(row[k + l], multiplier, s1);
                s2 = fnma(row[2 * k + l], multiplier, s2);
                s3 = fnma(row[3 * k + l], multiplier, s3);
            }
            row[c] = s0, row[k + c] = s1, row[2 * k + c] = s2, row[3 * k + c] = s3;
        }
    }

    // scaled[c * r + p] = L of row p, column c: the second factor of every update, transposed so that tiles stream it.
    static void scale(const Group& group, const V* panels, const V* D_inverse, V* scaled) {
        const V* row = panels + group.below();
        for (Int p = 0; p < group.r; ++p, row += group.k)
            for (Int c = 0; c < group.k; ++c) scaled[c * group.r + p] = row[c] * D_inverse[group.first + c];
    }

    // C_ij -= sum_c U_ic L_jc for I rows and J columns: the accumulators stay in registers.
    template <int I, int J>
    static inline __attribute__((always_inline)) void tile(const V* U, const V* L, Int k, Int r, V* C,
                                                           const Int* row_offsets, const Int* columns) {
        V sum[I][J];
#pragma GCC unroll 8
        for (int i = 0; i < I; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) sum[i][j] = C[row_offsets[i] + columns[j]];
        for (Int c = 0; c < k; ++c, L += r) {
            V a[I];
#pragma GCC unroll 8
            for (int i = 0; i < I; ++i) a[i] = U[i * k + c];
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) {
                const V b = L[j];
#pragma GCC unroll 8
                for (int i = 0; i < I; ++i) sum[i][j] = fnma(a[i], b, sum[i][j]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < I; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) C[row_offsets[i] + columns[j]] = sum[i][j];
    }

    // Tiles of registers: AVX-512 has 32, the others 16.
    static constexpr int kTileRows = (W == 8) ? 4 : 3;
    static constexpr int kTileColumns = (W == 8) ? 6 : 4;

    // Rows i .. end of columns j .. j + J: the triangle at the top row by row where it is among them, then tiles.
    template <int J>
    static void update_columns(const Group& group, const V* below, const V* scaled, V* C, const Int* offsets,
                               const Int* columns, Int j, Int i, Int end) {
        const Int k = group.k, r = group.r;
        const V* const L = scaled + j;
        if (i <= j) {
            triangle<J>(below + j * k, L, k, r, C, offsets + j, columns);
            i = j + J;
        }
        for (; i + kTileRows <= end; i += kTileRows)
            tile<kTileRows, J>(below + i * k, L, k, r, C, offsets + i, columns);
        for (; i < end; ++i) tile<1, J>(below + i * k, L, k, r, C, offsets + i, columns);
    }

    template <int J>
    static inline __attribute__((always_inline)) void triangle(const V* U, const V* L, Int k, Int r, V* C,
                                                               const Int* offsets, const Int* columns) {
        if constexpr (J > 1) triangle<J - 1>(U, L, k, r, C, offsets, columns);
        tile<1, J>(U + (J - 1) * k, L, k, r, C, offsets + (J - 1), columns);
    }

    // Rows are taken in bands, whose part of U stays in the first cache while the columns pass by. A band holds whole
    // tiles of columns, so a triangle lies in one band.
    static constexpr Int kBand = 24;
    static_assert(kBand % kTileColumns == 0);

    static void update_band(const Panels& S, const Group& group, const Update& update, V* panels, const V* scaled,
                            Int band, Int end) {
        const V* const below = panels + group.below();
        V* const C = panels + update.target;
        const Int* const offsets = S.row_offsets.data() + update.rows - update.first;
        const Int* columns = S.columns.data() + update.columns;
        const Int last = update.last < end ? update.last : end;
        Int j = update.first;
        const auto step = [&](auto width) {
            constexpr int J = decltype(width)::value;
            update_columns<J>(group, below, scaled, C, offsets, columns, j, band, end);
            j += J;
            columns += J;
        };
        while (last - j >= kTileColumns) step(std::integral_constant<int, kTileColumns>{});
        switch (last - j) {
            case 5: step(std::integral_constant<int, 5>{}); break;
            case 4: step(std::integral_constant<int, 4>{}); break;
            case 3: step(std::integral_constant<int, 3>{}); break;
            case 2: step(std::integral_constant<int, 2>{}); break;
            case 1: step(std::integral_constant<int, 1>{}); break;
            default: break;
        }
    }

    // L y = y, then y = D^-1 y.
    template <int R>
    static void forward(const Panels& S, const Group& group, const V* panels, const V* D_inverse, V* y) {
        const Int k = group.k;
        const V* const own = D_inverse + group.first;
        V* const x = y + group.first * R;
        const V* row = panels + group.offset;
        if (group.chain) {
            for (Int i = 0; i < k; ++i, row += k)
                for (int q = 0; q < R; ++q) {
                    V sum = x[i * R + q];
                    for (Int l = 0; l < i; ++l) sum = fnma(row[l], x[l * R + q], sum);
                    x[i * R + q] = sum * own[i];
                }
        } else {
            for (Int c = 0; c < k; ++c)
                for (int q = 0; q < R; ++q) x[c * R + q] = x[c * R + q] * own[c];
            row += k;
        }
        const Int* const rows = S.rows.data() + group.rows;
        for (Int p = 0; p < group.r; ++p, row += k) {
            V* const target = y + rows[p] * R;
            V sum[R];
            for (int q = 0; q < R; ++q) sum[q] = target[q];
            for (Int c = 0; c < k; ++c)
                for (int q = 0; q < R; ++q) sum[q] = fnma(row[c], x[c * R + q], sum[q]);
            for (int q = 0; q < R; ++q) target[q] = sum[q];
        }
    }

    // sums[c] of C columns over the rows below.
    template <int C, int R>
    static inline __attribute__((always_inline)) void gather(const V* column, const Int* rows, Int r, Int k, const V* y,
                                                             V* sums) {
        V sum[C][R] = {};
        for (Int p = 0; p < r; ++p, column += k) {
#pragma GCC unroll 8
            for (int q = 0; q < R; ++q) {
                const V value = y[rows[p] * R + q];
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) sum[c][q] = fma(column[c], value, sum[c][q]);
            }
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
            for (int q = 0; q < R; ++q) sums[c * R + q] = sum[c][q];
    }

    // L' y = y.
    template <int R>
    static void backward(const Panels& S, const Group& group, const V* panels, const V* D_inverse, V* y) {
        const Int k = group.k;
        const Int* const rows = S.rows.data() + group.rows;
        const V* const below = panels + group.below();
        V sums[plan::kLongestLargeChain * R];
        Int c = 0;
        for (; c + 8 <= k; c += 8) gather<8, R>(below + c, rows, group.r, k, y, sums + c * R);
        for (; c + 4 <= k; c += 4) gather<4, R>(below + c, rows, group.r, k, y, sums + c * R);
        for (; c < k; ++c) gather<1, R>(below + c, rows, group.r, k, y, sums + c * R);
        V* const x = y + group.first * R;
        const V* const own = D_inverse + group.first;
        const V* const head = panels + group.offset;
        for (Int i = k - 1; i >= 0; --i)
            for (int q = 0; q < R; ++q) {
                V sum = sums[i * R + q];
                if (group.chain)
                    for (Int l = i + 1; l < k; ++l) sum = fma(head[l * k + i], x[l * R + q], sum);
                x[i * R + q] = fnma(own[i], sum, x[i * R + q]);
            }
    }
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
