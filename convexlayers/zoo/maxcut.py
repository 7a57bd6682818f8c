"""The semidefinite relaxation behind MAXCUT and MAXSAT, exactly, for small sizes.

    minimize    <C, X>
    subject to  X_ii = 1,  X positive semidefinite

(Goemans and Williamson, 1995; Wang, Donti, Wilder and Kolter, "SATNet", 2019, who solve it in low rank.)
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.cones import Cones, smat, svec
from convexlayers.functional import solve_cone_program
from convexlayers.zoo._batched import batched, expect


def maxcut_sdp(C: Value, **options: Any) -> Tensor:
    """The matrix of cosines between the vectors of the relaxation.

    Args:
        C: (*batch, n, n); only its symmetric part counts. SATNet's is S'S for clauses S.
        options: of `solve_cone_program`, such as derivative=Smoothed(mu).

    Returns:
        X, (*batch, n, n), differentiable in C.

    Raises:
        ArgumentError: the matrices are not square.
        SolverError: as in `solve_cone_program`.
    """
    (C,) = batched(("C", C, 2), names=("n", "n"))
    n = C.shape[-1]
    expect("C", C, (n, n))
    identity = svec(torch.eye(n, dtype=C.dtype, device=C.device))
    eye = torch.eye(len(identity), dtype=C.dtype, device=C.device)
    rows = torch.cat([eye[identity > 0], -eye])
    right = torch.cat([C.new_ones(n), torch.zeros_like(identity)])
    q = svec((C + C.mT) / 2)
    return smat(solve_cone_program(None, q, rows, right, Cones(zero=n, psd=(n,)), **options).x, n)
