"""What goes wrong elsewhere, tried on what is installed: the peers' answers beside ours and the truth.

Usage: python benchmarks/failures.py [--rows NAME ...] [--ours] [--output FILE]

One function per row: what is asked, the truth in closed form, and how each library is asked. An answer is right if its
relative error is at most 1e-6 (peers are asked at their own defaults; 1e-3 for those whose default tolerance is looser,
so that only real failures count as such). Where the right answer is that there is none, an error, a status or NaN is
right, and any finite number is wrong. A failure that does not show on the installed versions stands there as right.

Peers take part if they are installed: `pip install cvxpylayers diffcp moreau proxsuite qpth`.
"""

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cvxpy as cp
import torch
from contenders import Contender
from families import randn
from report import RESULTS, environment, show, write
from torch import Tensor

import convexlayers as cl

# Relative errors that count as right: ours, and a peer's.
OURS_TOLERANCE, PEER_TOLERANCE = 1e-6, 1e-3
FIELDS = ["row", "asked", "library", "answer", "truth", "error", "verdict"]
NO_ANSWER = "none"

Ask = Callable[[], Tensor]
Row = dict[str, str]


@dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        asked: in words.
        truth: the answer; None where there is none, so that a library has to say so.
        libraries: how each is asked, by name; "convexlayers" is one of them.
        refusable: whether an error is right too.
    """

    asked: str
    truth: Tensor | None
    libraries: dict[str, Ask] = field(default_factory=dict)
    refusable: bool = False


class Peers(Contender):
    """For the versions in the comment."""

    packages = ("cvxpylayers", "diffcp", "moreau", "proxsuite", "qpth")


def layers(
    problem: cp.Problem, parameters: list[cp.Parameter], variables: list[Any], use: Callable[[Any], Tensor],
    *solvers: str, **ours: Any,
) -> dict[str, Ask]:  # fmt: skip
    """Ours, and cvxpylayers with its default and with the solvers of these names."""

    def own() -> Tensor:
        return use(cl.ConvexLayer(problem, parameters, variables, **ours))

    def other(solver: str | None) -> Ask:
        def ask() -> Tensor:
            from cvxpylayers.torch import CvxpyLayer

            options: dict[str, Any] = {} if solver is None else {"solver": solver}
            return use(CvxpyLayer(problem, parameters=parameters, variables=variables, **options))

        return ask

    found = {"convexlayers": own, "cvxpylayers": other(None)}
    return found | {f"cvxpylayers+{solver.lower()}": other(solver) for solver in solvers}


def gradient(layer: Any, values: list[Tensor], weight: Tensor, wanted: int = 0) -> Tensor:
    """Of <weight, first output>, in one of the values."""
    leaves = [value.clone().requires_grad_() for value in values]
    return torch.autograd.grad((weight * layer(*leaves)[0]).sum(), leaves[wanted])[0]


# ------------------------------------------------------------------------------------------------------- gradients


def condition() -> Case:
    """minimize 1/2 |Rx|^2 - p'x with singular values of R from 1e-2 to 1e2: dx/dp = (R'R)^-1."""
    n = 30
    U, V = (torch.linalg.qr(randn(n, n, seed=seed))[0] for seed in (1, 2))
    R = U @ torch.diag(torch.logspace(-2, 2, n, dtype=torch.float64)) @ V.T
    x, p, weight = cp.Variable(n), cp.Parameter(n), randn(n, seed=3)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(R.numpy() @ x) - p @ x))
    truth = V @ torch.diag(torch.logspace(4, -4, n, dtype=torch.float64)) @ V.T @ weight
    value = R.T @ (R @ randn(n, seed=4))
    asks = layers(problem, [p], [x], lambda layer: gradient(layer, [value], weight), "MOREAU")
    return Case("gradient of an unconstrained QP, condition 1e8", truth, asks)


def ordinary_qp(rows: Tensor | float = 1.0) -> tuple[cp.Problem, list[Any], cp.Variable, list[Tensor], Tensor, Tensor]:
    """minimize 1/2 |x|^2 + q'x subject to Gx <= h, 20 variables, 30 rows of which 10 are active, times `rows`."""
    n, m, active = 20, 30, 10
    G, x0, z = randn(m, n, seed=1), randn(n, seed=2), torch.zeros(m, dtype=torch.float64)
    z[:active] = 0.5 + torch.rand(active, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slack = torch.where(z > 0, 0.0, 1.0)
    q, h, weight = -x0 - G.T @ z, rows * (G @ x0 + slack), randn(n, seed=4)
    x, q_, h_ = cp.Variable(n), cp.Parameter(n), cp.Parameter(m)
    scaled = (rows.unsqueeze(-1) if isinstance(rows, Tensor) else rows) * G
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x) + q_ @ x), [scaled.numpy() @ x <= h_])
    # x moves by minus the projection of dq on the null space of the active rows.
    basis = torch.linalg.qr(G[:active].T)[0]
    return problem, [q_, h_], x, [q, h], weight, -(weight - basis @ (basis.T @ weight))


def ask_ordinary(asked: str, rows: Tensor | float = 1.0, factor: float = 1.0) -> Case:
    """The gradient of `ordinary_qp` in q, from everybody."""
    problem, parameters, x, values, weight, truth = ordinary_qp(rows)

    def use(layer: Any) -> Tensor:
        return gradient(layer, values, factor * weight) / factor

    G = torch.as_tensor(problem.constraints[0].args[0].args[0].value, dtype=torch.float64)
    eye = torch.eye(20, dtype=torch.float64)
    asks = layers(problem, parameters, [x], use, "MOREAU")
    for name, solve in {"qpth": qpth, "proxsuite": proxsuite}.items():
        asks[name] = lambda solve=solve: use(lambda q, h: (solve(eye[None], q[None], G[None], h[None]),))
    return Case(asked, truth, asks)


def ordinary() -> Case:
    """A QP that anybody might have."""
    return ask_ordinary("gradient of a QP with 20 variables, 30 rows")


def scaled_rows() -> Case:
    """The same QP, its rows times 1 to 100."""
    rows = torch.logspace(0, 2, 30, dtype=torch.float64)
    return ask_ordinary("the same, rows scaled by 1 to 100", rows=rows)


def small_cotangent() -> Case:
    """A gradient is linear in the upstream gradient."""
    return ask_ordinary("the same, upstream gradient times 1e-10, result times 1e10", factor=1e-10)


def project_simplex(c: Tensor, total: float) -> Tensor:
    """The nearest point of {x >= 0, sum x = total}, by sorting."""
    u = c.sort(descending=True).values
    means = (u.cumsum(0) - total) / torch.arange(1, len(c) + 1, dtype=c.dtype)
    count = int((u > means).sum())
    return (c - means[count - 1]).clamp(min=0)


def large_data() -> Case:
    """Projection onto a simplex: x / s does not depend on s. The bound is a parameter, for a peer that drops x >= 0."""
    n, s = 10, 1e4
    x, c_, low = cp.Variable(n), cp.Parameter(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c_)), [cp.sum(x) == s, x >= low])
    c = randn(n, seed=1)
    asks = layers(problem, [c_, low], [x], lambda layer: layer(s * c, 0 * c)[0] / s, "MOREAU")
    return Case("projection onto the simplex of size 1e4, divided by 1e4", project_simplex(c, 1.0), asks)


def positive_part(C: Tensor) -> Tensor:
    """U max(l, 0) U'; torch differentiates it."""
    values, U = torch.linalg.eigh((C + C.T) / 2)
    return U @ torch.diag(values.clamp(min=0)) @ U.T


def psd_gradient() -> Case:
    """Projection onto the PSD cone of order 4."""
    X, C_ = cp.Variable((4, 4), PSD=True), cp.Parameter((4, 4))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C_)))
    C, weight = randn(4, 4, seed=1), randn(4, 4, seed=2)
    C, weight = C + C.T, weight + weight.T
    leaf = C.clone().requires_grad_()
    truth = torch.autograd.grad((weight * positive_part(leaf)).sum(), leaf)[0]
    asks = layers(problem, [C_], [X], lambda layer: gradient(layer, [C], weight), "MOREAU")
    return Case("gradient of the projection onto the PSD cone of order 4", truth, asks)


def psd_program() -> Case:
    """minimize tr(CX) subject to tr X = 1, X >> 0: X = vv' for the eigenvector v of C's smallest eigenvalue."""
    n = 5
    X, C_ = cp.Variable((n, n), symmetric=True), cp.Parameter((n, n))
    problem = cp.Problem(cp.Minimize(cp.trace(C_ @ X)), [cp.trace(X) == 1, X >> 0])
    C, weight = randn(n, n, seed=1), randn(n, n, seed=2)
    C, weight = C + C.T, weight + weight.T
    leaf = C.clone().requires_grad_()
    v = torch.linalg.eigh((leaf + leaf.T) / 2)[1][:, 0]
    truth = torch.autograd.grad(v @ weight @ v, leaf)[0]
    asks = layers(problem, [C_], [X], lambda layer: gradient(layer, [C], weight), "MOREAU")
    return Case("gradient of a semidefinite program of order 5", truth, asks)


def broadcast() -> Case:
    """minimize |x - a - c|^2, a for each of 8 elements, c for all of them: the gradient of sum(x) in c is 8."""
    x, a, c = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a - c)))
    values = [randn(8, 2, seed=1), randn(2, seed=2)]
    weight = torch.ones(8, 2, dtype=torch.float64)
    asks = layers(problem, [a, c], [x], lambda layer: gradient(layer, values, weight, wanted=1), "MOREAU")
    eye = torch.eye(2, dtype=torch.float64)
    G, h = torch.ones(8, 1, 2, dtype=torch.float64), torch.full((8, 1), 100.0, dtype=torch.float64)
    for name, solve in {"qpth": qpth, "proxsuite": proxsuite}.items():
        asks[name] = lambda solve=solve: gradient(lambda c: (solve(eye.expand(8, 2, 2), -c, G, h),), values[1:], weight)
    return Case("gradient of a parameter that a batch of 8 shares", torch.full((2,), 8.0, dtype=torch.float64), asks)


def second_derivative() -> Case:
    """x = p, so sum(x^3) / 6 has the Hessian diag(p); or there is no second derivative, and that is said."""
    x, p_ = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p_)))
    p = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def hessian(layer: Any) -> Tensor:
        return torch.autograd.functional.hessian(lambda value: (layer(value)[0] ** 3).sum() / 6, p)

    asks = layers(problem, [p_], [x], hessian, "MOREAU")
    asks["qpth"] = lambda: torch.autograd.functional.hessian(
        lambda value: (qpth(torch.eye(3, dtype=torch.float64), -value) ** 3).sum() / 6, p
    )
    return Case("Hessian through the layer, or an error", torch.diag(p), asks, refusable=True)


# ------------------------------------------------------------------------------------------------- right answers


def variable_constraints() -> Case:
    """Projection onto the simplex, its sign constraint written on the variable."""
    x, c_ = cp.Variable(5), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c_)), [cp.sum(x) == 1, x >= 0])
    c = torch.tensor([1.0, -1.0, 0.5, 0.3, -0.7], dtype=torch.float64)
    asks = layers(problem, [c_], [x], lambda layer: layer(c)[0], "MOREAU")
    return Case("projection onto the simplex, x >= 0 on the variable", project_simplex(c, 1.0), asks)


def lp_tie() -> Case:
    """maximize x_2 subject to x_1 + x_2 <= 1, twice, x >= 0: degenerate, x = (0, 1)."""
    x, q_, low = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(q_ @ x), [cp.sum(x) <= 1, cp.sum(x) <= 1, x >= low])
    q = torch.tensor([0.0, -1.0], dtype=torch.float64)
    asks = layers(problem, [q_, low], [x], lambda layer: layer(q, 0 * q)[0], "MOREAU")
    G = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    h, zero = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64), torch.zeros(1, 2, 2, dtype=torch.float64)
    asks["proxsuite"] = lambda: proxsuite(zero, q[None], G[None], h[None])
    return Case("degenerate LP with a repeated row", torch.tensor([0.0, 1.0], dtype=torch.float64), asks)


def power_cone() -> Case:
    """maximize z subject to x^.3 y^.7 >= |z|, x + y = a at a = 2: z = .3^.3 .7^.7 a."""
    x, y, z, a_ = cp.Variable(), cp.Variable(), cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Maximize(z), [cp.PowCone3D(x, y, z, 0.3), x + y == a_])
    rate = 0.3**0.3 * 0.7**0.7

    def both(layer: Any) -> Tensor:
        a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        value = layer(a)[0]
        return torch.stack([value.detach(), torch.autograd.grad(value, a)[0]])

    truth = torch.tensor([2 * rate, rate], dtype=torch.float64)
    asks = layers(problem, [a_], [z], both, "MOREAU")
    return Case("value and derivative of a power cone program", truth, asks)


def vectorized_duals() -> Case:
    """minimize sum z subject to ExpCone(x, 1, z), x = a, of 3 entries each: duals (-e^a, (a - 1) e^a, 1)."""
    x, y, z, a_ = cp.Variable(3), cp.Variable(3), cp.Variable(3), cp.Parameter(3)
    cone = cp.ExpCone(x, y, z)
    problem = cp.Problem(cp.Minimize(cp.sum(z)), [cone, x == a_, y == 1])
    a = torch.tensor([-0.5, 0.2, 0.9], dtype=torch.float64)
    truth = torch.stack([-a.exp(), (a - 1) * a.exp(), torch.ones_like(a)])
    duals = list(cone.dual_variables)
    asks = layers(problem, [a_], duals, lambda layer: torch.stack([part.reshape(3) for part in layer(a)]), "MOREAU")
    return Case("duals of a vectorised exponential cone", truth, asks)


# --------------------------------------------------------------------------------------------------- no answer


def qpth(Q: Tensor, p: Tensor, G: Tensor | None = None, h: Tensor | None = None) -> Tensor:
    """minimize 1/2 z'Qz + p'z subject to Gz <= h (by default z_1 <= 100)."""
    from qpth.qp import QPFunction

    if G is None or h is None:
        G, h = torch.zeros(1, len(p), dtype=torch.float64), torch.full((1,), 100.0, dtype=torch.float64)
        G[0, 0] = 1.0
    none = torch.empty(0, dtype=torch.float64)
    return QPFunction(verbose=-1)(Q, p, G, h, none, none).squeeze(0)


def proxsuite(Q: Tensor, p: Tensor, G: Tensor, h: Tensor) -> Tensor:
    """The same."""
    from proxsuite.torch.qplayer import QPFunction

    none, low = torch.empty(0, dtype=torch.float64), torch.full_like(h, -1e20)
    return QPFunction(structural_feasibility=True)(Q, p, none, none, G, low, h)[0].squeeze(0)


def infeasible_element() -> Case:
    """minimize |x - 1|^2 subject to x <= a, x >= 0 for a = 0.5, -1, 2: the first and the last are solvable.

    Not for proxsuite, whose layer returns by design the solution of the closest feasible program.
    """
    x, a_ = cp.Variable(1), cp.Parameter(1)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= a_, x >= 0])
    a = torch.tensor([[0.5], [-1.0], [2.0]], dtype=torch.float64)
    truth = torch.tensor([0.5, float("nan"), 1.0], dtype=torch.float64)
    asks = layers(problem, [a_], [x], lambda layer: layer(a)[0].reshape(3), "MOREAU", on_failure="nan")
    G = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(3, 2, 1)
    h, two = torch.cat([a, torch.zeros_like(a)], 1), 2 * torch.ones(3, 1, 1, dtype=torch.float64)
    asks["qpth"] = lambda: qpth(two, -two[..., 0], G, h).reshape(3)
    return Case("batch of 3 of which the second is infeasible", truth, asks)


def nan_element() -> Case:
    """minimize |x - a|^2 subject to x <= 1 for a = 0.5, NaN, 2."""
    x, a_ = cp.Variable(1), cp.Parameter(1)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a_)), [x <= 1])
    a = torch.tensor([[0.5], [float("nan")], [2.0]], dtype=torch.float64)
    truth = torch.tensor([0.5, float("nan"), 1.0], dtype=torch.float64)
    asks = layers(problem, [a_], [x], lambda layer: layer(a)[0].reshape(3), "MOREAU", on_failure="nan")
    G, h = torch.ones(3, 1, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    asks["qpth"] = lambda: qpth(2 * G, -2 * a, G, h).reshape(3)
    asks["proxsuite"] = lambda: proxsuite(2 * G, -2 * a, G, h).reshape(3)
    return Case("batch of 3 of which the second holds NaN", truth, asks)


def _square(P: Tensor, asked: str, truth: Tensor | None = None) -> Case:
    """minimize 1/2 x'Px - 1'x for a P that is not what it has to be: an error, or the right number if there is one."""
    x, P_ = cp.Variable(2), cp.Parameter((2, 2), PSD=True, name="P")
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, P_) - cp.sum(x)))
    asks = layers(problem, [P_], [x], lambda layer: layer(P)[0], "MOREAU")
    p, G, h = (torch.tensor(value, dtype=torch.float64) for value in ([-1.0, -1.0], [[1.0, 0.0]], [100.0]))
    asks["qpth"] = lambda: qpth(P, p, G, h)
    asks["proxsuite"] = lambda: proxsuite(P[None], p[None], G[None], h[None])
    return Case(asked, truth, asks, refusable=True)


def not_symmetric() -> Case:
    """A P whose triangles differ: x'Px is that of their average, [[2, .5], [.5, 2]]."""
    P, truth = torch.tensor([[2.0, 1.0], [0.0, 2.0]], dtype=torch.float64), torch.full((2,), 0.4, dtype=torch.float64)
    return _square(P, "minimize x'Px / 2 - sum x for P = [2 1; 0 2], or an error", truth)


def not_definite() -> Case:
    """A P with the eigenvalues 3 and -1: unbounded below."""
    return _square(
        torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64),
        "the same for P = [1 2; 2 1], unbounded, or an error",
    )


def few_iterations() -> Case:
    """One or two iterations: what is there is not a solution."""
    problem, parameters, x, values, _, _ = ordinary_qp()

    def own() -> Tensor:
        return cl.ConvexLayer(problem, parameters, [x], max_iterations=2, on_failure="nan")(*values)[0]

    def other() -> Tensor:
        from cvxpylayers.torch import CvxpyLayer

        layer = CvxpyLayer(problem, parameters=parameters, variables=[x])
        return layer(*values, solver_args={"max_iters": 2})[0]

    return Case("a QP with 2 iterations", None, {"convexlayers": own, "cvxpylayers": other})


CASES: dict[str, Callable[[], Case]] = {
    function.__name__: function
    for function in (
        condition, ordinary, scaled_rows, small_cotangent, large_data, psd_gradient, psd_program, broadcast,
        second_derivative, variable_constraints, lp_tie, power_cone, vectorized_duals, infeasible_element,
        nan_element, not_symmetric,
        not_definite, few_iterations,
    )
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------- judging


def judge(name: str, case: Case, library: str) -> Row:
    """Ask one library."""
    row = {"row": name, "asked": case.asked, "library": library, "truth": words(case.truth)}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            answer = case.libraries[library]().detach().to(torch.float64)
    except Exception as error:
        text = " ".join(str(error).split())
        # One infeasible or invalid element must not take the others with it; elsewhere an error is not a wrong number.
        verdict = "right" if case.truth is None or case.refusable else "raises"
        return row | {"answer": f"{type(error).__name__}: {text[:80]}", "error": "", "verdict": verdict}
    off = error_of(answer, case.truth)
    tolerance = OURS_TOLERANCE if library == "convexlayers" else PEER_TOLERANCE
    verdict = "right" if off <= tolerance else "wrong"
    return row | {"answer": words(answer), "error": f"{off:.1e}", "verdict": verdict}


def error_of(answer: Tensor, truth: Tensor | None) -> float:
    """Relative error; infinite for a number where there is none, and for none where there is one."""
    if truth is None:
        return float("inf") if bool(answer.isfinite().all()) else 0.0
    known = truth.isfinite()
    if answer.shape != truth.shape or bool((answer.isfinite() != known).any()):
        return float("inf")
    return float((answer - truth)[known].norm() / truth[known].norm())


def words(value: Tensor | None) -> str:
    """All entries of a small tensor, the first ones of a large one."""
    if value is None:
        return NO_ANSWER
    entries = [f"{entry:.4g}" for entry in value.reshape(-1).tolist()]
    return " ".join(entries if len(entries) <= 4 else [*entries[:3], "..."])


def installed(library: str) -> bool:
    """Whether it and the solver it is asked with are there."""
    return all(find_spec(part) is not None for part in library.split("+"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--ours", action="store_true", help="without the peers")
    parser.add_argument("--output", type=Path, default=RESULTS / "failures.csv")
    return parser.parse_args()


def main() -> int:
    """Run, print a table, write a CSV file; 1 if one of our answers is not right."""
    options = parse()
    rows: list[Row] = []
    for name in options.rows:
        case = CASES[name]()
        libraries = [one for one in case.libraries if one == "convexlayers" or (installed(one) and not options.ours)]
        rows += [judge(name, case, library) for library in libraries]
    write(options.output, environment([] if options.ours else [Peers()]), FIELDS, rows)
    show(["row", "library", "answer", "truth", "error", "verdict"], rows)
    return 1 if any(row["library"] == "convexlayers" and row["verdict"] != "right" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
