"""Fill of the native engine's factor: against the one that Clarabel's ordering leaves of the same matrix."""

import clarabel
import cvxpy as cp
import numpy as np
import pytest
from scipy import sparse

import convexlayers as cl
from benchmarks.families import FAMILIES
from convexlayers.compiler import compile_problem
