"""matplotlib, when something is drawn and not before."""

from typing import Any

from convexlayers.errors import PackageNotInstalledError
from convexlayers.packages import import_package


def load(module: str) -> Any:
    """A module of matplotlib.

    Raises:
        PackageNotInstalledError: it is missing.
    """
    missing = PackageNotInstalledError("convexlayers.plot needs matplotlib: pip install matplotlib")
    return import_package(module, missing)


def make_axes(axes: Any) -> Any:
    """The axes that were given, or those of a new figure."""
    return load("matplotlib.pyplot").subplots(layout="constrained")[1] if axes is None else axes
