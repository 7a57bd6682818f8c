"""Figures that tests measure, kept for whoever is recording: the worst of each kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_figures: ContextVar[dict[str, float] | None] = ContextVar("figures", default=None)


def record(value: float, what: str) -> float:
    """Keep a figure, if it is the worst of its kind. Returns it."""
    figures = _figures.get()
    value = float(value)
    if figures is not None:
        # Written so that NaN is the worst.
        figures[what] = value if not value <= figures.get(what, -1.0) else figures[what]
    return value


@contextmanager
def recording() -> Iterator[dict[str, float]]:
    """Everything recorded inside, by kind."""
    figures: dict[str, float] = {}
    token = _figures.set(figures)
    try:
        yield figures
    finally:
        _figures.reset(token)
