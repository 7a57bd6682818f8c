"""Training scripts of other packages, with only their import replaced: they train, and as with the package."""

import runpy
import warnings
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIGRATION = runpy.run_path(str(ROOT / "benchmarks" / "migration.py"))
PACKAGES = list(MIGRATION["IMPORTS"])
STEPS = 8


def train(package, on_face):
    namespace = {"__name__": "script"}
    exec(compile(MIGRATION["source"](package, on_face), package, "exec"), namespace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return namespace["train"](STEPS)


@pytest.mark.parametrize("package", PACKAGES)
def test_only_the_import_is_replaced(package):
    before, after = (MIGRATION["source"](package, on_face).splitlines() for on_face in (False, True))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [MIGRATION["IMPORTS"][package]]


@pytest.mark.parametrize("package", PACKAGES)
def test_scripts_train_on_the_faces(package):
    losses = train(package, on_face=True)
    assert len(losses) == STEPS
    assert losses[-1] < 0.95 * losses[0]
    assert all(later < earlier + 1e-6 for earlier, later in pairwise(losses))


@pytest.mark.parametrize("package", PACKAGES)
def test_losses_are_those_of_the_package(package):
    pytest.importorskip({"cvxpylayers": "cvxpylayers.torch"}.get(package, package))
    difference = MIGRATION["difference"](train(package, on_face=False), train(package, on_face=True))
    assert difference < 1e-5


def test_differences_are_relative():
    assert MIGRATION["difference"]([1.0, 2.0], [1.0, 4.0]) == 0.5
    with pytest.raises(ValueError, match=r"shorter|longer"):
        MIGRATION["difference"]([1.0], [])


def test_the_table_of_the_page_is_that_of_the_results():
    assert MIGRATION["make_table"]() in (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
