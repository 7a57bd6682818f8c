"""The shape of the package, read from its source: who imports whom, what is documented, how long things are."""

import ast
import importlib
import inspect
import pkgutil
import re
import statistics
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import convexlayers as cl

PACKAGE = Path(cl.__file__).parent
ROOT = PACKAGE.parent
NAME = "convexlayers"

# Imports run down this list, or stay within an entry; `maps`, `assembly` and the like stand where they are used first.
ORDER = [
    {"errors"},
    {"status", "native", "packages"},
    {"cones"},
    {"maps", "program", "sparse", "plain", "fingerprint"},
    {"assembly", "compiler", "solution"},
    {"derivatives", "scaling", "activity"},
    {"engines"},
    {"reports", "stacks", "operators"},
    {"autograd", "batching", "calling", "validation", "relax", "warm_start", "execute", "compiled", "saving"},
    {"functional", "layer", "diagnosis", "seeing"},
    {"nodes"},
    {"zoo", "plot"},
    # These may import everything, and so may the package's own __init__.
    {"compat", "testing", "command", "__main__", ""},
]
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
TOP = len(ORDER) - 1
# CVXPY belongs to the compiler; these may use it too.
MAY_IMPORT_CVXPY = {"compiler", "compat", "testing"}
# Built from C++, so there is no source of them to be found.
COMPILED = {"native._core"}
SOLVERS = {"clarabel", "scs", "diffcp", "ecos", "osqp", "highspy", "qdldl"}
HEAVY = {"cvxpy", *SOLVERS}

MAX_FILE, MEDIAN_FILE, MAX_BODY, P90_BODY, MAX_NESTING = 500, 150, 120, 40, 3
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def python_files():
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path):
    """Dotted name below the package, '' for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module):
    """The entry of ORDER that a module belongs to."""
    return module.split(".")[0]


def place(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(path):
    """(node, dotted name, when) of each import, when being "module", "function" or "types"."""

    def visit(node, when):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child, alias.name, when) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{place(path, child)}: relative import"
                yield from ((child, f"{child.module}.{alias.name}", when) for alias in child.names)
            elif is_type_checking(child):
                yield from visit(child, "types")
            else:
                yield from visit(child, "function" if isinstance(child, FUNCTIONS) and when == "module" else when)

    return list(visit(tree_of(path), "module"))


def own_module(name):
    """The module of the package that an import means, or None: convexlayers.a.b.Thing -> a.b."""
    parts = name.split(".")
    if parts[0] != NAME:
        return None
    for stop in range(len(parts), 1, -1):
        path, module = PACKAGE.joinpath(*parts[1:stop]), ".".join(parts[1:stop])
        if path.with_suffix(".py").exists() or path.is_dir() or module in COMPILED:
            return module
    return ""


def test_every_part_has_its_place():
    found = {part_of(module_of(path)) for path in python_files()}
    assert found <= RANK.keys(), f"give {found - RANK.keys()} a place in ORDER"
    assert {"errors", "status", "cones", "program", "solution", "engines", "derivatives", "compiler", "layer"} <= found


def test_imports_run_one_way():
    outside = []
    for path in python_files():
        part = part_of(module_of(path))
        for node, name, when in imports_of(path):
            target = own_module(name)
            if target is None or when == "types" or RANK[part] == TOP:
                continue
            if RANK[part_of(target)] > RANK[part] or part_of(target) == "":
                outside.append(f"{place(path, node)}: {part} imports {name}")
    assert outside == []


def test_modules_form_no_cycle():
    """Within an entry of ORDER too."""
    edges = {module_of(path): set() for path in python_files()}
    for path in python_files():
        targets = {own_module(name) for _, name, when in imports_of(path) if when != "types"}
        edges[module_of(path)] = targets & edges.keys() - {module_of(path)}
    done, trail = set(), []

    def visit(module):
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        trail.append(module)
        for target in sorted(edges[module]):
            visit(target)
        trail.pop()
        done.add(module)

    for module in sorted(edges.keys() - {""}):
        visit(module)
    assert len(done) >= len(edges) - 1


def test_the_compiler_imports_the_program_and_what_is_below():
    for path in python_files():
        if part_of(module_of(path)) != "compiler":
            continue
        for node, name, _ in imports_of(path):
            target = own_module(name)
            allowed = target is None or part_of(target) in {"compiler", "program", "maps", "cones", "status", "errors"}
            assert allowed, f"{place(path, node)}: the compiler imports {name}"


def test_the_compiler_is_imported_where_it_is_needed_and_not_before():
    """So that a layer from a file works without CVXPY."""
    importers = {}
    for path in python_files():
        part = part_of(module_of(path))
        for node, name, when in imports_of(path):
            if part_of(own_module(name) or "") != "compiler" or part == "compiler":
                continue
            importers.setdefault(part, set()).add(when)
            early = when == "module" and part not in MAY_IMPORT_CVXPY | {"zoo"}
            assert not early, f"{place(path, node)}: the compiler is imported on import"
    assert "function" in importers["layer"]


def packages_loaded(path):
    """Calls load_package("name"), which import a solver when it is first needed; the name must be a literal."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_package":
            yield node, ast.literal_eval(node.args[0])


def test_cvxpy_and_solvers_are_imported_where_they_belong():
    outside, seen = [], set()
    for path in python_files():
        module = module_of(path)
        for node, name, when in imports_of(path):
            library = name.split(".")[0]
            at_home = part_of(module) in MAY_IMPORT_CVXPY
            if library == "cvxpy" and when == "module" and not at_home:
                outside.append(f"{place(path, node)}: cvxpy outside the compiler")
            if library in SOLVERS and when == "module":
                outside.append(f"{place(path, node)}: {library} is loaded on import")
            if library in SOLVERS and module != f"engines.{library}" and part_of(module) not in ("compat", "testing"):
                outside.append(f"{place(path, node)}: {library} outside its adapter")
            seen.add(library)
        for node, library in packages_loaded(path):
            if module not in (f"engines.{library}", f"compat.{library}"):
                outside.append(f"{place(path, node)}: {library} outside its adapter")
            seen.add(library)
    assert outside == []
    # The test would pass on an empty package.
    assert {"cvxpy", "clarabel", "scs", "torch", NAME} <= seen


def test_importing_the_package_loads_neither_cvxpy_nor_a_solver():
    code = f"import sys, {NAME}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert {NAME, "torch"} <= loaded
    assert loaded & (HEAVY | {"matplotlib", "pandas", "sklearn", "jax", "pytest"}) == set()


def test_importing_the_package_changes_no_setting_and_says_nothing():
    code = f"""
import torch, numpy, warnings
import scipy.sparse  # adds a filter of its own
before = torch.get_default_dtype(), torch.get_num_threads(), numpy.geterr(), list(warnings.filters)
import {NAME}
assert before == (torch.get_default_dtype(), torch.get_num_threads(), numpy.geterr(), list(warnings.filters))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_public_names_exist_and_are_documented():
    assert cl.__all__ == sorted(cl.__all__)
    assert len(set(cl.__all__)) == len(cl.__all__)
    for name in cl.__all__:
        assert inspect.getdoc(getattr(cl, name)), f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cl.nothing  # noqa: B018


def all_modules():
    """Every module of the package, imported."""
    names = [NAME, *(info.name for info in pkgutil.walk_packages([str(PACKAGE)], prefix=f"{NAME}."))]
    return [importlib.import_module(name) for name in names]


def test_all_of_every_module_exists():
    for module in all_modules():
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.__all__ names {name}"


def test_every_module_and_every_public_function_and_class_is_documented():
    """Methods too; one that overrides another may leave the words to it."""
    missing, counted = [], 0
    for module in all_modules():
        if not inspect.getdoc(module) and not module.__name__.split(".")[-1].startswith("_"):
            missing.append(module.__name__)
        for name, item in vars(module).items():
            defined_here = getattr(item, "__module__", None) == module.__name__
            if name.startswith("_") or not defined_here or not (inspect.isfunction(item) or inspect.isclass(item)):
                continue
            counted += 1
            if not item.__doc__:
                missing.append(f"{module.__name__}.{name}")
            if inspect.isclass(item):
                missing += [f"{module.__name__}.{name}.{method}" for method in undocumented_methods(item)]
    assert missing == []
    assert counted > 50


def undocumented_methods(kind):
    for name, item in vars(kind).items():
        if isinstance(item, staticmethod | classmethod):
            item = item.__func__
        is_method = inspect.isfunction(item) or isinstance(item, property)
        # A base may declare an attribute, described under its Attributes, that a child computes.
        declared = any(name in vars(base).get("__annotations__", {}) for base in kind.__mro__)
        if is_method and not name.startswith("_") and not declared and not inspect.getdoc(getattr(kind, name)):
            yield name


def test_no_docstring_is_generated():
    """A dataclass without one gets its signature as a docstring from Python."""
    for path in python_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{place(path, node)}: class {node.name} has no docstring"


def body_lines(function):
    """Lines of a body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def nesting(node, depth=0):
    """Deepest chain of blocks; an elif counts as its if; functions inside are counted apart."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child, depth + (isinstance(child, BLOCKS) and not is_elif)))
    return deepest


def functions():
    for path in python_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, FUNCTIONS):
                yield path, node


def test_files_are_short():
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in python_files()}
    assert [f"{path}: {count}" for path, count in lines.items() if count > MAX_FILE] == []
    assert statistics.median(lines.values()) <= MEDIAN_FILE
    assert lines[PACKAGE / "layer.py"] <= 200


def test_functions_are_short_and_flat():
    bodies = sorted(body_lines(node) for _, node in functions())
    assert bodies[int(0.9 * (len(bodies) - 1))] <= P90_BODY
    outside = [f"{place(path, node)} {node.name}" for path, node in functions() if body_lines(node) > MAX_BODY]
    outside += [f"{place(path, node)} {node.name}" for path, node in functions() if nesting(node) > MAX_NESTING]
    assert outside == []


def test_arguments_are_annotated():
    outside = []
    for path, node in functions():
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        arguments += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
        missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls", "ctx", "_")]
        outside += [f"{place(path, node)} {node.name}: {', '.join(missing)}"] if missing else []
        outside += [f"{place(path, node)} {node.name}: what it returns"] if node.returns is None else []
    assert outside == []


def test_nothing_prints_and_nothing_swallows_exceptions():
    outside = []
    for path in python_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "BaseException"):
                outside.append(f"{place(path, node)}: bare except")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                outside.append(f"{place(path, node)}: print")
    assert outside == []


def test_every_todo_has_an_owner():
    owned = re.compile(r"TODO\(\w+\)")
    for path in python_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert "TODO" not in line or owned.search(line), f"{path.relative_to(ROOT)}:{number}: TODO without an owner"


def test_no_path_of_one_machine():
    absolute = re.compile(r"(?<![\w./])/(home|root|Users|mnt|work)/\w")
    suffixes = {".py", ".md", ".toml", ".yml", ".cpp", ".hpp", ".txt"}
    folders = ["convexlayers", "tests", "docs", "examples", "benchmarks"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    files += [path for path in ROOT.glob("*") if path.suffix in suffixes]
    assert len(files) > 30
    outside = [str(path) for path in files if absolute.search(path.read_text(encoding="utf-8"))]
    assert outside == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f():\n    if a:\n        for b in c:\n            while d:\n                pass", 3),
        ("def f():\n    if a:\n        pass\n    elif b:\n        pass\n    elif c:\n        pass", 1),
        ("def f():\n    with a:\n        def g():\n            if b:\n                pass", 1),
    ],
)
def test_the_count_of_nesting_itself(code, expected):
    assert nesting(ast.parse(code).body[0]) == expected


def test_the_count_of_lines_itself():
    code = 'def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n\n    return a'
    assert body_lines(ast.parse(code).body[0]) == 3


def test_the_reader_of_imports_itself(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import a\nfrom b import c\ntry:\n    import d\nexcept ImportError:\n    pass\n"
        "def f():\n    import e\nif TYPE_CHECKING:\n    import g\nclass C:\n    import h\n"
    )
    expected = [("a", "module"), ("b.c", "module"), ("d", "module"), ("e", "function"), ("g", "types"), ("h", "module")]
    assert [(name, when) for _, name, when in imports_of(path)] == expected


def test_the_order_has_no_part_twice():
    assert len(RANK) == sum(map(len, ORDER))
    assert all(first.isdisjoint(second) for first, second in pairwise(ORDER))
