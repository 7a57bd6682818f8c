"""The torch engine on an accelerator, beside what else solves batches there, and beside the native engine on the CPU.

Usage: python benchmarks/gpu.py [--device cuda] [--families qp10 ...] [--batches 128 1024 8192] [--fast] [--output FILE]

Forward and backward time of the nine families of run.py at every size of the batch, and of a QP layer (n = m = 50, all
of P, q, G, h differentiated). Every contender gets the same values, where it wants them, in the same process, in turn;
the device is waited for before and after each pass. Reported are medians, after one warm-up call, the largest KKT
residual, and the relative errors of solution and gradient against the native engine at tolerance 1e-10.

    convexlayers(torch)    ConvexLayer or solve_qp with solver="torch", data on the device
    convexlayers(native)   the same on the CPU
    cvxpylayers+moreau     CvxpyLayer with solver="MOREAU", data on the device, if installed: moreau[cuda]
    qpth                   QPFunction on the device, QP layer only, if installed

--fast and --device cpu see to it that the script runs where there is no accelerator.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, Cvxpylayers, Ours, Values
from families import FAMILIES
from harness import Row, describe, milliseconds, relative_error
from qp_contenders import OursQP, Qpth, ridged
from report import RESULTS, environment, show, write
from torch import Tensor
from tqdm import tqdm

import convexlayers as cl

BATCHES = (128, 1024, 8192)
FAST_FAMILIES, FAST_BATCHES = ("qp10", "qp_layer"), (4,)
QP_SIZE = 50
QP_LAYER = "qp_layer"
FIELDS = [
    "family", "batch", "contender", "device", "forward_ms", "backward_ms", "kkt_residual", "solution_error",
    "gradient_error", "repeats", "failure",
]  # fmt: skip


class SolverQP(OursQP):
    """`solve_qp` with the named engine."""

    def __init__(self, solver: str, tolerance: float | None = None) -> None:
        self.solver, self.tolerance = solver, tolerance
        self.name = f"convexlayers({solver})"

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        P, q, G, h = inputs
        solution = cl.solve_qp(P, q, G, h, solver=self.solver, tolerance=self.tolerance)
        self.residuals = solution.cone_solution.residuals
        return (solution.x,)

    def residual(self, values: Values) -> float:
        return float(self.residuals.largest.max())


class Engine(Ours):
    """`ConvexLayer` with the named engine, at a tolerance."""

    def __init__(self, solver: str, tolerance: float | None = None) -> None:
        super().__init__(solver)
        self.tolerance, self.packages = tolerance, ()

    def prepare(self, family: Any, batch: int) -> None:
        problem, parameters, variables, _ = family
        self.layer = cl.ConvexLayer(problem, parameters, variables, solver=self.solver, tolerance=self.tolerance)

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        solution = self.layer.solve(*inputs)
        self.residuals = solution.cone_solution.residuals
        return solution.values

    def residual(self, values: Values) -> float:
        return float(self.residuals.largest.max())


def waiting(device: torch.device) -> Callable[[], None]:
    """A function that returns when the device has done what it was asked for."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def call_once(
    contender: Contender, values: Values, wait: Callable[[], None]
) -> tuple[float, float, list[Tensor], list[Tensor]]:
    """Seconds of both passes, outputs and gradients; the loss is the sum of squares, its own gradient not timed."""
    inputs = contender.inputs(values)
    wait()
    start = time.perf_counter()
    results = contender.forward(inputs)
    wait()
    forward = time.perf_counter() - start
    outputs = contender.outputs(results)
    cotangents = torch.autograd.grad(torch.stack([(output**2).sum() for output in outputs]).sum(), results)
    wait()
    start = time.perf_counter()
    torch.autograd.backward(results, cotangents)
    wait()
    backward = time.perf_counter() - start
    return forward, backward, [o.detach().cpu() for o in outputs], [g.cpu() for g in contender.gradients(inputs)]


def measured(contender: Contender, problem: Any, values: Values, reference: Any, repeats: int, wait: Any) -> Row:
    """One row; a contender that fails stays in the table, with the reason."""
    row: Row = {"contender": contender.name, "device": str(values[0].device), "failure": ""}
    try:
        contender.prepare(problem, len(values[0]))
        call_once(contender, values, wait)
        calls = [call_once(contender, values, wait) for _ in range(repeats)]
    except Exception as failure:
        return row | {"failure": describe(failure)}
    residual = contender.residual(values)
    return row | {
        "forward_ms": milliseconds(statistics.median(call[0] for call in calls)),
        "backward_ms": milliseconds(statistics.median(call[1] for call in calls)),
        "kkt_residual": "" if residual is None else f"{residual:.1e}",
        "solution_error": f"{relative_error(calls[-1][2], reference[0]):.1e}",
        "gradient_error": f"{relative_error(calls[-1][3], reference[1]):.1e}",
        "repeats": len(calls),
    }


def benchmark(name: str, batch: int, device: torch.device, repeats: int) -> list[Row]:
    """One row per contender."""
    if name == QP_LAYER:
        problem = ridged(QP_SIZE, QP_SIZE)
        values = problem.draw(batch)
        there, here, judge = [SolverQP("torch"), Qpth()], SolverQP("native"), SolverQP("native", 1e-10)
    else:
        problem = FAMILIES[name][0]()
        values = problem[3](batch)
        there, here, judge = [Engine("torch"), Cvxpylayers("MOREAU")], Engine("native"), Engine("native", 1e-10)
    wait = waiting(device)
    judge.prepare(problem, batch)
    reference = call_once(judge, values, wait)[2:]
    moved = [value.to(device) for value in values]
    rows = [measured(c, problem, moved, reference, repeats, wait) for c in there if c.installed]
    rows.append(measured(here, problem, values, reference, repeats, wait))
    return [{"family": name, "batch": batch} | row for row in rows]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*FAMILIES, QP_LAYER]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--families", nargs="+", choices=names, metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--fast", action="store_true", help="two small families, to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.csv")
    options = parser.parse_args()
    options.families = options.families or (FAST_FAMILIES if options.fast else names)
    options.batches = options.batches or (FAST_BATCHES if options.fast else BATCHES)
    return options


def main() -> None:
    """Run, print a table, write a CSV file."""
    options = parse()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here: run this where there is one, or with --device cpu.")
    device, rows = torch.device(options.device), list[Row]()
    for name in tqdm(options.families, file=sys.stderr):
        for batch in options.batches:
            rows += benchmark(name, batch, device, options.repeats)
            # After every line, so that an interrupted run leaves what it has.
            write(options.output, environment([Qpth(), Cvxpylayers("MOREAU")]), FIELDS, rows)
    show(FIELDS, rows)


if __name__ == "__main__":
    main()
