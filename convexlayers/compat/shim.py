"""The faces under the names of the packages, for programs that are run as they are.

`stand_in()` changes what `import cvxpylayers`, `import qpth` and `import diffcp` mean in a process. Code that imported
them before keeps what it has. Engine "diffcp" then gets the face too, and is no second opinion any more.
"""

import importlib
import sys
from collections.abc import Iterable
from types import ModuleType

from convexlayers.errors import ArgumentError

# Of each package, its modules that have a face; "" is the package itself.
FACES: dict[str, dict[str, str]] = {
    "cvxpylayers": {
        "": "convexlayers.compat.cvxpylayers",
        "torch": "convexlayers.compat.cvxpylayers",
        "torch.cvxpylayer": "convexlayers.compat.cvxpylayers",
    },
    "qpth": {"": "convexlayers.compat.qpth", "qp": "convexlayers.compat.qpth"},
    "diffcp": {
        "": "convexlayers.compat.diffcp",
        "cone_program": "convexlayers.compat.diffcp",
        "cones": "convexlayers.compat.diffcp.cones",
        "utils": "convexlayers.compat.diffcp.utils",
    },
}


def face_of(module: str) -> str | None:
    """The module that takes the place of one of the packages', None where there is none."""
    package, _, rest = module.partition(".")
    return FACES.get(package, {}).get(rest)


def stand_in(packages: Iterable[str] = tuple(FACES)) -> None:
    """Let imports of these packages find the faces, from now on.

    Args:
        packages: names of packages.

    Raises:
        ArgumentError: there is no face of a package.
    """
    for package in packages:
        if package not in FACES:
            raise ArgumentError(f"packages: there is no face of {package!r}, expected some of {', '.join(FACES)}.")
        for stale in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[stale]
        for rest, face in FACES[package].items():
            _alias(".".join(filter(None, [package, rest])), importlib.import_module(face))


def _alias(name: str, face: ModuleType) -> None:
    """A module of that name with the contents of a face; what it does not have is not found elsewhere either."""
    module = ModuleType(name, face.__doc__)
    module.__dict__.update({key: value for key, value in vars(face).items() if not _is_own(key)})
    module.__path__ = []
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _is_own(key: str) -> bool:
    """Whether an entry of a module's namespace says which module it is."""
    return key in ("__name__", "__loader__", "__spec__", "__package__", "__path__", "__file__", "__cached__")
