#include "symbolic/analyze.hpp"

#include <algorithm>
#include <new>
#include <numeric>
#include <utility>

#include "symbolic/etree.hpp"
#include "symbolic/ordering.hpp"

namespace convexlayers::symbolic {

namespace {

// An ordering and what it costs.
struct Candidate {
    std::vector<Index> permutation;
    std::vector<Index> tree;
    std::vector<Index> counts;
    Index flops = 0;

    explicit Candidate(Index n) : permutation(n), tree(n), counts(n) {}
};

class Analysis {
public:
    Analysis(Index n, const Index* indptr, const Index* indices)
        : n_(n),
          indptr_(indptr),
          indices_(indices),
          permuted_indptr_(n + 1),
          permuted_indices_(indptr[n]),
          work_(std::max(3 * n, minimum_degree_workspace_size(n, indptr[n]))) {}

    SymbolicFactor run() {
        Candidate best = order(PivotRule::external_degree);
        if (fills_in(best)) {
            Candidate other = order(PivotRule::total_degree);
            if (other.flops < best.flops) best = std::move(other);
        }
        apply_postorder(best);
        return factor(std::move(best));
    }

    SymbolicFactor run(const Index* order) {
        Candidate given(n_);
        std::copy(order, order + n_, given.permutation.begin());
        count(given);
        apply_postorder(given);
        return factor(std::move(given));
    }

private:
    Candidate order(PivotRule rule) {
        Candidate result(n_);
        minimum_degree(n_, indptr_, indices_, rule, result.permutation.data(), work_.data());
        count(result);
        return result;
    }

    // The tree and the cost of the candidate's order.
    void count(Candidate& candidate) {
        permute(candidate);
        elimination_tree(n_, permuted_indptr_.data(), permuted_indices_.data(), candidate.tree.data(),
                         candidate.counts.data(), work_.data());
        candidate.flops = factorization_flops(n_, candidate.counts.data());
    }

    // The matrix in the candidate's order: what every step after the ordering reads.
    void permute(const Candidate& candidate) {
        permute_upper(n_, indptr_, indices_, candidate.permutation.data(), permuted_indptr_.data(),
                      permuted_indices_.data(), work_.data());
    }

    bool fills_in(const Candidate& candidate) const {
        const Index entries = std::accumulate(candidate.counts.begin(), candidate.counts.end(), Index{0});
        return entries > permuted_indptr_[n_];
    }

    // Renumbers the columns by a postorder of the elimination tree.
    void apply_postorder(Candidate& candidate) {
        std::vector<Index> sequence(n_);
        postorder(n_, candidate.tree.data(), candidate.counts.data(), sequence.data(), work_.data());
        std::vector<Index> renamed(n_);
        for (std::vector<Index>* values : {&candidate.permutation, &candidate.tree, &candidate.counts}) {
            for (Index k = 0; k < n_; ++k) renamed[k] = (*values)[sequence[k]];
            values->swap(renamed);
        }
        for (Index k = 0; k < n_; ++k) work_[sequence[k]] = k;
        for (Index& parent : candidate.tree) parent = parent == kNone ? kNone : work_[parent];
    }

    SymbolicFactor factor(Candidate&& candidate) {
        permute(candidate);
        SymbolicFactor result;
        result.L_indptr.assign(n_ + 1, 0);
        std::partial_sum(candidate.counts.begin(), candidate.counts.end(), result.L_indptr.begin() + 1);
        result.L_indices.resize(result.L_indptr[n_]);
        pattern_of_L(n_, permuted_indptr_.data(), permuted_indices_.data(), candidate.tree.data(),
                     result.L_indptr.data(), result.L_indices.data(), work_.data());
        result.permutation = std::move(candidate.permutation);
        result.elimination_tree = std::move(candidate.tree);
        result.column_counts = std::move(candidate.counts);
        result.flops = candidate.flops;
        return result;
    }

    Index n_;
    const Index* indptr_;
    const Index* indices_;
    std::vector<Index> permuted_indptr_;
    std::vector<Index> permuted_indices_;
    std::vector<Index> work_;
};

}  // namespace

Index factorization_flops(Index n, const Index* counts) noexcept {
    return std::accumulate(counts, counts + n, Index{0}, [](Index sum, Index c) { return sum + c * (c + 2); });
}

Status analyze(Index n, const Index* indptr, const Index* indices, SymbolicFactor& factor) noexcept {
    try {
        factor = Analysis(n, indptr, indices).run();
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

Status analyze_in_order(Index n, const Index* indptr, const Index* indices, const Index* order,
                        SymbolicFactor& factor) noexcept {
    try {
        factor = Analysis(n, indptr, indices).run(order);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace convexlayers::symbolic
