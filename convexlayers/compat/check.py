"""What of cvxpylayers, qpth and diffcp a program uses, and what of that the faces have: its source is read, not run.

Found are names that are imported from these packages, attributes of them, keyword arguments of their functions, the
keys of `solver_args` that are written out, and attributes of a layer's `ctx`. What a program makes up at run time (keys
of a dictionary that comes from elsewhere, names behind getattr) is not.
"""

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from importlib import import_module
from typing import Any

from convexlayers.compat.cvxpylayers import SOLVERS, LayersContext
from convexlayers.compat.settings import HEEDED
from convexlayers.compat.shim import FACES, face_of
from convexlayers.engines import ENGINES

# Why something has no face; the longest beginning of a name counts.
REASONS = {
    "cvxpylayers.jax": "this library is for torch",
    "cvxpylayers.mlx": "this library is for torch",
    "cvxpylayers.tensorflow": "this library is for torch",
    "cvxpylayers.interfaces": "solvers written for that interface are not called: write an Engine (docs/extending.md)",
    "cvxpylayers.utils": "internals of cvxpylayers: layer.layer.program is the compiled problem",
    "qpth.solvers": "internals of qpth: solve_with_duals of the face returns multipliers and slacks",
    "qpth.util": "helpers of qpth's own solver",
    "diffcp._diffcp": "diffcp's C++ operators, which are not used here",
    "diffcp.cones": "a helper of diffcp; its public ones are in the face",
}
LAYER, QP = "cvxpylayers.torch.CvxpyLayer", "qpth.qp.QPFunction"
STEERS = "it steers a method that is not used here"
# Arguments that are accepted without effect, by the class or function they belong to.
IDLE = {
    LAYER: {"verbose": STEERS, "canon_backend": "there is one compiler"},
    QP: dict.fromkeys(["verbose", "notImprovedLim", "maxIter"], STEERS),
}
THREADS = "torch's number of threads counts"
METHOD = "it does not choose the solver here"
CONTEXT = {field.name for field in fields(LayersContext)} | {"cone_dims", "validate_params"}


class Verdict(Enum):
    """What becomes of something that a program uses."""

    SUPPORTED = "supported"
    IGNORED = "ignored"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class Use:
    """One thing that a program uses.

    Attributes:
        line: where. name: what, under the package's name.
        verdict: what becomes of it. reason: what takes its place, or why nothing does.
    """

    line: int
    name: str
    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        return f"{self.line}: {self.name}: {self.verdict.value}: {self.reason}"


def check_source(source: str) -> list[Use]:
    """What a program uses, each once, in the order of its lines.

    Args:
        source: Python code.

    Raises:
        SyntaxError: it is none.

    Examples:
        >>> for use in check_source("import diffcp\\ndiffcp.solve_only(A, b, c, cones, scale=0.1, P=P)"):
        ...     print(use)
        1: diffcp: supported: convexlayers.compat.diffcp
        2: diffcp.solve_only: supported: convexlayers.compat.diffcp.solve_only
        2: diffcp.solve_only(scale=...): ignored: it steers a method that is not used here
    """
    tree = ast.parse(source)
    names, found = _imports(tree)
    uses = {(use.name, use.verdict): use for use in sorted([*found, *_walk(tree, names)], key=lambda u: -u.line)}
    return sorted(uses.values(), key=lambda use: (use.line, use.name))


def _imports(tree: ast.AST) -> tuple[dict[str, str], list[Use]]:
    """Local names and what they stand for, and the imports themselves."""
    names, uses = {}, []
    for node in ast.walk(tree):
        for full, bound in _imported(node):
            if full.partition(".")[0] in FACES:
                names |= bound
                uses.append(_judge(getattr(node, "lineno", 0), full))
    return names, uses


def _imported(node: ast.AST) -> Iterator[tuple[str, dict[str, str]]]:
    """What a statement imports, and the names that it binds."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            package = alias.name.partition(".")[0]
            yield alias.name, {alias.asname: alias.name} if alias.asname else {package: package}
    elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        for alias in node.names:
            full = node.module if alias.name == "*" else f"{node.module}.{alias.name}"
            yield full, _exported(full) if alias.name == "*" else {alias.asname or alias.name: full}


def _exported(module: str) -> dict[str, str]:
    """What `from module import *` makes known."""
    face = face_of(module)
    listed = getattr(import_module(face), "__all__", []) if face else []
    return {name: f"{module}.{name}" for name in listed}


def _walk(tree: ast.AST, names: dict[str, str]) -> Iterator[Use]:
    of_layers = any(name.startswith("cvxpylayers") for name in names.values())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            full = _full_name(node, names)
            if full is not None:
                yield _judge(node.lineno, full)
        if isinstance(node, ast.Attribute) and of_layers and getattr(node.value, "attr", None) == "ctx":
            yield _judge_context(node)
        if isinstance(node, ast.Call):
            yield from _judge_call(node, _full_name(node.func, names), of_layers)


def _full_name(node: ast.AST, names: dict[str, str]) -> str | None:
    """The dotted name behind an expression, None for one that does not begin at an imported name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    return ".".join([names[node.id], *reversed(parts)])


def _resolve(full: str) -> tuple[str, Any] | None:
    """The face's name and object behind a name of one of the packages, None where it has none."""
    parts = full.split(".")
    stop = next((stop for stop in range(len(parts), 0, -1) if face_of(".".join(parts[:stop]))), 0)
    if stop == 0:
        return None
    face = str(face_of(".".join(parts[:stop])))
    item, rest = import_module(face), parts[stop:]
    # A face imports more than it offers.
    if rest and rest[0] not in item.__all__ and rest[0] != "__version__":
        return None
    for part in rest:
        if not hasattr(item, part):
            return None
        item = getattr(item, part)
    return ".".join([face, *rest]), item


def _judge(line: int, full: str) -> Use:
    found = _resolve(full)
    if found is not None:
        return Use(line, full, Verdict.SUPPORTED, found[0])
    known = [start for start in REASONS if full == start or full.startswith(f"{start}.")]
    reason = REASONS[max(known, key=len)] if known else "the face has no such name"
    return Use(line, full, Verdict.UNSUPPORTED, reason)


def _judge_context(node: ast.Attribute) -> Use:
    name = f"ctx.{node.attr}"
    if node.attr in CONTEXT:
        return Use(node.lineno, name, Verdict.SUPPORTED, "layer.ctx has it")
    return Use(node.lineno, name, Verdict.UNSUPPORTED, "it is not kept: layer.layer.program is the compiled problem")


def _judge_call(node: ast.Call, full: str | None, of_layers: bool) -> Iterator[Use]:
    """Keyword arguments, and what is in `solver_args`."""
    for keyword in node.keywords:
        if keyword.arg == "solver_args" and of_layers and isinstance(keyword.value, ast.Dict):
            yield from _judge_settings(keyword.value)
    found = _resolve(full) if full is not None else None
    if found is None or full is None or not callable(found[1]):
        return
    accepted = inspect.signature(found[1]).parameters
    takes_settings = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    canonical = {"CvxpyLayer": LAYER, "QPFunction": QP}.get(full.rpartition(".")[2], full)
    for keyword in node.keywords:
        if keyword.arg is None:
            continue
        name = f"{full}({keyword.arg}=...)"
        if keyword.arg in IDLE.get(canonical, {}):
            yield Use(node.lineno, name, Verdict.IGNORED, IDLE[canonical][keyword.arg])
        elif keyword.arg.startswith("n_jobs_"):
            yield Use(node.lineno, name, Verdict.IGNORED, THREADS)
        elif keyword.arg not in accepted and not takes_settings:
            yield Use(node.lineno, name, Verdict.UNSUPPORTED, "the face has no such argument")
        elif keyword.arg == "solve_method":
            yield Use(node.lineno, name, Verdict.IGNORED, METHOD)
        elif keyword.arg not in accepted and keyword.arg not in HEEDED | {"raise_on_error"}:
            yield Use(node.lineno, name, Verdict.IGNORED, STEERS)
        elif keyword.arg == "solver" and canonical == LAYER:
            yield from _judge_solver(keyword.value)


def _judge_solver(value: ast.expr) -> Iterator[Use]:
    if isinstance(value, ast.Constant) and value.value not in SOLVERS and value.value not in ENGINES:
        name = f"{LAYER}(solver={value.value!r})"
        yield Use(value.lineno, name, Verdict.UNSUPPORTED, "no such engine")


def _judge_settings(given: ast.Dict) -> Iterator[Use]:
    for key in given.keys:
        if isinstance(key, ast.Constant) and key.value not in HEEDED:
            yield Use(key.lineno, f"solver_args[{key.value!r}]", Verdict.IGNORED, STEERS)


def report(uses: Sequence[Use]) -> str:
    """The uses as lines, and a line with their number."""
    counts = ", ".join(f"{sum(use.verdict is verdict for use in uses)} {verdict.value}" for verdict in Verdict)
    return "\n".join([*map(str, uses), counts])
