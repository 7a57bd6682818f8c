"""Classifiers solved to optimality, as the last layer of a few-shot learner.

Ridge (Bertinetto et al., "Meta-learning with differentiable closed-form solvers", 2019):

    minimize  |X W - Y|^2 + ridge |W|^2,    W = X'(XX' + ridge I)^-1 Y

Support vector machine of Crammer and Singer ("On the algorithmic implementation of multiclass kernel-based vector
machines", 2001; Lee et al., "Meta-learning with differentiable convex optimization", 2019), dual:

    minimize    1/2 sum_k |sum_n a_nk x_n|^2 - sum_n a_n,y_n
    subject to  a_nk <= C [k = y_n],  sum_k a_nk = 0,            W_k = sum_n a_nk x_n

The dual's matrix XX' (x) I is singular where there are more examples than features; the weights W are unique
nevertheless, and nothing is added to it.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.functional import solve_qp
from convexlayers.zoo._batched import batched, expect, positive, unexpanded


def ridge_head(support: Value, labels: Value, query: Value, ridge: Value = 1.0) -> Tensor:
    """Scores of queries by ridge regression on the support.

    Args:
        support: (*batch, n, d). labels: targets, one-hot or real, (*batch, n, K). query: (*batch, q, d).
        ridge: (*batch) or a number, positive.

    Returns:
        (*batch, q, K), differentiable in all four, any number of times.

    Raises:
        ArgumentError: a shape is wrong, or the number is not positive.
    """
    X, Y, Q, ridge = unexpanded(
        ("support", support, 2), ("labels", labels, 2), ("query", query, 2), ("ridge", positive("ridge", ridge), 0)
    )
    n, d = X.shape[-2:]
    expect("labels", Y, (n, Y.shape[-1]))
    expect("query", Q, (Q.shape[-2], d))
    eye = torch.eye(n, dtype=X.dtype, device=X.device)
    factor, info = torch.linalg.cholesky_ex(X @ X.mT + ridge[..., None, None] * eye)
    factor = torch.where((info > 0)[..., None, None], torch.nan, factor)
    return Q @ X.mT @ torch.cholesky_solve(Y.expand(*factor.shape[:-2], *Y.shape[-2:]), factor)


def svm_head(support: Value, labels: Value, query: Value, C: Value = 0.1, **options: Any) -> Tensor:
    """Scores of queries by the support vector machine of Crammer and Singer.

    Args:
        support: (*batch, n, d). labels: one-hot, (*batch, n, K). query: (*batch, q, d).
        C: (*batch) or a number, positive.
        options: of `solve_qp`.

    Returns:
        (*batch, q, K), differentiable in support, query and C.

    Raises:
        ArgumentError, SolverError: as in `solve_qp`.
    """
    X, Y, Q, C = batched(
        ("support", support, 2), ("labels", labels, 2), ("query", query, 2), ("C", positive("C", C), 0)
    )
    n, d = X.shape[-2:]
    classes = Y.shape[-1]
    expect("labels", Y, (n, classes))
    expect("query", Q, (Q.shape[-2], d))
    eye = torch.eye(classes, dtype=X.dtype, device=X.device)
    P = ((X @ X.mT)[..., :, None, :, None] * eye[:, None, :]).reshape(*X.shape[:-2], n * classes, n * classes)
    A = torch.kron(torch.eye(n, dtype=X.dtype, device=X.device), torch.ones_like(eye[:1]))
    flat = Y.flatten(-2)
    solution = solve_qp(P, -flat, A=A, b=A.new_zeros(n), ub=C.unsqueeze(-1) * flat, validate=False, **options)
    return Q @ X.mT @ solution.x.unflatten(-1, (n, classes))
