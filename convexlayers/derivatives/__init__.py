"""Derivative strategies: frozen values that any engine can use, since they ask only for (x, s, z)."""

from convexlayers.derivatives.base import Context, Cotangents, Derivative, Tangents
from convexlayers.derivatives.exact import Exact
from convexlayers.derivatives.perturbed import Perturbed
from convexlayers.derivatives.smoothed import Smoothed

__all__ = ["Context", "Cotangents", "Derivative", "Exact", "Perturbed", "Smoothed", "Tangents"]
