// Whether values of a parameter are what its attributes promise. Only a plain yes is found here: what is in doubt goes to
// convexlayers/validation.py, which has the same rules, finds the element that is off, and says by how much.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "plan/panels.hpp"

namespace convexlayers {

// Matrices of larger orders are in doubt: a library's factorization in blocks is faster.
inline constexpr plan::Int kLargestDefinite = 300;
// Many matrices of orders up to this are factored in lanes, larger ones one by one, with vectors along their rows.
inline constexpr plan::Int kLargestInLanes = 64;

// What a value has to be, as numbers. It may be off by an allowance, a share of its largest entry, except where entries
// are strictly positive or negative, or outside of a sparsity pattern.
struct Attributes {
    std::int64_t size = 0;               // entries of one value
    plan::Int order = 0;                 // of the square matrices, one or several, that it consists of; 0 if none
    double lower = 0, upper = 0;         // bounds of all entries, infinite for none
    bool positive = false, negative = false, symmetric = false, diagonal = false;
    std::vector<double> signs;           // 1: positive semidefinite, -1: negative semidefinite
    std::vector<double> lowers, uppers;  // bounds of each entry (size), or empty
    std::vector<double> outside;         // (size) 1 for an entry that has to be zero, 0 for others; or empty
    std::unique_ptr<const plan::DensePattern> pattern;  // of definite matrices that may be factored in lanes

    // After all the others have been set.
    void prepare();
    // Whether more has to be looked at than the smallest and the largest entry.
    bool need_entries() const { return symmetric || diagonal || !lowers.empty() || !outside.empty(); }
};

// Whether all values, (count, size), certainly are finite and what they have to be, up to slack times the largest entry.
bool have_attributes(const Attributes& asked, const double* values, std::int64_t count, double slack, int threads);

}  // namespace convexlayers
