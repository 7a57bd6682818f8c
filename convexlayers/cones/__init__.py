"""The cones: one file each, `product` for the order of rows, `svec` for symmetric matrices as vectors."""

from convexlayers.cones.exponential import Exponential
from convexlayers.cones.nonnegative import Nonnegative
from convexlayers.cones.power import Power
from convexlayers.cones.product import Cones
from convexlayers.cones.psd import PSD
from convexlayers.cones.second_order import SecondOrder
from convexlayers.cones.svec import smat, svec
from convexlayers.cones.zero import Zero

__all__ = ["PSD", "Cones", "Exponential", "Nonnegative", "Power", "SecondOrder", "Zero", "smat", "svec"]
