// The Python face of the kernels, and nothing else: conversion of arguments, release of the GIL, codes into exceptions.
// Arguments are checked in Python, where a message can name them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "build_info.hpp"
#include "symbolic/analyze.hpp"

namespace nb = nanobind;
namespace symbolic = convexlayers::symbolic;
using symbolic::Index;

namespace {

using IndexArray = nb::ndarray<const Index, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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

nb::dict info() {
    const auto build = convexlayers::build_info();
    nb::dict result;
    result["version"] = build.version;
    result["compiler"] = build.compiler;
    result["instruction_set"] = build.instruction_set;
    return result;
}

}  // namespace

NB_MODULE(_core, module) {
    module.def("info", &info);
    module.def("analyze", &analyze, nb::arg("n"), nb::arg("indptr"), nb::arg("indices"));
}
