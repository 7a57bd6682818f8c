"""Find the costs behind observed decisions by gradient descent in numpy, with diffcp.

Each decision minimizes c'x over |x| <= 1 and G x <= h, with h that was observed and c = C f of features f. The solver
is given a tight tolerance: with the package's default its own error would be compared.
"""

import diffcp
import numpy as np
import scipy.sparse as sp

SIZE, LIMITS, FEATURES, DECISIONS = 5, 3, 4, 24
SETTINGS = {"solve_method": "Clarabel", "mode": "dense", "tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def train(steps: int = 20, rate: float = 3.0) -> list[float]:
    rng = np.random.default_rng(0)
    G, features = rng.normal(size=(LIMITS, SIZE)), rng.normal(size=(DECISIONS, FEATURES))
    A = sp.csc_matrix(np.vstack([G, np.zeros((1, SIZE)), -np.eye(SIZE)]))
    bs = [np.concatenate([rng.uniform(0.2, 1.0, LIMITS), [1.0], np.zeros(SIZE)]) for _ in range(DECISIONS)]
    cones = [{"l": LIMITS, "q": [SIZE + 1]}] * DECISIONS

    def solve(C: np.ndarray) -> tuple:
        As = [A.copy() for _ in range(DECISIONS)]
        return diffcp.solve_and_derivative_batch(As, bs, list(features @ C.T), cones, **SETTINGS)

    decided = np.stack(solve(rng.normal(size=(SIZE, FEATURES)))[0])
    C = rng.normal(size=(SIZE, FEATURES))
    losses = []
    for _ in range(steps):
        xs, ys, _, _, DT = solve(C)
        off = np.stack(xs) - decided
        losses.append(float((off**2).mean()))
        grads = 2 * off / off.size
        zeros = [np.zeros_like(y) for y in ys]
        _, _, dcs = DT(list(grads), zeros, zeros)
        C = C - rate * np.stack(dcs).T @ features
    return losses


if __name__ == "__main__":
    for step, loss in enumerate(train()):
        print(step, loss)
