"""Standalone, differentiable, batched solvers of QPs, LPs, SOCPs and cone programs. cvxpy is not needed.

Every matrix and vector may be a tensor or an array, with any leading batch dimensions; they broadcast, and a block that
the batch shares gets the sum of the elements' gradients. Results are in the inputs' dtype, on their device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convexlayers import sparse
from convexlayers.assembly import Assembly, cone_program, dense_cone_program
from convexlayers.autograd import in_transform
from convexlayers.batching import Value, as_tensor, common_dtype, to_batch
from convexlayers.cones import Cones
from convexlayers.derivatives import Derivative, Exact
from convexlayers.engines import Engine, make_engine
from convexlayers.engines.given import Given
from convexlayers.errors import ArgumentError, wrong_shape
from convexlayers.execute import BatchSolution, Execution, check_policy, execute, run_plan
from convexlayers.program import ParametrizedConeProgram
from convexlayers.relax import check_relax
from convexlayers.sparse import Pattern

# A bound of this size and above is none: the convention of Clarabel and of most file formats.
INFINITE = 1e20

SecondOrderBlock = tuple[Value, Value, Value, Value]


@dataclass(frozen=True)
class ProgramSolution(BatchSolution):
    """What the standalone functions return, besides the fields of `BatchSolution`.

    Attributes:
        x: primal solution, (*batch, n), differentiable.
        s: slack b - A x of the cone program, (*batch, m), differentiable.
        z: dual solution of the cone program, (*batch, m), differentiable.
        duals: parts of z under the names of the blocks of constraints: "A" (equalities), "G" (inequalities), "lb",
            "ub" (bounds), "second_order" (a tuple, one per cone); those of inequalities are nonnegative, and equalities
            enter the Lagrangian as +y'(Ax - b).
    """

    x: Tensor
    s: Tensor
    z: Tensor
    duals: Mapping[str, Any]


def solve_qp(
    P: Value | None,
    q: Value,
    G: Value | None = None,
    h: Value | None = None,
    A: Value | None = None,
    b: Value | None = None,
    lb: Value | None = None,
    ub: Value | None = None,
    *,
    solver: str | Engine = "auto",
    on_failure: str = "raise",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    validate: bool = True,
    derivative: Derivative | None = None,
    relax: str | None = None,
    warm_start: ProgramSolution | None = None,
) -> ProgramSolution:
    """Solve 1/2 x'Px + q'x subject to Gx <= h, Ax = b, lb <= x <= ub (qpsolvers' order of arguments).

    Args:
        P: symmetric positive semidefinite, (*batch, n, n), or None for zero.
        q: (*batch, n).
        G, h: (*batch, g, n) and (*batch, g), or both None. Where h is 1e20 or more, or +inf, the row is no constraint.
        A, b: (*batch, e, n) and (*batch, e), or both None.
            P, G and A may be sparse, tensors of torch or matrices of scipy, without batch dimensions: the work is then
            that of their stored entries, and gradients reach these only.
        lb, ub: (*batch, n) or a number, or None. Where they are 1e20 or more in size, or infinite, there is no bound;
            one on the wrong side (ub = -inf) is an element without a solution.
        solver: "auto", the name of an engine, or an engine object.
        on_failure: "raise" or "nan", see `ConvexLayer`.
        tolerance, max_iterations: of the solver, by default 1e-8 and its own limit.
        validate: check that P is symmetric positive semidefinite; a sparse P, that it is symmetric and its diagonal
            nonnegative.
        derivative: a derivative strategy, by default `Exact()`.
        relax: None, or "closest_feasible", see `ConvexLayer`.
        warm_start: what an earlier call returned, to begin at, see `ConvexLayer.solve`.

    Returns:
        the solution, with duals under "G", "A", "lb", "ub".

    Raises:
        ArgumentError: a shape or value is wrong, or one of a pair is missing.
        SolverError: on_failure is "raise" and an element was not solved.

    Examples:
        >>> import torch, convexlayers as cl
        >>> solution = cl.solve_qp(torch.eye(2), torch.tensor([-1.0, 2.0]), lb=0.25)
        >>> [round(value, 6) for value in solution.x.tolist()]
        [1.0, 0.25]
    """
    return solve_socp(
        P, q, (), G, h, A, b, lb, ub,
        solver=solver, on_failure=on_failure, tolerance=tolerance, max_iterations=max_iterations, validate=validate,
        derivative=derivative, relax=relax, warm_start=warm_start,
    )  # fmt: skip


def solve_lp(
    q: Value,
    G: Value | None = None,
    h: Value | None = None,
    A: Value | None = None,
    b: Value | None = None,
    lb: Value | None = None,
    ub: Value | None = None,
    **options: Any,
) -> ProgramSolution:
    """Solve q'x subject to Gx <= h, Ax = b, lb <= x <= ub. Arguments and options as in `solve_qp`.

    The solution of an LP is piecewise constant in q: its exact derivative in q is zero wherever it exists.
    """
    return solve_socp(None, q, (), G, h, A, b, lb, ub, **options)


def solve_socp(
    P: Value | None,
    q: Value,
    second_order: Sequence[SecondOrderBlock] = (),
    G: Value | None = None,
    h: Value | None = None,
    A: Value | None = None,
    b: Value | None = None,
    lb: Value | None = None,
    ub: Value | None = None,
    *,
    solver: str | Engine = "auto",
    on_failure: str = "raise",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    validate: bool = True,
    derivative: Derivative | None = None,
    relax: str | None = None,
    warm_start: ProgramSolution | None = None,
) -> ProgramSolution:
    """Solve 1/2 x'Px + q'x subject to |M_i x + v_i| <= c_i'x + d_i, Gx <= h, Ax = b, lb <= x <= ub.

    Args:
        P, q, G, h, A, b, lb, ub and the options: as in `solve_qp`.
        second_order: one tuple (M_i, v_i, c_i, d_i) per cone, of shapes (*batch, k_i, n), (*batch, k_i), (*batch, n),
            (*batch).

    Returns:
        the solution; `duals["second_order"][i]` is (t, u), (*batch, 1 + k_i), with |u| <= t.

    Raises:
        ArgumentError, SolverError: as in `solve_qp`.
    """
    engine = make_engine(solver, derivative=derivative, tolerance=tolerance, max_iterations=max_iterations)
    for left, right, names in ((G, h, ("G", "h")), (A, b, ("A", "b"))):
        if (left is None) != (right is None):
            raise ArgumentError(f"{names[0]} and {names[1]} belong together: give both or neither.")
    for i, cone in enumerate(second_order):
        if len(cone) != 4:
            raise ArgumentError(f"second_order[{i}] has {len(cone)} parts, expected the four (M, v, c, d).")
    n = _width("q", q)
    inequalities = 0 if h is None else _width("h", h)
    equalities = 0 if b is None else _width("b", b)
    sizes = tuple(_width(f"second_order[{i}][1]", cone[1]) for i, cone in enumerate(second_order))
    bounded = (lb is not None, ub is not None)
    (P, P_pattern), (G, G_pattern), (A, A_pattern) = (
        _entries(name, value, (height, n), validate)
        for name, value, height in (("P", P, n), ("G", G, inequalities), ("A", A, equalities))
    )
    patterns = (P_pattern, G_pattern, A_pattern)
    make = _socp_program if patterns == (None, None, None) else _sparse_socp_program
    program = make(n, P is not None, equalities, inequalities, bounded, sizes, patterns)
    values: list[Value] = [] if P is None else [P]
    values.append(q)
    if A is not None and b is not None:
        values += [A, b]
    if G is not None and h is not None:
        values += _without_infinite_rows(as_tensor("G", G), as_tensor("h", h), G_pattern)
    values += [] if lb is None else _bound("lb", lb, n, -1.0)
    values += [] if ub is None else _bound("ub", ub, n, 1.0)
    values += [value for cone in second_order for value in cone]
    # What was converted above must not decide the dtype: a bound of 0.0 does not make a float32 problem float64.
    originals = [value for value in (P, q, G, h, A, b, lb, ub) if value is not None]
    dtype = common_dtype([*originals, *(value for cone in second_order for value in cone)])
    plan, policy = engine.setup(program), check_policy(on_failure)
    asked = check_relax(relax, engine, program)
    run = execute(
        plan, values, on_failure=policy, check_values=validate, dtype=dtype, relax=asked, warm_start=warm_start
    )
    names = [("A", equalities), ("G", inequalities), ("lb", n * bounded[0]), ("ub", n * bounded[1])]
    return _solution(run, names, [1 + size for size in sizes])


def solve_cone_program(
    P: Value | None,
    q: Value,
    A: Value,
    b: Value,
    cones: Cones | Mapping[str, Any],
    *,
    solver: str | Engine = "auto",
    on_failure: str = "raise",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    validate: bool = True,
    derivative: Derivative | None = None,
    relax: str | None = None,
    warm_start: ProgramSolution | None = None,
) -> ProgramSolution:
    """Solve 1/2 x'Px + q'x subject to Ax + s = b, s in K.

    Args:
        P: symmetric positive semidefinite, (*batch, n, n), or None for zero.
        q: (*batch, n). A: (*batch, m, n). P and A may be sparse, as in `solve_qp`.
        b: (*batch, m); where it is 1e20 or more, or +inf, in a row of the nonnegative cone, the row is no constraint,
            and is solved as 0'x + s = 1.
        cones: sizes of the cones, in the order of the rows of A; a mapping with the same keys will do.
        The options: as in `solve_qp`.

    Returns:
        the solution (x, s, z).

    Raises:
        ArgumentError, SolverError: as in `solve_qp`.
    """
    engine = make_engine(solver, derivative=derivative, tolerance=tolerance, max_iterations=max_iterations)
    cones = Cones.coerce(cones)
    program, values, pattern = _cone_program(P, q, A, b, cones, validate)
    dtype = common_dtype(values)
    if cones.rows:
        entries, right = as_tensor("A", values[-2]), as_tensor("b", b)
        values[-2:] = _without_infinite_rows(entries, right, pattern, cones.zero, cones.nonnegative)
    policy, asked = check_policy(on_failure), check_relax(relax, engine, program)
    run = execute(
        engine.setup(program), values, dtype=dtype, on_failure=policy, check_values=validate, relax=asked,
        warm_start=warm_start,
    )  # fmt: skip
    return _solution(run, [], [])


def differentiable_solution(
    P: Value | None,
    q: Value,
    A: Value,
    b: Value,
    cones: Cones | Mapping[str, Any],
    *,
    x: Value,
    s: Value,
    z: Value,
    on_failure: str = "raise",
    tolerance: float = 1e-6,
    derivative: Derivative | None = None,
) -> ProgramSolution:
    """Attach the derivative to a solution of the cone program that was found elsewhere.

    Args:
        P, q, A, b, cones: as in `solve_cone_program`.
        x, s, z: the solution, (*batch, n), (*batch, m), (*batch, m); gradients do not flow into them.
        on_failure: what to do with elements that are not a solution to within `tolerance`.
        tolerance: relative, on the measured residuals.
        derivative: a derivative strategy, by default `Exact()`.

    Returns:
        the same x, s, z, now functions of P, q, A, b.
    """
    program, values, _ = _cone_program(P, q, A, b, Cones.coerce(cones))
    tensors, batch = to_batch(program.parameters, values)
    sizes = {"x": program.structure.n, "s": program.structure.m, "z": program.structure.m}
    flat = []
    for (name, size), value in zip(sizes.items(), (x, s, z), strict=True):
        tensor = as_tensor(name, value).detach().to(device=batch.device, dtype=torch.float64)
        leading = tuple(tensor.shape[:-1])
        if tensor.shape[-1:] != (size,) or not _expands_to(leading, batch.shape):
            raise wrong_shape(name, tensor.shape, f"(*batch, {size}) with the batch {batch.shape} of P, q, A, b")
        flat.append(tensor.expand(*batch.shape, size).reshape(batch.size, size))
    engine = Given(*flat, tolerance=tolerance, derivative=derivative if derivative is not None else Exact())
    solution = _solution(run_plan(engine.setup(program), tensors, batch), [], [])
    if check_policy(on_failure) == "raise":
        solution.raise_for_status()
    return solution


def _expands_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can be expanded to the target."""
    try:
        return tuple(torch.broadcast_shapes(shape, target)) == target
    except RuntimeError:
        return False


def _width(name: str, value: Value) -> int:
    """Length of the last dimension of a vector."""
    shape = as_tensor(name, value).shape
    if len(shape) == 0:
        raise wrong_shape(name, shape, "(*batch, length)")
    return int(shape[-1])


def _entries(name: str, value: Any, shape: tuple[int, int], validate: bool) -> tuple[Any, Pattern | None]:
    """The entries of a sparse matrix and their pattern; anything else as it is."""
    if value is None or not sparse.is_sparse(value):
        return value, None
    pattern, entries = sparse.split(name, value, shape)
    if name == "P" and validate:
        sparse.check_quadratic(name, pattern, entries)
    return entries, pattern


Patterns = tuple[Pattern | None, Pattern | None, Pattern | None]


def _make_socp_program(
    n: int, has_P: bool, equalities: int, inequalities: int, bounded: tuple[bool, bool], sizes: tuple[int, ...],
    patterns: Patterns,
) -> ParametrizedConeProgram:  # fmt: skip
    """The program of `solve_socp`: rows Ax = b, Gx <= h, -x <= -lb, x <= ub, then the cones.

    patterns: of P, G, A where they are sparse.
    """
    P, G, A = patterns
    assembly = Assembly(n)
    if has_P:
        assembly.quadratic("P", P)
    assembly.linear(assembly.parameter("q", (n,)))
    row = 0
    for matrix, vector, height, pattern in (("A", "b", equalities, A), ("G", "h", inequalities, G)):
        if height:
            assembly.rows(matrix, row, height, pattern)
            assembly.right_side(assembly.parameter(vector, (height,)), row, height)
            row += height
    for name, present, sign in (("lb", bounded[0], -1.0), ("ub", bounded[1], 1.0)):
        if present:
            assembly.diagonal(assembly.parameter(f"finite entries of {name}", (n,)), row, sign)
            assembly.right_side(assembly.parameter(name, (n,)), row, n, sign)
            row += n
    inequality_rows = row - equalities
    for i, size in enumerate(sizes):
        blocks = [((size, n), "0"), ((size,), "1"), ((n,), "2"), ((), "3")]
        M, v, c, d = (assembly.parameter(f"second_order[{i}][{k}]", shape) for shape, k in blocks)
        # s = (c'x + d, M x + v) = b - A x.
        assembly.matrix(c, row, 1, sign=-1.0)
        assembly.right_side(d, row, 1)
        assembly.matrix(M, row + 1, size, sign=-1.0)
        assembly.right_side(v, row + 1, size)
        row += 1 + size
    cones = Cones(zero=equalities, nonnegative=inequality_rows, second_order=tuple(1 + size for size in sizes))
    return assembly.finish(cones, "second-order cone program" if sizes else "quadratic program")


# What is remembered of dense programs depends on sizes alone; sparse ones are as large as their patterns.
_socp_program = lru_cache(maxsize=128)(_make_socp_program)
_sparse_socp_program = lru_cache(maxsize=16)(_make_socp_program)
_sparse_cone_program = lru_cache(maxsize=16)(cone_program)


def _cone_program(
    P: Value | None, q: Value, A: Value, b: Value, cones: Cones, validate: bool = False
) -> tuple[ParametrizedConeProgram, list[Value], Pattern | None]:
    n = _width("q", q)
    P, P_pattern = _entries("P", P, (n, n), validate)
    A, A_pattern = _entries("A", A, (cones.rows, n), validate)
    if P_pattern is None and A_pattern is None:
        program = dense_cone_program(n, P is not None, cones)
    else:
        program = _sparse_cone_program(n, P is not None, cones, P_pattern, A_pattern)
    values: list[Value] = [] if P is None else [P]
    values += [q, A, b] if cones.rows else [q]
    return program, values, A_pattern


def _without_infinite_rows(
    G: Tensor, h: Tensor, pattern: Pattern | None = None, first: int = 0, count: int | None = None
) -> list[Tensor]:
    """A row Gx <= +inf says nothing; 0'x <= 1 says the same in finite numbers. Of `count` rows from the first on."""
    infinite = h >= INFINITE
    if count is not None:
        row = torch.arange(h.shape[-1] if h.ndim else 0, device=h.device)
        infinite = infinite & (row >= first) & (row < first + count)
    # Inside of a transform nobody may look.
    if not in_transform() and not bool(infinite.any()):
        return [G, h]
    rows = infinite.unsqueeze(-1) if pattern is None else infinite[..., torch.from_numpy(pattern.rows).to(h.device)]
    return [torch.where(rows, 0.0, G), torch.where(infinite, 1.0, h)]


def _bound(name: str, value: Value, n: int, sign: float) -> list[Tensor]:
    """Which entries are finite, and the bound with harmless numbers in the others: 0 x <= 1."""
    bound = as_tensor(name, value)
    if bound.ndim == 0:
        bound = bound.expand(n)
    infinite = sign * bound >= INFINITE
    return [(~infinite).to(bound.dtype), torch.where(infinite, sign, bound)]


def _solution(run: Execution, names: Sequence[tuple[str, int]], cone_sizes: Sequence[int]) -> ProgramSolution:
    """Names for the parts of z."""
    x, s, z = run.values
    duals: dict[str, Any] = {}
    row = 0
    for name, height in names:
        if height:
            duals[name] = z[..., row : row + height]
        row += height
    if cone_sizes:
        duals["second_order"] = tuple(z[..., row:].split(list(cone_sizes), dim=-1))
    return ProgramSolution(x=x, s=s, z=z, duals=duals, **run.common())  # type: ignore[arg-type]
