"""How the accuracy of a derivative follows from that of the solution it is taken at.

Usage: python benchmarks/tolerance.py [--batch B] [--write docs/techniques.md]

Random programs whose solution is known (`convexlayers.testing.random_program`) are solved at tolerances from 1e-2 to
1e-10, and the gradient of |x|^2 in all numbers is compared with the gradient at the known solution. Three ways:

    layer       solve_cone_program, solver "auto": Newton steps take the solution on from where the iteration ends
    clarabel    Clarabel's point as it comes, with the derivative attached by differentiable_solution
    scs         the same with SCS

Errors are relative, in the maximum norm, the median over the batch; times play no part. Writes results/tolerance.csv,
and with --write the table between the markers of a page.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import clarabel
import numpy as np
import scs
import torch
from report import RESULTS, environment, read, show, write
from scipy import sparse
from torch import Tensor

import convexlayers as cl
from convexlayers.engines.clarabel import translate_cones
from convexlayers.engines.scs import cone_dict, row_order
from convexlayers.testing import SolvedProgram, random_program

FIELDS = ["program", "tolerance", "layer_x", "layer_gradient", "clarabel_x", "clarabel_gradient"]
FIELDS += ["scs_x", "scs_gradient"]
PROGRAMS = {
    "QP": cl.Cones(zero=3, nonnegative=20),
    "SOCP": cl.Cones(zero=3, nonnegative=5, second_order=(6, 6)),
    "SDP": cl.Cones(zero=3, psd=(5,)),
    "exponential": cl.Cones(zero=3, nonnegative=5, exponential=4),
}
TOLERANCES = [1e-2, 1e-4, 1e-6, 1e-8, 1e-10]
START, END = "<!-- tolerance: start -->", "<!-- tolerance: end -->"

Point = tuple[Tensor, Tensor, Tensor]
Numbers = tuple[Tensor, Tensor, Tensor, Tensor]
Row = dict[str, str]


def by_clarabel(data: list[np.ndarray], cones: cl.Cones, tolerance: float) -> list[np.ndarray]:
    """Its point (x, s, z), whatever it says of it."""
    P, q, A, b = data
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    upper = sparse.triu(sparse.csc_matrix(P), format="csc")
    rows = translate_cones(clarabel, cones)
    result = clarabel.DefaultSolver(upper, q, sparse.csc_matrix(A), b, rows, settings).solve()
    return [np.asarray(part) for part in (result.x, result.s, result.z)]


def by_scs(data: list[np.ndarray], cones: cl.Cones, tolerance: float) -> list[np.ndarray]:
    """The same, from its order of rows back into ours."""
    P, q, A, b = data
    order = row_order(cones)
    upper = sparse.triu(sparse.csc_matrix(P), format="csc")
    numbers = {"P": upper, "A": sparse.csc_matrix(A[order]), "b": b[order], "c": q}
    limits = {"eps_abs": tolerance, "eps_rel": tolerance, "max_iters": 200_000}
    result = scs.SCS(numbers, cone_dict(cones), verbose=False, **limits).solve()
    s, z = np.empty_like(b), np.empty_like(b)
    s[order], z[order] = result["s"], result["y"]
    return [np.asarray(result["x"]), s, z]


def elsewhere(solve: Callable[..., list[np.ndarray]], program: SolvedProgram, tolerance: float) -> Point:
    """The points of another package, one element after the other."""
    numbers = [part.numpy() for part in (program.P, program.q, program.A, program.b)]
    batch = len(program.q)
    points = [solve([part[i] for part in numbers], program.cones, tolerance) for i in range(batch)]
    x, s, z = (torch.as_tensor(np.stack(part)) for part in zip(*points, strict=True))
    return x, s, z


def at_point(program: SolvedProgram, point: Point) -> tuple[Tensor, Tensor]:
    """x, and the gradient of |x|^2 in all numbers, (B, *), at a point that is taken for the solution."""
    leaves = numbers_of(program)
    x, s, z = point
    # Whatever the point's residuals are: what the derivative there is worth is the question.
    solution = cl.differentiable_solution(*leaves, program.cones, x=x, s=s, z=z, tolerance=0.9)
    return gradient(solution.x, leaves)


def by_layer(program: SolvedProgram, tolerance: float) -> tuple[Tensor, Tensor]:
    """The same by the library's own solver."""
    leaves = numbers_of(program)
    solution = cl.solve_cone_program(*leaves, program.cones, tolerance=tolerance)
    return gradient(solution.x, leaves)


def numbers_of(program: SolvedProgram) -> Numbers:
    """Leaves to differentiate in."""
    P, q, A, b = (part.clone().requires_grad_() for part in (program.P, program.q, program.A, program.b))
    return P, q, A, b


def gradient(x: Tensor, leaves: Numbers) -> tuple[Tensor, Tensor]:
    """x, and the gradient of |x|^2 with all blocks side by side."""
    parts = torch.autograd.grad(x.square().sum(), leaves)
    return x.detach(), torch.cat([part.flatten(1) for part in parts], 1)


def error(found: Tensor, truth: Tensor) -> str:
    """Relative, in the maximum norm, the median over the batch."""
    off = (found - truth).abs().amax(1) / truth.abs().amax(1)
    return f"{off.median():.1e}"


def measure(name: str, batch: int) -> list[Row]:
    """The rows of one kind of program."""
    program = random_program(PROGRAMS[name], batch=(batch,), seed=0)
    x, slope = at_point(program, (program.x, program.s, program.z))
    rows = []
    for tolerance in TOLERANCES:
        row = {"program": name, "tolerance": f"{tolerance:.0e}"}
        found = {
            "layer": by_layer(program, tolerance),
            "clarabel": at_point(program, elsewhere(by_clarabel, program, tolerance)),
            "scs": at_point(program, elsewhere(by_scs, program, tolerance)),
        }
        for who, (x_found, slope_found) in found.items():
            row |= {f"{who}_x": error(x_found, x), f"{who}_gradient": error(slope_found, slope)}
        rows.append(row)
    return rows


def make_table(path: Path = RESULTS / "tolerance.csv") -> str:
    """Markdown: errors of x / gradient."""
    comment, rows = read(path)
    out = ["| program | tolerance | this library | Clarabel's point | SCS's point |", "|---|---|---|---|---|"]
    for row in rows:
        pairs = [f"{row[f'{who}_x']} / {row[f'{who}_gradient']}" for who in ("layer", "clarabel", "scs")]
        out.append(f"| {' | '.join([row['program'], row['tolerance'], *pairs])} |")
    return "\n".join([*out, "", f"{comment}."])


def main() -> None:
    """Measure, write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS / "tolerance.csv")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    rows = [row for name in PROGRAMS for row in measure(name, options.batch)]
    write(options.output, f"{environment([])}, scs {scs.__version__}; batch {options.batch}", FIELDS, rows)
    show(FIELDS, rows)
    if options.write is not None:
        text = options.write.read_text()
        before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
        options.write.write_text(f"{before}\n{make_table(options.output)}\n{after}")


if __name__ == "__main__":
    main()
