"""Fixtures shared by the promises."""

import pytest

from trust.engines import ENGINES


@pytest.fixture(params=ENGINES)
def solver(request):
    """The name of an engine."""
    return request.param
