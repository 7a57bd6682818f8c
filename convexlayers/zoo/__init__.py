"""Ready-made layers: projections, pools, attention, transport and more, each with its own fast solution and derivative.

Functions of tensors with any leading dimensions, differentiable in every argument; see docs/zoo.md for the table.
"""

from convexlayers.zoo.attention import Attention, attention, attention_weights
from convexlayers.zoo.balls import (
    project_l1_ball,
    project_l1_sphere,
    project_l2_ball,
    project_l2_sphere,
    project_linf_ball,
    project_linf_sphere,
)
from convexlayers.zoo.birkhoff import project_birkhoff, project_transport_polytope
from convexlayers.zoo.control import Trajectory, lqr, mpc
from convexlayers.zoo.eigen import top_eigen
from convexlayers.zoo.entmax import entmax, sparsemax
from convexlayers.zoo.heads import ridge_head, svm_head
from convexlayers.zoo.isotonic import project_isotonic
from convexlayers.zoo.least_squares import least_squares
from convexlayers.zoo.maxcut import maxcut_sdp
from convexlayers.zoo.pools import RobustPool, robust_pool, robust_vector_pool
from convexlayers.zoo.qp_layer import QPLayer
from convexlayers.zoo.rank_pooling import rank_pool
from convexlayers.zoo.second_order import project_second_order_cone
from convexlayers.zoo.sets import project_affine, project_box, project_halfspace, project_polyhedron
from convexlayers.zoo.simplex import project_capped_simplex, project_simplex
from convexlayers.zoo.spectral import project_psd, top_projector
from convexlayers.zoo.total_variation import tv_denoise
from convexlayers.zoo.transport import transport_plan
from convexlayers.zoo.tridiagonal import block_tridiagonal_solve, tridiagonal_solve

__all__ = [
    "Attention",
    "QPLayer",
    "RobustPool",
    "Trajectory",
    "attention",
    "attention_weights",
    "block_tridiagonal_solve",
    "entmax",
    "least_squares",
    "lqr",
    "maxcut_sdp",
    "mpc",
    "project_affine",
    "project_birkhoff",
    "project_box",
    "project_capped_simplex",
    "project_halfspace",
    "project_isotonic",
    "project_l1_ball",
    "project_l1_sphere",
    "project_l2_ball",
    "project_l2_sphere",
    "project_linf_ball",
    "project_linf_sphere",
    "project_polyhedron",
    "project_psd",
    "project_second_order_cone",
    "project_simplex",
    "project_transport_polytope",
    "rank_pool",
    "ridge_head",
    "robust_pool",
    "robust_vector_pool",
    "sparsemax",
    "svm_head",
    "top_eigen",
    "top_projector",
    "transport_plan",
    "tridiagonal_solve",
    "tv_denoise",
]
