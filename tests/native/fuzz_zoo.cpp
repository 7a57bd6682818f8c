// Random batches for the kernels of the zoo, in buffers that end where their tensor does. Results must have the same
// bits whether the rows come at once or in pieces, alone or in company, on one thread or several, and whether or not a
// result that may be left out is wanted; without strange numbers among them they must be what the layer promises.
#include <map>
#include <string>
#include <utility>

#include "fuzz.hpp"
#include "zoo/kernels.hpp"

namespace convexlayers {

namespace {

using Size = std::int64_t;

// What stands in a tensor: inputs of any sign, positive ones and distributions of mass 1, and results, some of which
// may be left out.
enum class Kind { any, positive, mass, result, optional };

struct Sizes {
    Size n, m;
};

using Width = Size (*)(const Sizes&);
constexpr Width kOne = [](const Sizes&) -> Size { return 1; };
constexpr Width kN = [](const Sizes& s) { return s.n; };
constexpr Width kM = [](const Sizes& s) { return s.m; };
constexpr Width kBetween = [](const Sizes& s) { return s.n - 1; };
constexpr Width kSquare = [](const Sizes& s) { return s.n * s.n; };
constexpr Width kMatrix = [](const Sizes& s) { return s.n * s.m; };

// A tensor of a kernel. What a layer's first kernel reads and finds, its derivative finds by name.
struct Slot {
    const char* name;
    Width width;
    Kind kind = Kind::any;

    bool is_result() const { return kind == Kind::result || kind == Kind::optional; }
};

struct Call {
    const char* kernel;
    std::vector<Slot> slots;
};

// Options are 0 to `options` - 1, or 0 to n where that is -1. Sizes are drawn up to `largest`, and twice that at times.
struct Layer {
    Call forward, derivative;
    int options;
    Size largest;
};

const std::vector<Layer>& layers() {
    constexpr Kind positive = Kind::positive, mass = Kind::mass, result = Kind::result, optional = Kind::optional;
    static const std::vector<Layer> all = {
        {{"simplex", {{"v", kN}, {"radius", kOne, positive}, {"x", kN, result}}},
         {"simplex_adjoint",
          {{"v", kN},
           {"radius", kOne},
           {"x", kN},
           {"grad", kN},
           {"grad_v", kN, result},
           {"grad_radius", kOne, optional}}},
         3,
         70},
        {{"capped_simplex", {{"v", kN}, {"radius", kOne, positive}, {"cap", kN, positive}, {"x", kN, result}}},
         {"capped_simplex_adjoint",
          {{"cap", kN},
           {"x", kN},
           {"grad", kN},
           {"grad_v", kN, result},
           {"grad_radius", kOne, optional},
           {"grad_cap", kN, optional}}},
         1,
         70},
        {{"norm2_projection", {{"v", kN}, {"radius", kOne, positive}, {"x", kN, result}}},
         {"norm2_adjoint",
          {{"v", kN},
           {"radius", kOne},
           {"x", kN},
           {"grad", kN},
           {"grad_v", kN, result},
           {"grad_radius", kOne, optional}}},
         2,
         70},
        {{"norm_inf_projection", {{"v", kN}, {"radius", kOne, positive}, {"x", kN, result}}},
         {"norm_inf_adjoint",
          {{"v", kN}, {"x", kN}, {"grad", kN}, {"grad_v", kN, result}, {"grad_radius", kOne, optional}}},
         2,
         70},
        {{"second_order", {{"v", kN}, {"x", kN, result}}},
         {"second_order_derivative", {{"v", kN}, {"grad", kN}, {"grad_v", kN, result}}},
         1,
         70},
        {{"pool", {{"v", kN}, {"alpha", kOne, positive}, {"y", kOne, result}}},
         {"pool_adjoint",
          {{"v", kN},
           {"alpha", kOne},
           {"y", kOne},
           {"grad", kOne},
           {"grad_v", kN, result},
           {"grad_alpha", kOne, optional}}},
         2,
         70},
        {{"entmax15", {{"v", kN}, {"x", kN, result}}},
         {"entmax15_derivative", {{"x", kN}, {"grad", kN}, {"grad_v", kN, result}}},
         1,
         70},
        {{"isotonic", {{"v", kN}, {"weight", kN, positive}, {"x", kN, result}}},
         {"isotonic_adjoint",
          {{"v", kN},
           {"weight", kN},
           {"x", kN},
           {"grad", kN},
           {"grad_v", kN, result},
           {"grad_weight", kN, optional}}},
         1,
         70},
        {{"total_variation", {{"v", kN}, {"radius", kOne, positive}, {"x", kN, result}}},
         {"total_variation_adjoint",
          {{"x", kN}, {"grad", kN}, {"grad_v", kN, result}, {"grad_radius", kOne, optional}}},
         1,
         70},
        {{"tridiagonal",
          {{"lower", kBetween}, {"diagonal", kN}, {"upper", kBetween}, {"v", kN}, {"x", kN, result}}},
         {"tridiagonal_adjoint",
          {{"lower", kBetween},
           {"diagonal", kN},
           {"upper", kBetween},
           {"x", kN},
           {"grad", kN},
           {"grad_lower", kBetween, result},
           {"grad_diagonal", kN, result},
           {"grad_upper", kBetween, result},
           {"grad_v", kN, result}}},
         1,
         70},
        {{"least_squares",
          {{"A", kMatrix},
           {"b", kM},
           {"w", kM, positive},
           {"ridge", kOne, positive},
           {"x", kN, result},
           {"factor", kSquare, optional}}},
         {"least_squares_adjoint",
          {{"A", kMatrix},
           {"b", kM},
           {"w", kM},
           {"ridge", kOne},
           {"x", kN},
           {"factor", kSquare},
           {"grad", kN},
           {"grad_A", kMatrix, optional},
           {"grad_b", kM, optional},
           {"grad_w", kM, optional},
           {"grad_ridge", kOne, optional}}},
         2,
         20},
        {{"spectral", {{"A", kSquare}, {"X", kSquare, result}, {"values", kN, result}, {"V", kSquare, result}}},
         {"spectral_derivative", {{"values", kN}, {"V", kSquare}, {"grad", kSquare}, {"grad_A", kSquare, result}}},
         -1,
         8},
        {{"transport",
          {{"C", kMatrix}, {"a", kN, mass}, {"b", kM, mass}, {"eps", kOne, positive}, {"P", kMatrix, result}}},
         {"transport_adjoint",
          {{"C", kMatrix},
           {"eps", kOne},
           {"P", kMatrix},
           {"grad", kMatrix},
           {"grad_C", kMatrix, result},
           {"grad_a", kN, result},
           {"grad_b", kM, result},
           {"grad_eps", kOne, result}}},
         1,
         6},
    };
    return all;
}

// Contiguous numbers that end with their memory, and do not always begin where vectors of numbers may.
template <class T>
class Buffer {
public:
    Buffer() = default;
    Buffer(Size count, bool shifted) : values_(static_cast<std::size_t>(count + shifted)), start_(shifted ? 1 : 0) {}

    T* data() { return values_.data() + start_; }
    const T* data() const { return values_.data() + start_; }
    std::vector<T> row(Size index, Size width) const {
        return std::vector<T>(data() + index * width, data() + (index + 1) * width);
    }

private:
    std::vector<T> values_;
    std::size_t start_ = 0;
};

template <class T>
using Tensors = std::map<std::string, Buffer<T>>;

// A batch for one layer. Wild: with numbers for which nothing is promised.
template <class T>
class Batch {
public:
    Batch(Random& random, const Layer& layer) : random_(random), layer_(layer) {
        sizes_.n = size();
        sizes_.m = layer.forward.kernel == std::string("least_squares") ? equations() : size();
        rows_ = random.between(1, random.chance(0.1) ? 50 : 20);
        option_ = random.below(layer.options < 0 ? static_cast<Int>(sizes_.n) + 1 : layer.options);
        wild_ = random.chance(0.3);
        has_ties_ = random.chance(0.3);
    }

    void run() {
        const Size left = run_call(layer_.forward);
        if (!wild_) check_promises(left);
        run_call(layer_.derivative);
    }

private:
    // ---------------------------------------------------------------------------------------------- numbers

    Size size() {
        if (random_.chance(0.1)) return 1;
        return random_.between(1, static_cast<Int>(random_.chance(0.1) ? 2 * layer_.largest : layer_.largest));
    }

    // At times so many that they come in several blocks (zoo/linear.hpp).
    Size equations() {
        return random_.between(1, random_.chance(0.2) ? std::max(1500 / static_cast<Int>(sizes_.n), 1) : 30);
    }

    T number(Kind kind) {
        const T infinity = std::numeric_limits<T>::infinity(), most = std::numeric_limits<T>::max();
        const T nan = std::numeric_limits<T>::quiet_NaN();
        const T strange[] = {nan, infinity, -infinity, 0, -T(0), most, -most, 1 / most, -1};
        if (wild_ && random_.chance(0.02)) return strange[random_.below(9)];
        const double value = kind == Kind::any ? 2 * random_.normal() : 0.1 + random_.uniform();
        return static_cast<T>(has_ties_ ? std::ceil(2 * value) / 2 : value);
    }

    Buffer<T> numbers(const Slot& slot) {
        const Size width = slot.width(sizes_);
        Buffer<T> out(rows_ * width, random_.chance(0.5));
        for (Size i = 0; i < rows_ * width; ++i) out.data()[i] = number(slot.kind);
        if (slot.kind != Kind::mass || wild_) return out;
        for (Size row = 0; row < rows_; ++row) {
            T total = 0;
            for (Size i = 0; i < width; ++i) total += out.data()[row * width + i];
            for (Size i = 0; i < width; ++i) out.data()[row * width + i] /= total;
        }
        return out;
    }

    // Results as they were before the call, which rows of others must stay.
    Tensors<T> unwritten(const Call& call) {
        Tensors<T> out;
        for (const Slot& slot : call.slots) {
            if (!slot.is_result()) continue;
            const Size count = rows_ * slot.width(sizes_);
            Buffer<T> buffer(count, random_.chance(0.5));
            std::fill(buffer.data(), buffer.data() + count, T(12345));
            out[slot.name] = std::move(buffer);
        }
        return out;
    }

    // ------------------------------------------------------------------------------------------------ calls

    std::vector<std::uintptr_t> addresses(const Call& call, Tensors<T>& inputs, Tensors<T>& results) {
        std::vector<std::uintptr_t> at;
        for (const Slot& slot : call.slots) {
            auto& tensors = slot.is_result() ? results : inputs;
            const auto found = tensors.find(slot.name);
            at.push_back(found == tensors.end() ? 0 : reinterpret_cast<std::uintptr_t>(found->second.data()));
        }
        return at;
    }

    Size rows_from(const zoo::Kernel& kernel, const zoo::Task& task, Size begin, Size end) const {
        return (std::is_same_v<T, float> ? kernel.in_float : kernel.in_double)(task, begin, end);
    }

    // The number of rows left to the caller.
    Size run_call(const Call& call) {
        const zoo::Kernel* const kernel = zoo::find(call.kernel);
        require(kernel != nullptr && kernel->tensors == static_cast<int>(call.slots.size()), call.kernel);
        for (const Slot& slot : call.slots)
            if (!slot.is_result() && tensors_.count(slot.name) == 0) tensors_[slot.name] = numbers(slot);
        Tensors<T> results = unwritten(call);
        const auto at = addresses(call, tensors_, results);
        const zoo::Task task{at.data(), rows_, sizes_.n, sizes_.m, option_};
        const Size left = zoo::run(*kernel, task, std::is_same_v<T, float>, random_.between(1, 3));
        in_pieces(*kernel, call, results, left);
        alone(*kernel, call, results);
        for (auto& [name, buffer] : results) tensors_[name] = std::move(buffer);
        return left;
    }

    // The same rows in pieces, in any order, and without some of the results that may be left out.
    void in_pieces(const zoo::Kernel& kernel, const Call& call, const Tensors<T>& expected, Size left) {
        Tensors<T> results = unwritten(call);
        for (const Slot& slot : call.slots)
            if (slot.kind == Kind::optional && random_.chance(0.3)) results.erase(slot.name);
        const auto at = addresses(call, tensors_, results);
        const zoo::Task task{at.data(), rows_, sizes_.n, sizes_.m, option_};
        std::vector<std::pair<Size, Size>> pieces;
        for (Size begin = 0, end; begin < rows_; begin = end) {
            end = random_.between(static_cast<Int>(begin) + 1, static_cast<Int>(rows_));
            pieces.insert(pieces.begin() + random_.below(static_cast<Int>(pieces.size()) + 1), {begin, end});
        }
        for (const auto& [begin, end] : pieces) left -= rows_from(kernel, task, begin, end);
        require(left == 0, call.kernel, static_cast<double>(left));
        for (const Slot& slot : call.slots) {
            if (results.count(slot.name) == 0) continue;
            const Size count = rows_ * slot.width(sizes_);
            require(same_bits(results[slot.name].row(0, count), expected.at(slot.name).row(0, count)), call.kernel);
        }
    }

    // One row without the others.
    void alone(const zoo::Kernel& kernel, const Call& call, const Tensors<T>& expected) {
        const Size row = random_.below(static_cast<Int>(rows_));
        Tensors<T> inputs, results;
        for (const Slot& slot : call.slots) {
            const Size width = slot.width(sizes_);
            Buffer<T> buffer(width, random_.chance(0.5));
            if (!slot.is_result()) {
                const std::vector<T> own = tensors_[slot.name].row(row, width);
                std::copy(own.begin(), own.end(), buffer.data());
            }
            (slot.is_result() ? results : inputs)[slot.name] = std::move(buffer);
        }
        const auto at = addresses(call, inputs, results);
        rows_from(kernel, {at.data(), 1, sizes_.n, sizes_.m, option_}, 0, 1);
        for (const Slot& slot : call.slots)
            if (slot.is_result())
                require(same_bits(results[slot.name].row(0, slot.width(sizes_)),
                                  expected.at(slot.name).row(row, slot.width(sizes_))),
                        call.kernel);
    }

    // --------------------------------------------------------------------------------------------- promises

    static constexpr double kRounding = std::numeric_limits<T>::epsilon();

    std::vector<T> of(const char* name, Width width, Size row) const {
        return tensors_.at(name).row(row, width(sizes_));
    }
    double one(const char* name, Size row) const { return static_cast<double>(of(name, kOne, row)[0]); }

    void check_promises(Size left) {
        const std::string kernel = layer_.forward.kernel;
        for (Size row = 0; row < rows_; ++row) {
            if (kernel == "tridiagonal") check_tridiagonal(row);
            if (kernel == "least_squares") check_least_squares(row, left);
            if (kernel == "spectral") check_spectral(row);
            if (kernel == "transport") check_transport(row);
            if (kernel == "isotonic") check_isotonic(row);
            if (kernel == "simplex" || kernel == "capped_simplex" || kernel == "entmax15") check_mass(row);
            if (kernel == "norm2_projection" || kernel == "norm_inf_projection" || kernel == "second_order")
                check_ball(row);
        }
    }

    // |b - T x| to rounding of |T| |x|; where T may be singular (a tie), x may be NaN.
    void check_tridiagonal(Size row) {
        const Size n = sizes_.n;
        const auto L = of("lower", kBetween, row), D = of("diagonal", kN, row), U = of("upper", kBetween, row);
        const auto b = of("v", kN, row), x = of("x", kN, row);
        if (has_ties_ && std::isnan(x[0])) return;
        double worst = 0, most_T = 0, most_x = 0;
        for (Size i = 0; i < n; ++i) {
            double rest = static_cast<double>(b[i]) - static_cast<double>(D[i]) * x[i];
            if (i > 0) rest -= static_cast<double>(L[i - 1]) * x[i - 1];
            if (i + 1 < n) rest -= static_cast<double>(U[i]) * x[i + 1];
            worst = std::max(worst, std::fabs(rest));
            most_T = std::max(most_T, std::fabs(static_cast<double>(D[i])));
            if (i > 0) most_T = std::max(most_T, std::fabs(static_cast<double>(L[i - 1])));
            if (i + 1 < n) most_T = std::max(most_T, std::fabs(static_cast<double>(U[i])));
            most_x = std::max(most_x, std::fabs(static_cast<double>(x[i])));
        }
        require(worst <= 20.0 * static_cast<double>(n) * kRounding * most_T * most_x, "tridiagonal, residual", worst);
    }

    // The gradient A'W (Ax - b) + ridge x, to rounding of its terms.
    void check_least_squares(Size row, Size left) {
        const Size n = sizes_.n, m = sizes_.m, shrunk = n - option_;
        const auto A = of("A", kMatrix, row), b = of("b", kM, row), w = of("w", kM, row), x = of("x", kN, row);
        // A column of which ridge knows nothing may be one that the others give.
        if (option_ == 0) require(left == 0, "least squares, rows left", static_cast<double>(left));
        if (std::isnan(x[0])) return require(left > 0, "least squares, NaN");
        std::vector<double> gradient(n), terms(n);
        for (Size i = 0; i < m; ++i) {
            double r = -static_cast<double>(b[i]), around = std::fabs(static_cast<double>(b[i]));
            for (Size k = 0; k < n; ++k) {
                const double term = static_cast<double>(A[i * n + k]) * x[k];
                r += term;
                around += std::fabs(term);
            }
            for (Size k = 0; k < n; ++k) {
                const double factor = static_cast<double>(w[i]) * A[i * n + k];
                gradient[k] += factor * r;
                terms[k] += std::fabs(factor) * around;
            }
        }
        for (Size k = 0; k < shrunk; ++k) {
            const double term = one("ridge", row) * x[k];
            gradient[k] += term;
            terms[k] += std::fabs(term);
        }
        const double most = *std::max_element(terms.begin(), terms.end());
        for (Size k = 0; k < n; ++k)
            require(std::fabs(gradient[k]) <= 4.0 * static_cast<double>(n + m) * kRounding * most,
                    "least squares, gradient", gradient[k] / most / kRounding);
    }

    // A = V diag(values) V', V'V = I, ascending.
    void check_spectral(Size row) {
        const Size n = sizes_.n;
        const auto A = of("A", kSquare, row), V = of("V", kSquare, row), values = of("values", kN, row);
        double most = 0;
        for (Size k = 0; k < n; ++k) most = std::max(most, std::fabs(static_cast<double>(values[k])));
        require(std::is_sorted(values.begin(), values.end()), "spectral, order");
        const double rounding = 10.0 * static_cast<double>(n) * kRounding;
        for (Size i = 0; i < n; ++i)
            for (Size j = 0; j < n; ++j) {
                double own = -0.5 * (static_cast<double>(A[i * n + j]) + A[j * n + i]), unit = i == j ? -1.0 : 0.0;
                for (Size k = 0; k < n; ++k) {
                    own += static_cast<double>(V[i * n + k]) * values[k] * V[j * n + k];
                    unit += static_cast<double>(V[k * n + i]) * V[k * n + j];
                }
                require(std::fabs(own) <= rounding * most, "spectral, matrix", own);
                require(std::fabs(unit) <= rounding, "spectral, vectors", unit);
            }
    }

    void check_transport(Size row) {
        const Size n = sizes_.n, m = sizes_.m;
        const auto P = of("P", kMatrix, row), a = of("a", kN, row), b = of("b", kM, row);
        for (Size i = 0; i < n; ++i) {
            double total = -static_cast<double>(a[i]);
            for (Size j = 0; j < m; ++j) total += static_cast<double>(P[i * m + j]);
            // 16000 of the exponents' rounding is what the kernel itself accepts.
            require(std::fabs(total) <= 1e6 * kRounding, "transport, rows", total);
        }
        for (Size j = 0; j < m; ++j) {
            double total = -static_cast<double>(b[j]);
            for (Size i = 0; i < n; ++i) total += static_cast<double>(P[i * m + j]);
            require(std::fabs(total) <= 1e6 * kRounding, "transport, columns", total);
        }
    }

    void check_isotonic(Size row) {
        const auto x = of("x", kN, row);
        require(!std::isnan(x[0]) && std::is_sorted(x.begin(), x.end()), "isotonic, order");
    }

    // What simplices promise: no negative entry, and the sum.
    void check_mass(Size row) {
        const std::string kernel = layer_.forward.kernel;
        const auto v = of("v", kN, row), x = of("x", kN, row);
        const double radius = kernel == "entmax15" ? 1.0 : one("radius", row);
        double total = 0, most = radius, room = 0;
        for (Size i = 0; i < sizes_.n; ++i) {
            total += std::fabs(static_cast<double>(x[i]));
            most = std::max(most, std::fabs(static_cast<double>(v[i])));
            if (kernel == "capped_simplex") room += static_cast<double>(of("cap", kN, row)[i]);
            require(!(x[i] < 0) || (kernel == "simplex" && option_ > 0), "simplex, sign", static_cast<double>(x[i]));
        }
        const double rounding = 20.0 * static_cast<double>(sizes_.n) * kRounding * most;
        if (kernel == "capped_simplex" && room < radius + rounding) return;
        const bool inside = kernel == "simplex" && option_ == 1;
        require(inside ? total <= radius + rounding : std::fabs(total - radius) <= rounding, "simplex, sum",
                total - radius);
    }

    void check_ball(Size row) {
        const std::string kernel = layer_.forward.kernel;
        const auto x = of("x", kN, row);
        const bool cone = kernel == "second_order";
        const double radius = cone ? static_cast<double>(x[0]) : one("radius", row);
        double square = 0, most = 0;
        for (Size i = cone ? 1 : 0; i < sizes_.n; ++i) {
            square += static_cast<double>(x[i]) * x[i];
            most = std::max(most, std::fabs(static_cast<double>(x[i])));
        }
        const double norm = kernel == "norm_inf_projection" ? most : std::sqrt(square);
        const double rounding = static_cast<double>(sizes_.n + 4) * kRounding * radius;
        require(norm <= radius + rounding, "ball, norm", norm - radius);
        if (!cone && option_ == 1) require(norm >= radius - rounding, "sphere, norm", norm - radius);
    }

    Random& random_;
    const Layer& layer_;
    Sizes sizes_{};
    Size rows_ = 0;
    int option_ = 0;
    bool wild_ = false, has_ties_ = false;
    Tensors<T> tensors_;
};

}  // namespace

void fuzz_zoo(Random& random) {
    const Layer& layer = layers()[random.below(static_cast<Int>(layers().size()))];
    Batch<float>(random, layer).run();
    Batch<double>(random, layer).run();
}

}  // namespace convexlayers
