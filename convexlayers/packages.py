"""Packages that nothing needs before it is asked for."""

from importlib import import_module
from typing import Any

from convexlayers.errors import ConvexLayersError


def import_package(module: str, missing: ConvexLayersError) -> Any:
    """A module of an optional package.

    Args:
        module: its dotted name.
        missing: raised where it cannot be imported; says who needs the package and how to get it.

    Raises:
        ConvexLayersError: `missing`.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise missing from error
