"""The native engine in lanes and threads: to the last bit, an element is what it is alone."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch_threads import threads

import convexlayers as cl
from convexlayers.cones import Cones
from convexlayers.native import info
from convexlayers.testing import join, random_program
from convexlayers.testing.problems import KINDS

BATCH = 19  # not a multiple of any number of lanes
LANES = {"baseline": 2, "avx2": 4, "avx512": 8}


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qp():
    """Equalities, inequalities and bounds; every element has numbers, an active set and a size of its own."""
    n, e, g = 12, 3, 10
    L = randn(BATCH, n, n, seed=0)
    inside = randn(BATCH, n, seed=1)
    A, G = randn(BATCH, e, n, seed=2), randn(BATCH, g, n, seed=3)
    size = (2 * randn(BATCH, 1, seed=4)).exp()
    data = {
        "P": L @ L.mT / n + 0.1 * torch.eye(n),
        "q": 3 * size * randn(BATCH, n, seed=5),
        "G": G,
        "h": (G @ inside[..., None]).squeeze(-1) + randn(BATCH, g, seed=6).abs(),
        "A": A,
        "b": (A @ inside[..., None]).squeeze(-1),
        "lb": inside - 2.0,
    }
    return cl.solve_qp, data


def socp():
    """Cones below and above the size from which they are stored sparse, and one of dimension one."""
    n, dims = 8, (1, 3, 4, 6, 9)
    inside = 0.3 * randn(BATCH, n, seed=0)
    data = {"P": 0.05 * torch.eye(n, dtype=torch.float64).expand(BATCH, n, n), "q": randn(BATCH, n, seed=1)}
    for k, dim in enumerate(dims):
        M, c = randn(BATCH, dim - 1, n, seed=10 + k), 0.1 * randn(BATCH, n, seed=20 + k)
        shift = randn(BATCH, dim - 1, seed=30 + k)
        length = ((M @ inside[..., None]).squeeze(-1) + shift).norm(dim=-1)
        data |= {f"M{k}": M, f"v{k}": shift, f"c{k}": c, f"d{k}": length - (c * inside).sum(-1) + 0.1}
    data["lb"] = inside - 1.0

    def solve(P, q, lb, **rest):
        cones = [tuple(rest[f"{name}{k}"] for name in "Mvcd") for k in range(len(dims))]
        options = {name: value for name, value in rest.items() if len(name) > 2}
        return cl.solve_socp(P, q, cones, lb=lb, **options)

    return solve, data


def lp():
    n, g = 6, 20
    G = randn(BATCH, g, n, seed=1)
    y = randn(BATCH, g, seed=2).abs()  # a dual point: bounded
    data = {"q": -(G.mT @ y[..., None]).squeeze(-1), "G": G, "h": randn(BATCH, g, seed=3).abs() + 0.1}
    return cl.solve_lp, data


def cone_program(cones, rank=None):
    """With a solution that lies differently in each cone."""
    problem = random_program(cones, rank=rank, batch=(BATCH,), seed=1, activity="mixed")

    def solve(P, q, A, b, **options):
        return cl.solve_cone_program(P, q, A, b, cones, **options)

    # Sizes of their own, and with them numbers of iterations.
    size = (2 * randn(BATCH, 1, seed=4)).exp()
    data = {"P": problem.P, "q": size * problem.q, "A": problem.A, "b": size * problem.b}
    return solve, data


EVERY_KIND = join(*KINDS.values())
PROBLEMS = {
    "qp": qp,
    "socp": socp,
    "lp": lp,
    "psd": partial(cone_program, Cones(zero=1, psd=(1, 2, 3, 5))),
    "exponential": partial(cone_program, Cones(nonnegative=2, exponential=4)),
    "power": partial(cone_program, Cones(nonnegative=2, power=(0.1, 0.5, 0.5, 0.8))),
    "every cone": partial(cone_program, join(EVERY_KIND, EVERY_KIND)),
    "linear over every cone": partial(cone_program, EVERY_KIND, rank=0),
}
# What a batch may share and still have solutions.
SHARED = ("P", "c4")


def solve_and_differentiate(solve, data):
    """x, s, z and the gradient of a weighted sum of all three in every array of the problem."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in data.items()}
    solution = solve(**leaves, solver="native")
    results = [solution.x, solution.s, solution.z]
    loss = sum((value * torch.cos(torch.arange(value.shape[-1], dtype=value.dtype))).sum() for value in results)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {
        **dict(zip(("x", "s", "z"), [value.detach() for value in results], strict=True)),
        **{f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)},
    }


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.contiguous().numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("name", PROBLEMS)
class TestBitForBit:
    @pytest.fixture
    def problem(self, name):
        return PROBLEMS[name]()

    @pytest.fixture
    def together(self, problem):
        with threads(1):
            return solve_and_differentiate(*problem)

    def test_nontrivial(self, together):
        for name, value in together.items():
            assert value.isfinite().all(), name
            # The solution of an LP does not move with q; a cone of dimension one has no rows in its matrix.
            assert value.any() or name == "grad_q" or value.numel() == 0, name

    @pytest.mark.parametrize("batched", [True, False])
    def test_alone(self, problem, together, batched):
        """The scalar kernel, with a batch dimension of one and with none."""
        solve, data = problem
        for element in range(BATCH):
            pick = slice(element, element + 1) if batched else element
            alone = solve_and_differentiate(solve, {name: value[pick] for name, value in data.items()})
            for name, value in alone.items():
                assert same_bits(together[name][pick], value), (element, name)

    def test_any_place_in_the_batch(self, problem, together):
        solve, data = problem
        order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))[: BATCH - 4]
        some = solve_and_differentiate(solve, {name: value[order] for name, value in data.items()})
        for name, value in some.items():
            assert same_bits(together[name][order], value), name

    @pytest.mark.parametrize("count", [2, 3])
    def test_threads(self, problem, together, count):
        with threads(count):
            found = solve_and_differentiate(*problem)
        for name, value in found.items():
            assert same_bits(together[name], value), name

    def test_gradient_of_shared_parameters(self, problem):
        """Sums over the batch, in an order that threads do not change."""
        solve, data = problem
        shared = ("q",) if solve is cl.solve_lp else SHARED
        # Enough elements for several blocks of lanes and threads.
        data = {
            name: value[0] if name in shared else value.repeat(8, *[1] * (value.ndim - 1))
            for name, value in data.items()
        }
        found = []
        for count in (1, 2, 3):
            with threads(count):
                found.append(solve_and_differentiate(solve, data))
        for name, value in found[0].items():
            assert all(same_bits(value, other[name]) for other in found[1:]), name


@pytest.mark.parametrize("asked", LANES)
def test_instruction_set_can_be_asked_for(asked):
    """At most what was asked for: a process of a lesser set runs where a greater one does."""
    code = "from convexlayers.native import info; print(info()['instruction_set'], info()['lanes'])"
    environment = {**os.environ, "CONVEXLAYERS_ISA": asked}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    name, lanes = found.stdout.split()
    names = list(LANES)
    assert LANES[name] == int(lanes)
    assert names.index(name) <= names.index(asked)
    if "CONVEXLAYERS_ISA" not in os.environ and names.index(info()["instruction_set"]) >= names.index(asked):
        assert name == asked


@pytest.mark.parametrize("asked", ["baseline", "avx2"])
def test_other_instruction_sets_are_bit_for_bit_too(asked):
    """The tests above over every cone, in a process of a lesser set."""
    environment = {**os.environ, "CONVEXLAYERS_ISA": asked, "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "every and not linear"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
