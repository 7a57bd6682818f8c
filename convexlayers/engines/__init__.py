"""Engines: one adapter per file behind the contract of `base`, chosen in `select`."""

from convexlayers.engines.base import Engine, Plan
from convexlayers.engines.clarabel import Clarabel
from convexlayers.engines.diffcp import DiffCP
from convexlayers.engines.native import Native
from convexlayers.engines.scs import SCS
from convexlayers.engines.select import ENGINES, Auto, make_engine
from convexlayers.engines.torch_dense import Torch

__all__ = ["ENGINES", "SCS", "Auto", "Clarabel", "DiffCP", "Engine", "Native", "Plan", "Torch", "make_engine"]
