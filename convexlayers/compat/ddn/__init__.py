"""The faces of the ddn package: `pytorch.node`, whose names are here too, and `basic.node`, which is numpy's."""

from convexlayers.compat.ddn.pytorch.node import (
    AbstractDeclarativeNode,
    AbstractNode,
    DeclarativeFunction,
    DeclarativeLayer,
    EqConstDeclarativeNode,
    IneqConstDeclarativeNode,
    LinEqConstDeclarativeNode,
)

__all__ = [
    "AbstractDeclarativeNode",
    "AbstractNode",
    "DeclarativeFunction",
    "DeclarativeLayer",
    "EqConstDeclarativeNode",
    "IneqConstDeclarativeNode",
    "LinEqConstDeclarativeNode",
]
