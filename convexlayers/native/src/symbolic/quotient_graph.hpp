// The quotient graph of a symmetric elimination, ordered by approximate minimum degree.
//
// P. Amestoy, T. Davis, I. Duff, "An approximate minimum degree ordering algorithm", SIAM J. Matrix Anal. Appl. 17
// (1996). Eliminating a variable joins its neighbours into a clique. The clique is never stored edge by edge: the
// eliminated variable stays as an *element* e with the list L_e of its variables, and every variable i keeps the list
// of elements E_i and of variables A_i that it is adjacent to. Four devices make this fast:
//
//   element absorption          the elements adjacent to the pivot, and those whose variables are all in the pivot's
//                               element, vanish into the new one; so the graph never grows
//   indistinguishable variables variables with the same lists become one supervariable with a weight, found by hashing
//   mass elimination            a variable adjacent to nothing but the new element is eliminated with the pivot
//   approximate degree          d_i = min(remaining, d_i + |Lp \ i|, |A_i| + |Lp \ i| + sum over e of |L_e \ Lp|)
//                               bounds the external degree from above; all |L_e \ Lp| come from one scan
#pragma once

#include "symbolic/types.hpp"

namespace convexlayers::symbolic {

// Which degree the next pivot minimizes: that of the supervariable towards the others (weight of its neighbours), or
// that of each variable in it (its twins count too). External degrees give less fill on meshes. Total degrees give
// less where a dense block could go first as one supervariable although its many neighbours would fill in: the KKT
// matrix of a dense QP, n variables and n constraints, costs half as much.
enum class PivotRule { external_degree, total_degree };

class QuotientGraph {
public:
    // Length of `work` for a graph of n nodes built from `entries` stored entries of one triangle:
    // 16 n for the nodes, n + 3 * entries for the lists. The class allocates nothing.
    static Index workspace_size(Index n, Index entries) noexcept;

    QuotientGraph(Index n, Index entries, PivotRule rule, Index* work) noexcept;

    // Orders the nodes with group[i] == wanted as if no others existed and writes them to `order`, first pivot first.
    // Returns how many there are. `order` has room for them; the graph can be used again for another group.
    // Time: at most O(n * entries), in practice close to linear in the entries for sparse graphs. A node adjacent to
    // nearly all others is what comes near the bound: see ordering.hpp.
    Index order_group(const Index* indptr, const Index* indices, const Index* group, Index wanted,
                      Index* order) noexcept;

private:
    void load(const Index* indptr, const Index* indices, const Index* group, Index wanted) noexcept;
    void reset_nodes(const Index* group, Index wanted) noexcept;

    // One elimination, in this order.
    Index take_pivot() noexcept;
    void form_element(Index pivot) noexcept;
    void measure_elements(Index pivot) noexcept;
    void update_variables(Index pivot) noexcept;
    void merge_indistinguishable(Index pivot) noexcept;
    void finish_element(Index pivot) noexcept;

    // Their parts.
    void collect(Index first, Index count) noexcept;
    void update_variable(Index variable, Index pivot) noexcept;
    void eliminate_with(Index variable, Index pivot) noexcept;
    void absorb_twins(Index variable) noexcept;
    bool same_lists(Index first, Index second) const noexcept;
    void append_members(Index from, Index into) noexcept;
    void link(Index variable, Index degree) noexcept;
    void unlink(Index variable) noexcept;
    void make_room(Index pivot) noexcept;
    void move_list(Index node, Index& free) noexcept;
    Index write_order(Index* order) const noexcept;

    // Sizes.
    Index n_;               // nodes, of every group
    Index capacity_;        // of lists_
    PivotRule rule_;
    Index active_ = 0;      // nodes of the group
    Index eliminated_ = 0;  // of them, those already ordered
    Index pivots_ = 0;      // eliminations so far, supervariables counted once
    Index minimum_ = 0;     // no variable has a smaller key
    Index stamp_ = 0;       // mark_ values below it are from earlier eliminations
    Index free_ = 0;        // first unused entry of lists_

    // Per node, each of length n_.
    Index* start_;        // its list begins at lists_[start_[i]]
    Index* length_;       // entries in the list
    Index* elements_;     // variable: how many of them, at the front, are elements; element: kElement
    Index* weight_;       // variables it stands for; 0: no variable any more; negative: in the element being formed
    Index* degree_;       // variable: bound on its external degree; element: weight of its variables
    Index* mark_;         // element: 0 when absorbed, stamp_ + |L_e \ Lp| while measured
    Index* key_;          // variable: the degree that the rule minimizes
    Index* next_;         // doubly linked list of the variables of one key
    Index* previous_;
    Index* by_key_;       // first variable of each key
    Index* hash_;         // of the lists of a variable just updated
    Index* by_hash_;      // first variable of each hash, modulo n_
    Index* hash_next_;    // singly linked list of the variables of one hash
    Index* member_next_;  // the variables a supervariable stands for, starting with itself
    Index* member_last_;
    Index* pivot_;        // pivots in the order of their elimination

    Index* lists_;        // variables' lists in the order of their index, then elements' in the order of elimination
};

}  // namespace convexlayers::symbolic
