"""The layers of the zoo as the tests see them: one entry takes a layer through all checks of test_zoo_layers.py."""

from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import torch
from torch import Tensor

import convexlayers as cl
from convexlayers import zoo

F64 = torch.float64


@dataclass(frozen=True)
class Entry:
    """One layer.

    Attributes:
        name: for the test's id.
        layer: of tensors (*batch, *shape), one per entry of `shapes`.
        shapes: of one element of each argument.
        closed: the same by another formula, in torch, to be differentiated by autograd; None where there is none.
        twin: makes the same from a CVXPY problem, a function of the same tensors; None where it is not convex.
        positive: positions of arguments that are drawn from (0.5, 1.5), the others being standard normal.
        scale: factor of the first argument.
        tolerance: of the comparison with the twin, beside which it is.
        raises: whether an element that is not finite is an error, as solve_qp has it, and does not come out as NaN.
        legacy: whether it works under the older vmap of torch.autograd.grad(is_grads_batched=True).
    """

    name: str
    layer: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    closed: Callable[..., Tensor] | None = None
    twin: Callable[[], Callable[..., Tensor]] | None = None
    positive: tuple[int, ...] = ()
    scale: float = 1.0
    tolerance: float = 1e-6
    raises: bool = False
    legacy: bool = True

    def draw(self, *batch: int, seed: int = 0, dtype: torch.dtype = F64) -> list[Tensor]:
        """Arguments."""
        generator = torch.Generator().manual_seed(seed)
        values = []
        for position, shape in enumerate(self.shapes):
            size = (*batch, *shape)
            if position in self.positive:
                values.append(torch.rand(size, generator=generator, dtype=F64) + 0.5)
            else:
                values.append(torch.randn(size, generator=generator, dtype=F64) * (1 if position else self.scale))
        return [value.to(dtype) for value in values]


def twin_of(build, *shapes, convert=None, **attributes):
    """A factory of CVXPY twins: `build` gets the parameters and returns the variable, objective and constraints."""

    def make():
        parameters = [cp.Parameter(shape, **attributes.get(f"p{k}", {})) for k, shape in enumerate(shapes)]
        variable, objective, constraints = build(*parameters)
        layer = cl.ConvexLayer(cp.Problem(cp.Minimize(objective), constraints), parameters, [variable])
        return lambda *values: layer(*(convert(*values) if convert else values))[0]

    return make


NONNEGATIVE = {"nonneg": True}


def nearest(shape, constraints):
    """Twins of projections: the point, then whatever `constraints` takes besides the variable."""

    def build(v, *rest):
        x = cp.Variable(shape)
        return x, cp.sum_squares(x - v) / 2, constraints(x, *rest)

    return build


# --------------------------------------------------------------------------------------------------- closed forms


def sorted_simplex(v, radius):
    u = v.sort(-1, descending=True).values
    excess = u.cumsum(-1) - radius.unsqueeze(-1)
    count = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype)
    last = (u * count > excess).sum(-1, keepdim=True) - 1
    return (v - excess.gather(-1, last) / (last + 1)).clamp(min=0)


def l1_closed(v, radius):
    inside = (v.abs().sum(-1) <= radius).unsqueeze(-1)
    return torch.where(inside, v, v.sign() * sorted_simplex(v.abs(), radius))


def l2_closed(v, radius):
    return v * (radius / v.norm(dim=-1)).clamp(max=1).unsqueeze(-1)


def linf_sphere_closed(v, radius):
    r = radius.unsqueeze(-1)
    first = torch.nn.functional.one_hot(v.abs().argmax(-1), v.shape[-1]).to(torch.bool)
    inside = v.abs().amax(-1, keepdim=True) < r
    return torch.where(inside, torch.where(first, v.sign() * r, v), torch.minimum(torch.maximum(v, -r), r))


def affine_closed(v, A, b):
    residual = (A @ v.unsqueeze(-1)) - b.unsqueeze(-1)
    return v - (A.mT @ torch.linalg.solve(A @ A.mT, residual)).squeeze(-1)


def psd_closed(A):
    values, V = torch.linalg.eigh((A + A.mT) / 2)
    return (V * values.clamp(min=0).unsqueeze(-2)) @ V.mT


def projector_closed(A):
    V = torch.linalg.eigh((A + A.mT) / 2).eigenvectors[..., -2:]
    return V @ V.mT


def second_order_closed(v):
    t, x = v[..., :1], v[..., 1:]
    norm = x.norm(dim=-1, keepdim=True)
    middle = torch.cat([(t + norm) / 2, (t + norm) / 2 * x / norm], -1)
    return torch.where(t >= norm, v, torch.where(t <= -norm, 0 * v, middle))


def isotonic_closed(v, weight):
    """max over i <= k of min over j >= k of the mean of v_i..v_j."""
    zero = torch.zeros_like(v[..., :1])
    total = torch.cat([zero, (weight * v).cumsum(-1)], -1)
    width = torch.cat([zero, weight.cumsum(-1)], -1)
    n = v.shape[-1]
    rows = []
    for k in range(n):
        lows = [
            torch.stack(
                [(total[..., j + 1] - total[..., i]) / (width[..., j + 1] - width[..., i]) for j in range(k, n)]
            )
            for i in range(k + 1)
        ]
        rows.append(torch.stack([low.amin(0) for low in lows]).amax(0))
    return torch.stack(rows, -1)


# --------------------------------------------------------------------------------------------------- CVXPY twins


def isotonic_twin(root, target):
    x = cp.Variable(5)
    return x, cp.sum_squares(cp.multiply(root, x) - target), [cp.diff(x) >= 0]


def tv_twin(y, strength):
    x = cp.Variable(6)
    return x, cp.sum_squares(x - y) / 2 + strength * cp.norm1(cp.diff(x)), []


def huber_twin(x, alpha):
    y, s, rest = cp.Variable(), cp.Variable(7), cp.Variable(7)
    return y, cp.sum_squares(s) / 2 + alpha * cp.norm1(rest), [y - x == s + rest]


def pseudo_huber_twin(x, alpha):
    y = cp.Variable()
    return y, cp.sum([cp.norm(cp.hstack([alpha, y - x[i]])) for i in range(7)]), []


def vector_huber_twin(x, alpha):
    y, s, rest = cp.Variable(3), cp.Variable((7, 3)), cp.Variable((7, 3))
    parted = [y - x[i] == s[i] + rest[i] for i in range(7)]
    return y, cp.sum_squares(s) / 2 + alpha * sum(cp.norm(rest[i]) for i in range(7)), parted


def vector_pseudo_huber_twin(x, alpha):
    y = cp.Variable(3)
    return y, sum(cp.norm(cp.hstack([alpha, y - x[i]])) for i in range(7)), []


def weighted_pseudo_huber_twin(x, heights, c):
    y = cp.Variable()
    return y, cp.sum([cp.norm(cp.hstack([heights[i], c[i] * y - x[i]])) for i in range(7)]), []


def weighted_hypotenuses(x, alpha, c):
    """alpha sqrt(alpha^2 + r^2) c as the length of (alpha c, c r), but for the factor alpha."""
    return c * x, c * alpha.unsqueeze(-1), c


def weighted_huber_twin(x, slopes, roots):
    y, s, rest = cp.Variable(), cp.Variable(7), cp.Variable(7)
    return y, cp.sum_squares(cp.multiply(roots, s)) / 2 + slopes @ cp.abs(rest), [y - x == s + rest]


def weighted_parts(x, alpha, c):
    return x, c * alpha.unsqueeze(-1), c.sqrt()


def entmax15_twin(z):
    p = cp.Variable(5)
    return p, -z @ p + cp.sum(cp.power(p, 1.5)) / 0.75, [cp.sum(p) == 1, p >= 0]


def softmax_twin(z):
    p = cp.Variable(5)
    return p, -z @ p - cp.sum(cp.entr(p)), [cp.sum(p) == 1]


def psd_twin(A):
    X = cp.Variable((4, 4), PSD=True)
    return X, cp.sum_squares(X - A), []


def transport_twin(C, a, b, eps):
    P = cp.Variable((3, 4))
    return P, cp.sum(cp.multiply(C, P)) - eps * cp.sum(cp.entr(P)), [cp.sum(P, axis=1) == a, cp.sum(P, axis=0) == b]


def marginals_twin(V, a, b):
    X = cp.Variable((3, 4))
    return X, cp.sum_squares(X - V), [X >= 0, cp.sum(X, axis=1) == a, cp.sum(X, axis=0) == b]


def normalized(value):
    return value / value.sum(-1, keepdim=True)


R = {"p1": NONNEGATIVE}
BALLS = [
    ("l1", zoo.project_l1_ball, l1_closed, lambda x, r: [cp.norm1(x) <= r]),
    ("l2", zoo.project_l2_ball, l2_closed, lambda x, r: [cp.norm(x) <= r]),
    ("linf", zoo.project_linf_ball, lambda v, r: torch.minimum(torch.maximum(v, -r.unsqueeze(-1)), r.unsqueeze(-1)),
     lambda x, r: [cp.abs(x) <= r]),
]  # fmt: skip
SPHERES = [
    ("l1", zoo.project_l1_sphere, lambda v, r: v.sign() * sorted_simplex(v.abs(), r)),
    ("l2", zoo.project_l2_sphere, lambda v, r: r.unsqueeze(-1) * v / v.norm(dim=-1, keepdim=True)),
    ("linf", zoo.project_linf_sphere, linf_sphere_closed),
]
PROJECTIONS = [
    Entry("simplex", zoo.project_simplex, ((6,), ()), sorted_simplex,
          twin_of(nearest(6, lambda x, r: [x >= 0, cp.sum(x) == r]), 6, (), **R), (1,)),
    Entry("capped simplex", zoo.project_capped_simplex, ((6,), (), (6,)), None,
          twin_of(nearest(6, lambda x, r, u: [x >= 0, x <= u, cp.sum(x) == r]), 6, (), 6, **R, p2=NONNEGATIVE), (1, 2)),
    *[Entry(f"{name} ball, {where}", layer, ((5,), ()), closed, twin_of(nearest(5, ball), 5, (), **R), (1,), scale)
      for name, layer, closed, ball in BALLS for where, scale in (("outside", 3.0), ("inside", 0.05))],
    *[Entry(f"{name} sphere, {where}", layer, ((5,), ()), closed, None, (1,), scale)
      for name, layer, closed in SPHERES for where, scale in (("outside", 3.0), ("inside", 0.05))],
    Entry("box", lambda v, lb, w: zoo.project_box(v, lb, lb + w), ((5,), (5,), (5,)),
          lambda v, lb, w: torch.minimum(torch.maximum(v, lb), lb + w),
          twin_of(nearest(5, lambda x, lb, w: [x >= lb, x <= lb + w]), 5, 5, 5), (2,), 2.0),
    Entry("halfspace", zoo.project_halfspace, ((5,), (5,), ()), None,
          twin_of(nearest(5, lambda x, a, b: [a @ x <= b]), 5, 5, ())),
    Entry("affine", zoo.project_affine, ((5,), (2, 5), (2,)), affine_closed,
          twin_of(nearest(5, lambda x, A, b: [A @ x == b]), 5, (2, 5), 2)),
    Entry("polyhedron", zoo.project_polyhedron, ((4,), (3, 4), (3,)), None,
          twin_of(nearest(4, lambda x, G, h: [G @ x <= h]), 4, (3, 4), 3), (2,), 2.0,
          raises=True),
    Entry("PSD cone", zoo.project_psd, ((4, 4),), psd_closed,
          twin_of(psd_twin, (4, 4), convert=lambda A: [(A + A.mT) / 2])),
    Entry("top projector", lambda A: zoo.top_projector(A, 2), ((4, 4),), projector_closed),
    Entry("second-order cone", zoo.project_second_order_cone, ((4,),), second_order_closed,
          twin_of(nearest(4, lambda x: [cp.norm(x[1:]) <= x[0]]), 4)),
    Entry("isotonic", zoo.project_isotonic, ((5,), (5,)), isotonic_closed,
          twin_of(isotonic_twin, 5, 5, convert=lambda v, w: (w.sqrt(), w.sqrt() * v)), (1,)),
    Entry("Birkhoff", zoo.project_birkhoff, ((4, 4),), None,
          twin_of(nearest((4, 4), lambda X: [X >= 0, cp.sum(X, axis=0) == 1, cp.sum(X, axis=1) == 1]), (4, 4))),
    Entry("transport polytope", lambda V, a, b: zoo.project_transport_polytope(V, normalized(a), normalized(b)),
          ((3, 4), (3,), (4,)), None,
          twin_of(marginals_twin, (3, 4), 3, 4, convert=lambda V, a, b: (V, normalized(a), normalized(b))),
          (1, 2), 0.3),
    Entry("total variation", zoo.tv_denoise, ((6,), ()), None, twin_of(tv_twin, 6, (), **R), (1,), 2.0),
]  # fmt: skip

POOLS = [
    Entry("quadratic pool", lambda x, a: zoo.robust_pool(x, a, kind="quadratic"), ((7,), ()),
          lambda x, a: x.mean(-1) + 0 * a, None, (1,)),
    Entry("pseudo-Huber pool", lambda x, a: zoo.robust_pool(x, a, kind="pseudo-huber"), ((7,), ()), None,
          twin_of(pseudo_huber_twin, 7, (), **R), (1,), 2.0),
    Entry("Huber pool", lambda x, a: zoo.robust_pool(x, a, kind="huber"), ((7,), ()), None,
          twin_of(huber_twin, 7, (), **R), (1,), 2.0),
    Entry("Welsch pool", lambda x, a: zoo.robust_pool(x, a, kind="welsch"), ((7,), ()), positive=(1,), scale=2.0),
    Entry("truncated pool", lambda x, a: zoo.robust_pool(x, a, kind="truncated"), ((7,), ()), positive=(1,)),
    Entry("quadratic vector pool", lambda x, a: zoo.robust_vector_pool(x, a, kind="quadratic"), ((7, 3), ()),
          lambda x, a: x.mean(-2) + 0 * a[..., None], None, (1,)),
    Entry("pseudo-Huber vector pool", lambda x, a: zoo.robust_vector_pool(x, a, kind="pseudo-huber"), ((7, 3), ()),
          None,
          twin_of(vector_pseudo_huber_twin, (7, 3), (), **R), (1,), 2.0),
    Entry("Huber vector pool", lambda x, a: zoo.robust_vector_pool(x, a, kind="huber"), ((7, 3), ()),
          None,
          twin_of(vector_huber_twin, (7, 3), (), **R), (1,)),
    Entry("Welsch vector pool", lambda x, a: zoo.robust_vector_pool(x, a, kind="welsch"), ((7, 3), ()), positive=(1,)),
    Entry("truncated vector pool", lambda x, a: zoo.robust_vector_pool(x, 2 * a, kind="truncated"), ((7, 3), ()),
          positive=(1,)),
    Entry("weighted quadratic pool", lambda x, a, c: zoo.robust_pool(x, a, c, kind="quadratic"), ((7,), (), (7,)),
          lambda x, a, c: (c * x).sum(-1) / c.sum(-1) + 0 * a, None, (1, 2)),
    Entry("weighted pseudo-Huber pool", lambda x, a, c: zoo.robust_pool(x, a, c, kind="pseudo-huber"),
          ((7,), (), (7,)), None, twin_of(weighted_pseudo_huber_twin, 7, 7, 7, convert=weighted_hypotenuses, **R),
          (1, 2), 2.0),
    Entry("weighted Huber pool", lambda x, a, c: zoo.robust_pool(x, a, c, kind="huber"), ((7,), (), (7,)), None,
          twin_of(weighted_huber_twin, 7, 7, 7, convert=weighted_parts, **R), (1, 2), 2.0),
    Entry("weighted Welsch pool", lambda x, a, c: zoo.robust_pool(x, 2 * a, c, kind="welsch"), ((7,), (), (7,)),
          positive=(1, 2)),
    Entry("weighted truncated pool", lambda x, a, c: zoo.robust_pool(x, a, c, kind="truncated"), ((7,), (), (7,)),
          positive=(1, 2)),
    Entry("weighted vector pool", lambda x, a, c: zoo.robust_vector_pool(x, a, c), ((7, 3), (), (7,)),
          positive=(1, 2)),
]  # fmt: skip

ATTENTION = [
    Entry("softmax", lambda z: zoo.entmax(z, 1.0), ((5,),), lambda z: z.softmax(-1), twin_of(softmax_twin, 5)),
    Entry("sparsemax", zoo.sparsemax, ((5,),), lambda z: sorted_simplex(z, torch.ones_like(z[..., 0])),
          twin_of(nearest(5, lambda x: [x >= 0, cp.sum(x) == 1]), 5)),
    # The derivative goes by the square root of p, which in the twin is about 1e-9 where it should be 0.
    Entry("entmax 1.5", zoo.entmax, ((5,),), None, twin_of(entmax15_twin, 5), tolerance=1e-4),
    Entry("entmax", lambda z, a: zoo.entmax(z, a + 0.6), ((5,), ()), positive=(1,)),
    *[Entry(f"{kind} attention", lambda q, k, v, kind=kind: zoo.attention(q, k, v, kind), ((3, 2), (4, 2), (4, 2)))
      for kind in ("softmax", "sparsemax", "entmax", "transport")],
    Entry("transport", lambda C, a, b, e: zoo.transport_plan(C, normalized(a), normalized(b), e),
          ((3, 4), (3,), (4,), ()), None,
          twin_of(transport_twin, (3, 4), 3, 4, (), p3=NONNEGATIVE,
                  convert=lambda C, a, b, e: (C, normalized(a), normalized(b), e)), (0, 1, 2, 3)),
]  # fmt: skip

# --------------------------------------------------------------------------------------------------- linear algebra


def dense(lower, diagonal, upper):
    """Block tridiagonal matrices (*batch, T k, T k)."""
    steps, k = diagonal.shape[-3], diagonal.shape[-1]
    out = diagonal.new_zeros(*diagonal.shape[:-3], steps, k, steps, k)
    for t in range(steps):
        out[..., t, :, t, :] = diagonal[..., t, :, :]
        if t:
            out[..., t, :, t - 1, :] = lower[..., t - 1, :, :]
            out[..., t - 1, :, t, :] = upper[..., t - 1, :, :]
    return out.reshape(*diagonal.shape[:-3], steps * k, steps * k)


def blocks_closed(lower, diagonal, upper, b):
    return torch.linalg.solve(dense(lower, diagonal, upper), b.flatten(-2).unsqueeze(-1)).reshape(b.shape)


def entries_closed(*values):
    *parts, b = values
    return blocks_closed(*(part[..., None, None] for part in parts), b.unsqueeze(-1)).squeeze(-1)


def least_squares_closed(A, b, weight, ridge, bias=False):
    if bias:
        A = torch.cat([A, torch.ones_like(A[..., :1])], -1)
    root = weight.sqrt()
    R = torch.diag_embed(ridge.sqrt().unsqueeze(-1).expand(*ridge.shape, A.shape[-1]))
    if bias:
        R = R[..., :-1, :]
    stacked = torch.cat([A * root.unsqueeze(-1), R.expand(*A.shape[:-2], *R.shape[-2:])], -2)
    right = torch.cat([root * b, b.new_zeros(*b.shape[:-1], R.shape[-2])], -1)
    Q, T = torch.linalg.qr(stacked)
    return torch.linalg.solve_triangular(T, Q.mT @ right.unsqueeze(-1), upper=True).squeeze(-1)


def least_squares_twin(scaled, target, root):
    x = cp.Variable(3)
    return x, cp.sum_squares(scaled @ x - target) + cp.sum_squares(cp.multiply(root, x)), []


def with_bias(*values):
    x, c = zoo.least_squares(*values, bias=True)
    return torch.cat([x, c.unsqueeze(-1)], -1)


def ridge_closed(X, Y, Q, ridge):
    eye = torch.eye(X.shape[-1], dtype=X.dtype)
    return Q @ torch.linalg.solve(X.mT @ X + ridge[..., None, None] * eye, X.mT @ Y)


ONE_HOT = torch.eye(3, dtype=F64).repeat(2, 1)


def svm_twin():
    """The primal problem, which has weights in place of multipliers."""
    X, C, W, slack = cp.Parameter((6, 4)), cp.Parameter(nonneg=True), cp.Variable((3, 4)), cp.Variable((6, 1))
    scores = X @ W.T
    own = cp.reshape(cp.sum(cp.multiply(ONE_HOT.numpy(), scores), axis=1), (6, 1), order="C")
    margins = [own @ torch.ones(1, 3).numpy() - scores >= 1 - ONE_HOT.numpy() - slack @ torch.ones(1, 3).numpy()]
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(W) / 2 + C * cp.sum(slack)), margins), [X, C], [W])
    return lambda X, Q, C: Q @ layer(X, C)[0].mT


def rank_twin(V, C, eps):
    u, excess = cp.Variable(3), cp.Variable(6)
    distance = cp.abs(V @ u - torch.arange(1.0, 7.0).numpy())
    return u, cp.sum_squares(u) / 2 + C / 2 * cp.sum_squares(excess), [distance <= eps + excess]


def maxcut_twin(C):
    X = cp.Variable((4, 4), PSD=True)
    return X, cp.trace(C @ X), [cp.diag(X) == 1]


LINEAR = [
    Entry("tridiagonal solve", zoo.tridiagonal_solve, ((4,), (5,), (4,), (5,)), entries_closed, legacy=False),
    Entry("block tridiagonal solve", zoo.block_tridiagonal_solve, ((3, 2, 2), (4, 2, 2), (3, 2, 2), (4, 2)),
          blocks_closed, legacy=False),
    Entry("least squares", zoo.least_squares, ((6, 3), (6,), (6,), ()), least_squares_closed,
          twin_of(least_squares_twin, (6, 3), 6, 3, convert=lambda A, b, w, r: (
              w.sqrt().unsqueeze(-1) * A, w.sqrt() * b, r.sqrt().unsqueeze(-1).expand(*r.shape, 3))), (2, 3)),
    Entry("least squares with bias", with_bias, ((6, 3), (6,), (6,), ()),
          lambda *values: least_squares_closed(*values, bias=True), None, (2, 3)),
    Entry("top eigenvalues", lambda A: zoo.top_eigen(A, 2)[0], ((4, 4),),
          lambda A: torch.linalg.eigvalsh((A + A.mT) / 2)[..., 2:].flip(-1)),
    Entry("top eigenvectors", lambda A: zoo.top_eigen(A, 2)[1].abs(), ((4, 4),),
          lambda A: torch.linalg.eigh((A + A.mT) / 2).eigenvectors[..., 2:].flip(-1).abs()),
    Entry("ridge head", zoo.ridge_head, ((5, 4), (5, 3), (2, 4), ()), ridge_closed, None, (3,)),
    Entry("SVM head", lambda X, Q, C: zoo.svm_head(X, ONE_HOT.to(X), Q, C), ((6, 4), (2, 4), ()), None, svm_twin, (2,),
          raises=True),
    Entry("rank pooling", zoo.rank_pool, ((6, 3), (), ()), None,
          twin_of(rank_twin, (6, 3), (), (), **R, p2=NONNEGATIVE), (1, 2), raises=True),
    Entry("MAXCUT", zoo.maxcut_sdp, ((4, 4),), None,
          twin_of(maxcut_twin, (4, 4), convert=lambda C: [(C + C.mT) / 2]), raises=True),
]  # fmt: skip

ENTRIES = [*PROJECTIONS, *POOLS, *ATTENTION, *LINEAR]
