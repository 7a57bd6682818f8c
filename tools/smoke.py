"""A solve and its derivative by the installed package, against closed forms; and `python -m convexlayers check`.

Run outside the repository, or the package of the repository is what is tried:

    cd /tmp && python .../tools/smoke.py
"""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import cvxpy as cp
import torch

import convexlayers as cl
from convexlayers import native

INFORM = "from convexlayers import native; print(native.info()['instruction_set'])"
SETS = ["baseline", "avx2", "avx512"]


def project() -> None:
    """Projection onto {x : 1'x = 1}: x = t + (1 - 1't) / n 1, whose Jacobian is I - 11' / n."""
    x, t = cp.Variable(4), cp.Parameter(4)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.sum(x) == 1]), [t], [x])
    theta = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.arange(4, dtype=torch.float64)
    (solution,) = layer(theta)
    (solution * weights).sum().backward()
    torch.testing.assert_close(solution, theta + (1 - theta.sum(-1, keepdim=True)) / 4, rtol=0, atol=1e-8)
    torch.testing.assert_close(theta.grad, (weights - weights.mean()).expand(8, 4), rtol=0, atol=1e-8)


def use_every_instruction_set() -> None:
    """Each set up to the processor's best runs when it is asked for."""
    best = SETS.index(str(native.info()["instruction_set"]))
    for name in SETS[: best + 1]:
        environment = os.environ | {"CONVEXLAYERS_ISA": name}
        used = subprocess.run(
            [sys.executable, "-c", INFORM], env=environment, check=True, capture_output=True, text=True
        ).stdout
        if used.strip() != name:
            raise SystemExit(f"asked for {name}, the kernels in use are {used.strip()}")


def main() -> None:
    package = Path(cl.__file__).parent
    if package.parent == Path(__file__).parents[1]:
        raise SystemExit(f"{package} is the repository's own; run this elsewhere, with an installed package")
    project()
    use_every_instruction_set()
    # The package checks itself where it has that command.
    if importlib.util.find_spec("convexlayers.__main__") is not None:
        subprocess.run([sys.executable, "-m", "convexlayers", "check"], check=True)
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    print(f"convexlayers {cl.__version__}, torch {torch.__version__}, {system}: {native.info()}")


if __name__ == "__main__":
    main()
