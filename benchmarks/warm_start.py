"""What beginning at the solution of the batch before brings, for each engine that can.

Usage: python benchmarks/warm_start.py [--engines native scs] [--families NAME ...] [--batch B] [--repeats 7]

Every parameter entry is multiplied by 1 + change * (a standard normal number), so that changes are relative; values
that have to be symmetric stay so, and those that are distributions. Calls without and with the start alternate. Prints
the median milliseconds of a call of `layer.solve`, the mean number of iterations, and the largest difference between
the two solutions, relative to the largest entry.
"""

import argparse
import statistics
import time

import torch
from families import FAMILIES

import convexlayers as cl

CHANGES = (0.0, 1e-6, 1e-4, 1e-2, 1e-1)


def moved(family: str, values: list[torch.Tensor], change: float) -> list[torch.Tensor]:
    """The values after a change of that size."""
    generator = torch.Generator().manual_seed(5)
    noisy = [v * (1 + change * torch.randn(v.shape, generator=generator, dtype=v.dtype)) for v in values]
    if family.startswith("sdp"):
        return [(v + v.mT) / 2 for v in noisy]
    if family.startswith("ot"):
        # The cost has two dimensions beside the batch's, the marginals one.
        return [v.abs() / v.abs().sum(-1, keepdim=True) if v.ndim == 2 else v for v in noisy]
    return noisy


def compare(layer: cl.ConvexLayer, before: list[torch.Tensor], now: list[torch.Tensor], repeats: int) -> str:
    """One line of figures."""
    previous = layer.solve(*before)
    times: tuple[list[float], list[float]] = ([], [])
    found = [previous, previous]
    for _ in range(repeats):
        for i, start in enumerate((None, previous)):
            begun = time.perf_counter()
            found[i] = layer.solve(*now, warm_start=start)
            times[i].append(1e3 * (time.perf_counter() - begun))
    cold, warm = (statistics.median(part) for part in times)
    iterations = [float(solution.iterations.double().mean()) for solution in found]
    pairs = list(zip(found[0].values, found[1].values, strict=True))
    scale = max(float(one.abs().max()) for one, _ in pairs)
    difference = max(float((one - other).abs().max()) for one, other in pairs) / scale
    return (
        f"{cold:.3f},{warm:.3f},{cold / warm:.2f},{iterations[0]:.1f},{iterations[1]:.1f},{difference:.1e},"
        f"{int((~found[1].solved).sum())}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["native", "scs"])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"# convexlayers {cl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("engine,family,batch,change,cold_ms,warm_ms,ratio,cold_iterations,warm_iterations,difference,unsolved")
    for engine in options.engines:
        for name in options.families:
            make, batch = FAMILIES[name]
            batch = options.batch or batch
            problem, parameters, variables, sample = make()
            layer = cl.ConvexLayer(problem, parameters, variables, solver=engine, on_failure="nan")
            values = sample(batch)
            for change in CHANGES:
                figures = compare(layer, values, moved(name, values, change), options.repeats)
                print(f"{engine},{name},{batch},{change:g},{figures}", flush=True)


if __name__ == "__main__":
    main()
