"""The self-test: does what is installed here do what it says?

Each line is a comparison with something known: a closed form, a solution that is known by construction, differences of
solutions, or the same thing done in another way that must give the same bits. It needs what the library needs and no
more, and takes some seconds.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

from convexlayers.command.closed_forms import FORMS, compare
from convexlayers.command.info import is_installed
from convexlayers.command.promises import PROMISES
from convexlayers.cones import Cones
from convexlayers.engines import ENGINES, make_engine
from convexlayers.testing import check_derivative, check_solution, check_statuses, cone_cases, random_program
from convexlayers.testing.layer_checks import Finding
from convexlayers.testing.problems import KINDS

Write = Callable[[str], object]
Check = tuple[str, Callable[[], Sequence[Finding]]]

# Relative errors that pass: of solutions, and of derivatives against differences.
SOLUTION, DERIVATIVE = 1e-6, 1e-5
# Of J and J' against each other. diffcp finds its derivatives by an iterative method.
IDENTITY = {"diffcp": 1e-6}
# First-order solvers stop far from the solution at the tolerance that is enough for the others.
TOLERANCE = {"scs": 1e-10, "diffcp": 1e-10}
NO_CONE = {("diffcp", "power")}


def run(write: Write, engines: Sequence[str] | None = None) -> int:
    """Check, a line for each comparison, and one that counts them.

    Args:
        write: takes the lines.
        engines: names of those to check; None for all that are installed.

    Returns:
        0, or 1 where one fails.
    """
    start, failed, count = time.perf_counter(), 0, 0
    for what, measure in checks(engines):
        begun = time.perf_counter()
        findings = attempt(measure)
        # Written so that NaN fails.
        good = all(finding.share <= 1 for finding in findings)
        figures = "; ".join(map(describe, findings))
        write(f"{'ok    ' if good else 'FAILED'}  {what}: {figures}  ({time.perf_counter() - begun:.1f} s)\n")
        failed, count = failed + (not good), count + 1
    for name in ENGINES:
        if not is_installed(name):
            write(f"--      {name}: not installed\n")
    seconds = time.perf_counter() - start
    write(f"{count - failed} of {count} checks passed in {seconds:.1f} s\n")
    return int(failed > 0)


def describe(finding: Finding) -> str:
    """A figure beside what is allowed; of a fact whether it holds."""
    if math.isnan(finding.error) or (finding.error, finding.allowed) == (0.0, 1.0):
        return finding.what
    if math.isinf(finding.error):
        return f"not true: {finding.what}"
    return f"{finding.what} {finding.error:.1e}, allowed {finding.allowed:g}"


def attempt(measure: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    """What a check found; that it broke down is a finding too, with the reason."""
    try:
        return measure()
    except Exception as error:  # a self-test has to go on, whatever is broken
        reason = " ".join(str(error).split())[:300]
        return [Finding(f"{type(error).__name__}: {reason}", math.nan, 1.0)]


def checks(engines: Sequence[str] | None = None) -> Iterator[Check]:
    """All of them, by name."""
    names = [name for name in ENGINES if name != "auto" and is_installed(name)] if engines is None else list(engines)
    for form in FORMS:
        yield f"closed form, {form.name}", lambda form=form: compare(form)
    for name in names:
        cases = KINDS | ({"all": cone_cases()["all"]} if name == "native" else {})
        for case, cones in cases.items():
            if (name, case) not in NO_CONE:
                yield f"{name}, {case} cones", lambda name=name, cones=cones: _engine(name, cones)
    yield "native, statuses", _statuses
    yield from PROMISES.items()


def _engine(name: str, cones: Cones) -> list[Finding]:
    """A random program with a known solution; forward against reverse mode and both against differences."""
    engine = make_engine(name, tolerance=TOLERANCE.get(name))
    problem, anything = random_program(cones, batch=(4,), draws=4), math.inf
    error = check_solution(engine, problem, tolerance=anything)
    figures = check_derivative(engine, problem, identity_tolerance=anything, difference_tolerance=anything)
    differences = max(max(figure.forward, figure.reverse) for figure in figures)
    return [
        Finding("solution", error, SOLUTION),
        Finding("adjoint identity", max(figure.identity for figure in figures), IDENTITY.get(name, 1e-9)),
        Finding("differences", differences, DERIVATIVE),
    ]


def _statuses() -> list[Finding]:
    """Infeasible, unbounded and invalid elements beside a solvable one, which must come out as it does alone."""
    check_statuses(make_engine("native"), random_program(Cones(zero=1, nonnegative=4), seed=1))
    return [Finding("infeasible, unbounded, NaN and Inf beside a solved element", 0.0, 1.0)]
