"""matplotlib, when something is drawn and not before."""

from importlib import import_module
from typing import Any

from convexlayers.errors import PackageNotInstalledError


def load(module: str) -> Any:
    """A module of matplotlib.

    Raises:
        PackageNotInstalledError: it is missing.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise PackageNotInstalledError("convexlayers.plot needs matplotlib: pip install matplotlib") from error


def make_axes(axes: Any) -> Any:
    """The axes that were given, or those of a new figure."""
    return load("matplotlib.pyplot").subplots(layout="constrained")[1] if axes is None else axes
