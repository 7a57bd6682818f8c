"""How everything is timed: contenders in turn, forward and backward apart, medians, errors against a reference."""

import gc
import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from contenders import Contender, Values
from torch import Tensor

Row = dict[str, Any]
# A call that takes milliseconds finds the caches as the contender before it left them, which no training loop does:
# fast contenders make this many calls in a row, within this time.
BURST = 10
BURST_SECONDS = 0.1
# A gradient this much smaller than the others counts as zero.
NEGLIGIBLE = 1e-6
FIELDS = ["forward_ms", "backward_ms", "solution_error", "gradient_error", "kkt_residual", "repeats", "failure"]


@dataclass(frozen=True)
class Call:
    """One forward and backward pass.

    Attributes:
        forward, backward: seconds.
        outputs: the variables' values.
        gradients: of the sum of their squares, one per parameter.
    """

    forward: float
    backward: float
    outputs: list[Tensor]
    gradients: list[Tensor]

    @property
    def seconds(self) -> float:
        """Both passes."""
        return self.forward + self.backward


@dataclass
class Entry:
    """A contender in the race.

    Attributes:
        repeats: turns it is given; the slow get fewer.
        burst: calls in a row that a turn is made of; the first is counted only if it is the only one.
        calls: those it has made.
        failure: why it is out.
    """

    contender: Contender
    repeats: int = 0
    burst: int = 1
    calls: list[Call] = field(default_factory=list)
    failure: str = ""


def limit_threads(count: int | None) -> None:
    """Let this process use that many cores, whatever its libraries think; call it before the first solve."""
    if count is None:
        return
    torch.set_num_threads(count)
    os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(count)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def call_once(contender: Contender, values: Values) -> Call:
    """Forward and backward; the loss is the sum of squares of all variables, and its own gradient is not timed."""
    inputs = contender.inputs(values)
    start = time.perf_counter()
    results = contender.forward(inputs)
    forward = time.perf_counter() - start
    outputs = contender.outputs(results)
    loss = torch.stack([(output**2).sum() for output in outputs]).sum()
    cotangents = torch.autograd.grad(loss, results)
    start = time.perf_counter()
    torch.autograd.backward(results, cotangents)
    backward = time.perf_counter() - start
    return Call(forward, backward, [output.detach() for output in outputs], contender.gradients(inputs))


def relative_error(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest over the tensors, in the maximum norm; NaN counts as infinite.

    Relative to the tensor, or to a millionth of the largest one: the gradient of some parameters is zero.
    """
    floor = max(1e-300, NEGLIGIBLE * max((float(r.abs().max()) for r in reference), default=0.0))
    pairs = zip(found, reference, strict=True)
    errors = [float((f - r).abs().max() / r.abs().max().clamp(min=floor)) for f, r in pairs]
    return max(float("inf") if error != error else error for error in errors)


def race(
    contenders: Sequence[Contender],
    problem: Any,
    values: Values,
    reference: tuple[Values, Values] | None = None,
    repeats: int = 10,
    budget: float = 20.0,
    limit: float | None = None,
) -> list[Row]:
    """Time all contenders on the same tensors, in turn; one row of `FIELDS` for each, in order.

    Args:
        contenders: who takes part.
        problem: what `prepare` gets.
        values: of the parameters, each with the batch dimension.
        reference: outputs and gradients to compare with.
        repeats: turns of each, after one call that is not counted; a turn is a burst of calls.
        budget: seconds; whose calls would take longer together gets fewer of them, but at least one.
        limit: seconds; who needs more to prepare and call once is out.
    """
    entries = [_warm_up(contender, problem, values, repeats, budget, limit) for contender in contenders]
    for turn in range(repeats):
        gc.collect()
        # Every other turn goes backwards, so that nobody always follows the same one and inherits its caches.
        for entry in entries if turn % 2 == 0 else reversed(entries):
            if turn < entry.repeats and not entry.failure:
                _time(entry, values)
    return [_row(entry, values, reference) for entry in entries]


@contextmanager
def at_most(seconds: float | None) -> Iterator[None]:
    """Raise `TimeoutError` in the block after so many seconds, as soon as it is back in Python."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds:g} s")

    if seconds is None or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _warm_up(
    contender: Contender, problem: Any, values: Values, repeats: int, budget: float, limit: float | None
) -> Entry:
    """Prepare and call once. A contender that fails stays in the table, with the reason."""
    entry = Entry(contender)
    try:
        with at_most(limit):
            contender.prepare(problem, values[0].shape[0])
            seconds = call_once(contender, values).seconds
    except Exception as failure:
        entry.failure = describe(failure)
        return entry
    entry.burst = max(1, min(BURST, int(BURST_SECONDS / seconds)))
    entry.repeats = max(1, min(repeats, int(budget / (seconds * entry.burst))))
    return entry


def _time(entry: Entry, values: Values) -> None:
    """One more turn, while nobody's garbage is collected."""
    gc.disable()
    try:
        burst = [call_once(entry.contender, values) for _ in range(entry.burst)]
        entry.calls += burst[1:] or burst
    except Exception as failure:
        entry.failure = describe(failure)
    finally:
        gc.enable()


def describe(failure: BaseException) -> str:
    """One line that fits into a table."""
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:80]}"


def _row(entry: Entry, values: Values, reference: tuple[Values, Values] | None) -> Row:
    row: Row = {"contender": entry.contender.name, "failure": entry.failure or entry.contender.complaint()}
    if not entry.calls:
        return row
    row["repeats"] = len(entry.calls)
    row["forward_ms"] = milliseconds(statistics.median(call.forward for call in entry.calls))
    row["backward_ms"] = milliseconds(statistics.median(call.backward for call in entry.calls))
    if reference is not None:
        row["solution_error"] = f"{relative_error(entry.calls[-1].outputs, reference[0]):.1e}"
        row["gradient_error"] = f"{relative_error(entry.calls[-1].gradients, reference[1]):.1e}"
    residual = entry.contender.residual(values)
    row["kkt_residual"] = "" if residual is None else f"{residual:.1e}"
    return row


def milliseconds(seconds: float) -> float:
    """Four significant digits."""
    return float(f"{1e3 * seconds:.4g}")
