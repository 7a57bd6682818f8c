"""What errors are measured against: this library with Clarabel at tolerance 1e-11, kept in the user's cache folder.

It is slow for large problems and the same for every run, hence the cache: `XDG_CACHE_HOME` or ~/.cache, one file per
problem, batch and data. Delete the folder after a change that may alter a solution at that tolerance.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from contenders import Values
from families import Family
from torch import Tensor

import convexlayers as cl

TOLERANCE = 1e-11
Reference = tuple[list[Tensor], list[Tensor]]


def family_reference(name: str, family: Family, values: Values) -> Reference:
    """Variables of a problem written in CVXPY, and the gradients of the sum of their squares."""
    problem, parameters, variables, _ = family

    def solve(leaves: list[Tensor]) -> tuple[Tensor, ...]:
        return cl.ConvexLayer(problem, parameters, variables, solver="clarabel", tolerance=TOLERANCE)(*leaves)

    return cached(name, values, solve)


def cached(name: str, values: Values, solve: Callable[[list[Tensor]], tuple[Tensor, ...]]) -> Reference:
    """Outputs and gradients, from the file if there is one."""
    path = cache_folder() / f"{name}-{values[0].shape[0]}-{digest(values)}.pt"
    if path.exists():
        return torch.load(path)
    leaves = [value.detach().clone().requires_grad_() for value in values]
    outputs = solve(leaves)
    gradients = torch.autograd.grad(torch.stack([(output**2).sum() for output in outputs]).sum(), leaves)
    reference = [output.detach() for output in outputs], list(gradients)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and moved, so that an interrupted run leaves no half a file.
    part = path.with_suffix(f".{os.getpid()}")
    torch.save(reference, part)
    part.replace(path)
    return reference


def cache_folder() -> Path:
    """Where references are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convexlayers" / "benchmarks"


def digest(values: Values) -> str:
    """Of the data that the reference belongs to."""
    found = hashlib.sha256()
    for value in values:
        found.update(repr(tuple(value.shape)).encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()[:12]
