// Random inputs to the kernels, built with a sanitizer: `make sanitize`. fuzz [seed [rounds]]; round r of seed s is
// round 0 of seed s + r. Beyond what the sanitizer sees, results are compared with the equations they solve, with
// those of other numbers of threads and of elements alone, and derivatives with their adjoints.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fuzz.hpp"
#include "lanes/kernels.hpp"
#include "numeric.hpp"
#include "solver.hpp"
#include "validate.hpp"

namespace {

using namespace convexlayers;
using convexlayers::same_bits;  // beside those below

bool is_finite(const double* data, Int count) {
    return std::all_of(data, data + count, [](double value) { return std::isfinite(value); });
}

// ------------------------------------------------------------------------------------------ linear systems

using Edges = std::set<std::pair<Int, Int>>;  // (row, col), row > col

void connect(Edges& edges, Int i, Int j) {
    if (i != j) edges.insert({std::max(i, j), std::min(i, j)});
}

void connect_all(Edges& edges, Int first, Int last) {
    for (Int i = first; i < last; ++i)
        for (Int j = first; j < i; ++j) connect(edges, i, j);
}

Edges random_edges(Random& random, Int nodes) {
    Edges edges;
    const Int kind = random.below(6), width = random.between(1, 20);
    for (Int i = 0; i < nodes; ++i) {
        switch (kind) {
            case 0:  // sparse
                for (Int k = random.below(4); k > 0; --k) connect(edges, i, random.below(nodes));
                break;
            case 1:  // banded: long chains
                for (Int j = std::max(0, i - width); j < i; ++j) connect(edges, i, j);
                break;
            case 2:  // blocks, each tied to the next
                if (i % width == 0) connect_all(edges, i, std::min(nodes, i + width));
                if (i + width < nodes && random.chance(0.3)) connect(edges, i, i + width);
                break;
            case 3:  // many columns of equal pattern
                for (Int j = 0; j < std::min(width, i); ++j) connect(edges, i, j);
                break;
            case 4:  // arrow and noise
                connect(edges, i, 0);
                if (random.chance(0.2)) connect(edges, i, random.below(nodes));
                break;
            default: break;  // diagonal
        }
    }
    return edges;
}

// A quasi-definite matrix: each sign's own block is diagonally dominant, entries between the signs are arbitrary.
Numbers random_values(Random& random, const std::vector<Int>& rows, const std::vector<Int>& cols,
                      const Numbers& signs) {
    Numbers values(rows.size()), dominance(signs.size(), 0.1);
    for (std::size_t e = 0; e < rows.size(); ++e) {
        if (rows[e] == cols[e]) continue;
        values[e] = random.normal();
        if (signs[rows[e]] != signs[cols[e]]) continue;
        dominance[rows[e]] += std::fabs(values[e]);
        dominance[cols[e]] += std::fabs(values[e]);
    }
    for (std::size_t e = 0; e < rows.size(); ++e)
        if (rows[e] == cols[e]) values[e] = signs[rows[e]] * (dominance[rows[e]] + random.uniform());
    return values;
}

// Largest entry of K y - rhs, relative to those of what was subtracted.
double linear_residual(const std::vector<Int>& rows, const std::vector<Int>& cols, const double* values,
                       const double* y, const double* rhs, std::size_t nodes) {
    Numbers left(rhs, rhs + nodes), size(nodes);
    for (std::size_t e = 0; e < rows.size(); ++e) {
        const auto add = [&](Int i, Int j) {
            left[i] -= values[e] * y[j];
            size[i] += std::fabs(values[e] * y[j]);
        };
        add(rows[e], cols[e]);
        if (rows[e] != cols[e]) add(cols[e], rows[e]);
    }
    double worst = 0, scale = std::numeric_limits<double>::min();
    for (std::size_t i = 0; i < nodes; ++i) {
        worst = std::max(worst, std::fabs(left[i]));
        scale = std::max(scale, size[i] + std::fabs(rhs[i]));
    }
    return worst / scale;
}

// ------------------------------------------------------------------------------------- functions, small matrices

Worst worst_of_numeric(std::uint64_t seed) {
#if defined(CONVEXLAYERS_X86)
    const std::string name = kernels().name;
    if (name == "avx512") return avx512::worst_of_numeric(seed);
    if (name == "avx2") return avx2::worst_of_numeric(seed);
#endif
    return baseline::worst_of_numeric(seed);
}

void check_numeric(std::uint64_t seed) {
    const Worst worst = worst_of_numeric(seed);
    require(worst.share <= 1, worst.what, worst.share);
}

// ------------------------------------------------------------------------------------------ linear systems

void fuzz_linear(Random& random) {
    plan::KktPattern pattern;
    pattern.nodes = random.between(0, random.chance(0.2) ? 200 : 40);
    std::vector<Int> rows, cols;
    for (Int i = 0; i < pattern.nodes; ++i) {
        pattern.signs.push_back(random.chance(0.5) ? 1.0 : -1.0);
        rows.push_back(i), cols.push_back(i);
    }
    for (const auto& [i, j] : random_edges(random, pattern.nodes)) {
        pattern.entries.push_back({i, j, plan::Source::data, 0});
        rows.push_back(i), cols.push_back(j);
    }
    const plan::Panels panels = plan::make_panels(pattern);
    const int sides = random.between(1, 2);
    const Int count = random.between(0, 19);
    Numbers values;
    for (Int k = 0; k < count; ++k) {
        const Numbers one = random_values(random, rows, cols, pattern.signs);
        values.insert(values.end(), one.begin(), one.end());
    }
    const std::size_t nodes = pattern.nodes;
    const Numbers rhs = random.normals(nodes * count * sides);
    Numbers y = rhs;
    const auto entries = static_cast<std::int64_t>(rows.size());
    kernels().solve_linear({panels, entries, rows.data(), cols.data(), count, values.data(), sides, y.data()});
    for (Int k = 0; k < count; ++k)
        for (int side = 0; side < sides; ++side) {
            const std::size_t at = (k * sides + side) * nodes;
            const double left =
                linear_residual(rows, cols, values.data() + k * entries, y.data() + at, rhs.data() + at, nodes);
            require(left < 1e-8, "linear system not solved, residual", left);
        }
}

// ------------------------------------------------------------------------------------------------- plans

struct Results {
    Numbers x, s, z, primal, dual, gap, objective;
    std::vector<std::int64_t> status, iterations;
    std::vector<std::int16_t> scales;

    Results(const plan::Plan& plan, std::int64_t batch)
        : x(batch * plan.n()), s(batch * plan.m()), z(batch * plan.m()), primal(batch), dual(batch), gap(batch),
          objective(batch), status(batch, -1), iterations(batch, -1), scales(batch * (plan.n() + plan.m() + 2)) {}

    Solutions view() {
        return {x.data(),      s.data(),    z.data(),   status.data(),    iterations.data(),
                primal.data(), dual.data(), gap.data(), objective.data(), scales.data()};
    }
};

bool same_bits(const Results& a, const Results& b) {
    return same_bits(a.x, b.x) && same_bits(a.s, b.s) && same_bits(a.z, b.z) && same_bits(a.objective, b.objective) &&
           a.status == b.status && a.iterations == b.iterations && a.scales == b.scales;
}

void add_curved_cones(Random& random, plan::ConeSizes& cones) {
    if (random.chance(0.3))
        for (Int k = random.between(1, 4); k > 0; --k) cones.second_order.push_back(random.between(1, 9));
    if (random.chance(0.3))
        for (Int k = random.between(1, 3); k > 0; --k) cones.semidefinite.push_back(random.between(1, 6));
    if (random.chance(0.3)) cones.exponential = random.between(1, 4);
    if (random.chance(0.3))
        for (Int k = random.between(1, 4); k > 0; --k)
            cones.power.push_back(random.chance(0.2) ? 0.5 : 0.01 + 0.98 * random.uniform());
}

plan::Pattern random_pattern(Random& random) {
    plan::Pattern pattern;
    pattern.n = random.between(1, random.chance(0.1) ? 60 : 12);
    pattern.cones.zero = random.chance(0.5) ? random.between(0, std::max(1, pattern.n / 2)) : 0;
    pattern.cones.nonnegative = random.chance(0.7) ? random.between(0, 2 * pattern.n) : 0;
    add_curved_cones(random, pattern.cones);
    pattern.m = pattern.cones.rows();
    const double P_density = random.chance(0.4) ? 0.0 : random.uniform(), A_density = 0.1 + 0.9 * random.uniform();
    pattern.P_indptr = pattern.A_indptr = {0};
    for (Int j = 0; j < pattern.n; ++j) {
        for (Int i = 0; i <= j; ++i)
            if (random.chance(i == j && P_density > 0 ? 0.98 : P_density)) pattern.P_rows.push_back(i);
        for (Int i = 0; i < pattern.m; ++i)
            if (random.chance(A_density)) pattern.A_rows.push_back(i);
        pattern.P_indptr.push_back(pattern.P_entries());
        pattern.A_indptr.push_back(pattern.A_entries());
    }
    return pattern;
}

// Makes the slack at x = 0 a point inside the curved cones.
void set_inside(double* b, const plan::ConeSizes& cones) {
    b += cones.zero + cones.nonnegative;
    for (const Int dim : cones.second_order) {
        b[0] = 1.0 + dim;
        b += dim;
    }
    for (const Int order : cones.semidefinite)
        for (Int j = 0; j < order; ++j, b += j) b[j] += 1.0 + order;
    for (Int k = 0; k < cones.exponential; ++k, b += 3) {
        b[1] += 0.5;
        b[2] = b[1] * std::exp(b[0] / b[1]) + 0.5;
    }
    for (std::size_t k = 0; k < cones.power.size(); ++k, b += 3) {
        b[0] += 0.5, b[1] += 0.5;
        b[2] *= std::min(b[0], b[1]);  // below any of their means, for numbers of size 0.3
    }
}

// Mostly convex, mostly feasible; not always.
Numbers random_constant(Random& random, const plan::Pattern& pattern) {
    Numbers numbers = random.normals(pattern.size());
    for (Int j = 0; j < pattern.n; ++j)
        for (Int p = pattern.P_indptr[j]; p < pattern.P_indptr[j + 1]; ++p)
            if (pattern.P_rows[p] == j)
                numbers[p] = pattern.n + random.uniform();
            else
                numbers[p] *= 0.3;
    if (random.chance(0.2)) return numbers;  // b of any sign: often infeasible
    for (Int i = pattern.cones.zero; i < pattern.m; ++i) {
        double& b = numbers[pattern.b_start() + i];
        b = 0.3 * std::fabs(b);
    }
    set_inside(numbers.data() + pattern.b_start(), pattern.cones);
    return numbers;
}

std::vector<plan::ParameterBlock> random_blocks(Random& random, Int size) {
    std::vector<plan::ParameterBlock> blocks(random.below(4));
    for (plan::ParameterBlock& block : blocks) {
        block.width = random.between(1, 6);
        const double density = 0.5 * random.uniform();
        for (Int row = 0; row < size; ++row)
            for (Int col = 0; col < block.width; ++col)
                if (random.chance(density / block.width)) {
                    block.rows.push_back(row), block.cols.push_back(col);
                    block.values.push_back(0.2 * random.normal());
                }
    }
    return blocks;
}

// Blocks of theta with what the calls want to know of them.
struct Theta {
    std::vector<Numbers> storage;
    std::vector<Values> values;
    bool wild = false;  // holds numbers for which no result is expected

    std::vector<Values> of(std::int64_t element) const {
        std::vector<Values> out = values;
        for (Values& block : out) block.data += element * block.stride;
        return out;
    }
};

Theta random_theta(Random& random, const plan::Plan& plan, std::int64_t batch) {
    Theta theta;
    theta.wild = random.chance(0.2);
    const double strange[] = {std::nan(""), std::numeric_limits<double>::infinity(), 1e300, -1e300, 1e-300, 1e20, 0.0};
    for (const plan::ParameterBlock& block : plan.blocks) {
        const bool shared = random.chance(0.3);
        theta.storage.push_back(random.normals(block.width * (shared ? 1 : batch)));
        if (theta.wild)
            for (double& value : theta.storage.back())
                if (random.chance(0.1)) value = strange[random.below(7)];
        theta.values.push_back({nullptr, shared ? 0 : block.width});
    }
    for (std::size_t i = 0; i < theta.values.size(); ++i) theta.values[i].data = theta.storage[i].data();
    return theta;
}

void check_solved(const plan::Plan& plan, const Settings& settings, const Results& found, std::int64_t e) {
    const std::int64_t status = found.status[e];
    require(status >= 0 && status <= 6, "no such status", static_cast<double>(status));
    require(found.iterations[e] >= 0 && found.iterations[e] <= settings.max_iterations + 4, "iterations",
            static_cast<double>(found.iterations[e]));
    if (status != static_cast<std::int64_t>(Outcome::solved)) return;
    require(is_finite(found.x.data() + e * plan.n(), plan.n()), "solved, x not finite");
    require(is_finite(found.s.data() + e * plan.m(), plan.m()), "solved, s not finite");
    require(is_finite(found.z.data() + e * plan.m(), plan.m()), "solved, z not finite");
    const double worst = std::max({found.primal[e], found.dual[e], found.gap[e]});
    require(worst <= 10 * settings.tolerance, "solved, residual", worst);
}

// A solved batch, and its derivatives.
class Derivatives {
public:
    Derivatives(Random& random, const plan::Plan& plan, const Theta& theta, Results& results, std::int64_t batch)
        : plan_(plan), theta_(theta), results_(results), batch_(batch) {
        for (std::int64_t e = 0; e < batch; ++e)
            if (results.status[e] == 0 && random.chance(0.9)) elements_.push_back(e);
        x_ = random.normals(batch * plan.n());
        s_ = random.normals(batch * plan.m());
        z_ = random.normals(batch * plan.m());
        objective_ = random.normals(batch);
        has_s_ = random.chance(0.7);
        for (std::size_t i = 0; i < plan.blocks.size(); ++i) {
            const bool shared = theta.values[i].stride == 0;
            dtheta_.push_back(random.normals(plan.blocks[i].width * (shared ? 1 : batch)));
        }
    }

    void run(int threads) {
        const std::vector<Numbers> gradients = adjoint(1);
        const Numbers tangents = tangent(1);
        const std::vector<Numbers> again = adjoint(threads);
        for (std::size_t i = 0; i < gradients.size(); ++i)
            require(same_bits(gradients[i], again[i]), "gradient depends on threads");
        require(same_bits(tangents, tangent(threads)), "tangent depends on threads");
        if (!theta_.wild && accurate_) compare(gradients, tangents);
    }

private:
    std::vector<Numbers> adjoint(int threads) {
        std::vector<Numbers> out;
        for (const Numbers& block : dtheta_) out.emplace_back(block.size());
        std::vector<BlockGradientTarget> targets;
        for (std::size_t i = 0; i < out.size(); ++i)
            targets.push_back(theta_.values[i].stride == 0 ? BlockGradientTarget{nullptr, out[i].data()}
                                                           : BlockGradientTarget{out[i].data(), nullptr});
        const Cotangents cotangents{x_.data(), has_s_ ? s_.data() : nullptr, z_.data()};
        begin_reports();
        adjoint_batch(plan_, theta_.values.data(), results_.view(), reports(), elements_, cotangents, objective_.data(),
                      targets, threads);
        end_reports();
        return out;
    }

    // dx | ds | dz | objective.
    Numbers tangent(int threads) {
        Numbers out(x_.size() + 2 * s_.size() + batch_);
        std::vector<Values> dvalues = theta_.values;
        for (std::size_t i = 0; i < dvalues.size(); ++i) dvalues[i].data = dtheta_[i].data();
        double* const dx = out.data();
        double* const ds = dx + x_.size();
        double* const dz = ds + s_.size();
        begin_reports();
        tangent_batch(plan_, theta_.values.data(), results_.view(), reports(), elements_, dvalues.data(),
                      {dx, ds, dz, dz + s_.size()}, threads);
        end_reports();
        return out;
    }

    // <cotangent, tangent of the solution> = <gradient, tangent of theta>.
    void compare(const std::vector<Numbers>& gradients, const Numbers& tangents) const {
        double left = 0, right = 0, size = 1e-3;
        const auto add = [&](double& sum, const Numbers& a, const double* b) {
            for (std::size_t i = 0; i < a.size(); ++i) {
                sum += a[i] * b[i];
                size += std::fabs(a[i] * b[i]);
            }
        };
        const double* at = tangents.data();
        add(left, x_, at);
        at += x_.size();
        if (has_s_) add(left, s_, at);
        at += s_.size();
        add(left, z_, at);
        add(left, objective_, at + s_.size());
        for (std::size_t i = 0; i < gradients.size(); ++i) add(right, gradients[i], dtheta_[i].data());
        require(std::fabs(left - right) <= 1e-5 * size, "adjoint and tangent differ", (left - right) / size);
    }

    Reports reports() { return {residual_.data(), singular_.get(), kLargestResidual}; }

    void begin_reports() {
        residual_.assign(batch_, std::nan(""));
        singular_ = std::make_unique<bool[]>(batch_);
    }

    void end_reports() {
        for (const std::int64_t e : elements_)
            accurate_ = accurate_ && residual_[e] <= kLargestResidual && !singular_[e];
    }

    static constexpr double kLargestResidual = 1e-10;
    const plan::Plan& plan_;
    const Theta& theta_;
    Results& results_;
    const std::int64_t batch_;
    std::vector<std::int64_t> elements_;
    Numbers x_, s_, z_, objective_, residual_;
    std::unique_ptr<bool[]> singular_;
    std::vector<Numbers> dtheta_;
    bool has_s_ = true, accurate_ = true;
};

void fuzz_plan(Random& random, std::vector<std::int64_t>& outcomes) {
    plan::Pattern pattern = random_pattern(random);
    Numbers constant = random_constant(random, pattern);
    auto blocks = random_blocks(random, pattern.size());
    const plan::Plan plan(std::move(pattern), std::move(constant), std::move(blocks));
    const std::int64_t batch = random.below(41);
    const int threads = random.between(1, 3);
    const Theta theta = random_theta(random, plan, batch);
    const Settings settings{random.chance(0.8) ? 1e-8 : 1e-4, random.chance(0.9) ? 100 : random.between(1, 10)};
    Results results(plan, batch), alone(plan, batch), single(plan, 1);
    solve_batch(plan, settings, theta.values.data(), batch, results.view(), threads);
    solve_batch(plan, settings, theta.values.data(), batch, alone.view(), 1);
    for (std::int64_t e = 0; e < batch; ++e) {
        check_solved(plan, settings, results, e);
        ++outcomes[results.status[e]];
    }
    require(same_bits(results, alone), "solution depends on threads");
    if (batch > 0) {
        const std::int64_t e = random.below(static_cast<Int>(batch));
        solve_batch(plan, settings, theta.of(e).data(), 1, single.view(), 1);
        require(single.status[0] == results.status[e], "status depends on neighbours");
        require(std::equal(single.iterations.begin(), single.iterations.end(), results.iterations.begin() + e),
                "iterations depend on neighbours");
        const auto part = [e](const Numbers& all, Int width) {
            return Numbers(all.begin() + e * width, all.begin() + (e + 1) * width);
        };
        require(same_bits(single.x, part(results.x, plan.n())), "x depends on neighbours");
        require(same_bits(single.s, part(results.s, plan.m())), "s depends on neighbours");
        require(same_bits(single.z, part(results.z, plan.m())), "z depends on neighbours");
    }
    Derivatives(random, plan, theta, results, batch).run(threads);
}

// ------------------------------------------------------------------------------------------------- attributes

// What definite matrices with small negative entries off the diagonal have, or most of them have not.
Attributes random_attributes(Random& random, Int order, std::int64_t matrices) {
    Attributes asked;
    asked.order = order;
    asked.size = matrices * order * order;
    const double infinity = std::numeric_limits<double>::infinity();
    asked.lower = random.chance(0.2) ? -1.0 : -infinity;
    asked.upper = random.chance(0.2) ? 1e3 : infinity;
    asked.positive = random.chance(0.1);
    asked.negative = random.chance(0.05);
    asked.symmetric = random.chance(0.3);
    asked.diagonal = random.chance(0.1);
    if (random.chance(0.5)) asked.signs.push_back(random.chance(0.9) ? 1.0 : -1.0);
    if (random.chance(0.3)) {
        asked.lowers.assign(asked.size, -1.0);
        asked.uppers.assign(asked.size, 1e3);
    }
    if (random.chance(0.2)) asked.outside.assign(asked.size, 0.0);
    asked.prepare();
    return asked;
}

Numbers definite_matrices(Random& random, Int order, std::int64_t count) {
    Numbers values;
    for (std::int64_t k = 0; k < count; ++k)
        for (Int i = 0; i < order; ++i)
            for (Int j = 0; j < order; ++j) values.push_back(i == j ? 1.0 + random.uniform() : -0.5 / order);
    return values;
}

void fuzz_attributes(Random& random) {
    const Int order = random.between(1, random.chance(0.05) ? 150 : 40);
    const std::int64_t matrices = random.between(1, 2), count = random.chance(0.05) ? 300 : random.below(20);
    const Attributes asked = random_attributes(random, order, matrices);
    Numbers values = definite_matrices(random, order, matrices * count);
    if (!values.empty() && random.chance(0.5)) {
        const double strange[] = {-10.0, 1e4, 0.0, std::nan("")};
        values[random.bits() % values.size()] = strange[random.below(4)];
    }
    const bool found = have_attributes(asked, values.data(), count, 1e-9, 1);
    require(found == have_attributes(asked, values.data(), count, 1e-9, 3), "attributes depend on threads");
    bool each = true;
    for (std::int64_t k = 0; k < count; ++k) {
        const Numbers own(values.begin() + k * asked.size, values.begin() + (k + 1) * asked.size);
        each = each && have_attributes(asked, own.data(), 1, 1e-9, 1);
    }
    require(found == each, "attributes depend on neighbours");
}

}  // namespace

int main(int count, char** arguments) {
    const std::uint64_t seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 0;
    const std::uint64_t rounds = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 200;
    std::vector<std::int64_t> outcomes(7);
    for (current_seed = seed; current_seed < seed + rounds; ++current_seed) {
        Random random(current_seed);
        check_numeric(random.bits());
        fuzz_linear(random);
        fuzz_plan(random, outcomes);
        fuzz_attributes(random);
        fuzz_zoo(random);
    }
    std::printf("%s: %llu rounds; elements per status:", kernels().name, static_cast<unsigned long long>(rounds));
    for (const std::int64_t elements : outcomes) std::printf(" %lld", static_cast<long long>(elements));
    std::printf("\n");
    return 0;
}
