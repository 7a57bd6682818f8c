"""What a call and its backward pass cost around the native work, beside an empty torch.autograd.Function.

Usage: python benchmarks/overhead.py [--repeats 2000] [--profile]

One element. The layer's time is that of a call and of torch.autograd.grad, less what the core's own functions took; the
Function's is that of a module that passes the same tensors to a Function which saves them and returns uninitialized
tensors of the right shapes, forward and backward. Calls alternate; prints medians in microseconds and the ratio.
--profile prints where the layer's time goes (cProfile, so with its own overhead).
"""

import argparse
import cProfile
import pstats
import statistics
import time
from typing import Any

import torch
from families import FAMILIES

import convexlayers as cl


class Empty(torch.autograd.Function):
    """Nothing, with the bookkeeping."""

    @staticmethod
    def forward(ctx: Any, shapes: list[tuple[int, ...]], *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(*values)
        return tuple([torch.empty(shape, dtype=torch.float64) for shape in shapes])

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *[torch.empty_like(value) for value in ctx.saved_tensors]


class EmptyModule(torch.nn.Module):
    """A module around it."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return Empty.apply(self.shapes, *values)  # type: ignore[return-value]


class Stopwatch:
    """The core's plan, with the time that its functions take."""

    def __init__(self, core: Any) -> None:
        self.core, self.seconds = core, 0.0

    def solve(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = self.core.solve(*arguments)
        self.seconds += time.perf_counter() - start
        return result

    def adjoint(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = self.core.adjoint(*arguments)
        self.seconds += time.perf_counter() - start
        return result


def call(module: torch.nn.Module, values: list[torch.Tensor], cotangents: list[torch.Tensor]) -> None:
    """Forward and backward."""
    torch.autograd.grad(module(*values), values, cotangents)


def measure(name: str, repeats: int, profile: bool) -> str:
    """One line."""
    problem, parameters, variables, sample = FAMILIES[name][0]()
    values = [value.requires_grad_() for value in sample(1)]
    layer = cl.ConvexLayer(problem, parameters, variables, solver="native", threads=1)
    outputs = layer(*values)
    cotangents = [torch.ones_like(output) for output in outputs]
    watch = Stopwatch(layer._plan.core)  # type: ignore[attr-defined]
    layer._plan._core = watch  # type: ignore[attr-defined]
    empty = EmptyModule([tuple(output.shape) for output in outputs])
    ours, theirs, native = [], [], []
    for _ in range(repeats):
        start, watch.seconds = time.perf_counter(), 0.0
        call(layer, values, cotangents)
        middle = time.perf_counter()
        call(empty, values, cotangents)
        ours.append(middle - start - watch.seconds)
        native.append(watch.seconds)
        theirs.append(time.perf_counter() - middle)
    if profile:
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(repeats):
            call(layer, values, cotangents)
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    own, other, inside = (1e6 * statistics.median(part) for part in (ours, theirs, native))
    return f"{name},{len(values)},{own:.1f},{inside:.1f},{other:.1f},{own / other:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"# convexlayers {cl.__version__}, torch {torch.__version__}, 1 thread, one element")
    print("family,parameters,layer_us,native_us,empty_function_us,ratio")
    for name in options.families:
        print(measure(name, options.repeats, options.profile), flush=True)


if __name__ == "__main__":
    main()
