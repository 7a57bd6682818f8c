"""`python -m convexlayers`: what it says, its exit codes, and that its self-test can fail."""

import builtins
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import convexlayers as cl
from convexlayers.__main__ import main
from convexlayers.command import bench, check, closed_forms, demo, info, promises
from convexlayers.command.check import attempt, describe
from convexlayers.derivatives import Exact
from convexlayers.engines import ENGINES, make_engine
from convexlayers.native import info as native_info
from convexlayers.testing.layer_checks import Finding

ROOT = Path(__file__).parents[1]


def test_info_says_what_is_here(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for part in (f"convexlayers {cl.__version__}", torch.__version__, native_info()["instruction_set"], *ENGINES):
        assert str(part) in text
    assert re.search(rf"threads +{torch.get_num_threads()} of torch", text)


def test_info_without_an_optional_engine(monkeypatch):
    monkeypatch.setattr(info, "find_spec", lambda name: None if name == "diffcp" else find_spec(name))
    assert re.search(r"diffcp +not installed: pip install diffcp", info.describe())


def test_the_command_line_as_a_process():
    run = subprocess.run([sys.executable, "-m", "convexlayers", "info"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"convexlayers {cl.__version__}\n")
    bad = subprocess.run([sys.executable, "-m", "convexlayers", "nothing"], capture_output=True, text=True)
    assert bad.returncode == 2


# ------------------------------------------------------------------------------------------- check


def test_the_self_test_passes(capsys):
    assert main(["check", "--engines", "native", "clarabel"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok", "--")) for line in lines[:-1])
    count = len(lines) - 1
    assert lines[-1].startswith(f"{count} of {count} checks passed in ")
    # Every cone on both engines, every closed form, every promise.
    assert count == 7 + 6 + len(closed_forms.FORMS) + len(promises.PROMISES) + 1
    for line in lines[:-1]:
        assert re.search(r"\(\d+\.\d s\)$", line)


def test_all_installed_engines_and_cones_are_checked():
    names = [name for name, _ in check.checks()]
    for engine in ("native", "torch", "clarabel", "scs", "diffcp"):
        for cone in ("zero", "nonnegative", "second_order", "psd", "exponential", "power"):
            assert (f"{engine}, {cone} cones" in names) == ((engine, cone) != ("diffcp", "power"))


def failed(lines):
    return [line for line in lines if line.startswith("FAILED")]


def test_a_wrong_gradient_is_found(monkeypatch):
    """What the adjoint of an engine returns, a millionth too large."""
    kind = type(make_engine("clarabel").setup(promises._layer()[0].program))
    right = kind.adjoint
    monkeypatch.setattr(
        kind, "adjoint", lambda *a, **k: tuple(g if g is None else g * (1 + 1e-4) for g in right(*a, **k))
    )
    lines = []
    assert check.run(lines.append, ["clarabel"]) == 1
    assert len(failed(lines)) >= 6
    assert "adjoint identity" in failed(lines)[0]


def test_a_wrong_solution_and_a_broken_engine_are_found(monkeypatch):
    form = closed_forms.FORMS[1]
    wrong = closed_forms.Form("wrong", form.make, form.shape, lambda t: t.clamp(-1, 0.9))
    assert not all(finding.share <= 1 for finding in closed_forms.compare(wrong))

    def broken(*_, **__):
        raise RuntimeError("out of order")

    monkeypatch.setattr(Exact, "adjoint", broken)
    (finding,) = attempt(broken)
    assert describe(finding) == "RuntimeError: out of order"
    lines = []
    assert check.run(lines.append, ["clarabel"]) == 1
    assert any("RuntimeError: out of order" in line for line in failed(lines))


def test_what_findings_look_like():
    assert describe(Finding("solution", 1.23e-12, 1e-7)) == "solution 1.2e-12, allowed 1e-07"
    assert describe(promises.fact("holds", True)) == "holds"
    assert describe(promises.fact("holds", False)) == "not true: holds"


def test_an_engine_that_is_not_installed_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(info, "find_spec", lambda name: None if name == "diffcp" else find_spec(name))
    monkeypatch.setattr(check, "checks", lambda engines: iter(()))
    lines = []
    assert check.run(lines.append) == 0
    assert "--      diffcp: not installed\n" in lines


def test_it_needs_neither_pytest_nor_matplotlib_nor_a_peer():
    code = """
import sys
for name in ("pytest", "hypothesis", "matplotlib", "diffcp", "moreau", "cvxpylayers", "qpth", "tqdm"):
    sys.modules[name] = None
from convexlayers.command import bench, check, demo, info, promises
for name, measure in promises.PROMISES.items():
    assert all(finding.share <= 1 for finding in measure()), name
info.describe()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# ------------------------------------------------------------------------------------------- demo


def test_the_demonstration_learns(capsys):
    assert main(["demo"]) == 0
    text = capsys.readouterr().out
    losses = [float(value) for value in re.findall(r"loss (\S+)", text)]
    assert len(losses) == demo.LINES + 1
    assert losses[-1] <= 1e-3 * losses[0]
    assert "engine" in text


def test_the_demonstration_can_fail(monkeypatch):
    monkeypatch.setattr(demo, "STEPS", 10)
    assert demo.run(lambda _: None) == 1


# ------------------------------------------------------------------------------------------- bench


def test_benchmarks_in_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["--families", "qp10", "optnet10", "--batch", "2", "--repeats", "1", "--output", str(tmp_path)]
    before = list(sys.path)
    assert main(["bench", *arguments]) == 0
    assert sys.path == before
    text = capsys.readouterr().out
    ours = [line.split() for line in text.splitlines() if re.match(r" *(qp10|optnet10) +2 +convexlayers ", line)]
    assert [line[0] for line in ours] == ["qp10", "optnet10"]
    for line in ours:
        assert line[5] == "1.00"
        assert float(line[6]) <= 1e-6
    assert (tmp_path / "families.csv").read_text().startswith("# convexlayers")
    assert (tmp_path / "families.svg").exists()


ROWS = [
    {"family": "f", "batch": 2, "contender": "convexlayers", "forward_ms": 1.0, "backward_ms": 1.0,
     "solution_error": "1e-12", "gradient_error": "1e-12", "failure": ""},
    {"family": "f", "batch": 2, "contender": "good", "forward_ms": 4.0, "backward_ms": 1.0,
     "solution_error": "1e-05", "gradient_error": "1e-04", "failure": ""},
    {"family": "f", "batch": 2, "contender": "wrong", "forward_ms": 1.0, "backward_ms": 0.5,
     "solution_error": "3e-01", "gradient_error": "1e-04", "failure": ""},
    {"family": "f", "batch": 2, "contender": "gone", "failure": "ValueError: no"},
]  # fmt: skip


def test_ratios_and_wrong_answers():
    head, *body = bench.table(ROWS)
    ratio = head.index("ratio")
    assert [row[ratio] for row in body] == ["1.00", "2.50", "(0.75)", ""]
    assert body[3][-1] == "ValueError: no"
    assert {len(row) for row in (head, *body)} == {len(head)}


def test_without_the_benchmarks_or_with_an_unknown_family(monkeypatch, tmp_path):
    lines = []
    assert bench.run(lines.append, ["nothing"]) == 1
    assert "No family nothing; there are qp10," in lines[0]
    monkeypatch.setattr(bench.convexlayers, "__file__", str(tmp_path / "convexlayers" / "__init__.py"))
    assert bench.find_scripts() is None
    assert bench.run(lines.append) == 1
    assert "clone of the repository" in lines[-1]


def test_benchmarks_are_found_in_a_clone_and_in_a_wheel(monkeypatch, tmp_path):
    assert bench.find_scripts() == ROOT / "benchmarks"
    inside = tmp_path / "convexlayers" / "benchmarks"
    inside.mkdir(parents=True)
    for name in ("run.py", "harness.py"):
        (inside / name).touch()
    monkeypatch.setattr(bench.convexlayers, "__file__", str(tmp_path / "convexlayers" / "__init__.py"))
    assert bench.find_scripts() == inside


def test_benchmarks_do_without_a_progress_bar(monkeypatch):
    """A wheel's users have no tqdm."""
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "tqdm":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for name in ("run", "qp_layers"):
        sys.modules.pop(name, None)
    with bench.importable(ROOT / "benchmarks"):
        known, contenders = bench._everybody()
    assert {"qp10", "mpc", "optnet10"} <= known.keys()
    assert contenders
