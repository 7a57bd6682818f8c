"""What CVXPY hands over and is not known here is an error. A later version may add to it; nothing is ignored."""

import re
from importlib.metadata import requires, version

import cvxpy as cp
import numpy as np
import pytest
from cvxpy.constraints.exponential import RelEntrConeQuad
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ConeMatrixStuffing, ParamConeProg
from cvxpy.reductions.dcp2cone.dcp2cone import Dcp2Cone

import convexlayers as cl
from convexlayers.compiler import accept, canonicalize
from convexlayers.errors import UnsupportedProblemError


def problem():
    x, t = cp.Variable(3), cp.Parameter(3, name="t")
    return cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0, cp.norm(x) <= 1]), [t], [x]


@pytest.fixture
def change_stuffed(monkeypatch):
    """change_stuffed(f): f sees, and may change, each cone program that CVXPY makes."""
    original = ConeMatrixStuffing.apply

    def install(change):
        def apply(self, problem):
            stuffed, inverse = original(self, problem)
            change(stuffed)
            return stuffed, inverse

        monkeypatch.setattr(ConeMatrixStuffing, "apply", apply)

    return install


class NewCone(cp.constraints.nonpos.NonNeg):
    """A kind of cone that no version has yet, with the rows of one that all have."""


@pytest.mark.parametrize("name", ["cubic_objective", "quadratic_constraints", "reduced_q"])
@pytest.mark.parametrize("content", [None, np.ones(3)], ids=["empty", "full"])
def test_unknown_key(change_stuffed, name, content):
    """Also where it is empty in this problem: what it means is not known."""
    change_stuffed(lambda stuffed: setattr(stuffed, name, content))
    with pytest.raises(UnsupportedProblemError, match=f"puts {name} into"):
        cl.ConvexLayer(*problem())


def test_several_unknown_keys_are_all_named(change_stuffed):
    def change(stuffed):
        stuffed.second, stuffed.first = 1, 2

    change_stuffed(change)
    with pytest.raises(UnsupportedProblemError, match="first, second"):
        cl.ConvexLayer(*problem())


@pytest.mark.parametrize("name", canonicalize.MUST_BE_EMPTY)
def test_known_key_with_content_that_would_be_ignored(change_stuffed, name):
    """Bounds, for instance, that CVXPY leaves to solvers that take them apart from A and b."""
    change_stuffed(lambda stuffed: setattr(stuffed, name, np.zeros(3)))
    with pytest.raises(UnsupportedProblemError, match=name):
        cl.ConvexLayer(*problem())


@pytest.mark.parametrize("name", canonicalize.MUST_BE_EMPTY)
@pytest.mark.parametrize("nothing", [None, (), {}], ids=["None", "tuple", "dict"])
def test_known_key_without_content(change_stuffed, name, nothing):
    change_stuffed(lambda stuffed: setattr(stuffed, name, nothing))
    cl.ConvexLayer(*problem())


def test_unknown_cone_in_the_cone_program(change_stuffed):
    def change(stuffed):
        stuffed.constraints = [NewCone(c.args[0]) if type(c) is cp.NonNeg else c for c in stuffed.constraints]

    change_stuffed(change)
    with pytest.raises(UnsupportedProblemError, match="NewCone"):
        cl.ConvexLayer(*problem())


def test_unknown_constraint_between_reductions(monkeypatch):
    """CVXPY's stuffing takes what it knows, and would not miss the others."""
    original = Dcp2Cone.apply

    def apply(self, given):
        reduced, inverse = original(self, given)
        return cp.Problem(reduced.objective, [*reduced.constraints, NewCone(reduced.variables()[0])]), inverse

    monkeypatch.setattr(Dcp2Cone, "apply", apply)
    with pytest.raises(UnsupportedProblemError, match="NewCone"):
        cl.ConvexLayer(*problem())


def test_constraint_of_the_user_that_no_reduction_knows():
    given, parameters, variables = problem()
    extended = cp.Problem(given.objective, [*given.constraints, NewCone(variables[0])])
    with pytest.raises(UnsupportedProblemError, match="NewCone"):
        cl.ConvexLayer(extended, parameters, variables)


def test_cones_that_can_only_be_approximated_have_no_duals():
    """They are replaced by others; a dual of theirs would be one of the replacement."""
    x, y, z = cp.Variable(), cp.Variable(), cp.Variable()
    t = cp.Parameter(name="t")
    cone = RelEntrConeQuad(x, y, z, 3, 3)
    given = cp.Problem(cp.Minimize(z), [cone, x == t, y == 1])
    with pytest.raises(UnsupportedProblemError, match="dual of"):
        cl.ConvexLayer(given, [t], [z, cone.dual_variables[0]])
    (value,) = cl.ConvexLayer(given, [t], [z])(2.0)
    # An approximation: x log(x / y) to a few digits.
    assert float(value) == pytest.approx(2 * np.log(2), abs=1e-2)


def test_integers_from_a_reduction(monkeypatch):
    monkeypatch.setattr(ParamConeProg, "is_mixed_integer", lambda self: True)
    with pytest.raises(UnsupportedProblemError, match="integer variables"):
        cl.ConvexLayer(*problem())


def test_every_key_of_this_version_is_known():
    """No message of an unknown key, with all kinds of content: duals, attributes, quadratics, parameters, six cones."""
    x, X, t = cp.Variable(3, bounds=[-2, 2]), cp.Variable((2, 2), PSD=True), cp.Parameter(3, nonneg=True)
    constraints = [cp.norm(x) <= 2, cp.ExpCone(x[0], x[1] + 3, x[2] + 9), cp.PowCone3D(x[0] + 3, x[1] + 3, x[2], 0.3)]
    objective = cp.sum_squares(x - t) + cp.trace(X) + cp.sum_squares(X - np.eye(2))
    given = cp.Problem(cp.Minimize(objective), [*constraints, cp.sum(x) == X[0, 0]])
    cl.ConvexLayer(given, [t], [x, X, constraints[0].dual_variables[0]])


@pytest.mark.parametrize("number", ["1.9.2", "1.9.0", "1.8.2", "0.4.11"])
def test_a_version_that_is_too_old(monkeypatch, number):
    monkeypatch.setattr(cp, "__version__", number)
    with pytest.raises(UnsupportedProblemError, match=re.escape(f"CVXPY {number} is installed") + ".*1.9.3 or later"):
        cl.ConvexLayer(*problem())


@pytest.mark.parametrize("number", ["1.9.3", "1.9.10", "1.10.0.dev0+abc", "2.0"])
def test_a_version_that_is_not(monkeypatch, number):
    monkeypatch.setattr(cp, "__version__", number)
    cl.ConvexLayer(*problem())


@pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
def test_quadratics_of_symmetric_variables_are_kept(sense):
    """What versions before the lowest lose: the projection of D on the cone is D, and not its largest part alone."""
    X, D = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    distance = 0.5 * cp.sum_squares(X) - cp.trace(D @ X)
    objective = sense(distance if sense is cp.Minimize else -distance)
    layer = cl.ConvexLayer(cp.Problem(objective, [X >> 0, cp.trace(X) <= 1]), [D], [X])
    value = np.diag([0.3, 0.2, 0.1])
    np.testing.assert_allclose(layer(value)[0].numpy(), value, atol=1e-8)


def test_the_declared_range_of_versions_holds_the_one_that_is_tested():
    (declared,) = [text for text in requires("convexlayers") or [] if re.match(r"cvxpy\b", text)]
    lowest = re.search(r">=\s*([\d.]+)", declared)
    assert lowest is not None
    least, here = (tuple(int(part) for part in re.findall(r"\d+", text)[:3]) for text in (lowest[1], version("cvxpy")))
    assert least == accept.LOWEST_CVXPY
    assert here >= least
