"""The documentation: every public name in the API pages, every page in the navigation, tables that are current."""

import importlib
import inspect
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import convexlayers as cl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NAMESPACES = ["cones", "derivatives", "engines", "native", "nodes", "plot", "testing", "zoo"]
# Faces whose names are those of another package, documented module by module.
FACES = ["compat.cvxpylayers", "compat.qpth", "compat.diffcp.cone_program"]
DIRECTIVE = re.compile(r"^::: (?P<path>[\w.]+)\n(?P<options>(?:    .*\n|\n(?=    ))*)", re.MULTILINE)


def resolve(path):
    """The object at a dotted path."""
    parts = path.split(".")
    for k in range(len(parts), 0, -1):
        try:
            item = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            item = getattr(item, part)
        return item
    raise ModuleNotFoundError(path)


def members_of(options):
    """The names under `members`, in either of YAML's forms; None if there are none."""
    short = re.search(r"members: \[(.*)\]", options)
    if short:
        return [name.strip() for name in short[1].split(",")]
    return re.findall(r"^        - (\w+)$", options, re.MULTILINE) if "members:" in options else None


def directives():
    """(path, members) of every directive of mkdocstrings."""
    pages = "\n".join(path.read_text(encoding="utf-8") + "\n" for path in sorted(DOCS.glob("api*.md")))
    return [(match["path"], members_of(match["options"])) for match in DIRECTIVE.finditer(pages)]


def documented():
    """Identities of all objects that the API pages show."""
    found = []
    for path, members in directives():
        item = resolve(path)
        if inspect.ismodule(item):
            own = [name for name, value in vars(item).items() if getattr(value, "__module__", "") == item.__name__]
            found += [getattr(item, name) for name in (own if members is None else members)]
        else:
            found.append(item)
    return found


def public_names():
    names = [("convexlayers", name) for name in cl.__all__ if not inspect.ismodule(getattr(cl, name))]
    for space in NAMESPACES:
        names += [(f"convexlayers.{space}", name) for name in resolve(f"convexlayers.{space}").__all__]
    errors = [name for name, value in vars(cl.errors).items() if inspect.isclass(value) and name.endswith("Error")]
    names += [("convexlayers.errors", name) for name in [*errors, "DerivativeWarning"]]
    return names + [
        (f"convexlayers.{face}", name) for face in FACES for name in resolve(f"convexlayers.{face}").__all__
    ]


def test_every_public_name_is_in_the_api_pages():
    shown = {id(item) for item in documented()}
    missing = [f"{space}.{name}" for space, name in public_names() if id(getattr(resolve(space), name)) not in shown]
    assert not missing


def test_directives_name_what_exists():
    for path, members in directives():
        item = resolve(path)
        for name in members or []:
            assert hasattr(item, name), f"{path} has no {name}"
            # Of a function and a module of one name the page would show neither: name the function's own path.
            assert not inspect.ismodule(item) or not hasattr(item, "__path__") or find_spec(f"{path}.{name}") is None, (
                f"{path}.{name} is a module, too"
            )


def test_the_reader_of_directives_itself():
    first = "::: a.b\n    options:\n      members:\n        - c\n        - d\n\n"
    text = first + "::: e\n\n::: f\n    options:\n      members: [g, h]\n"
    found = [(match["path"], members_of(match["options"])) for match in DIRECTIVE.finditer(text)]
    assert found == [("a.b", ["c", "d"]), ("e", None), ("f", ["g", "h"])]


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert f": {page.name}\n" in navigation, page.name


@pytest.fixture(scope="module")
def page_script():
    """benchmarks/page.py, whose neighbours it imports."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield runpy.run_path(str(ROOT / "benchmarks" / "page.py"))
    sys.path[:] = before


def test_tables_are_those_of_the_results(page_script):
    for path in page_script["PAGES"]:
        text = path.read_text()
        assert text == page_script["fill"](text), f"python benchmarks/page.py: {path.name}"


def test_every_row_in_which_a_peer_is_faster_is_listed(page_script):
    row = {"forward_ms": "2", "backward_ms": "3", "failure": "", "solution_error": "1e-9"}
    ours = row | {"contender": "convexlayers"}
    faster = page_script["_faster"]
    assert faster(row | {"contender": "a", "forward_ms": "1"}, ours) == ["forward", "both together"]
    assert faster(row | {"contender": "a", "backward_ms": "2.5", "forward_ms": "9"}, ours) == ["backward"]
    assert faster(row | {"contender": "a", "backward_ms": ""}, ours) == []
    assert not page_script["valid"](row | {"solution_error": "0.5"})
    table = page_script["losses"]()
    assert "| literature | dqp_dense_450, batch 4 |" in table


def test_tolerance_table_is_that_of_the_results():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        tolerance = runpy.run_path(str(ROOT / "benchmarks" / "tolerance.py"))
    finally:
        sys.path.pop(0)
    assert tolerance["make_table"]() in (DOCS / "techniques.md").read_text()


def test_pictures_show_the_factor_that_the_engine_uses(tmp_path):
    pictures = runpy.run_path(str(DOCS / "pipeline_pictures.py"))
    layer = pictures["controller"]()
    counts = pictures["draw_patterns"](layer, tmp_path / "kkt.svg")
    assert counts["ordered"] == cl.engines.Native().setup(layer.program).describe()["nnz_L"]
    text = (DOCS / "pipeline.md").read_text()
    assert f"{counts['ordered']} entries instead of {counts['natural']}" in text


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((DOCS / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path):
    """In a kernel of their own, like in front of a reader; they are kept without outputs."""
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
