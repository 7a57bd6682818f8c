"""The README's figures are those of the committed results, and the benchmarks run."""

import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"

RESULTS = """# on this machine
family,batch,contender,forward_ms,backward_ms,solution_error,gradient_error,kkt_residual,repeats,failure
easy,8,convexlayers,8.0,2.0,1e-12,1e-12,1e-12,10,
easy,8,cvxpylayers,60.0,20.0,1e-4,1e-2,,10,
easy,8,quick and wrong,1.0,1.0,0.5,1e-2,,10,
easy,8,quick and unsolved,1.0,1.0,1e-9,1e-2,,10,MaxIterations x3
easy,8,good,15.0,5.0,1e-9,1e-8,,10,
hard,8,convexlayers,8.0,2.0,1e-12,1e-12,1e-12,10,
hard,8,cvxpylayers,,,,,,,RuntimeError: no
"""


@pytest.fixture
def make_table():
    return runpy.run_path(str(BENCHMARKS / "table.py"))["make_table"]


def run_script(name, *arguments, cache):
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_table_in_the_readme_is_that_of_the_results(make_table):
    assert make_table() in (ROOT / "README.md").read_text()


def test_fastest_peer_is_one_that_solves_the_problem(make_table, tmp_path):
    path = tmp_path / "families.csv"
    path.write_text(RESULTS)
    table = make_table(path).splitlines()
    easy, hard, means = table[2:5]
    assert easy.endswith("| good 15 + 5.0 | 1e-9 / 1e-8 | 2.00 | 60 + 20 | 8.00 |")
    assert hard.endswith(r"| none |  |  | failed \* |  |")
    assert means.endswith("| **2.00** |  | **8.00** |")
    note = next(line for line in table if line.startswith("\\*"))
    for text in ("quick and wrong on easy (off by 0.5)", "unsolved on easy (MaxIterations x3)", "hard (RuntimeError)"):
        assert text in note


def test_the_suite_makes_every_table_of_the_pages(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    suite, page = (runpy.run_path(str(BENCHMARKS / name)) for name in ("suite.py", "page.py"))
    assert set(page["RACES"]) <= set(suite["STEPS"])
    for script, *arguments in [*suite["STEPS"].values(), *suite["PAGES"]]:
        assert (BENCHMARKS / script).is_file()
        # Some take their options from what they share.
        text = (BENCHMARKS / script).read_text() + (BENCHMARKS / "beside.py").read_text()
        assert all(f'"{argument}"' in text for argument in arguments if argument.startswith("--"))


@pytest.mark.slow
def test_families_are_timed_compared_and_plotted(tmp_path):
    path = tmp_path / "families.csv"
    arguments = ["--families", "qp10", "--contenders", "convexlayers", "--batch", 2, "--repeats", 1, "--output", path]
    run_script("run.py", *arguments, cache=tmp_path)
    comment, *lines = path.read_text().splitlines()
    (row,) = csv.DictReader(lines)
    assert "torch" in comment
    assert (row["family"], row["batch"], row["failure"]) == ("qp10", "2", "")
    assert float(row["forward_ms"]) > 0
    assert float(row["backward_ms"]) > 0
    assert max(float(row[key]) for key in ("solution_error", "gradient_error", "kkt_residual")) < 1e-6
    assert "families.svg" in run_script("plots.py", "--results", tmp_path, cache=tmp_path)


@pytest.mark.slow
def test_qp_layers_are_timed(tmp_path):
    path = tmp_path / "qp_layers.csv"
    run_script("qp_layers.py", "--sizes", 10, "--repeats", 1, "--output", path, cache=tmp_path)
    rows = {row["contender"]: row for row in csv.DictReader(path.read_text().splitlines()[1:])}
    assert float(rows["convexlayers"]["gradient_error"]) < 1e-6
    # What is not installed takes no part, what is must be there.
    assert rows.keys() <= {"convexlayers", "moreau", "moreau(ipm)", "qpth", "proxsuite"}


@pytest.mark.slow
def test_workloads_of_the_literature_run(tmp_path):
    path = tmp_path / "literature.csv"
    arguments = ["--fast", "--repeats", 1, "--contenders", "convexlayers", "--output", path]
    run_script("literature.py", *arguments, cache=tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()[1:]))
    assert len(rows) == 29
    for row in rows:
        assert row["failure"] == ""
        # The LPs (P = 1e-6 I) magnify the residual that polishing leaves, 1e-12, by 1e6 times a few.
        assert float(row["solution_error"]) < 1e-5, row["family"]
        assert float(row["kkt_residual"]) < 1e-8
    exact = [row for row in rows if not row["family"].startswith(("bpqp_lp", "cvxpylayers_sparse_1024"))]
    assert max(float(row["gradient_error"]) for row in exact) < 1e-6


@pytest.mark.slow
def test_hard_qps_are_counted(tmp_path):
    path = tmp_path / "hard_qps.csv"
    run_script("hard_qps.py", "--each", 1, "--sizes", 10, "--elements", 3, "--output", path, cache=tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()[1:]))
    assert {"free rows", "infeasible", "random sparse", "family mpc"} <= {row["kind"] for row in rows}
    assert all(int(row["wrong"]) == int(row["unsolved"]) == int(row["rescued"]) == 0 for row in rows)


@pytest.mark.slow
def test_random_programs_are_what_they_were_made_to_be(tmp_path):
    """With one batch in which dependent equalities once passed for contradictory ones."""
    for seed, count in ((0, 10_000), (3586, 1)):
        path = tmp_path / f"million_{seed}.csv"
        run_script("million.py", "--seed", seed, "--count", count, "--output", path, cache=tmp_path)
        *_, total = csv.DictReader(path.read_text().splitlines()[1:])
        assert int(total["programs"]) >= count
        assert int(total["wrong"]) == int(total["inaccurate"]) == int(total["unexplained"]) == 0


def test_we_answer_what_others_fail_at(tmp_path):
    path = tmp_path / "failures.csv"
    run_script("failures.py", "--ours", "--output", path, cache=tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()[1:]))
    assert len(rows) == 18
    assert all((row["library"], row["verdict"]) == ("convexlayers", "right") for row in rows)


def test_tables_of_failures_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    made = runpy.run_path(str(BENCHMARKS / "failures_table.py"))
    page = (ROOT / "docs" / "failures.md").read_text()
    assert made["make_table"]() in page
    assert made["make_million_table"]() in page


@pytest.mark.slow
def test_warm_starts_are_measured(tmp_path):
    out = run_script("warm_start.py", "--families", "qp10", "--batch", 2, "--repeats", 1, cache=tmp_path)
    rows = list(csv.DictReader(out.splitlines()[1:]))
    assert {row["engine"] for row in rows} == {"native", "scs"}
    assert all(float(row["difference"]) < 1e-5 and row["unsolved"] == "0" for row in rows)


@pytest.mark.slow
def test_accelerators_are_timed_where_there_are_some(tmp_path):
    path = tmp_path / "gpu.csv"
    run_script("gpu.py", "--device", "cpu", "--fast", "--repeats", 1, "--output", path, cache=tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()[1:]))
    ours = [row for row in rows if row["contender"].startswith("convexlayers")]
    assert [(row["family"], row["contender"]) for row in ours] == [
        (family, f"convexlayers({solver})") for family in ("qp10", "qp_layer") for solver in ("torch", "native")
    ]
    for row in ours:
        assert row["failure"] == ""
        assert max(float(row[key]) for key in ("solution_error", "gradient_error", "kkt_residual")) < 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_an_accelerator_the_script_says_so():
    result = subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "no CUDA device" in result.stderr
