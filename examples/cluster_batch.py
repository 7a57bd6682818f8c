"""Solve and differentiate a large set of problems on a cluster: one compiled layer, shards, workers that may die.

The problems are portfolios: each day has expected returns r and risk factors F, and

    maximize  r'x - |F'x|^2 - 0.1 |x|^2    subject to  sum(x) = 1,  0 <= x <= 0.3

is solved and the gradient of a loss taken, for every day. The layer is compiled once, here, and put into Ray's store as
the bytes of its file; workers load it without CVXPY. The days are cut into shards, one task each. A shard whose worker
is lost is given to another one (--kill ends one worker on purpose, while it works), and since a shard's result depends
on nothing but its values, the whole is the same to the last bit as what one process computes.

Usage: python examples/cluster_batch.py [--fast] [--kill] [--address ADDRESS] [--workers N] [--output FOLDER]
Needs ray: pip install 'convexlayers[cluster]'. Without --address it starts a cluster of this machine alone.
"""

import argparse
import io
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import cvxpy as cp
import ray
import torch
from ray.exceptions import RayActorError
from torch import Tensor
from tqdm import tqdm

import convexlayers as cl

Shard = tuple[Tensor, Tensor]


def compile_layer(assets: int, factors: int) -> bytes:
    """The layer as the bytes of its file."""
    x, r, F = cp.Variable(assets), cp.Parameter(assets, name="r"), cp.Parameter((factors, assets), name="F")
    objective = r @ x - cp.sum_squares(F @ x) - 0.1 * cp.sum_squares(x)
    problem = cp.Problem(cp.Maximize(objective), [cp.sum(x) == 1, x >= 0, x <= 0.3])
    file = io.BytesIO()
    cl.ConvexLayer(problem, [r, F], [x]).save(file)
    return file.getvalue()


def solve(layer: cl.ConvexLayer, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
    """Portfolios, and gradients of the sum of their squared weights, (days, ...)."""
    r, F = (value.requires_grad_() for value in shard)
    (x,) = layer(r, F)
    return (x.detach(), *torch.autograd.grad(x.square().sum(), (r, F)))


@ray.remote(num_cpus=1)
class Worker:
    """One process of the cluster, with the layer loaded."""

    def __init__(self, content: bytes) -> None:
        torch.set_num_threads(1)
        self.layer = cl.ConvexLayer.load(io.BytesIO(content))

    def solve(self, r: Any, F: Any) -> list[Any]:
        """Of one shard, as arrays."""
        return [part.numpy() for part in solve(self.layer, (torch.tensor(r), torch.tensor(F)))]


class Pool:
    """Workers that take shards until all are done; a lost worker is replaced and its shard taken up again."""

    def __init__(self, content: bytes, workers: int) -> None:
        self.content = ray.put(content)
        self.idle = [self._start() for _ in range(workers)]
        self.lost = 0

    def _start(self) -> Any:
        return Worker.remote(self.content)

    def run(self, shards: list[Shard], kill: bool) -> list[tuple[Tensor, ...]]:
        """Results in the order of the shards."""
        waiting, running, results = deque(range(len(shards))), {}, {}
        victim = self.idle[0] if kill else None
        with tqdm(total=len(shards), desc="shards") as bar:
            while len(results) < len(shards):
                while waiting and self.idle:
                    index, worker = waiting.popleft(), self.idle.pop(0)
                    running[worker.solve.remote(*[value.numpy() for value in shards[index]])] = (index, worker)
                if victim is not None:
                    ray.kill(victim)
                    victim = None
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                index, worker = running.pop(done)
                try:
                    results[index] = tuple(torch.tensor(part) for part in ray.get(done))
                    bar.update()
                except RayActorError:
                    self.lost += 1
                    waiting.append(index)
                    worker = self._start()
                    bar.set_postfix(workers_lost=self.lost)
                self.idle.append(worker)
        return [results[index] for index in range(len(shards))]


def main() -> None:
    """Solve on the cluster and in this process, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few seconds")
    parser.add_argument("--kill", action="store_true", help="end one worker while it works")
    parser.add_argument("--address", help="of a running cluster, by default one of this machine alone")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()

    days, assets, factors, size = (4000, 10, 3, 250) if options.fast else (200_000, 20, 5, 5000)
    torch.manual_seed(0)
    r, F = torch.randn(days, assets, dtype=torch.float64), torch.randn(days, factors, assets, dtype=torch.float64)
    shards = list(zip(r.split(size), F.split(size), strict=True))
    content = compile_layer(assets, factors)

    address = options.address
    ray.init(
        address=address, num_cpus=None if address else options.workers, include_dashboard=False, log_to_driver=False
    )
    start = time.perf_counter()
    pool = Pool(content, options.workers)
    found = pool.run(shards, options.kill)
    seconds = time.perf_counter() - start
    ray.shutdown()

    layer = cl.ConvexLayer.load(io.BytesIO(content))
    expected = [solve(layer, shard) for shard in tqdm(shards, desc="one process")]
    for shard, right in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(shard, right, strict=True)), "the cluster found something else"
    assert pool.lost == int(options.kill), f"{pool.lost} workers were lost"
    options.output.mkdir(parents=True, exist_ok=True)
    torch.save([torch.cat(parts) for parts in zip(*found, strict=True)], options.output / "cluster_batch.pt")
    print(f"{days} problems in {len(shards)} shards on {options.workers} workers: {seconds:.1f} s")
    print(f"workers lost: {pool.lost}; results equal to one process, to the last bit")


if __name__ == "__main__":
    main()
