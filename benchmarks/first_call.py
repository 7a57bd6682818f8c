"""What comes before the speed: building a layer, its first call, and all later ones.

Usage: python benchmarks/first_call.py [--families NAME ...] [--builds 5] [--output FILE]

Of the families of families.py, with their batches and one thread: seconds to build the CVXPY problem and to make a
layer of it (compilation and symbolic analysis), milliseconds of the first forward and backward pass and of later
ones. The smallest over layers that are built anew, since what is more is the machine's other work; the very first is
not counted, since it pays for imports. Also the time that importing takes, in processes of their own.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from families import FAMILIES, Family
from report import RESULTS, environment, show, write

import convexlayers as cl

FIELDS = ["what", "batch", "cvxpy_s", "compile_s", "first_ms", "later_ms"]
IMPORTS = {
    "import torch": "import torch",
    "import convexlayers, after torch": "import convexlayers",
    "import cvxpy, after these": "import cvxpy",
}
TIMED = "import time; {before}; start = time.perf_counter(); {after}; print(time.perf_counter() - start)"


def import_seconds(repeats: int) -> list[dict[str, str]]:
    """Of each package in turn, on top of those before it."""
    rows, before = [], "pass"
    for what, statement in IMPORTS.items():
        command = [sys.executable, "-c", TIMED.format(before=before, after=statement)]
        found = [
            float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(repeats)
        ]
        rows.append({"what": what, "compile_s": f"{min(found):.2f}"})
        before = f"{before}; {statement}"
    return rows


def one_pass(layer: cl.ConvexLayer, values: list[torch.Tensor]) -> float:
    """Seconds of a forward and backward pass."""
    start = time.perf_counter()
    outputs = layer(*values)
    torch.autograd.grad(torch.stack([output.square().sum() for output in outputs]).sum(), values)
    return time.perf_counter() - start


def measure(name: str, builds: int) -> dict[str, str]:
    """One family."""
    make, batch = FAMILIES[name]
    figures: list[tuple[float, ...]] = []
    for _ in range(builds + 1):
        start = time.perf_counter()
        family: Family = make()
        problem, parameters, variables, sample = family
        made = time.perf_counter()
        layer = cl.ConvexLayer(problem, parameters, variables)
        compiled = time.perf_counter()
        values = [value.requires_grad_() for value in sample(batch)]
        first = one_pass(layer, values)
        later = min(one_pass(layer, values) for _ in range(10))
        figures.append((made - start, compiled - made, 1e3 * first, 1e3 * later))
    smallest = [f"{min(column):.3g}" for column in zip(*figures[1:], strict=True)]
    return {"what": name, "batch": str(batch)} | dict(zip(FIELDS[2:], smallest, strict=True))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--builds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "first_call.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, options.builds) for name in options.families] + import_seconds(options.builds)
    write(options.output, environment([]), FIELDS, rows)
    show(FIELDS, rows)


if __name__ == "__main__":
    main()
