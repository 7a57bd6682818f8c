"""Every snippet of README.md and docs runs, and every example in a docstring gives what it says."""

import doctest
import importlib
import pkgutil
import re
import textwrap
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch

import convexlayers as cl

PACKAGE = Path(cl.__file__).parent
ROOT = PACKAGE.parent
README = ROOT / "README.md"
PAGES = [path for path in (README, *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
OPENING = r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*\{?\.?(?:python|py|pycon)\b[^\n]*\n"
FENCE = re.compile(OPENING + r"(?P<code>.*?)^(?P=indent)(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)


def snippets(text):
    """(line number, code) of every fenced block of Python."""
    return [
        (text.count("\n", 0, match.start("code")) + 1, textwrap.dedent(match["code"])) for match in FENCE.finditer(text)
    ]


def run(code, line, name, namespace):
    """Run a snippet in a namespace; one with prompts is also held to the results that it shows."""
    if re.search(r"^>>> ", code, re.MULTILINE):
        test = doctest.DocTestParser().get_doctest(code, namespace, name, name, line - 1)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        said = []
        runner.run(test, out=said.append, clear_globs=False)
        assert runner.summarize(verbose=False).failed == 0, "".join(said)
        namespace.update(test.globs)
    else:
        # Newlines in front, so that a traceback points at the line of the page.
        exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)


PAGES_WITH_SNIPPETS = [path for path in PAGES if snippets(path.read_text(encoding="utf-8"))]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Snippets write to a folder of their own, draw to no screen, and start from the same random numbers."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    torch.manual_seed(0)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("path", PAGES_WITH_SNIPPETS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_of_a_page(path):
    """In order and in one namespace, so that a snippet may build on those above it."""
    namespace = {"__name__": "__main__"}
    for line, code in snippets(path.read_text(encoding="utf-8")):
        run(code, line, str(path), namespace)


@pytest.mark.skipif(not README.exists(), reason="there is no README.md")
def test_the_readme_has_snippets():
    assert README in PAGES_WITH_SNIPPETS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_snippet_is_overlooked(path):
    """Every line that opens one has been read as one."""
    text = path.read_text(encoding="utf-8")
    opened = [line for line in text.splitlines() if re.search(r"(```|~~~).*\bpy(thon|con)?\b", line, re.IGNORECASE)]
    assert len(snippets(text)) == len(opened)


MODULES = sorted(
    [cl.__name__, *(info.name for info in pkgutil.walk_packages([str(PACKAGE)], prefix=f"{cl.__name__}."))]
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0
    source = Path(module.__file__ or "").with_suffix(".py")
    if source.exists() and ">>> " in source.read_text(encoding="utf-8"):
        assert attempted > 0


def test_the_main_entries_have_examples():
    """A sample of the faces that people meet first."""
    for item in (cl.ConvexLayer, cl.compile_problem, cl.solve_qp):
        assert ">>> " in item.__doc__


PAGE = """
# Title

```python
a = 1
```

- in a list:

  ```python title="x.py"
  a += 1
  if a:
      a += 1
  ```

```bash
exit 1
```

```pycon
>>> a
3
```

~~~python
assert a == 3
~~~
"""


def test_the_reader_of_pages_itself():
    found = snippets(PAGE)
    assert [line for line, _ in found] == [5, 11, 21, 26]
    assert found[1][1] == "a += 1\nif a:\n    a += 1\n"
    namespace = {}
    for line, code in found:
        run(code, line, "page.md", namespace)
    assert namespace["a"] == 3


@pytest.mark.parametrize("code", ["assert False", "a =", "undefined", ">>> 1 + 1\n3\n"])
def test_a_wrong_snippet_fails(code):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((AssertionError, SyntaxError, NameError)):
            run(code, 7, "page.md", {})


def test_an_error_points_at_the_line_of_the_page():
    with pytest.raises(ZeroDivisionError) as caught:
        run("a = 1\na / 0\n", 41, "page.md", {})
    last = caught.traceback[-1]
    assert (str(last.path).endswith("page.md"), last.lineno + 1) == (True, 42)
