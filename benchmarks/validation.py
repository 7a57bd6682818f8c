"""What checking the values of parameters costs, as a share of a forward and backward pass.

Usage: python benchmarks/validation.py [--repeats 40] [--batch B] [--families NAME ...]

The families of families.py whose parameters have attributes, and problems with the costlier attributes. Passes
and checks alternate, so that whatever else the machine does hits both; prints the medians in milliseconds and the share
of the check in the pass, in percent.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import torch
from families import FAMILIES, Family, randn

import convexlayers as cl
from convexlayers.batching import to_batch
from convexlayers.execute import check


def gram(B: int, n: int, seed: int) -> torch.Tensor:
    """Positive definite matrices."""
    L = randn(B, n, n, seed=seed)
    return L @ L.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)


def quadratic(n: int, **attributes: Any) -> Family:
    """Quadratic form with a parameter matrix, over the simplex."""
    x, P, q = cp.Variable(n, nonneg=True), cp.Parameter((n, n), **attributes), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x), [cp.sum(x) == 1])
    return problem, [P, q], [x], lambda B: [gram(B, n, 1), randn(B, n, seed=2)]


def with_attributes(n: int, draw: Callable[[int], torch.Tensor], **attributes: Any) -> Family:
    """Projection of a symmetric matrix's action, its parameter with the attributes."""
    x, A = cp.Variable(n), cp.Parameter((n, n), **attributes)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + cp.sum(x)), [A @ x <= 1])
    return problem, [A], [x], lambda B: [draw(B)]


def diagonal(B: int) -> torch.Tensor:
    """Diagonal matrices."""
    return torch.diag_embed(randn(B, 50, seed=1))


ATTRIBUTES: dict[str, tuple[Callable[[], Family], int]] = {
    "psd20": (lambda: quadratic(20, PSD=True), 128),
    "psd100": (lambda: quadratic(100, PSD=True), 32),
    "symmetric50": (lambda: with_attributes(50, lambda B: gram(B, 50, 1), symmetric=True), 64),
    "nonneg50": (lambda: with_attributes(50, lambda B: randn(B, 50, 50, seed=1).abs(), nonneg=True), 64),
    "pos50": (lambda: with_attributes(50, lambda B: randn(B, 50, 50, seed=1).abs() + 1, pos=True), 64),
    "bounds50": (lambda: with_attributes(50, lambda B: randn(B, 50, 50, seed=1).tanh(), bounds=[-1, 1]), 64),
    "diag50": (lambda: with_attributes(50, diagonal, diag=True), 64),
}


def share(family: Family, B: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a forward and backward pass with the check, and of the check in it."""
    problem, parameters, variables, sample = family
    values = [value.requires_grad_() for value in sample(B)]
    layer = cl.ConvexLayer(problem, parameters, variables)
    tensors, batch = to_batch(layer.program.parameters, values)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        outputs = layer(*values)
        torch.autograd.grad(outputs, values, [torch.ones_like(output) for output in outputs])
        middle = time.perf_counter()
        check(layer.program, tensors, batch)
        times.append((middle - start, time.perf_counter() - middle))
    whole, checks = zip(*times[1:], strict=True)
    return statistics.median(whole), statistics.median(checks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {name: case for name, case in FAMILIES.items() if any(p.is_nonneg() for p in case[0]()[1])} | ATTRIBUTES
    parser.add_argument("--families", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--batch", type=int)
    options = parser.parse_args()
    print(f"# convexlayers {cl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("family,batch,pass_ms,check_ms,check_percent")
    for name in options.families:
        make, batch = cases[name]
        batch = options.batch or batch
        whole, part = share(make(), batch, options.repeats)
        print(f"{name},{batch},{1e3 * whole:.3f},{1e3 * part:.3f},{100 * part / whole:.1f}", flush=True)


if __name__ == "__main__":
    main()
