"""Cones: projections against the definitions of the cones, derivatives against differences, order of rows, errors."""

import itertools

import pytest
import torch

from convexlayers.cones import Cones, smat, svec
from convexlayers.cones.svec import svec_index
from convexlayers.engines.scs import row_order
from convexlayers.errors import ArgumentError
from convexlayers.testing import Sampler, complementary_pair, join

# A new cone, or size of one, enters every test of this file here, with its membership test below.
CASES = {
    "zero3": Cones(zero=3),
    "nonnegative1": Cones(nonnegative=1),
    "nonnegative5": Cones(nonnegative=5),
    **{f"second_order{dim}": Cones(second_order=(dim,)) for dim in (1, 2, 3, 7)},
    **{f"psd{order}": Cones(psd=(order,)) for order in (1, 2, 3, 4, 5)},
    "exponential": Cones(exponential=1),
    **{f"power{alpha}": Cones(power=(alpha,)) for alpha in (0.05, 0.3, 0.5, 0.7, 0.95)},
}
PRODUCT = join(*CASES.values())
CASES["product"] = PRODUCT
SCALES = (1e-6, 1e-3, 1.0, 1e3, 1e6)

by_case = pytest.mark.parametrize("cones", CASES.values(), ids=CASES.keys())
single = pytest.mark.parametrize("cones", [c for c in CASES.values() if c is not PRODUCT], ids=list(CASES)[:-1])


# ------------------------------------------------------------------------------------------- membership, by definition


def positive_part(v):
    return v.clamp(min=0)


def exponential_distance(v):
    """Upper bound of the distance to K: raise the last entry, or lower the first."""
    x, y, z = v.unbind(-1)
    up = positive_part(y * torch.exp(x / y) - z)
    left = positive_part(x - y * torch.log(z / y))
    inner = torch.where(z > 0, torch.minimum(up, left), up)
    edge = torch.stack([positive_part(x), y.abs(), positive_part(-z)]).amax(0)
    return torch.where(y > 0, torch.minimum(inner, edge), edge)


def exponential_dual_distance(v):
    u, w, t = v.unbind(-1)
    up = positive_part(-u * torch.exp(w / u - 1) - t)
    right = positive_part(u * (1 + torch.log(t / -u)) - w)
    inner = torch.where(t > 0, torch.minimum(up, right), up)
    edge = torch.stack([u.abs(), positive_part(-w), positive_part(-t)]).amax(0)
    return torch.where(u < 0, torch.minimum(inner, edge), edge)


def power_distance(v, alpha, weights):
    """Upper bound of the distance: lower |z|, or raise x or y."""
    quadrant = torch.maximum(positive_part(-v[..., 0]), positive_part(-v[..., 1]))
    x, y = positive_part(v[..., 0]) / weights[0], positive_part(v[..., 1]) / weights[1]
    z = v[..., 2].abs()
    lower = positive_part(z - x**alpha * y ** (1 - alpha))
    raise_x = weights[0] * positive_part((z / y ** (1 - alpha)) ** (1 / alpha) - x).nan_to_num(torch.inf)
    raise_y = weights[1] * positive_part((z / x**alpha) ** (1 / (1 - alpha)) - y).nan_to_num(torch.inf)
    return torch.maximum(quadrant, torch.stack([lower, raise_x, raise_y]).amin(0))


def distance(cones, v, dual):
    """Upper bound of the distance of v (..., dim) to a single cone or its dual, from the definition."""
    if cones.zero:
        return torch.zeros_like(v[..., 0]) if dual else v.abs().amax(-1)
    if cones.nonnegative:
        return positive_part(-v).amax(-1)
    if cones.second_order:
        return positive_part(v[..., 1:].norm(dim=-1) - v[..., 0])
    if cones.psd:
        return positive_part(-torch.linalg.eigvalsh(smat(v, cones.psd[0]))[..., 0])
    if cones.exponential:
        return exponential_dual_distance(v) if dual else exponential_distance(v)
    (alpha,) = cones.power
    return power_distance(v, alpha, (alpha, 1 - alpha) if dual else (1.0, 1.0))


# ------------------------------------------------------------------------------------------- points


def random_points(cones, seed=0, count=60):
    """Normal directions at all scales, with entries of equal and of different sizes; (N, m)."""
    sampler = Sampler.seeded((count,), seed)
    even = [scale * sampler.normal(cones.rows) for scale in SCALES]
    uneven = sampler.normal(cones.rows) * 10 ** sampler.between(-6, 6, cones.rows)
    return torch.cat([*even, uneven])


def regular_points(cones, seed=0, count=20):
    """Pairs (s, z) such that the projection is differentiable at s - z, in all regions; (N, m) each."""
    sampler = Sampler.seeded((count,), seed)
    pairs = [complementary_pair(cones, sampler, activity) for activity in ("boundary", "inside", "outside", "mixed")]
    return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))


def kinks(cones):
    """Points where the projection may have no derivative: signed and zero entries in every combination; (N, m)."""
    if cones.rows <= 3:
        return torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=cones.rows)), dtype=torch.float64)
    s, z = regular_points(cones, count=2)
    unit = torch.eye(cones.rows, dtype=torch.float64)
    return torch.cat([torch.zeros_like(unit[:1]), unit, -unit, s, -z])


def dense_derivative(cones, v):
    """M = Q diag(mu) Q', and the spectrum."""
    spectrum = cones.spectrum(v)
    eye = torch.eye(cones.rows, dtype=v.dtype).expand(*v.shape, cones.rows)
    return spectrum.basis.unrotate(spectrum.mu.unsqueeze(-1) * spectrum.basis.rotate(eye)), spectrum


def dense_basis(cones, v):
    eye = torch.eye(cones.rows, dtype=v.dtype).expand(*v.shape, cones.rows)
    return cones.spectrum(v).basis.unrotate(eye)


def size_of(v):
    return v.norm(dim=-1)


# ------------------------------------------------------------------------------------------- projections


@by_case
def test_projection_of_known_pairs(cones):
    s, z = regular_points(cones)
    assert (size_of(cones.project(s - z) - s) <= 1e-13 * size_of(s - z)).all()
    assert (size_of(cones.project_dual(z - s) - z) <= 1e-13 * size_of(s - z)).all()


@single
def test_moreau_decomposition(cones):
    v = torch.cat([random_points(cones), kinks(cones)])
    s = cones.project(v)
    z, size = s - v, size_of(v)
    assert (distance(cones, s, dual=False) <= 1e-12 * size).all()
    assert (distance(cones, z, dual=True) <= 1e-12 * size).all()
    assert ((s * z).sum(-1).abs() <= 1e-12 * size**2).all()


@by_case
def test_projection_is_idempotent(cones):
    s = cones.project(random_points(cones))
    assert (size_of(cones.project(s) - s) <= 1e-13 * size_of(s)).all()


@by_case
def test_projection_is_homogeneous(cones):
    v = Sampler.seeded((60,), 5).normal(cones.rows)
    for scale in (1e-100, 1e-12, 1e-6, 1e6, 1e12, 1e100):
        assert torch.allclose(cones.project(scale * v) / scale, cones.project(v), rtol=0, atol=1e-12)


@by_case
def test_projection_onto_the_dual_is_moreaus(cones):
    v = random_points(cones)
    assert torch.allclose(cones.project_dual(v), v + cones.project(-v), rtol=0, atol=0)


def test_exponential_projection_far_along_the_cone():
    """Rays p(r) and d(r) with r up to +-20: the projection keeps its relative accuracy."""
    r = torch.linspace(-20, 20, 81, dtype=torch.float64)
    s = torch.stack([r, torch.ones_like(r), r.exp()], dim=-1)
    z = torch.stack([-torch.ones_like(r), r - 1, (-r).exp()], dim=-1)
    s, z = s / size_of(s).unsqueeze(-1), z / size_of(z).unsqueeze(-1)
    assert (size_of(Cones(exponential=1).project(s - z) - s) <= 1e-12).all()


@pytest.mark.parametrize("alpha", [1e-3, 0.999])
def test_power_projection_with_extreme_exponents(alpha):
    cones = Cones(power=(alpha,))
    s, z = regular_points(cones)
    assert (size_of(cones.project(s - z) - s) <= 1e-12 * size_of(s - z)).all()


# ------------------------------------------------------------------------------------------- derivatives


@by_case
def test_spectrum_is_an_eigendecomposition(cones):
    v = torch.cat([random_points(cones), kinks(cones)])
    spectrum, Q = cones.spectrum(v), dense_basis(cones, v)
    eye = torch.eye(cones.rows, dtype=v.dtype)
    assert torch.allclose(Q.transpose(-1, -2) @ Q, eye.expand_as(Q), rtol=0, atol=1e-13)
    assert torch.allclose(spectrum.basis.rotate(Q), eye.expand_as(Q), rtol=0, atol=1e-13)
    assert ((spectrum.mu >= 0) & (spectrum.mu <= 1) & (spectrum.nu >= 0) & (spectrum.nu <= 1)).all()
    assert torch.allclose(spectrum.mu + spectrum.nu, torch.ones_like(v), rtol=0, atol=4e-16)


@by_case
def test_derivative_is_that_of_the_projection(cones):
    s, z = regular_points(cones)
    v = s - z
    M, _ = dense_derivative(cones, v)
    step, eye = 1e-3, torch.eye(cones.rows, dtype=v.dtype)
    weights = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    difference = sum(w * cones.project(v.unsqueeze(-2) + k * step * eye) for k, w in weights.items()) / step
    assert (difference.transpose(-1, -2) - M).abs().max() <= 1e-8


@by_case
def test_derivative_along_the_pair(cones):
    """Proj is linear along its own rays: M s = s and M z = 0."""
    v = torch.cat([random_points(cones), kinks(cones)])
    s = cones.project(v)
    z, (M, _) = s - v, dense_derivative(cones, v)
    # On a kink a one-sided derivative may go to the other side along s or z, so only entries off it are asked for.
    regular = torch.cat([torch.ones(len(random_points(cones))), torch.zeros(len(kinks(cones)))]).bool()
    image_s, image_z = (M @ s.unsqueeze(-1)).squeeze(-1), (M @ z.unsqueeze(-1)).squeeze(-1)
    assert (size_of(image_s - s) <= 1e-11 * size_of(v))[regular].all()
    assert (size_of(image_z) <= 1e-11 * size_of(v))[regular].all()


@by_case
def test_derivative_does_not_depend_on_the_scale(cones):
    s, z = regular_points(cones)
    M, _ = dense_derivative(cones, s - z)
    for scale in SCALES:
        assert torch.allclose(dense_derivative(cones, scale * (s - z))[0], M, rtol=0, atol=1e-11)


@by_case
def test_kinks_are_finite_and_deterministic(cones):
    v = kinks(cones)
    for scale in (1.0, 1e-6, 1e6):
        first, second = cones.spectrum(scale * v), cones.spectrum(scale * v)
        assert cones.project(scale * v).isfinite().all()
        assert first.mu.isfinite().all()
        assert torch.equal(first.mu, second.mu)
        assert torch.equal(dense_basis(cones, scale * v), dense_basis(cones, scale * v))


@by_case
def test_elements_do_not_depend_on_their_neighbours(cones):
    v = torch.cat([random_points(cones, count=3), kinks(cones)[:4]])
    together = cones.project(v), dense_derivative(cones, v)[0]
    for i in range(len(v)):
        assert torch.allclose(cones.project(v[i]), together[0][i], rtol=0, atol=1e-15 * float(size_of(v[i])))
        assert torch.allclose(dense_derivative(cones, v[i])[0], together[1][i], rtol=0, atol=1e-13)


FACES = {
    "exponential, face and edge": (Cones(exponential=1), [[-1.0, -1.0, 1.0], [-1.0, -1.0, -1.0], [-0.5, -2.0, 3.0]]),
    "power, x and y negative": (Cones(power=(0.3,)), [[-1.0, -1.0, 0.1], [-1.0, 2.0, 0.5], [2.0, -1.0, 0.5]]),
    "second order, axis": (Cones(second_order=(3,)), [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.1, 1.0, 0.0]]),
    "psd, diagonal": (Cones(psd=(2,)), [[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0], [-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]]),
}


@pytest.mark.parametrize("name", FACES)
def test_derivative_at_chosen_points(name):
    """Smooth points that random ones miss."""
    cones, points = FACES[name]
    v = torch.tensor(points, dtype=torch.float64)
    M, step, eye = dense_derivative(cones, v)[0], 1e-5, torch.eye(cones.rows, dtype=torch.float64)
    ahead, behind = (cones.project(v.unsqueeze(-2) + side * step * eye) for side in (1, -1))
    assert torch.allclose(((ahead - behind) / (2 * step)).mT, M, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("alpha", "expected"), [(0.3, 0.0), (0.7, 1.0), (0.5, 1 / 3)])
def test_power_cone_on_the_plane(alpha, expected):
    """v = (1, -1, +-small): how the projection's third entry follows, against its limit."""
    M, _ = dense_derivative(Cones(power=(alpha,)), torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64))
    assert torch.allclose(M, torch.diag(torch.tensor([1.0, 0.0, expected], dtype=torch.float64)))
    small = Cones(power=(0.5,)).project(torch.tensor([1.0, -1.0, 1e-7], dtype=torch.float64))
    assert float(small[2]) == pytest.approx(1e-7 / 3, rel=1e-6)


# ------------------------------------------------------------------------------------------- rows, svec


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_svec_keeps_inner_products_and_inverts(order, generator):
    X, Y = (torch.randn(7, order, order, generator=generator, dtype=torch.float64) for _ in range(2))
    X, Y = X + X.mT, Y + Y.mT
    assert torch.allclose((svec(X) * svec(Y)).sum(-1), (X @ Y).diagonal(dim1=-2, dim2=-1).sum(-1))
    assert torch.allclose(smat(svec(X), order), X, rtol=1e-15, atol=0)


def test_svec_order_is_the_upper_triangle_by_columns():
    root = 2**0.5
    X = torch.tensor([[0.0, 1.0, 3.0], [1.0, 2.0, 4.0], [3.0, 4.0, 5.0]], dtype=torch.float64)
    expected = torch.tensor([0.0, root, 2.0, 3 * root, 4 * root, 5.0], dtype=torch.float64)
    assert torch.allclose(svec(X), expected)
    assert svec_index(3).tolist() == [[0, 1, 3], [1, 2, 4], [3, 4, 5]]


def test_rows_of_the_product():
    cones = Cones(zero=2, nonnegative=3, second_order=(3, 3, 4), psd=(2, 3), exponential=2, power=(0.3, 0.5, 0.3))
    assert cones.rows == 2 + 3 + 10 + 3 + 6 + 6 + 9
    names = [(type(group.cone).__name__, group.start, group.count) for group in cones.groups]
    assert names == [
        ("Zero", 0, 1),
        ("Nonnegative", 2, 1),
        ("SecondOrder", 5, 2),
        ("SecondOrder", 11, 1),
        ("PSD", 15, 1),
        ("PSD", 18, 1),
        ("Exponential", 24, 2),
        ("Power", 30, 3),
    ]


def test_product_works_block_by_block():
    parts = [c for c in CASES.values() if c is not PRODUCT]
    v = torch.randn(4, PRODUCT.rows, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pieces = v.split([part.rows for part in parts], dim=-1)
    # CASES lists kinds in row order except that zero rows and inequalities are merged, which changes nothing here.
    expected = torch.cat([part.project(piece) for part, piece in zip(parts, pieces, strict=True)], dim=-1)
    assert torch.allclose(PRODUCT.project(v), expected, rtol=0, atol=1e-14)


def test_scs_order_is_a_permutation_onto_lower_triangles():
    order = row_order(Cones(zero=1, psd=(3,), exponential=1))
    # Lower triangle by columns: (0,0) (1,0) (2,0) (1,1) (2,1) (2,2), as positions in our svec.
    assert order.tolist() == [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]


def test_no_cones():
    cones, v = Cones(), torch.zeros(2, 0, dtype=torch.float64)
    assert cones.rows == 0
    assert cones.project(v).shape == cones.spectrum(v).mu.shape == (2, 0)
    assert cones.describe() == "none"


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"zero": -1}, "zero"),
        ({"nonnegative": -2}, "nonnegative"),
        ({"exponential": -1}, "exponential"),
        ({"second_order": (3, 0)}, "second_order"),
        ({"psd": (0,)}, "psd"),
        ({"power": (0.0,)}, "power"),
        ({"power": (0.5, 1.0)}, "power"),
        ({"power": (float("nan"),)}, "power"),
        ({"zero": 1.5}, "zero"),
        ({"second_order": (2.5,)}, "second_order"),
        ({"second_order": 3}, "second_order"),
        ({"psd": "3"}, "psd"),
        ({"power": ("half",)}, "power"),
        ({"nonnegative": None}, "nonnegative"),
    ],
)
def test_wrong_sizes_are_named(sizes, named):
    with pytest.raises(ArgumentError, match=named):
        Cones(**sizes)


def test_unknown_kinds_are_named():
    with pytest.raises(ArgumentError, match="quadratic"):
        Cones.coerce({"quadratic": (3,)})


def test_mappings_and_lists_are_accepted():
    assert Cones.coerce({"psd": [2, 3], "power": [0.5]}) == Cones(psd=(2, 3), power=(0.5,))
    assert hash(Cones(psd=[2])) == hash(Cones(psd=(2,)))
