// Functions and Dense against references, for one instruction set: every lane has numbers of its own, and must have the
// bits that it has alone.
#include "numeric.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "lanes/dense.hpp"
#include "lanes/functions.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

namespace {

using V = Vec<kLanes>;
using Matrices = std::vector<V>;
using Matrix = std::vector<double>;

constexpr double kEps = std::numeric_limits<double>::epsilon();
constexpr double kTiny = std::numeric_limits<double>::denorm_min();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Int kLargestOrder = 12;

class Check {
public:
    explicit Check(std::uint64_t seed) : random_(seed) {}

    Worst run() {
        functions();
        strange_numbers();
        roots();
        for (Int p = 1; p <= kLargestOrder; ++p) {
            cholesky(p);
            eigenvectors(p);
            smallest_eigenvalue(p);
            orthogonalize(p);
        }
        return worst_;
    }

private:
    double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }
    double normal() { return std::normal_distribution<double>()(random_); }

    // Of NaN, too, nothing is left.
    void measure(const char* what, double error, double allowed) {
        const double share = error <= allowed ? error / allowed : (error > allowed ? error / allowed : kInfinity);
        if (share > worst_.share) worst_ = {what, share};
    }

    void require(const char* what, bool holds) { measure(what, holds ? 0.0 : 2.0, 1.0); }

    template <class Draw>
    V draw(Draw number) {
        V out{};
        for (int lane = 0; lane < kLanes; ++lane) set<kLanes>(out, lane, number());
        return out;
    }

    // ---------------------------------------------------------------------------------------- functions

    static bool same(double a, double b) {
        return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
    }

    template <class Many, class One, class Reference>
    void function(const char* what, const V& x, Many many, One one, Reference reference) {
        const V found = many(x);
        for (int lane = 0; lane < kLanes; ++lane) {
            const double at = get<kLanes>(x, lane), value = get<kLanes>(found, lane), expected = reference(at);
            require(what, same(value, one(at)));
            // Two roundings of the last bit each, here and in the library's reference; a subnormal number has no more.
            measure(what, std::fabs(value - expected), 2 * kEps * std::fabs(expected) + kTiny);
        }
    }

    void exp(const V& x) {
        function("exp", x, Functions<kLanes>::exp, Functions<1>::exp, [](double a) { return std::exp(a); });
    }
    void log(const V& x) {
        function("log", x, Functions<kLanes>::log, Functions<1>::log, [](double a) { return std::log(a); });
    }
    void log1p(const V& x) {
        function("log1p", x, Functions<kLanes>::log1p, Functions<1>::log1p, [](double a) { return std::log1p(a); });
    }

    void functions() {
        for (const double reach : {1e-12, 1e-3, 1.0, 40.0, 700.0}) {
            const V x = draw([&] { return uniform(-reach, reach); });
            exp(x);
            log(Functions<kLanes>::exp(x));
            log1p(Functions<kLanes>::exp(x));
        }
        exp(draw([&] { return uniform(-745, -708); }));
        log(draw([&] { return std::ldexp(uniform(0.5, 1), -1040); }));
        log(draw([&] { return 1 + uniform(-1e-6, 1e-6); }));
    }

    void strange_numbers() {
        using One = Functions<1>;
        const double nan = std::numeric_limits<double>::quiet_NaN(), largest = std::numeric_limits<double>::max();
        const std::array<std::pair<double, double>, 6> exps = {
            {{0, 1}, {-0.0, 1}, {kInfinity, kInfinity}, {-kInfinity, 0}, {1e300, kInfinity}, {-1e300, 0}}};
        for (const auto& [x, y] : exps) require("exp of a strange number", same(One::exp(x), y));
        require("exp of NaN", std::isnan(One::exp(nan)));
        const std::array<std::pair<double, double>, 4> logs = {
            {{1, 0}, {0, -kInfinity}, {-0.0, -kInfinity}, {kInfinity, kInfinity}}};
        for (const auto& [x, y] : logs) require("log of a strange number", same(One::log(x), y));
        for (const double x : {nan, -1.0, -kTiny, -kInfinity})
            require("log of no number", std::isnan(One::log(x)));
        for (const double x : {kTiny, largest, std::numeric_limits<double>::min()})
            measure("log of an extreme number", std::fabs(One::log(x) / std::log(x) - 1), 2 * kEps);
        for (const double x : {0.0, kTiny, 1e-300, 1e-17, largest})
            measure("log1p of an extreme number", std::fabs(One::log1p(x) - std::log1p(x)), 2 * kEps * std::log1p(x));
    }

    // x^3 + x = c, and an end where there is no root.
    void roots() {
        const auto cubic = [](const auto& x) { return x * x * x + x; };
        const V x = draw([&] { return std::exp(uniform(-20, 5)) * (uniform(-1, 1) < 0 ? -1 : 1); });
        const V c = cubic(x), reach = broadcast<kLanes>(200.0);
        const auto function = [&](const V& a) { return cubic(a) - c; };
        const V near = x * (1.0 + 1e-5), bare = Functions<kLanes>::increasing_root(function, -reach, reach);
        const V guessed = Functions<kLanes>::increasing_root(function, -reach, reach, near);
        const V above = Functions<kLanes>::increasing_root(function, abs(x) + 1.0, reach);
        const V below = Functions<kLanes>::increasing_root(function, -reach, -abs(x) - 1.0);
        for (int lane = 0; lane < kLanes; ++lane) {
            const double root = get<kLanes>(x, lane);
            // Condition number of the root: c / (x f'(x)) <= 1; roundings of c and of the values, and the last interval.
            measure("root", std::fabs(get<kLanes>(bare, lane) - root), 8 * kEps * std::fabs(root));
            measure("root by a guess", std::fabs(get<kLanes>(guessed, lane) - root), 8 * kEps * std::fabs(root));
            require("root above an interval", get<kLanes>(above, lane) == std::fabs(root) + 1.0);
            require("root below an interval", get<kLanes>(below, lane) == -std::fabs(root) - 1.0);
        }
    }

    // ----------------------------------------------------------------------------------------- matrices

    Matrices normals(Int p) {
        Matrices out(p * p);
        for (V& entry : out) entry = draw([&] { return normal(); });
        return out;
    }

    // Q diag(values) Q' for a random Q, by lanes: definite, of low rank, with equal eigenvalues, graded, diagonal.
    Matrices symmetric(Int p, bool definite) {
        Matrices out(p * p);
        for (int lane = 0; lane < kLanes; ++lane) {
            const int kind = static_cast<int>(uniform(0, 5));
            const Matrix Q = kind == 4 ? identity(p) : rotation(p);
            for (Int i = 0; i < p; ++i)
                for (Int j = 0; j < p; ++j) {
                    double sum = 0;
                    for (Int k = 0; k < p; ++k) sum += Q[i * p + k] * eigenvalue(kind, k, definite) * Q[j * p + k];
                    set<kLanes>(out[i * p + j], lane, sum);
                }
        }
        // Rounding is not symmetric.
        for (Int i = 0; i < p; ++i)
            for (Int j = 0; j < i; ++j) out[i * p + j] = out[j * p + i];
        return out;
    }

    static double eigenvalue(int kind, Int k, bool definite) {
        const double sign = definite || k % 2 == 0 ? 1 : -1;
        switch (kind) {
            case 0: return sign;                                 // equal
            case 1: return definite || k < 2 ? sign * (1 + k) : 0;  // low rank
            case 2: return sign * std::pow(0.3, k);              // graded
            case 3: return sign * 1e6 * (1 + k % 3);             // large, multiple
            default: return sign * (k + 1);
        }
    }

    static Matrix identity(Int p) {
        Matrix out(p * p);
        for (Int i = 0; i < p; ++i) out[i * p + i] = 1;
        return out;
    }

    // A product of reflections I - 2 v v' / v'v.
    Matrix rotation(Int p) {
        Matrix Q = identity(p);
        for (int count = 0; count < 3; ++count) {
            Matrix v(p);
            double square = 0;
            for (double& entry : v) entry = normal(), square += entry * entry;
            for (Int i = 0; i < p; ++i) {
                double along = 0;
                for (Int k = 0; k < p; ++k) along += Q[i * p + k] * v[k];
                for (Int k = 0; k < p; ++k) Q[i * p + k] -= 2 * along / square * v[k];
            }
        }
        return Q;
    }

    static Matrix lane_of(const Matrices& many, int lane) {
        Matrix out;
        for (const V& entry : many) out.push_back(get<kLanes>(entry, lane));
        return out;
    }

    static double norm(const Matrix& A) {
        double sum = 0;
        for (const double entry : A) sum += entry * entry;
        return std::sqrt(sum);
    }

    // A B' by rows.
    static Matrix times_transpose(Int p, const Matrix& A, const Matrix& B) {
        Matrix out(p * p);
        for (Int i = 0; i < p; ++i)
            for (Int j = 0; j < p; ++j)
                for (Int k = 0; k < p; ++k) out[i * p + j] += A[i * p + k] * B[j * p + k];
        return out;
    }

    static Matrix transposed(Int p, const Matrix& A) {
        Matrix out(p * p);
        for (Int i = 0; i < p; ++i)
            for (Int j = 0; j < p; ++j) out[i * p + j] = A[j * p + i];
        return out;
    }

    static Matrix minus(Matrix A, const Matrix& B) {
        for (std::size_t i = 0; i < A.size(); ++i) A[i] -= B[i];
        return A;
    }

    // What rounding may leave of p^3 operations on a matrix of this size; a rotation more or less in each of some sweeps
    // of Jacobi's method makes the constant.
    static double rounding(Int p, double size) { return 20 * p * kEps * size; }

    void cholesky(Int p) {
        const Matrices A = symmetric(p, true);
        Matrices L(p * p);
        Dense<kLanes>::cholesky(p, A.data(), L.data());
        for (int lane = 0; lane < kLanes; ++lane) {
            const Matrix a = lane_of(A, lane), l = lane_of(L, lane);
            measure("cholesky", norm(minus(times_transpose(p, l, l), a)), rounding(p, norm(a)));
            for (Int i = 0; i < p; ++i)
                for (Int j = i + 1; j < p; ++j) require("upper triangle of L", l[i * p + j] == 0);
            Matrix alone(p * p);
            Dense<1>::cholesky(p, a.data(), alone.data());
            require("cholesky alone", alone == l);
        }
    }

    void eigenvectors(Int p) {
        const Matrices A = symmetric(p, false);
        Matrices work = A, Ut(p * p), values(p);
        Dense<kLanes>::eigenvectors(p, work.data(), Ut.data(), values.data());
        for (int lane = 0; lane < kLanes; ++lane) {
            const Matrix a = lane_of(A, lane), rows = lane_of(Ut, lane), l = lane_of(values, lane);
            const Matrix U = transposed(p, rows);
            measure("orthogonality of eigenvectors", norm(minus(times_transpose(p, rows, rows), identity(p))),
                    rounding(p, std::sqrt(p)));
            Matrix weighted = U;
            for (Int i = 0; i < p * p; ++i) weighted[i] *= l[i % p];
            measure("eigenvectors", norm(minus(times_transpose(p, weighted, U), a)), rounding(p, norm(a)));
            Matrix own = a, own_rows(p * p), own_values(p);
            Dense<1>::eigenvectors(p, own.data(), own_rows.data(), own_values.data());
            require("eigenvectors alone", own_rows == rows && own_values == l);
        }
    }

    void smallest_eigenvalue(Int p) {
        const Matrices A = symmetric(p, false);
        Matrices copy = A, Ut(p * p), values(p), work(3 * p);
        Dense<kLanes>::eigenvectors(p, copy.data(), Ut.data(), values.data());
        const double share = 1e-3;
        copy = A;
        const V found = Dense<kLanes>::smallest_eigenvalue(p, copy.data(), work.data(), share);
        for (int lane = 0; lane < kLanes; ++lane) {
            Matrix a = lane_of(A, lane);
            const Matrix l = lane_of(values, lane);
            const double exact = *std::min_element(l.begin(), l.end()), bound = get<kLanes>(found, lane);
            const double slack = rounding(p, norm(a));
            require("lower bound of eigenvalues", bound <= exact + slack);
            measure("smallest eigenvalue", exact - bound, share * std::max(1.0, std::fabs(exact)) + slack);
            Matrix own_work(3 * p);
            require("smallest eigenvalue alone",
                    Dense<1>::smallest_eigenvalue(p, a.data(), own_work.data(), share) == bound);
        }
    }

    // B = Q B_0 with orthogonal Q, which C = Q C_0 shows, and rows that are orthogonal relative to their lengths.
    void orthogonalize(Int p) {
        Matrices before = normals(p);
        for (Int i = 0; i < p * p; ++i) before[i] = before[i] * std::pow(0.1, i / p);  // graded rows
        Matrices B = before, C(p * p);
        for (Int i = 0; i < p; ++i) C[i * p + i] = broadcast<kLanes>(1.0);
        Dense<kLanes>::orthogonalize(p, B.data(), C.data());
        for (int lane = 0; lane < kLanes; ++lane) {
            const Matrix b = lane_of(B, lane), Q = lane_of(C, lane), start = lane_of(before, lane);
            measure("rotation of rows", norm(minus(times_transpose(p, Q, Q), identity(p))), rounding(p, std::sqrt(p)));
            measure("rows turned along", norm(minus(times_transpose(p, Q, transposed(p, start)), b)),
                    rounding(p, norm(start)));
            const Matrix gram = times_transpose(p, b, b);
            for (Int i = 0; i < p; ++i)
                for (Int j = 0; j < i; ++j)
                    // The last sweep leaves squared cosines of kParallel, and rounding of p products.
                    measure("angles of rows", std::fabs(gram[i * p + j]),
                            rounding(p, std::sqrt(gram[i * p + i] * gram[j * p + j])));
            Matrix own = start, own_Q = identity(p);
            Dense<1>::orthogonalize(p, own.data(), own_Q.data());
            require("orthogonalize alone", own == b && own_Q == Q);
        }
    }

    std::mt19937_64 random_;
    Worst worst_;
};

}  // namespace

Worst worst_of_numeric(std::uint64_t seed) { return Check(seed).run(); }

}  // namespace convexlayers::CONVEXLAYERS_ISA
