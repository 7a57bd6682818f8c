"""diffcp's functions that return a dictionary, as CVXPY's interface to it calls them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from convexlayers.compat.diffcp.cone_program import Batch, solve_batch
from convexlayers.status import Status

# Status in SCS's words and numbers.
WORDS = {
    Status.SOLVED: ("Solved", 1),
    Status.INACCURATE: ("Solved/Inaccurate", 2),
    Status.MAX_ITERATIONS: ("Solved/Inaccurate", 2),
    Status.DUAL_INFEASIBLE: ("Unbounded", -1),
    Status.PRIMAL_INFEASIBLE: ("Infeasible", -2),
}
FAILURE = ("Failure", -4)


def _results(batch: Batch) -> dict[str, Any]:
    x, y, s = batch.points()[0]
    solution = batch.groups[0].solution
    word, number = WORDS.get(Status(int(solution.status[0])), FAILURE)
    info = {
        "status": word,
        "status_val": number,
        "iter": int(solution.iterations[0]),
        "pobj": float(solution.objective[0]),
    }
    # Times are not measured.
    info |= dict.fromkeys(["solveTime", "setupTime", "solve_time", "setup_time"], float("nan"))
    return {"x": x, "y": y, "s": s, "info": info}


def solve_internal(
    A: Any, b: np.ndarray, c: np.ndarray, cone_dict: Mapping[str, Any], solve_method: str | None = None,
    warm_start: Any = None, raise_on_error: bool = True, P: Any = None, **kwargs: Any,
) -> dict[str, Any]:  # fmt: skip
    """x, y, s and info of one program; arguments as in `solve_and_derivative`.

    Raises:
        ArgumentError, SolverError: as there; without raise_on_error "status" in info tells.
    """
    given = {"solve_method": solve_method, "raise_on_error": raise_on_error, **kwargs}
    return _results(solve_batch([A], [b], [c], [cone_dict], [P], [warm_start], "lsqr", given))


def solve_and_derivative_internal(
    A: Any, b: np.ndarray, c: np.ndarray, cone_dict: Mapping[str, Any], solve_method: str | None = None,
    warm_start: Any = None, mode: str = "lsqr", raise_on_error: bool = True, P: Any = None, **kwargs: Any,
) -> dict[str, Any]:  # fmt: skip
    """x, y, s, info, D and DT of one program; arguments as in `solve_and_derivative`.

    D and DT are None where the program was not solved and raise_on_error is False.

    Raises:
        ArgumentError, SolverError: as there.
    """
    given = {"solve_method": solve_method, "raise_on_error": raise_on_error, **kwargs}
    batch = solve_batch([A], [b], [c], [cone_dict], [P], [warm_start], mode, given)
    D, DT = batch.maps() if bool(batch.groups[0].solution.solved[0]) else (None, None)
    return {**_results(batch), "D": D, "DT": DT}
