// Compiled once per instruction set, with CONVEXLAYERS_ISA its name (and namespace).
#include "zoo/kernels.hpp"

#include "zoo/balls.hpp"
#include "zoo/linear.hpp"
#include "zoo/pools.hpp"
#include "zoo/sequences.hpp"
#include "zoo/simplex.hpp"
#include "zoo/spectral.hpp"
#include "zoo/transport.hpp"

namespace convexlayers::CONVEXLAYERS_ISA {

namespace zoo {

#define KERNEL(name, tensors) {#name, tensors, name<float>, name<double>}
const Kernel kernels[] = {
    KERNEL(simplex, 3),
    KERNEL(simplex_adjoint, 6),
    KERNEL(capped_simplex, 4),
    KERNEL(capped_simplex_adjoint, 6),
    KERNEL(norm2_projection, 3),
    KERNEL(norm2_adjoint, 6),
    KERNEL(norm_inf_projection, 3),
    KERNEL(norm_inf_adjoint, 5),
    KERNEL(second_order, 2),
    KERNEL(second_order_derivative, 3),
    KERNEL(pool, 3),
    KERNEL(pool_adjoint, 6),
    KERNEL(entmax15, 2),
    KERNEL(entmax15_derivative, 3),
    KERNEL(isotonic, 3),
    KERNEL(isotonic_adjoint, 6),
    KERNEL(total_variation, 3),
    KERNEL(total_variation_adjoint, 4),
    KERNEL(tridiagonal, 5),
    KERNEL(tridiagonal_adjoint, 9),
    KERNEL(least_squares, 6),
    KERNEL(least_squares_adjoint, 11),
    KERNEL(spectral, 4),
    KERNEL(spectral_derivative, 4),
    KERNEL(transport, 5),
    KERNEL(transport_adjoint, 8),
};
#undef KERNEL

}  // namespace zoo

extern const zoo::Table zoo_table;
const zoo::Table zoo_table = {zoo::kernels, sizeof(zoo::kernels) / sizeof(zoo::kernels[0])};

}  // namespace convexlayers::CONVEXLAYERS_ISA
