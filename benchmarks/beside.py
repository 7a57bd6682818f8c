"""Functions of tensors beside each other on the same values: forward and backward, medians of turns, one table.

What `zoo.py` and `nodes.py` have in common; whole problems through contenders' own interfaces are timed by harness.py.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from families import randn
from harness import limit_threads, milliseconds, relative_error
from report import RESULTS, environment, show, write
from torch import Tensor

Layer = Callable[..., Tensor]
Case = TypeVar("Case")


def call(layer: Layer, values: list[Tensor]) -> tuple[float, Tensor]:
    """Seconds of forward and backward, and the output."""
    inputs = [value.clone().requires_grad_() for value in values]
    start = time.perf_counter()
    output = layer(*inputs)
    middle = time.perf_counter()
    weights = randn(*output.shape, seed=11)
    again = time.perf_counter()
    torch.autograd.grad(output, inputs, weights, allow_unused=True)
    return middle - start + time.perf_counter() - again, output.detach()


def compare(name: str, layers: Mapping[str, Layer | None], values: list[Tensor], repeats: int) -> dict[str, object]:
    """One row: "ours" beside the others.

    Args:
        name: of the case.
        layers: by the prefix of their columns, "ours" first; None for those that there are not.
        values: arguments, each with the batch dimension.
        repeats: turns of each.
    """
    present = {key: layer for key, layer in layers.items() if layer is not None}
    outputs = {key: call(layer, values)[1] for key, layer in present.items()}
    seconds: dict[str, list[float]] = {key: [] for key in present}
    for turn in range(repeats):
        for key in present if turn % 2 == 0 else reversed(present):
            # The first of three calls finds the caches as the contender before it left them.
            seconds[key] += [call(present[key], values)[0] for _ in range(3)][1:]
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    row: dict[str, object] = {"case": name, "batch": len(values[0])}
    for key, time_taken in medians.items():
        row[f"{key}_ms"] = milliseconds(time_taken)
        if key != "ours":
            row[f"times_{key}"] = float(f"{time_taken / medians['ours']:.3g}")
            error = relative_error([outputs["ours"]], [outputs[key]])
            row["error" if key == "torch" else f"{key}_error"] = f"{error:.1e}"
    return row


def run(
    description: str | None,
    name: str,
    cases: Callable[[], Mapping[str, Case]],
    measure: Callable[[str, Case, int], dict[str, object]],
    fields: Sequence[str],
    repeats: int,
) -> list[dict[str, object]]:
    """The command line of a script: measure the chosen cases, print a table, write a CSV file.

    Args:
        description: of the script.
        name: of its results.
        cases: makes them, by name.
        measure: makes the row of a case, given the number of turns.
        fields: columns of the table.
        repeats: turns, unless the user says otherwise.

    Returns:
        the rows.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="NAME")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, help="cores to use, all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.csv")
    options = parser.parse_args()
    limit_threads(options.threads)
    chosen = {name: case for name, case in cases().items() if not options.cases or name in options.cases}
    rows = []
    for name, case in chosen.items():
        rows.append(measure(name, case, options.repeats))
        print({key: value for key, value in rows[-1].items() if value}, flush=True)
    write(options.output, environment([]), fields, rows)
    show(fields, rows)
    return rows
