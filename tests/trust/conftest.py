"""Fixtures shared by the promises."""

import pytest

from convexlayers.errors import UnsupportedProblemError
from trust.engines import ENGINES, WITHOUT_SOME_CONES


@pytest.fixture(params=ENGINES)
def solver(request):
    """The name of an engine."""
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip what an engine says it cannot do."""
    try:
        return (yield)
    except UnsupportedProblemError as error:
        engine = getattr(item, "callspec", None) and item.callspec.params.get("solver")
        if engine in WITHOUT_SOME_CONES and "native engine has" in str(error):
            pytest.skip(f"{engine} does not have these cones")
        raise
