"""The compiled core: kernels in C++17 behind a numpy face, with no link to torch."""

from convexlayers.native._core import info as _info
from convexlayers.native.symbolic import SymbolicFactor, analyze

__all__ = ["SymbolicFactor", "analyze", "info"]


def info() -> dict[str, str | int]:
    """What runs here.

    Returns:
        `version`: of the package when it was compiled. `compiler`: its name and version. `instruction_set`: that of the
        kernels in use, the best that the processor has: "avx512", "avx2" or "baseline"; the environment variable
        CONVEXLAYERS_ISA asks for less. `lanes`: how many problems a vector register holds.

    Example:
        >>> sorted(info())
        ['compiler', 'instruction_set', 'lanes', 'version']
    """
    return _info()
