// Which dense matrices are, without any doubt, symmetric positive semidefinite: factorizations L D L' with positive pivots.
//
// Sign times the symmetric part is brought to size one, since pivots are judged absolutely, and `kSemidefiniteShift` is
// added to its diagonal, so that a semidefinite matrix passes in spite of rounding.
#pragma once

#include <algorithm>
#include <cstring>

#include "lanes/ldl.hpp"
#include "memory.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

inline constexpr double kSemidefiniteShift = 1e-12;

// Work(i, j, entries (i, j), ..., (i, j + kLanes - 1), entries (j, i), ..., (j + kLanes - 1, i)) for vectors of a row-major
// matrix of order n that together hold every entry of the upper triangle and the diagonal; zeros outside of the matrix.
// The mirrored entries are read along rows, in tiles.
template <class Work>
inline void mirror(Int n, const double* matrix, const Work& work) {
    const auto row = [=](Int i) { return matrix + static_cast<std::int64_t>(i) * n; };
    alignas(64) double tile[kLanes][kLanes], edge[kLanes];
    for (Int top = 0; top < n; top += kLanes) {
        const Int rows = std::min(n - top, kLanes);
        for (Int left = top; left < n; left += kLanes) {
            const Int cols = std::min(n - left, kLanes);
            const bool whole = rows == kLanes && cols == kLanes;
            if (whole) {
                for (Int c = 0; c < kLanes; ++c)
                    for (Int r = 0; r < kLanes; ++r) tile[r][c] = row(left + c)[top + r];
            } else {
                std::memset(tile, 0, sizeof tile);
                for (Int c = 0; c < cols; ++c)
                    for (Int r = 0; r < rows; ++r) tile[r][c] = row(left + c)[top + r];
            }
            for (Int r = 0; r < rows; ++r) {
                const double* from = row(top + r) + left;
                if (!whole) {
                    std::memset(edge, 0, sizeof edge);
                    std::memcpy(edge, from, cols * sizeof(double));
                    from = edge;
                }
                work(top + r, left, gathered<kLanes>(from), gathered<kLanes>(tile[r]));
            }
        }
    }
}

// One matrix after the other, vectors along its rows. It ends with the first pivot that is not positive.
class DefiniteAlone {
    using V = Native;
    // Rows that are eliminated from the others together: their entries stay in registers.
    static constexpr Int kBlock = kLanes == 8 ? 8 : 4;

public:
    DefiniteAlone(Int order, double sign, double slack)
        : n_(order), stride_((order + kLanes - 1) / kLanes * kLanes), sign_(sign), slack_(slack) {
        bytes_ = static_cast<std::size_t>(n_) * stride_ * sizeof(double);
        U_ = static_cast<double*>(take_buffer(bytes_));
    }
    ~DefiniteAlone() { give_buffer(U_, bytes_); }
    DefiniteAlone(const DefiniteAlone&) = delete;
    DefiniteAlone& operator=(const DefiniteAlone&) = delete;

    // values: (count, n, n).
    bool check(const double* values, std::int64_t count) {
        for (; count > 0; --count, values += static_cast<std::int64_t>(n_) * n_)
            if (!load(values) || !factor()) return false;
        return true;
    }

private:
    double* row(Int i) { return U_ + static_cast<std::int64_t>(i) * stride_; }
    static V get_at(const double* from) { return gathered<kLanes>(from); }
    static void put(const V& v, double* to) { std::memcpy(to, &v, sizeof v); }
    static double largest(const V& v) {
        double most = v[0];
        for (int lane = 1; lane < kLanes; ++lane) most = max(most, v[lane]);
        return most;
    }

    // The upper triangle, row by row, ready for the factorization; false if the matrix is not symmetric or not finite.
    bool load(const double* values) {
        V size{}, asymmetry{}, broken{};
        mirror(n_, values, [&](Int i, Int j, const V& a, const V& b) {
            size = max(max(abs(a), abs(b)), size);
            asymmetry = max(abs(a - b), asymmetry);
            broken = fma(a + b, V{}, broken);
            put(0.5 * (a + b) * sign_, row(i) + j);
        });
        const double unit = largest(size);
        if (!(largest(asymmetry) <= slack_ * unit) || !all(broken == 0.0)) return false;
        const double scale = 1.0 / (unit > 0.0 ? unit : 1.0);
        for (Int i = 0; i < n_; ++i) {
            for (Int j = i / kLanes * kLanes; j < stride_; j += kLanes) put(get_at(row(i) + j) * scale, row(i) + j);
            row(i)[i] += kSemidefiniteShift;
        }
        return true;
    }

    // Whether all pivots are positive. U = D L' takes the place of the upper triangle; what the vectors that hold a pivot
    // have before it, means nothing.
    bool factor() {
        double inverses[kBlock];
        for (Int k = 0; k < n_; k += kBlock) {
            const Int stop = std::min(k + kBlock, n_);
            for (Int i = k; i < stop; ++i) {
                for (Int c = k; c < i; ++c) subtract(row(c)[i] * inverses[c - k], row(c), i);
                if (!(row(i)[i] > kSmallestPivot)) return false;
                inverses[i - k] = 1.0 / row(i)[i];
            }
            Int i = stop;
            for (; i + 2 <= n_; i += 2) eliminate<2>(k, i, inverses);
            if (i < n_) eliminate<1>(k, i, inverses);
        }
        return true;
    }

    // Row i less multiplier times another one.
    void subtract(double multiplier, const double* other, Int i) {
        const V factor = broadcast<kLanes>(multiplier);
        double* const own = row(i);
        for (Int j = i / kLanes * kLanes; j < stride_; j += kLanes)
            put(fnma(factor, get_at(other + j), get_at(own + j)), own + j);
    }

    // kBlock rows from k on, with the inverses of their pivots, from kRows rows from i on.
    template <int kRows>
    void eliminate(Int k, Int i, const double* inverses) {
        const double* const above = row(k);
        double* const own = row(i);
        V multipliers[kRows][kBlock];
        for (Int c = 0; c < kBlock; ++c)
            for (int r = 0; r < kRows; ++r)
                multipliers[r][c] = broadcast<kLanes>(above[c * stride_ + i + r] * inverses[c]);
        for (Int j = i / kLanes * kLanes; j < stride_; j += kLanes) {
            V sums[kRows];
            for (int r = 0; r < kRows; ++r) sums[r] = get_at(own + r * stride_ + j);
            for (Int c = 0; c < kBlock; ++c) {
                const V entries = get_at(above + c * stride_ + j);
                for (int r = 0; r < kRows; ++r) sums[r] = fnma(multipliers[r][c], entries, sums[r]);
            }
            for (int r = 0; r < kRows; ++r) put(sums[r], own + r * stride_ + j);
        }
    }

    Int n_, stride_;
    double sign_, slack_;
    std::size_t bytes_;
    double* U_;
};

// W matrices at a time, one in each lane.
template <int W>
class DefiniteInLanes {
    using V = Vec<W>;

public:
    DefiniteInLanes(const plan::DensePattern& pattern, double sign, double slack)
        : pattern_(pattern), S_(pattern.panels), sign_(sign), slack_(slack) {
        const std::size_t scratch = S_.scratch(W);
        bytes_ = (S_.size + S_.nodes + scratch) * sizeof(V);
        panels_ = static_cast<V*>(take_buffer(bytes_));
        D_inverse_ = panels_ + S_.size;
        scratch_ = D_inverse_ + S_.nodes;
    }
    ~DefiniteInLanes() { give_buffer(panels_, bytes_); }
    DefiniteInLanes(const DefiniteInLanes&) = delete;
    DefiniteInLanes& operator=(const DefiniteInLanes&) = delete;

    // values: (count, n, n).
    bool check(const double* values, std::int64_t count) {
        const std::int64_t size = static_cast<std::int64_t>(S_.nodes) * S_.nodes;
        for (std::int64_t first = 0; first < count; first += W)
            if (!all(check_block(values + first * size, static_cast<int>(std::min<std::int64_t>(W, count - first)))))
                return false;
        return true;
    }

private:
    // Lanes without a matrix of their own repeat the first one.
    Mask<W> check_block(const double* values, int lanes) {
        const Int n = S_.nodes;
        for (Int i = 0; i < S_.size; ++i) panels_[i] = V{};
        const std::int64_t size = static_cast<std::int64_t>(n) * n;
        const double* rows[W];
        for (int lane = 0; lane < W; ++lane) rows[lane] = values + (lane < lanes ? lane : 0) * size;
        V largest{}, asymmetry{}, broken{};
        const Int* place = pattern_.places.data();
        for (Int i = 0; i < n; ++i)
            for (Int j = 0; j <= i; ++j) {
                double lower[W], upper[W];
                for (int lane = 0; lane < W; ++lane) {
                    lower[lane] = rows[lane][i * n + j];
                    upper[lane] = rows[lane][j * n + i];
                }
                const V a = gathered<W>(lower), b = gathered<W>(upper);
                largest = max(max(abs(a), abs(b)), largest);
                asymmetry = max(abs(a - b), asymmetry);
                broken = fma(a + b, V{}, broken);
                panels_[*place++] = 0.5 * (a + b) * sign_;
            }
        const V unit = 1.0 / select(largest > 0.0, largest, broadcast<W>(1.0));
        for (Int i = 0; i < S_.size; ++i) panels_[i] = panels_[i] * unit;
        for (const Int diagonal : pattern_.diagonal) panels_[diagonal] = panels_[diagonal] + kSemidefiniteShift;
        Ldl<W>::factor(S_, panels_, D_inverse_, scratch_);
        Mask<W> good = (asymmetry <= slack_ * largest) & (broken == 0.0);
        for (Int k = 0; k < n; ++k) good = good & (D_inverse_[k] != 1.0 / kReplacedPivot);
        return good;
    }

    const plan::DensePattern& pattern_;
    const plan::Panels& S_;
    double sign_, slack_;
    std::size_t bytes_ = 0;
    V *panels_, *D_inverse_, *scratch_;
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
