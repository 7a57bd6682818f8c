"""Forward and backward time of the layer and of cvxpylayers, side by side, with the accuracy of both.

Usage: python benchmarks/run.py [--repeats N] [--families qp10 socp ...] [--output FILE]

Every contender gets the same tensors, in the same process, in turn. Reported are medians over the repeats, after one
warm-up call. Errors are relative to this library's solution at tolerance 1e-11, refined, and its gradient there.
cvxpylayers takes part if it is installed (`pip install cvxpylayers`); canonicalization is done once by both and not
counted.
"""

import argparse
import csv
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES
from tqdm import tqdm

import convexlayers as cl

Layer = Callable[..., tuple[torch.Tensor, ...]]


def contenders(problem: Any, parameters: list[Any], variables: list[Any]) -> dict[str, Layer]:
    """What is timed, by name."""
    found: dict[str, Layer] = {"convexlayers": cl.ConvexLayer(problem, parameters, variables)}
    if find_spec("cvxpylayers"):
        from cvxpylayers.torch import CvxpyLayer

        found["cvxpylayers"] = CvxpyLayer(problem, parameters=parameters, variables=variables)
    return found


def run_once(layer: Layer, values: list[torch.Tensor]) -> tuple[float, float, list[torch.Tensor], list[torch.Tensor]]:
    """Seconds forward, seconds backward, outputs, gradients; the loss is the sum of squares of all outputs."""
    inputs = [value.clone().requires_grad_() for value in values]
    start = time.perf_counter()
    outputs = layer(*inputs)
    middle = time.perf_counter()
    sum((output**2).sum() for output in outputs).backward()
    end = time.perf_counter()
    return middle - start, end - middle, [o.detach() for o in outputs], [i.grad for i in inputs if i.grad is not None]


def error(found: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Largest relative error over the tensors, in the maximum norm."""
    return max(
        float((f - r).abs().max() / r.abs().max().clamp(min=1e-300)) for f, r in zip(found, reference, strict=True)
    )


def benchmark(name: str, repeats: int) -> list[dict[str, Any]]:
    """One row per contender."""
    make, batch = FAMILIES[name]
    problem, parameters, variables, sample = make()
    values = sample(batch)
    reference_layer = cl.ConvexLayer(problem, parameters, variables, tolerance=1e-11)
    _, _, outputs, gradients = run_once(reference_layer, values)
    rows = []
    for contender, layer in contenders(problem, parameters, variables).items():
        row: dict[str, Any] = {"family": name, "batch": batch, "contender": contender}
        try:
            run_once(layer, values)
            runs = [run_once(layer, values) for _ in range(repeats)]
        except Exception as failure:  # a contender's failure is a result
            rows.append(row | {"failure": f"{type(failure).__name__}: {str(failure)[:60]}"})
            continue
        row["forward_ms"] = round(1e3 * statistics.median(run[0] for run in runs), 2)
        row["backward_ms"] = round(1e3 * statistics.median(run[1] for run in runs), 2)
        row["solution_error"] = f"{error(runs[-1][2], outputs):.1e}"
        row["gradient_error"] = f"{error(runs[-1][3], gradients):.1e}"
        rows.append(row)
    return rows


def main() -> None:
    """Run, print a table, write a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "families.csv")
    options = parser.parse_args()
    rows = [row for name in tqdm(options.families, file=sys.stderr) for row in benchmark(name, options.repeats)]
    packages = ["torch", "cvxpy", "clarabel"] + (["cvxpylayers", "diffcp"] if find_spec("cvxpylayers") else [])
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    fields = [
        "family",
        "batch",
        "contender",
        "forward_ms",
        "backward_ms",
        "solution_error",
        "gradient_error",
        "failure",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        file.write(f"# {versions}; {platform.machine()}, {torch.get_num_threads()} threads\n")
        writer = csv.DictWriter(file, fields, restval="")
        writer.writeheader()
        writer.writerows(rows)
    print(versions)
    for row in rows:
        print("  ".join(f"{row.get(field, '')!s:>14}" for field in fields))


if __name__ == "__main__":
    main()
