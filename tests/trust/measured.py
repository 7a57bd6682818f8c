"""Figures that tests measure, kept for whoever is recording: the worst of each kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import isnan

_figures: ContextVar[dict[str, float] | None] = ContextVar("figures", default=None)


def worse(one: float, other: float) -> float:
    """The larger of two figures; NaN is the worst."""
    return one if isnan(one) or one > other else other


def record(value: float, what: str) -> float:
    """Keep a figure, if it is the worst of its kind. Returns it."""
    figures = _figures.get()
    value = float(value)
    if figures is not None:
        figures[what] = worse(value, figures[what]) if what in figures else value
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
