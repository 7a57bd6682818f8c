"""The compiled core: kernels in C++17 behind a numpy face, with no link to torch."""

from convexlayers.native._core import info as _info
from convexlayers.native.symbolic import SymbolicFactor, analyze

__all__ = ["SymbolicFactor", "analyze", "info"]


def info() -> dict[str, str]:
    """How the extension was built.

    Returns:
        `version`: of the package when it was compiled. `compiler`: its name and version. `instruction_set`: what the
        code uses without asking the processor first.

    Example:
        >>> sorted(info())
        ['compiler', 'instruction_set', 'version']
    """
    return _info()
