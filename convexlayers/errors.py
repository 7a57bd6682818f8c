"""Exceptions and warnings of the library, and the builders of their messages.

Every exception is a `ConvexLayersError` and also the builtin that Python users would expect to catch, so that
``except ValueError`` keeps working for people who do not know this package.
"""

from collections.abc import Sequence


class ConvexLayersError(Exception):
    """Base class of every exception that this library raises on purpose."""


class ArgumentError(ConvexLayersError, ValueError):
    """An argument has a wrong shape, type or value; the message names it."""


class MissingArgumentError(ArgumentError, TypeError):
    """A parameter was not given, was given twice, or is not known."""


class NotDCPError(ConvexLayersError, ValueError):
    """The problem is not convex by CVXPY's rules (DCP, or DGP for geometric programs)."""


class NotDPPError(ConvexLayersError, ValueError):
    """The cone program's data would not be an affine function of the parameters (CVXPY's DPP rules)."""


class UnsupportedProblemError(ConvexLayersError, NotImplementedError):
    """The problem holds something that this library does not handle, and will not ignore."""


class SolverError(ConvexLayersError, RuntimeError):
    """At least one element of the batch was not solved. `status` holds the code of every element."""

    def __init__(self, message: str, status: object = None) -> None:
        super().__init__(message)
        self.status = status


class PackageNotInstalledError(ConvexLayersError, ImportError):
    """An optional package that is needed for this is not installed."""


class EngineNotInstalledError(ConvexLayersError, ImportError):
    """The package behind an engine is not installed."""


class SecondDerivativeError(ConvexLayersError, RuntimeError):
    """A derivative of the derivative was asked for where none is implemented."""


class FileFormatError(ConvexLayersError, ValueError):
    """A file does not hold a layer, is damaged, or was written by a newer version."""


class CheckpointError(ConvexLayersError, RuntimeError):
    """A state_dict was saved with another problem than that of the layer which is to load it."""


class DerivativeWarning(UserWarning):
    """A derivative was returned whose linear system was not solved to the accuracy one should expect."""


def wrong_shape(name: str, got: Sequence[int], expected: str) -> ArgumentError:
    """Error for an argument of the wrong shape.

    Args:
        name: the argument, as its user knows it.
        got: the shape that came.
        expected: the shape that was expected, in words or symbols.
    """
    return ArgumentError(f"{name} has shape {tuple(got)}, expected {expected}.")


def count_of(number: int, noun: str) -> str:
    """'1 element', '3 elements'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
