"""Memory of a layer with one very large parameter: compilation, forward and backward pass; Linux only.

Usage: python benchmarks/large_parameter.py [--rows 4000] [--columns 3000] [--kind least_squares|inequalities]

`least_squares` is sum_squares(Q x - 1) + sum_squares(x), Q the parameter; `inequalities` is a projection onto
{x : G x <= 1}, G the parameter. Every step is measured by the growth of the high-water mark of the resident set; prints
one line of JSON with seconds and bytes, and bytes per entry of the parameter.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import torch
from memory import clear_high_water_mark, status

import convexlayers as cl


def make(kind: str, rows: int, columns: int) -> tuple[cp.Problem, list[Any], list[Any]]:
    """The problem, its parameter, its variable."""
    x, matrix = cp.Variable(columns), cp.Parameter((rows, columns))
    if kind == "least_squares":
        objective, constraints = cp.sum_squares(matrix @ x - 1) + cp.sum_squares(x), []
    else:
        objective, constraints = cp.sum_squares(x - 1), [matrix @ x <= 1]
    return cp.Problem(cp.Minimize(objective), constraints), [matrix], [x]


def step(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A result, and what it took."""
    clear_high_water_mark()
    before, start = status("VmRSS"), time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    return result, {"seconds": round(seconds, 2), "peak": status("VmHWM") - before, "kept": status("VmRSS") - before}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["least_squares", "inequalities"], default="least_squares")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--columns", type=int, default=3000)
    parser.add_argument("--solver", default="auto")
    parser.add_argument("--compile-only", action="store_true")
    options = parser.parse_args()
    problem, parameters, variables = make(options.kind, options.rows, options.columns)
    program, compiled = step(lambda: cl.compile_problem(problem, parameters, variables))
    report: dict[str, Any] = {"entries": options.rows * options.columns, "compile": compiled}
    if not options.compile_only:
        generator = torch.Generator().manual_seed(0)
        value = torch.randn(options.rows, options.columns, dtype=torch.float64, generator=generator)
        value.requires_grad_()
        layer, report["setup"] = step(lambda: cl.ConvexLayer.from_program(program, solver=options.solver))
        (x,), report["forward"] = step(lambda: layer(value))
        _, report["backward"] = step(lambda: torch.autograd.grad(x.sum(), value))
    for part in report.values():
        if isinstance(part, dict):
            part["peak_per_entry"] = round(part["peak"] / report["entries"], 1)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
