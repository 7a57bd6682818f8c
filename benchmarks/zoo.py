"""Layers of the zoo beside plain torch, differentiated through its steps, and beside their compiled CVXPY twins.

Usage: python benchmarks/zoo.py [--cases NAME ...] [--repeats N] [--threads N] [--output FILE]

Forward and backward of a weighted sum, in all arguments, float64; medians of turns, contenders in turn. The table's
error is that of our output against plain torch's, or the twin's, relative to its largest entry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import torch
from beside import Layer, compare, run
from families import randn
from torch import Tensor

import convexlayers as cl
from convexlayers import zoo

FIELDS = ["case", "batch", "ours_ms", "torch_ms", "twin_ms", "times_torch", "times_twin", "error", "twin_error"]
NEWTON_STEPS = 10
SINKHORN_STEPS = 100
BISECTIONS = 50
GRADIENT_STEPS = 300
# What the layers are to be: in the geometric mean over plain torch, and each over its twin.
TIMES_TORCH, TIMES_TWIN = 2.0, 5.0


@dataclass(frozen=True)
class Case:
    """One layer.

    Attributes:
        ours: the layer.
        plain: a straightforward version in torch, or None.
        twin: makes the compiled CVXPY problem's function, or None.
        values: arguments.
    """

    ours: Layer
    plain: Layer | None
    twin: Callable[[], Layer] | None
    values: list[Tensor]


# ------------------------------------------------------------------------------------------- plain torch


def sorted_simplex(v: Tensor, radius: Tensor) -> Tensor:
    """By sorting."""
    u = v.sort(-1, descending=True).values
    excess = u.cumsum(-1) - radius.unsqueeze(-1)
    count = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype)
    last = (u * count > excess).sum(-1, keepdim=True) - 1
    return (v - excess.gather(-1, last) / (last + 1)).clamp(min=0)


def sorted_l1(v: Tensor, radius: Tensor) -> Tensor:
    """Onto the ball, by sorting."""
    inside = (v.abs().sum(-1) <= radius).unsqueeze(-1)
    return torch.where(inside, v, v.sign() * sorted_simplex(v.abs(), radius))


def sorted_entmax15(z: Tensor) -> Tensor:
    """By sorting (Peters, Niculae and Martins, 2019)."""
    z = (z - z.amax(-1, keepdim=True)) / 2
    u = z.sort(-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    mean, square = u.cumsum(-1) / count, (u * u).cumsum(-1) / count
    tau = mean - ((1 - count * (square - mean * mean)) / count).clamp(min=0).sqrt()
    last = (tau <= u).sum(-1, keepdim=True) - 1
    return (z - tau.gather(-1, last)).clamp(min=0) ** 2


def plain_psd(A: Tensor) -> Tensor:
    """By eigenvalues."""
    values, V = torch.linalg.eigh((A + A.mT) / 2)
    return (V * values.clamp(min=0).unsqueeze(-2)) @ V.mT


def plain_cone(v: Tensor) -> Tensor:
    """Second-order."""
    t, x = v[..., :1], v[..., 1:]
    norm = x.norm(dim=-1, keepdim=True)
    middle = torch.cat([(t + norm) / 2, (t + norm) / 2 * x / norm], -1)
    return torch.where(t >= norm, v, torch.where(t <= -norm, 0 * v, middle))


def plain_pool(derivatives: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], start: str) -> Layer:
    """Newton's method, unrolled."""

    def pool(x: Tensor, alpha: Tensor) -> Tensor:
        y = x.mean(-1, keepdim=True) if start == "mean" else x.median(-1, keepdim=True).values
        for _ in range(NEWTON_STEPS):
            slope, curvature = derivatives(y - x, alpha.unsqueeze(-1))
            y = y - slope.sum(-1, keepdim=True) / curvature.sum(-1, keepdim=True)
        return y.squeeze(-1)

    return pool


def pseudo_huber(z: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative."""
    root = (1 + (z / alpha) ** 2).sqrt()
    return z / root, root**-3


def huber(z: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative."""
    return torch.minimum(torch.maximum(z, -alpha), alpha), (z.abs() <= alpha).to(z.dtype)


def plain_sinkhorn(C: Tensor, a: Tensor, b: Tensor, eps: Tensor) -> Tensor:
    """In the log domain, unrolled."""
    K = C / eps[..., None, None]
    g = torch.zeros_like(b)
    for _ in range(SINKHORN_STEPS):
        f = a.log() - torch.logsumexp(g.unsqueeze(-2) - K, -1)
        g = b.log() - torch.logsumexp(f.unsqueeze(-1) - K, -2)
    return (f.unsqueeze(-1) + g.unsqueeze(-2) - K).exp()


def plain_least_squares(A: Tensor, b: Tensor, w: Tensor, ridge: Tensor) -> Tensor:
    """Normal equations."""
    weighted = (A * w.unsqueeze(-1)).mT
    N = weighted @ A + ridge[..., None, None] * torch.eye(A.shape[-1], dtype=A.dtype)
    return torch.linalg.solve(N, weighted @ b.unsqueeze(-1)).squeeze(-1)


def plain_tridiagonal(lower: Tensor, diagonal: Tensor, upper: Tensor, b: Tensor) -> Tensor:
    """Dense."""
    A = torch.diag_embed(diagonal) + torch.diag_embed(lower, offset=-1) + torch.diag_embed(upper, offset=1)
    return torch.linalg.solve(A, b.unsqueeze(-1)).squeeze(-1)


def plain_capped(v: Tensor, radius: Tensor, cap: float) -> Tensor:
    """By bisection, which has no derivative, and one step of Newton's method, which has that of the solution."""
    with torch.no_grad():
        low, high = v.amin(-1, keepdim=True) - cap, v.amax(-1, keepdim=True)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            much = (v - middle).clamp(0, cap).sum(-1, keepdim=True) > radius.unsqueeze(-1)
            low, high = torch.where(much, middle, low), torch.where(much, high, middle)
    shifted = v - (low + high) / 2
    count = ((shifted > 0) & (shifted < cap)).sum(-1, keepdim=True).clamp(min=1)
    excess = shifted.clamp(0, cap).sum(-1, keepdim=True) - radius.unsqueeze(-1)
    return (shifted - excess / count).clamp(0, cap)


def plain_isotonic(v: Tensor) -> Tensor:
    """max over i <= k of min over j >= k of the mean of v_i..v_j."""
    n = v.shape[-1]
    total = torch.cat([torch.zeros_like(v[..., :1]), v.cumsum(-1)], -1)
    index = torch.arange(n)
    length = (index + 1 - index.unsqueeze(-1)).clamp(min=1)
    mean = (total[..., 1:].unsqueeze(-2) - total[..., :-1].unsqueeze(-1)) / length
    mean = torch.where(index >= index.unsqueeze(-1), mean, torch.inf)
    least = mean.flip(-1).cummin(-1).values.flip(-1)
    return torch.where(index >= index.unsqueeze(-1), least, -torch.inf).amax(-2)


def plain_total_variation(y: Tensor, strength: Tensor) -> Tensor:
    """Accelerated projected gradients on the dual, unrolled (Beck and Teboulle, 2009)."""
    bound = strength.unsqueeze(-1)
    u = w = torch.zeros_like(y[..., 1:])
    pad = torch.nn.functional.pad
    for step in range(GRADIENT_STEPS):
        x = y + pad(w, (0, 1)) - pad(w, (1, 0))
        following = torch.minimum(torch.maximum(w + x.diff(dim=-1) / 4, -bound), bound)
        w, u = following + step / (step + 3) * (following - u), following
    return y + pad(u, (0, 1)) - pad(u, (1, 0))


# ------------------------------------------------------------------------------------------- CVXPY twins


def compiled(variable: cp.Variable, objective: cp.Expression, constraints: list, *parameters: cp.Parameter) -> Layer:
    """The layer of a problem with one variable of interest."""
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(objective), constraints), parameters, [variable])
    return lambda *values: layer(*values)[0]


def nearest(n: int, constraints: Callable, bounded: bool = True) -> Callable[[], Layer]:
    """Projections."""

    def make() -> Layer:
        x, v = cp.Variable(n), cp.Parameter(n)
        rest = [cp.Parameter(nonneg=True)] if bounded else []
        return compiled(x, cp.sum_squares(x - v) / 2, constraints(x, *rest), v, *rest)

    return make


def psd_twin(n: int) -> Callable[[], Layer]:
    """Of symmetric matrices."""

    def make() -> Layer:
        X, A = cp.Variable((n, n), PSD=True), cp.Parameter((n, n))
        layer = compiled(X, cp.sum_squares(X - A), [], A)
        return lambda A: layer((A + A.mT) / 2)

    return make


def pool_twin(n: int, kind: str) -> Callable[[], Layer]:
    """Of convex pools."""

    def make() -> Layer:
        x, alpha, y, s, rest = cp.Parameter(n), cp.Parameter(nonneg=True), cp.Variable(), cp.Variable(n), cp.Variable(n)
        if kind == "huber":
            objective, constraints = cp.sum_squares(s) / 2 + alpha * cp.norm1(rest), [y - x == s + rest]
        else:
            objective, constraints = cp.sum([cp.norm(cp.hstack([alpha, y - x[i]])) for i in range(n)]), []
        return compiled(y, objective, constraints, x, alpha)

    return make


def transport_twin(n: int) -> Callable[[], Layer]:
    """Entropic."""

    def make() -> Layer:
        P, C, a, b = cp.Variable((n, n)), cp.Parameter((n, n)), cp.Parameter(n), cp.Parameter(n)
        eps = cp.Parameter(nonneg=True)
        objective = cp.sum(cp.multiply(C, P)) - eps * cp.sum(cp.entr(P))
        return compiled(P, objective, [cp.sum(P, axis=1) == a, cp.sum(P, axis=0) == b], C, a, b, eps)

    return make


def least_squares_twin(m: int, n: int) -> Callable[[], Layer]:
    """With the roots of weights and ridge as parameters."""

    def make() -> Layer:
        x, A, b, root = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter()
        layer = compiled(x, cp.sum_squares(A @ x - b) + cp.sum_squares(root * x), [], A, b, root)
        return lambda A, b, w, ridge: layer(w.sqrt().unsqueeze(-1) * A, w.sqrt() * b, ridge.sqrt())

    return make


def tridiagonal_twin(n: int) -> Callable[[], Layer]:
    """As the equality constraints of a problem without a choice."""

    def make() -> Layer:
        x, d, b, low, up = cp.Variable(n), cp.Parameter(n), cp.Parameter(n), cp.Parameter(n - 1), cp.Parameter(n - 1)
        product = cp.multiply(d, x) + cp.hstack([0, cp.multiply(low, x[:-1])]) + cp.hstack([cp.multiply(up, x[1:]), 0])
        layer = compiled(x, cp.Constant(0), [product == b], low, d, up, b)
        return layer

    return make


def total_variation_twin(n: int) -> Callable[[], Layer]:
    """As it stands."""

    def make() -> Layer:
        x, y, strength = cp.Variable(n), cp.Parameter(n), cp.Parameter(nonneg=True)
        return compiled(x, cp.sum_squares(x - y) / 2 + strength * cp.norm1(cp.diff(x)), [], y, strength)

    return make


# ------------------------------------------------------------------------------------------- the cases


def on_simplex(x: cp.Variable, r: float | cp.Parameter = 1.0) -> list:
    """Constraints."""
    return [x >= 0, cp.sum(x) == r]


def entmax_twin(n: int) -> Callable[[], Layer]:
    """By power cones."""

    def make() -> Layer:
        p, z = cp.Variable(n), cp.Parameter(n)
        return compiled(p, -z @ p + cp.sum(cp.power(p, 1.5)) / 0.75, on_simplex(p), z)

    return make


def uniform(*shape: int, seed: int) -> Tensor:
    """From 0.5 to 1.5."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def cases() -> dict[str, Case]:
    """All of them, by name."""
    B, n = 128, 100
    v, r = randn(B, n, seed=1), uniform(B, seed=2)
    wide, half = randn(32, 1000, seed=1), uniform(32, seed=2)
    x, alpha = randn(64, 49, seed=3), uniform(64, seed=4)
    marginals = [torch.full((32, 30), 1 / 30, dtype=torch.float64)] * 2
    cost = uniform(32, 30, 30, seed=5) - 0.5
    system = [randn(64, n - 1, seed=7), 4 + uniform(64, n, seed=8), randn(64, n - 1, seed=9), randn(64, n, seed=10)]
    l2 = lambda v, r: v * (r / v.norm(dim=-1)).clamp(max=1).unsqueeze(-1)  # noqa: E731
    sphere = lambda v, r: r.unsqueeze(-1) * v / v.norm(dim=-1, keepdim=True)  # noqa: E731
    clip = lambda v, r: torch.minimum(torch.maximum(v, -r.unsqueeze(-1)), r.unsqueeze(-1))  # noqa: E731
    pool = lambda kind: lambda x, a: zoo.robust_pool(x, a, kind=kind)  # noqa: E731
    return {
        "simplex 100": Case(zoo.project_simplex, sorted_simplex, nearest(n, on_simplex), [v, r]),
        "simplex 1000": Case(zoo.project_simplex, sorted_simplex, nearest(1000, on_simplex), [wide, half]),
        "l1 ball": Case(zoo.project_l1_ball, sorted_l1, nearest(n, lambda x, r: [cp.norm1(x) <= r]), [v, r]),
        "l2 ball": Case(zoo.project_l2_ball, l2, nearest(n, lambda x, r: [cp.norm(x) <= r]), [v, r]),
        "l2 sphere": Case(zoo.project_l2_sphere, sphere, None, [v, r]),
        "linf ball": Case(zoo.project_linf_ball, clip, nearest(n, lambda x, r: [cp.abs(x) <= r]), [v, r]),
        "capped simplex": Case(lambda v, r: zoo.project_capped_simplex(v, r, 0.1), lambda v, r: plain_capped(v, r, 0.1),
                               nearest(n, lambda x, r: [*on_simplex(x, r), x <= 0.1]), [v, r]),
        "second-order cone": Case(zoo.project_second_order_cone, plain_cone,
                                  nearest(n, lambda x: [cp.norm(x[1:]) <= x[0]], bounded=False), [v]),
        "PSD cone": Case(zoo.project_psd, plain_psd, psd_twin(8), [randn(32, 8, 8, seed=1)]),
        "isotonic": Case(zoo.project_isotonic, plain_isotonic,
                         nearest(n, lambda x: [cp.diff(x) >= 0], bounded=False), [v[:64]]),
        "sparsemax": Case(zoo.sparsemax, lambda z: sorted_simplex(z, torch.ones_like(z[..., 0])),
                          nearest(n, on_simplex, bounded=False), [v]),
        "entmax 1.5": Case(zoo.entmax, sorted_entmax15, entmax_twin(20), [randn(64, 20, seed=1)]),
        "pseudo-Huber pool": Case(pool("pseudo-huber"), plain_pool(pseudo_huber, "mean"), pool_twin(49, "pseudo"),
                                  [x, alpha]),
        "Huber pool": Case(pool("huber"), plain_pool(huber, "median"), pool_twin(49, "huber"), [x, alpha]),
        "transport": Case(zoo.transport_plan, plain_sinkhorn, None,
                          [cost, *marginals, torch.full((32,), 0.1, dtype=torch.float64)]),
        "transport 8": Case(zoo.transport_plan, plain_sinkhorn, transport_twin(8),
                            [cost[..., :8, :8], *(part[..., :8] * 30 / 8 for part in marginals),
                             torch.full((32,), 0.1, dtype=torch.float64)]),
        "least squares": Case(zoo.least_squares, plain_least_squares, least_squares_twin(50, 10),
                              [randn(64, 50, 10, seed=1), randn(64, 50, seed=2), uniform(64, 50, seed=3),
                               uniform(64, seed=4)]),
        "tridiagonal": Case(zoo.tridiagonal_solve, plain_tridiagonal, tridiagonal_twin(n), system),
        "total variation": Case(zoo.tv_denoise, plain_total_variation, total_variation_twin(n), [v[:64], r[:64]]),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- measuring


def measure(name: str, case: Case, repeats: int) -> dict[str, object]:
    """One row."""
    layers = {"ours": case.ours, "torch": case.plain, "twin": case.twin() if case.twin else None}
    return compare(name, layers, case.values, repeats)


def main() -> None:
    """Run, print a table and the geometric means, write a CSV file."""
    summarize(run(__doc__, "zoo", cases, measure, FIELDS, repeats=15))


def summarize(rows: list[dict[str, object]]) -> None:
    """Geometric means, and who is not as fast as promised."""
    for key, least in (("times_torch", 1.0), ("times_twin", TIMES_TWIN)):
        ratios = {str(row["case"]): float(str(row[key])) for row in rows if key in row}
        if not ratios:
            continue
        mean = math.prod(ratios.values()) ** (1 / len(ratios))
        below = ", ".join(f"{name} {ratio}" for name, ratio in ratios.items() if ratio < least)
        wanted = f", wanted {TIMES_TORCH:g}" if key == "times_torch" else ""
        print(f"{key}: geometric mean {mean:.2f}{wanted}; below {least:g}: {below or 'none'}")


if __name__ == "__main__":
    main()
