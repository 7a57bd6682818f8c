// Which of many dense matrices are, without any doubt, symmetric positive semidefinite: a Cholesky factorization in lanes.
#pragma once

#include <algorithm>

#include "lanes/kernels.hpp"
#include "lanes/ldl.hpp"
#include "memory.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

// Added to the diagonal, relative to the largest entry: a semidefinite matrix passes in spite of rounding.
inline constexpr double kSemidefiniteShift = 1e-12;

template <int W>
class Definite {
    using V = Vec<W>;

public:
    explicit Definite(SquareMatrices& matrices) : given_(matrices), S_(matrices.pattern.panels) {
        const std::size_t scratch = S_.scratch(W);
        bytes_ = (S_.size + S_.nodes + scratch) * sizeof(V);
        panels_ = static_cast<V*>(take_buffer(bytes_));
        D_inverse_ = panels_ + S_.size;
        scratch_ = D_inverse_ + S_.nodes;
    }
    ~Definite() { give_buffer(panels_, bytes_); }
    Definite(const Definite&) = delete;
    Definite& operator=(const Definite&) = delete;

    void run() {
        for (std::int64_t first; (first = given_.next.fetch_add(W)) < given_.count;) {
            const int lanes = static_cast<int>(std::min<std::int64_t>(W, given_.count - first));
            const Mask<W> good = check(first, lanes);
            for (int lane = 0; lane < lanes; ++lane) given_.suspect[first + lane] = !get_mask<W>(good, lane);
        }
    }

private:
    Mask<W> check(std::int64_t first, int lanes) {
        const Int n = S_.nodes;
        for (Int i = 0; i < S_.size; ++i) panels_[i] = V{};
        const std::int64_t size = static_cast<std::int64_t>(n) * n;
        const double* rows[W];
        for (int lane = 0; lane < W; ++lane) rows[lane] = given_.values + (first + (lane < lanes ? lane : 0)) * size;
        V largest{}, asymmetry{}, broken{};
        const Int* place = given_.pattern.places.data();
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
                panels_[*place++] = 0.5 * (a + b) * given_.sign;
            }
        // Pivots are judged absolutely, so the matrices are brought to size one.
        const V unit = 1.0 / select(largest > 0.0, largest, broadcast<W>(1.0));
        for (Int i = 0; i < S_.size; ++i) panels_[i] = panels_[i] * unit;
        for (const Int diagonal : given_.pattern.diagonal) panels_[diagonal] = panels_[diagonal] + kSemidefiniteShift;
        Ldl<W>::factor(S_, panels_, D_inverse_, scratch_);
        Mask<W> good = (asymmetry <= given_.slack * largest) & (broken == 0.0);
        for (Int k = 0; k < n; ++k) good = good & (D_inverse_[k] != 1.0 / kReplacedPivot);
        return good;
    }

    SquareMatrices& given_;
    const plan::Panels& S_;
    std::size_t bytes_ = 0;
    V *panels_, *D_inverse_, *scratch_;
};

}  // namespace convexlayers::CONVEXLAYERS_ISA
