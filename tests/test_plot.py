"""convexlayers.plot: what is drawn is what was computed; axes are taken or made; matplotlib is optional."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import cvxpy as cp
import matplotlib
import numpy as np
import pytest
import torch

import convexlayers as cl
from convexlayers.engines import make_engine
from convexlayers.errors import ArgumentError
from convexlayers.plot.outcome import NOTHING
from convexlayers.seeing import factor_pattern, kkt_pattern

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOUBLE = torch.float64
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def ball(**options):
    x, t, radius = cp.Variable(4, name="x"), cp.Parameter(4, name="t"), cp.Parameter(name="radius")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.norm(x) <= radius, cp.sum(x) == 1])
    return cl.ConvexLayer(problem, [t, radius], [x], **options)


def lottery(**options):
    """All of it goes to the cheapest: the exact derivative is zero."""
    x, cost = cp.Variable(3), cp.Parameter(3, name="cost")
    return cl.ConvexLayer(cp.Problem(cp.Minimize(cost @ x), [cp.sum(x) == 1, x >= 0]), [cost], [x], **options)


LINE = [torch.tensor([0.0, 1.0, 2.0])], [torch.tensor([2.0, 1.0, 0.5])]


def points(number=6):
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


# ------------------------------------------------------------------------------------------- axes, matplotlib


DRAWINGS = {
    "kkt": lambda **axes: cl.plot.kkt(ball(), **axes),
    "factor": lambda **axes: cl.plot.factor(ball().program, **axes),
    "convergence": lambda **axes: cl.plot.convergence(ball(), points(), 1.0, **axes),
    "loss": lambda **axes: cl.plot.loss(lottery(), *LINE, points=6, **axes),
    "gradient": lambda **axes: cl.plot.gradient(lottery(), *LINE, points=6, **axes),
    "status": lambda **axes: cl.plot.status(torch.zeros(3, dtype=torch.int64), **axes),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_axes_are_taken_or_made_and_returned(name):
    axes = plt.subplots()[1]
    assert DRAWINGS[name](axes=axes) is axes
    assert axes.has_data()
    made = DRAWINGS[name]()
    assert made is not axes
    made.figure.canvas.draw()


def test_without_matplotlib_the_error_says_what_to_do(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in DRAWINGS.values():
        with pytest.raises(ImportError, match="pip install matplotlib") as caught:
            draw()
        assert isinstance(caught.value, cl.ConvexLayersError)
    # What is computed needs none.
    assert cl.plot.trace(ball(), points(), 1.0).residual.shape[1] == 6


def test_importing_plot_does_not_import_matplotlib():
    code = "import sys, convexlayers as cl; cl.plot.kkt; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# ------------------------------------------------------------------------------------------- matrices


def test_the_matrix_is_symmetric_and_complete():
    layer = ball()
    image = cl.plot.kkt(layer).images[0].get_array()
    pattern = kkt_pattern(layer.program.structure)
    assert image.shape == (pattern.nodes, pattern.nodes)
    assert (image == image.T).all()
    assert int(image.sum()) == pattern.nodes + 2 * pattern.entries
    assert image[pattern.rows, pattern.cols].all()


def test_the_factor_is_below_the_diagonal_and_tells_fill_from_entries():
    layer = ball()
    image = np.asarray(cl.plot.factor(layer).images[0].get_array())
    pattern = kkt_pattern(layer.program.structure)
    found = factor_pattern(pattern)
    assert (np.triu(image, 1) == 0).all()
    assert int((image == 1).sum()) == pattern.nodes + pattern.entries
    assert int((image == 2).sum()) == found.entries - pattern.entries > 0
    assert found.entries == make_engine("native").setup(layer.program).describe()["nnz_L"]


def test_what_is_too_large_for_a_picture_is_said(monkeypatch):
    monkeypatch.setattr("convexlayers.plot.matrix.MOST_NODES", 20)
    for draw in (cl.plot.kkt, cl.plot.factor):
        with pytest.raises(ArgumentError, match="order 22, expected at most 20"):
            draw(ball())


# ------------------------------------------------------------------------------------------- convergence


@pytest.mark.parametrize("solver", ["native", "torch", "clarabel"])
def test_residuals_fall_to_the_solution(solver):
    layer = ball(solver=solver)
    found = cl.plot.trace(layer, points(), 1.0)
    assert found.iterations.tolist() == list(range(1, int(found.finished.max()) + 1))
    assert found.residual.shape == (len(found.iterations), 6)
    assert bool((found.residual[0] > 1e-3).all())
    assert bool((found.residual[-1] <= 1e-8).all())
    # An element that was finished earlier was finished at its own limit too.
    for k, finished in enumerate(found.finished.tolist()):
        assert bool((found.residual[finished - 1 :, k] <= 1e-8).all())


def test_thousands_of_iterations_are_looked_at_sparsely():
    found = cl.plot.trace(ball(solver="scs", tolerance=1e-9), points(2), 1.0)
    limits = found.iterations.tolist()
    assert limits == sorted(set(limits))
    assert len(limits) <= 60
    assert limits[-1] == int(found.finished.max()) > 60


def test_curves_are_the_trace():
    layer = ball()
    axes, found = cl.plot.convergence(layer, points(), 1.0), cl.plot.trace(layer, points(), 1.0)
    drawn = np.stack([line.get_ydata() for line in axes.lines[:6]], 1)
    assert np.array_equal(drawn, found.residual.clamp(min=1e-17).numpy())
    assert axes.lines[6].get_ydata()[0] == layer.engine.tolerance


def test_elements_without_a_solution_are_drawn_as_far_as_they_go():
    radius = torch.tensor([1.0, -1.0, float("nan")], dtype=DOUBLE)
    found = cl.plot.trace(ball(), points(3), radius)
    assert bool((found.residual[-1, 0] <= 1e-8).all())
    assert bool((found.residual[:, 1] > 1e-8).all())
    assert bool(found.residual[:, 2].isinf().all())
    cl.plot.convergence(ball(), points(3), radius).figure.canvas.draw()


# ------------------------------------------------------------------------------------------- lines


def test_strategies_along_a_line():
    """Cost 0 rises from the least to the largest: all of x goes to another entry on the way."""
    exact, smoothed, perturbed = cl.plot.curves(lottery(), *LINE, points=40)
    assert [curve.name for curve in (exact, smoothed, perturbed)] == ["exact", "smoothed", "perturbed"]
    assert (float(exact.loss[0]), float(exact.loss[-1])) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert float(exact.slope.abs().max()) <= 1e-9
    assert bool((smoothed.slope < 0).all())
    assert float(perturbed.slope.min()) < -1.0
    # The smoothed slope is that of the smoothed loss.
    fine = cl.plot.curves(lottery(), *LINE, points=401, derivatives={"s": cl.Smoothed(mu=0.1)})[0]
    quotient = (fine.loss[2:] - fine.loss[:-2]) / (fine.t[2:] - fine.t[:-2])
    assert float((quotient - fine.slope[1:-1]).abs().max()) <= 1e-3 * float(fine.slope.abs().max())


def test_a_loss_of_ones_own_and_values_by_name():
    layer = ball()
    start, stop = {"t": torch.zeros(4), "radius": 0.6}, {"t": torch.tensor([1.0, 0.0, 0.0, 0.0]), "radius": 2.0}
    (found,) = cl.plot.curves(
        layer, start, stop, loss=lambda out: out[0].square().sum(-1), derivatives={"e": cl.Exact()}, points=9
    )
    quotient = torch.autograd.functional.jacobian(
        lambda t: layer(t * stop["t"].double(), 0.6 + 1.4 * t)[0].square().sum(), found.t[4]
    )
    assert float(found.slope[4]) == pytest.approx(float(quotient), rel=1e-9)
    axes = cl.plot.gradient(layer, start, stop, points=9)
    assert [line.get_label() for line in axes.lines] == ["exact", "smoothed", "perturbed"]
    with pytest.raises(ArgumentError):
        cl.plot.curves(layer, [torch.zeros(4)], stop)


def test_points_without_a_solution_leave_a_gap():
    """The plane sum(x) = 1 meets the ball from a radius of 1/2 on."""
    start, stop = {"t": torch.zeros(4), "radius": 0.0}, {"t": torch.zeros(4), "radius": 1.0}
    found = cl.plot.curves(ball(), start, stop, points=5, derivatives={"e": cl.Exact()})[0]
    assert found.loss.isnan().tolist() == [True, True, False, False, False]
    assert found.slope.isnan().tolist() == [True, True, False, False, False]


# ------------------------------------------------------------------------------------------- status


def test_a_cell_per_element():
    codes = torch.tensor([0, 0, 2, 0, 6])
    axes = cl.plot.status(codes)
    grid = np.asarray(axes.images[0].get_array())
    assert grid.tolist() == [[0, 0, 2], [0, 6, NOTHING]]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["SOLVED (3)", "PRIMAL_INFEASIBLE (1)", "INVALID_DATA (1)"]


@pytest.mark.parametrize(
    ("shape", "drawn"), [((), (1, 1)), ((0,), (1, 1)), ((2, 5), (2, 5)), ((2, 3, 4), (2, 12)), ((100,), (10, 10))]
)
def test_batches_of_any_shape(shape, drawn):
    axes = cl.plot.status(torch.zeros(shape, dtype=torch.int64))
    assert axes.images[0].get_array().shape == drawn
    axes.figure.canvas.draw()


def test_a_solution_has_its_status():
    layer = ball(on_failure="nan")
    solution = layer.solve(points(4).reshape(2, 2, 4), torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    assert np.asarray(cl.plot.status(solution).images[0].get_array()).tolist() == [[0, 2], [0, 0]]


# ------------------------------------------------------------------------------------------- the page


def test_the_pictures_of_the_page_are_drawn_and_shown(tmp_path):
    pictures = runpy.run_path(str(ROOT / "docs" / "pictures.py"))["PICTURES"]
    page = (ROOT / "docs" / "seeing.md").read_text()
    assert set(re.findall(r"\(images/(\w+)\.svg\)", page)) == set(pictures)
    for name, draw in pictures.items():
        draw(tmp_path / f"{name}.svg")
        for folder in (tmp_path, ROOT / "docs" / "images"):
            assert (folder / f"{name}.svg").read_text().rstrip().endswith("</svg>")
