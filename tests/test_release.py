"""What a release says of itself agrees, and CI calls what exists."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

import convexlayers as cl

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def loaded(path):
    return yaml.safe_load(path.read_text())


def steps():
    for path in WORKFLOWS:
        for name, job in loaded(path)["jobs"].items():
            for step in job["steps"]:
                yield f"{path.name}, {name}", step


@pytest.fixture(scope="module")
def gate():
    return runpy.run_path(str(ROOT / "tools" / "changelog_gate.py"))


@pytest.fixture(scope="module")
def distributions():
    return runpy.run_path(str(ROOT / "tools" / "check_distributions.py"))


# ------------------------------------------------------------------------------------------------ versions


def test_version_stands_in_one_place():
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    settings = PROJECT["tool"]["scikit-build"]["metadata"]["version"]
    assert settings["input"] == "convexlayers/__init__.py"
    source = (ROOT / settings["input"]).read_text()
    assert re.findall(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE) == [cl.__version__]


def test_citation_is_of_this_version():
    assert loaded(ROOT / "CITATION.cff")["version"] == cl.__version__


def test_changelog_begins_with_what_is_unreleased_and_this_version(gate):
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = list(gate["sections"](text))
    assert versions[:2] == ["Unreleased", cl.__version__]
    date = re.search(rf"^## \[{re.escape(cl.__version__)}\] - (\d{{4}}-\d\d-\d\d)$", text, flags=re.MULTILINE)
    assert date is not None
    assert date[1] == str(loaded(ROOT / "CITATION.cff")["date-released"])


def test_pythons_are_those_that_ci_tests_and_builds_for():
    classifiers = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
    tested = loaded(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    built = PROJECT["tool"]["cibuildwheel"]["build"]
    assert classifiers == tested == PYTHONS
    assert built == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"


def test_oldest_pins_are_the_bounds():
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints-oldest.txt").read_text(), flags=re.MULTILINE))
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["diffcp"]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups() for requirement in wanted)
    assert pins.keys() == bounds.keys()

    def filled(version):
        return [int(part) for part in version.split(".")] + [0] * (3 - version.count(".") - 1)

    assert {name: filled(pin) for name, pin in pins.items()} == {name: filled(b) for name, b in bounds.items()}


def test_tested_pins_are_allowed():
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    extras = [r for requirements in PROJECT["project"]["optional-dependencies"].values() for r in requirements]
    for requirement in PROJECT["project"]["dependencies"] + extras:
        match = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement)
        if match is not None:
            pin, bound = ([int(part) for part in v.strip(".").split(".")] for v in (pins[match[1].lower()], match[2]))
            assert pin >= bound, requirement


# ------------------------------------------------------------------------------------------------------ CI


def test_workflows_are_the_ones_a_release_needs():
    assert {path.stem for path in WORKFLOWS} == {"ci", "docs", "kernels", "wheels"}
    assert loaded(WORKFLOWS[0])["jobs"].keys() >= {"changelog", "lint", "tests", "versions", "distributions"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_triggers_jobs_and_few_rights(path):
    workflow = loaded(path)
    assert workflow[True]  # `on` is a boolean of YAML 1.1
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        for other in [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", []):
            assert other in workflow["jobs"]


def test_make_targets_and_scripts_of_the_workflows_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    called = 0
    for place, step in steps():
        for command in re.findall(r"\bmake ([^\n&]*)", step.get("run", "")):
            words = re.sub(r'[A-Z_]+=("[^"]*"|\$\{\{[^}]*\}\}|\S+)', "", command).split()
            assert words, place
            assert set(words) <= set(targets), place
            called += 1
        for script in re.findall(r"(tools/[\w./-]+)", step.get("run", "")):
            assert (ROOT / script).is_file(), place
    assert called >= 8
    (smoke,) = re.findall(r"tools/\S+", PROJECT["tool"]["cibuildwheel"]["test-command"])
    assert (ROOT / smoke).is_file()


def test_constraints_of_the_workflows_exist():
    for path in WORKFLOWS:
        for name in re.findall(r"constraints[\w-]*\.txt", path.read_text()):
            assert (ROOT / name).is_file()


def test_actions_are_pinned_and_of_known_owners():
    for place, step in steps():
        if "uses" in step:
            assert re.fullmatch(r"(actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1)", step["uses"]), place


def test_workflows_name_no_host():
    for path in WORKFLOWS:
        assert re.findall(r"https?://|index-url|[\w-]+\.(?:com|org|net|io)\b", path.read_text()) == []


@pytest.mark.parametrize("path", [p for p in TEMPLATES if p.stem != "config"], ids=lambda path: path.stem)
def test_issue_templates_have_what_a_form_needs(path):
    form = loaded(path)
    assert form["name"]
    assert form["description"]
    inputs = [field for field in form["body"] if field["type"] != "markdown"]
    assert inputs
    assert all(field["attributes"]["label"] for field in inputs)
    assert len({field["id"] for field in inputs}) == len(inputs)


# --------------------------------------------------------------------------------------------- changelog gate

BEFORE = """# Changelog

## [Unreleased]

### Added

- One thing,
  on two lines.

## [0.1.0] - 2026-01-01

- The first.
"""
ENTRY = BEFORE.replace("## [0.1.0]", "- Another thing.\n\n## [0.1.0]")
REWRAPPED = BEFORE.replace("One thing,\n  on two lines.", "One thing, on two lines.")
RELEASE = BEFORE.replace("## [Unreleased]\n", "## [Unreleased]\n\n## [0.2.0] - 2026-02-02\n")
REWRITTEN = ENTRY.replace("The first.", "The second.")


@pytest.mark.parametrize(
    ("changed", "after", "passes"),
    [
        (["convexlayers/layer.py"], ENTRY, True),
        (["convexlayers/layer.py"], BEFORE, False),
        (["convexlayers/layer.py"], REWRAPPED, False),
        (["convexlayers/native/src/team.cpp"], BEFORE, False),
        (["pyproject.toml"], BEFORE, False),
        (["tests/test_layer.py", "docs/index.md", "examples/convexlayers/x.py"], BEFORE, True),
        (["convexlayers/__init__.py"], RELEASE, True),
        (["convexlayers/layer.py"], REWRITTEN, False),
        ([], REWRITTEN, False),
    ],
)
def test_changelog_gate(gate, changed, after, passes):
    assert (gate["complaint"](changed, BEFORE, after) is None) is passes


def test_changelog_gate_wants_versions_as_titles(gate):
    with pytest.raises(ValueError, match=r"is called '0\.2\.0'"):
        gate["sections"]("# Changelog\n\n## 0.2.0\n")


# ---------------------------------------------------------------------------------------------- distributions

WHEEL = [
    "convexlayers/__init__.py",
    "convexlayers/py.typed",
    "convexlayers/native/_core.cpython-311-x86_64-linux-gnu.so",
    "convexlayers-0.1.0.dist-info/METADATA",
    "convexlayers-0.1.0.dist-info/licenses/LICENSE",
]


def test_wheel_as_it_should_be(distributions):
    assert distributions["wheel_problems"](WHEEL) == []
    assert distributions["wheel_problems"]([*WHEEL, "convexlayers.libs/libstdc++-1.so.6"]) == []


@pytest.mark.parametrize(
    "name",
    [
        "convexlayers/native/src/team.cpp",
        "tests/test_layer.py",
        "convexlayers/__pycache__/layer.cpython-311.pyc",
        "x.o",
    ],
)
def test_wheel_with_too_much(distributions, name):
    assert distributions["wheel_problems"]([*WHEEL, name]) == [f"{name} does not belong in it"]


@pytest.mark.parametrize("name", [WHEEL[1], WHEEL[2], WHEEL[4]])
def test_wheel_with_too_little(distributions, name):
    assert len(distributions["wheel_problems"]([other for other in WHEEL if other != name])) == 1


@pytest.mark.parametrize(
    "name", [".ci/run", "build/x/CMakeCache.txt", "convexlayers/native/_core.so", ".venv311/bin/pip"]
)
def test_sdist_with_too_much(distributions, name):
    assert distributions["sdist_problems"](["a.py", name], ["a.py"]) == [f"{name} does not belong in it"]


def test_sdist_with_too_little(distributions):
    assert distributions["sdist_problems"](["a.py"], ["a.py", "b.cpp"]) == ["b.cpp is missing"]


def test_module_that_lacks_an_instruction_set(distributions):
    assert distributions["module_problems"](b"..avx2\0..baseline\0", ["baseline", "avx2", "avx512"]) == [
        "no kernels for avx512"
    ]


def test_type_marker_is_there():
    assert (ROOT / "convexlayers" / "py.typed").is_file()


# ----------------------------------------------------------------------------------------------- native sources


def test_cmake_lists_every_source():
    listed = set(re.findall(r"\$\{native\}/([\w/]+\.cpp)", (ROOT / "CMakeLists.txt").read_text()))
    folder = ROOT / "convexlayers" / "native" / "src"
    assert listed == {str(path.relative_to(folder)) for path in folder.rglob("*.cpp")}
