// The Python face of the kernels, and nothing else: conversion of arguments, release of the GIL, codes into exceptions.
// Arguments are checked in Python, where a message can name them. Batches come as addresses of contiguous float64
// memory, which cost nothing to pass; the caller keeps that memory alive.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "build_info.hpp"
#include "lanes/kernels.hpp"
#include "solver.hpp"
#include "symbolic/analyze.hpp"
#include "validate.hpp"
#include "zoo/kernels.hpp"

namespace nb = nanobind;
namespace symbolic = convexlayers::symbolic;
using convexlayers::Attributes;
using convexlayers::plan::Int;
using convexlayers::plan::Plan;
using symbolic::Index;

namespace {

using IndexArray = nb::ndarray<const Index, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const Int, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Address = std::uintptr_t;

// A numpy array that owns the vector: no copy.
nb::ndarray<nb::numpy, Index, nb::ndim<1>> to_numpy(std::vector<Index>&& values) {
    auto owned = std::make_unique<std::vector<Index>>(std::move(values));
    Index* const data = owned->data();
    const std::size_t size = owned->size();
    nb::capsule owner(owned.get(), [](void* p) noexcept { delete static_cast<std::vector<Index>*>(p); });
    owned.release();
    return {data, {size}, owner};
}

nb::tuple analyze(Index n, const IndexArray& indptr, const IndexArray& indices) {
    symbolic::SymbolicFactor factor;
    symbolic::Status status;
    {
        const nb::gil_scoped_release unlocked;
        status = symbolic::analyze(n, indptr.data(), indices.data(), factor);
    }
    if (status == symbolic::Status::out_of_memory) throw std::bad_alloc();
    return nb::make_tuple(to_numpy(std::move(factor.permutation)), to_numpy(std::move(factor.elimination_tree)),
                          to_numpy(std::move(factor.column_counts)), to_numpy(std::move(factor.L_indptr)),
                          to_numpy(std::move(factor.L_indices)), factor.flops);
}

template <class T, class Array>
std::vector<T> to_vector(const Array& array) {
    return {array.data(), array.data() + array.size()};
}

// (zero, nonnegative, dimensions of second-order cones, orders of semidefinite ones, exponential, exponents of power cones).
convexlayers::plan::ConeSizes to_cones(const nb::tuple& sizes) {
    return {nb::cast<Int>(sizes[0]), nb::cast<Int>(sizes[1]), to_vector<Int>(nb::cast<Ints>(sizes[2])),
            to_vector<Int>(nb::cast<Ints>(sizes[3])), nb::cast<Int>(sizes[4]),
            to_vector<double>(nb::cast<Doubles>(sizes[5]))};
}

// The caller owns the result.
Plan* make_plan(Int n, const nb::tuple& cones, const Ints& P_indptr, const Ints& P_rows, const Ints& A_indptr,
                const Ints& A_rows, const Doubles& constant, const nb::list& blocks) {
    convexlayers::plan::Pattern pattern;
    pattern.n = n;
    pattern.cones = to_cones(cones);
    pattern.m = pattern.cones.rows();
    pattern.P_indptr = to_vector<Int>(P_indptr);
    pattern.P_rows = to_vector<Int>(P_rows);
    pattern.A_indptr = to_vector<Int>(A_indptr);
    pattern.A_rows = to_vector<Int>(A_rows);
    std::vector<convexlayers::plan::ParameterBlock> maps;
    for (const nb::handle item : blocks) {
        const auto block = nb::cast<nb::tuple>(item);
        maps.push_back({nb::cast<Int>(block[0]), to_vector<Int>(nb::cast<Ints>(block[1])),
                        to_vector<Int>(nb::cast<Ints>(block[2])), to_vector<double>(nb::cast<Doubles>(block[3]))});
    }
    auto numbers = to_vector<double>(constant);
    const nb::gil_scoped_release unlocked;
    return new Plan(std::move(pattern), std::move(numbers), std::move(maps));
}

// Operations per second of the factorization in one thread's lanes, best of `repeats`, and what the registers allow.
nb::tuple factorization_speed(const Plan& plan, int repeats) {
    const auto& chosen = convexlayers::kernels();
    double seconds, peak;
    {
        const nb::gil_scoped_release unlocked;
        seconds = chosen.time_factorization(plan, repeats);
        peak = chosen.peak();
    }
    return nb::make_tuple(static_cast<double>(plan.panels.flops) * chosen.lanes / seconds, peak);
}

nb::dict describe(const Plan& plan) {
    nb::dict out;
    out["nodes"] = plan.panels.nodes;
    out["nnz_L"] = plan.panels.L_entries;
    out["flops"] = plan.panels.flops;
    out["groups"] = plan.panels.groups.size();
    return out;
}

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// Addresses of blocks with the strides of their rows: 0 where the batch shares the block.
using Blocks = std::vector<std::pair<Address, std::int64_t>>;

std::vector<convexlayers::Values> to_values(const nb::list& blocks) {
    std::vector<convexlayers::Values> values;
    for (const nb::handle item : blocks) {
        const auto block = nb::cast<nb::tuple>(item);
        values.push_back({pointer<const double>(nb::cast<Address>(block[0])), nb::cast<std::int64_t>(block[1])});
    }
    return values;
}

// x, s, z, status, iterations, primal, dual, gap, objective, scales.
convexlayers::Solutions to_solutions(const nb::tuple& at) {
    const auto address = [&](int i) { return nb::cast<Address>(at[i]); };
    convexlayers::Solutions out;
    out.x = pointer<double>(address(0));
    out.s = pointer<double>(address(1));
    out.z = pointer<double>(address(2));
    out.status = pointer<std::int64_t>(address(3));
    out.iterations = pointer<std::int64_t>(address(4));
    out.primal = pointer<double>(address(5));
    out.dual = pointer<double>(address(6));
    out.gap = pointer<double>(address(7));
    out.objective = pointer<double>(address(8));
    out.scales = pointer<std::int16_t>(address(9));
    return out;
}

// The number of elements that were not solved, or not to rounding.
std::int64_t solve(const Plan& plan, const nb::list& blocks, std::int64_t batch, const nb::tuple& results,
                   double tolerance, std::int64_t max_iterations, int threads, bool warm) {
    const auto values = to_values(blocks);
    const auto out = to_solutions(results);
    const nb::gil_scoped_release unlocked;
    convexlayers::solve_batch(plan, {tolerance, max_iterations, warm}, values.data(), batch, out, threads);
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < batch; ++i) {
        const double worst = std::max({out.primal[i], out.dual[i], out.gap[i]});
        count += out.status[i] != 0 || !(worst <= 1e-3 * tolerance);
    }
    return count;
}

// Without an address: all elements.
std::vector<std::int64_t> to_elements(Address address, std::int64_t count) {
    const auto* const first = pointer<const std::int64_t>(address);
    if (first != nullptr) return {first, first + count};
    std::vector<std::int64_t> all(count);
    std::iota(all.begin(), all.end(), 0);
    return all;
}

// The largest residual of the elements, those of the caller's own NaN left out.
double largest_residual(const std::vector<std::int64_t>& elements, const double* residual) {
    double largest = 0.0;
    for (const std::int64_t element : elements) largest = std::max(largest, residual[element]);
    return largest;
}

double adjoint(const Plan& plan, const nb::list& blocks, const nb::tuple& solution, Address elements, std::int64_t count,
             const nb::tuple& cotangents, const nb::list& targets, Address constant, Address residual, Address singular,
             double largest, int threads) {
    const auto values = to_values(blocks);
    const auto at = to_solutions(solution);
    const auto cotangent = [&](int i) { return pointer<const double>(nb::cast<Address>(cotangents[i])); };
    std::vector<convexlayers::BlockGradientTarget> out;
    for (const nb::handle item : targets) {
        const auto target = nb::cast<nb::tuple>(item);
        out.push_back({pointer<double>(nb::cast<Address>(target[0])), pointer<double>(nb::cast<Address>(target[1]))});
    }
    const convexlayers::Reports reports{pointer<double>(residual), pointer<bool>(singular), largest, pointer<bool>(constant)};
    const convexlayers::Cotangents given{cotangent(0), cotangent(1), cotangent(2)};
    const double* const objective = cotangent(3);
    const nb::gil_scoped_release unlocked;
    const auto list = to_elements(elements, count);
    convexlayers::adjoint_batch(plan, values.data(), at, reports, list, given, objective, out, threads);
    return largest_residual(list, reports.residual);
}

double tangent(const Plan& plan, const nb::list& blocks, const nb::tuple& solution, Address elements, std::int64_t count,
             const nb::list& dtheta, const nb::tuple& tangents, Address residual, Address singular, double largest,
             int threads) {
    const auto values = to_values(blocks), dvalues = to_values(dtheta);
    const auto at = to_solutions(solution);
    const auto result = [&](int i) { return pointer<double>(nb::cast<Address>(tangents[i])); };
    const convexlayers::Tangents out{result(0), result(1), result(2), result(3)};
    const convexlayers::Reports reports{pointer<double>(residual), pointer<bool>(singular), largest};
    const nb::gil_scoped_release unlocked;
    const auto list = to_elements(elements, count);
    convexlayers::tangent_batch(plan, values.data(), at, reports, list, dvalues.data(), out, threads);
    return largest_residual(list, reports.residual);
}

// For tests: solutions of linear systems of any quasi-definite pattern, (count, sides, nodes). An entry of the matrix
// stands once in (rows, cols), on either side of the diagonal.
nb::ndarray<nb::numpy, double, nb::ndim<3>> factor_and_solve(
    Int nodes, const Doubles& signs, const Ints& rows, const Ints& cols,
    const nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>& values,
    const nb::ndarray<const double, nb::ndim<3>, nb::c_contig, nb::device::cpu>& rhs) {
    convexlayers::plan::KktPattern pattern;
    pattern.nodes = nodes;
    pattern.signs = to_vector<double>(signs);
    for (std::size_t e = 0; e < rows.size(); ++e)
        if (const Int i = rows(e), j = cols(e); i != j)
            pattern.entries.push_back({std::max(i, j), std::min(i, j), convexlayers::plan::Source::data, 0});
    auto y = std::make_unique<std::vector<double>>(rhs.data(), rhs.data() + rhs.size());
    {
        const nb::gil_scoped_release unlocked;
        const auto panels = convexlayers::plan::make_panels(pattern);
        convexlayers::kernels().solve_linear({panels, static_cast<std::int64_t>(rows.size()), rows.data(), cols.data(),
                                              static_cast<std::int64_t>(values.shape(0)), values.data(),
                                              static_cast<int>(rhs.shape(1)), y->data()});
    }
    double* const data = y->data();
    const nb::capsule owner(y.release(), [](void* p) noexcept { delete static_cast<std::vector<double>*>(p); });
    return {data, {rhs.shape(0), rhs.shape(1), rhs.shape(2)}, owner};
}

// limits: bounds of all entries; kinds: positive, negative, symmetric, diagonal. The caller owns the result.
Attributes* make_attributes(std::int64_t size, Int order, const nb::tuple& limits, const nb::tuple& kinds,
                            const Doubles& signs, const Doubles& lowers, const Doubles& uppers, const Doubles& outside) {
    auto asked = std::make_unique<Attributes>();
    const auto is = [&](int i) { return nb::cast<bool>(kinds[i]); };
    asked->size = size;
    asked->order = order;
    asked->lower = nb::cast<double>(limits[0]);
    asked->upper = nb::cast<double>(limits[1]);
    asked->positive = is(0);
    asked->negative = is(1);
    asked->symmetric = is(2);
    asked->diagonal = is(3);
    asked->signs = to_vector<double>(signs);
    asked->lowers = to_vector<double>(lowers);
    asked->uppers = to_vector<double>(uppers);
    asked->outside = to_vector<double>(outside);
    asked->prepare();
    return asked.release();
}

// entries: of all values together.
bool have_attributes(const Attributes& asked, Address values, std::int64_t entries, double slack, int threads) {
    const nb::gil_scoped_release unlocked;
    const std::int64_t count = asked.size > 0 ? entries / asked.size : 0;
    return convexlayers::have_attributes(asked, pointer<const double>(values), count, slack, threads);
}

// The kernel of a layer; see zoo/kernels.hpp and convexlayers/zoo/_kernels.py.
const convexlayers::zoo::Kernel* zoo_kernel(const char* name) {
    const auto* const found = convexlayers::zoo::find(name);
    if (found == nullptr) throw std::invalid_argument(name);
    return found;
}

std::int64_t run_rows(const convexlayers::zoo::Kernel& kernel, const nb::tuple& addresses, std::int64_t rows,
                      std::int64_t n, std::int64_t m, int option, bool single, int threads) {
    std::array<Address, 16> at{};
    const auto count = static_cast<std::size_t>(kernel.tensors);
    if (nb::len(addresses) != count) throw std::invalid_argument(kernel.name);
    for (std::size_t i = 0; i < count; ++i) at[i] = nb::cast<Address>(addresses[i]);
    const nb::gil_scoped_release unlocked;
    return convexlayers::zoo::run(kernel, {at.data(), rows, n, m, option}, single, threads);
}

nb::dict info() {
    const auto build = convexlayers::build_info();
    nb::dict result;
    result["version"] = build.version;
    result["compiler"] = build.compiler;
    result["instruction_set"] = convexlayers::kernels().name;
    result["lanes"] = convexlayers::kernels().lanes;
    return result;
}

}  // namespace

NB_MODULE(_core, module) {
    // Plans live as long as the programs that cache them, which may be to the end of the interpreter.
    nb::set_leak_warnings(false);
    module.def("info", &info);
    module.def("analyze", &analyze, nb::arg("n"), nb::arg("indptr"), nb::arg("indices"));
    nb::class_<Plan>(module, "Plan", "The symbolic work for one parametrized program; see engines/native.py.")
        .def("describe", &describe)
        .def("factorization_speed", &factorization_speed)
        .def("solve", &solve)
        .def("adjoint", &adjoint)
        .def("tangent", &tangent);
    module.def("factor_and_solve", &factor_and_solve);
    module.def("make_plan", &make_plan, nb::rv_policy::take_ownership);
    nb::class_<Attributes>(module, "Attributes", "What the values of a parameter have to be; see validation.py.")
        .def("hold", &have_attributes);
    module.def("make_attributes", &make_attributes, nb::rv_policy::take_ownership);
    nb::class_<convexlayers::zoo::Kernel>(module, "RowKernel", "One loop over the rows of a batch; see zoo/_kernels.py.")
        .def("run", &run_rows);
    module.def("zoo_kernel", &zoo_kernel, nb::rv_policy::reference);
}
