"""`python -m convexlayers.compat`: what it says of a script, its exit codes, scripts that it runs on the faces."""

import subprocess
import sys
from pathlib import Path

import pytest

from convexlayers.compat.__main__ import main
from convexlayers.compat.check import Verdict, check_source
from convexlayers.compat.shim import face_of, stand_in
from convexlayers.errors import ArgumentError

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "benchmarks" / "migration").glob("*_training.py"))

LAYERS = """
import cvxpy as cp
from cvxpylayers.torch import CvxpyLayer
layer = CvxpyLayer(problem, parameters=[A], variables=[x], solver="SCS", canon_backend="diffcp", custom_method=(f, g))
layer(A_t, solver_args={"eps": 1e-6, "acceleration_lookback": 0, "mode": "dense"}, warm_start=True)
print(layer.ctx.parameters, layer.ctx.reduced_A)
CvxpyLayer(problem, [A], [x], solver="OSQP")
"""


def verdicts(source):
    return {use.name: use.verdict.value for use in check_source(source)}


def test_a_script_with_layers():
    assert verdicts(LAYERS) == {
        "cvxpylayers.torch.CvxpyLayer": "supported",
        "cvxpylayers.torch.CvxpyLayer(canon_backend=...)": "ignored",
        "cvxpylayers.torch.CvxpyLayer(custom_method=...)": "unsupported",
        "solver_args['acceleration_lookback']": "ignored",
        "ctx.parameters": "supported",
        "ctx.reduced_A": "unsupported",
        "cvxpylayers.torch.CvxpyLayer(solver='OSQP')": "unsupported",
    }
    uses = {use.name: use for use in check_source(LAYERS)}
    assert uses["ctx.reduced_A"].line == 6
    assert "layer.layer.program" in uses["ctx.reduced_A"].reason


# A program, and what is found in it: + is supported, ~ ignored, - unsupported.
PROGRAMS = [
    ("import numpy", ""),
    (
        "import cvxpylayers.torch\ncvxpylayers.torch.CvxpyLayer(p, [], [])",
        "+cvxpylayers.torch +cvxpylayers.torch.CvxpyLayer",
    ),
    ("import cvxpylayers.torch as cl\ncl.CvxpyLayer", "+cvxpylayers.torch +cvxpylayers.torch.CvxpyLayer"),
    ("from cvxpylayers.jax import CvxpyLayer", "-cvxpylayers.jax.CvxpyLayer"),
    ("from cvxpylayers.interfaces.base import SolverInterface", "-cvxpylayers.interfaces.base.SolverInterface"),
    ("from cvxpylayers import torch as t", "+cvxpylayers.torch"),
    ("from qpth.qp import *\nQPFunction(maxIter=3)", "+qpth.qp ~qpth.qp.QPFunction(maxIter=...)"),
    ("import qpth\nqpth.qp.QPSolvers.CVXPY", "+qpth +qpth.qp.QPSolvers.CVXPY"),
    ("import qpth\nqpth.qp.QPSolvers.OSQP", "+qpth -qpth.qp.QPSolvers.OSQP"),
    ("from qpth.util import bger", "-qpth.util.bger"),
    ("import diffcp as d\nd.solve_only(A, b, c, k, eps=1e-3)", "+diffcp +diffcp.solve_only"),
    ("import diffcp.cone_program as m\nm.SolverError", "+diffcp.cone_program +diffcp.cone_program.SolverError"),
    (
        "from diffcp import solve_only as f\nf(A, b, c, k, n_jobs_x=2)",
        "+diffcp.solve_only ~diffcp.solve_only(n_jobs_x=...)",
    ),
    (
        'import diffcp\ndiffcp.solve_only(A, b, c, k, solve_method="ECOS")',
        "+diffcp +diffcp.solve_only ~diffcp.solve_only(solve_method=...)",
    ),
    (
        'from cvxpylayers.torch import CvxpyLayer as L\nL(problem, [A], [x], solve_method="ECOS")',
        "+cvxpylayers.torch.CvxpyLayer -cvxpylayers.torch.CvxpyLayer(solve_method=...)",
    ),
    ("from diffcp.cones import _proj", "-diffcp.cones._proj"),
    ("import diffcp\ndiffcp.np.ones(3)", "+diffcp -diffcp.np.ones"),
    ("import torch\nmodel.ctx.reduced_A", ""),
]
SIGNS = {"+": "supported", "~": "ignored", "-": "unsupported"}


@pytest.mark.parametrize(("source", "expected"), PROGRAMS)
def test_names(source, expected):
    assert verdicts(source) == {item[1:]: SIGNS[item[0]] for item in expected.split()}


def test_exit_codes_and_what_is_said(tmp_path, capsys):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("from qpth.qp import QPFunction\n")
    bad.write_text("from cvxpylayers.jax import CvxpyLayer\n")
    assert main(["check", str(good)]) == 0
    assert "1: qpth.qp.QPFunction: supported: convexlayers.compat.qpth.QPFunction" in capsys.readouterr().out
    assert main(["check", str(good), str(bad)]) == 1
    assert "unsupported: this library is for torch\n0 supported, 0 ignored, 1 unsupported" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_script_that_is_not_there(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, str(tmp_path / "nothing.py")])
    assert caught.value.code == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_scripts_of_the_benchmark_are_supported(script):
    uses = check_source(script.read_text(encoding="utf-8"))
    assert uses
    assert all(use.verdict is not Verdict.UNSUPPORTED for use in uses)


SCRIPT = """
import sys
import cvxpylayers.torch, diffcp, qpth, qpth.qp
import diffcp.cone_program as cone_program
from cvxpylayers.torch import CvxpyLayer
from neighbour import ANSWER
for item in (CvxpyLayer, cvxpylayers.torch.CvxpyLayer, qpth.qp.QPFunction, diffcp.solve_only, cone_program.SolverError):
    assert item.__module__.startswith("convexlayers"), item
assert diffcp.cones.pi is not None
try:
    import cvxpylayers.jax
except ModuleNotFoundError:
    print(__name__, sys.argv[1:], ANSWER)
"""


def test_scripts_run_as_they_are(tmp_path):
    """In a process of their own, since imports mean something else in it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "neighbour.py").write_text("ANSWER = 42\n")
    command = [sys.executable, "-m", "convexlayers.compat", "run", str(tmp_path / "script.py"), "--steps", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", "__main__ ['--steps', '3'] 42\n")


def test_faces_by_name():
    assert face_of("qpth.qp") == "convexlayers.compat.qpth"
    assert face_of("qpth.util") is face_of("numpy") is None
    with pytest.raises(ArgumentError, match="no face of 'jaxopt'"):
        stand_in(["jaxopt"])
