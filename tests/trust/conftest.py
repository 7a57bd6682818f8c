"""Which engines a promise is tested on, and the record of how they did."""

import re
from pathlib import Path

import pytest

from trust import measured
from trust.rows import ROWS, WITHOUT_ENGINE, engines_of
from trust.table import Outcome, Table

FILE = re.compile(r"test_row_(\d+)_")
OPTION = "--trust-table"


def row_of(path):
    """The number of the row that a file of tests is about, None for files about none."""
    found = FILE.match(Path(path).name)
    return int(found[1]) if found else None


def pytest_addoption(parser):
    parser.addoption(OPTION, metavar="FILE", help="write how every promise did, on every engine, as a page")


def pytest_configure(config):
    path = config.getoption(OPTION, None)
    # Under xdist it is the controller that hears of all tests.
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)))


def pytest_generate_tests(metafunc):
    """A test that asks for `solver` runs on every engine that claims what its row is about, unless it names its own."""
    named = {name for mark in metafunc.definition.iter_markers("parametrize") for name in names_of(mark)}
    if "solver" in metafunc.fixturenames and "solver" not in named:
        metafunc.parametrize("solver", engines_of(row_of(metafunc.definition.path)))


def names_of(mark):
    """The arguments that a mark gives values to."""
    names = mark.args[0]
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else names


@pytest.fixture(autouse=True)
def _record(request, record_property):
    """Attach row, engine and figures to the test's report."""
    row = row_of(request.path)
    if row in ROWS:
        callspec = getattr(request.node, "callspec", None)
        record_property("row", row)
        record_property("engine", callspec.params.get("solver", WITHOUT_ENGINE) if callspec else WITHOUT_ENGINE)
    with measured.recording() as figures:
        yield
    record_property("figures", figures)


@pytest.fixture
def figure():
    """figure(value, "relative error of x"): what the table shows is the worst of a row."""
    return measured.record


class Recorder:
    """Collects reports and writes the page when all tests are done."""

    def __init__(self, path):
        self.path = path
        self.table = Table()

    def pytest_runtest_logreport(self, report):
        # A test is its call; set-up and tear-down count where they fail. Figures come with the tear-down.
        found = dict(report.user_properties)
        if "row" not in found:
            return
        if report.when == "call" or report.failed:
            outcome = Outcome.SKIPPED if report.skipped else Outcome.PASSED if report.passed else Outcome.FAILED
            self.table.count(found["row"], found["engine"], outcome)
        if report.when == "teardown":
            self.table.measure(found["row"], found["engine"], found.get("figures", {}))

    def pytest_sessionfinish(self, session):
        self.path.write_text(self.table.page(), encoding="utf-8")
