"""layer.report() and cl.citation(): every figure is held against what it is a figure of."""

import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers.engines import Auto, Native, Torch, make_engine
from convexlayers.engines.torch_dense import bytes_per_element
from convexlayers.seeing import factor_pattern, kkt_pattern
from convexlayers.seeing.render import Section, as_html, as_text, byte_size
from convexlayers.seeing.reporting import LARGE_FLOPS
from convexlayers.testing import cone_cases, random_program

ROOT = Path(__file__).parents[1]
FAMILIES = runpy.run_path(str(ROOT / "benchmarks" / "families.py"))["FAMILIES"]
CASES = cone_cases()


def ball(**options):
    """Nearest point of a ball on a plane; without one for a negative radius."""
    x, t, radius = cp.Variable(5, name="x"), cp.Parameter(5, name="t"), cp.Parameter(name="radius")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.norm(x) <= radius, cp.sum(x) == 1])
    return cl.ConvexLayer(problem, [t, radius], [x], **options)


def values(*radii):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(radii), 5, generator=generator, dtype=torch.float64), torch.tensor(radii).double()


# ------------------------------------------------------------------------------------------- the pattern


@pytest.mark.parametrize("cones", CASES.values(), ids=CASES.keys())
def test_the_pattern_is_that_of_the_engine(cones):
    """Order and number of entries of the factor, for which every entry of the matrix has to be right."""
    program = random_program(cones, draws=1).program
    kkt, sizes = kkt_pattern(program.structure), make_engine("native").setup(program).describe()
    assert (kkt.nodes, factor_pattern(kkt).entries) == (sizes["nodes"], sizes["nnz_L"])


@pytest.mark.parametrize("name", ["qp10", "mpc", "socp", "logreg", "sdp8", "ot15", "simplex100"])
def test_the_pattern_of_sparse_programs_too(name):
    program = cl.compile_problem(*FAMILIES[name][0]()[:3])
    kkt, found = kkt_pattern(program.structure), cl.report(program).work
    factor = factor_pattern(kkt)
    assert (kkt.nodes, factor.entries) == (found.nodes, found.factor_entries)
    assert sorted(factor.order) == list(range(kkt.nodes))
    assert int(factor.original.sum()) == kkt.entries == found.kkt_entries
    # Operations: each column of c entries is scaled, and each of its pairs is one multiplication and one addition.
    counts = torch.bincount(torch.as_tensor(factor.cols), minlength=kkt.nodes)
    assert abs(found.flops - int((counts * (counts + 1) + counts).sum())) <= 2 * int(counts.sum())


def test_parts_cover_the_nodes():
    kkt = kkt_pattern(random_program(CASES["all"], draws=1).program.structure)
    names, starts, stops = zip(*kkt.parts, strict=True)
    assert names == ("variables", "zero", "nonnegative", "second-order", "PSD", "exponential", "power", "extra nodes")
    assert starts == (0, *stops[:-1])
    assert stops[-1] == kkt.nodes


# ------------------------------------------------------------------------------------------- layers


def test_what_a_layer_says():
    layer = ball()
    found = layer.report()
    text = str(found)
    for part in ("zero 6, nonnegative 1, second-order [6]", "t (5,), radius ()", "x (5,)", "tolerance 1e-08"):
        assert part in text
    assert found.reason == Auto().explain(layer.program)
    assert f"{1e3 * layer.program.compile_seconds:.1f} ms" in text
    assert f"fill {found.work.factor_entries / found.work.kkt_entries:.2f}" in text
    assert found.batch is None
    assert "second-order cone program with a quadratic objective" in text
    assert repr(found) == text


def test_a_program_says_the_same_but_for_the_settings_of_the_layer():
    layer = ball(on_failure="nan", relax="closest_feasible")
    lines, others = ([line.split() for line in str(r).splitlines()] for r in (layer.report(), cl.report(layer.program)))
    extra = [line for line in lines if line not in others]
    assert extra == [["on", "failure", "nan"], ["checks", "values", "yes"], ["relax", "closest_feasible"]]


@pytest.mark.parametrize("solver", ["native", "torch", "clarabel", Native(max_iterations=7), Torch(tolerance=1e-6)])
def test_an_engine_that_was_asked_for(solver):
    layer = ball(solver=solver)
    found, name = layer.report(), layer.engine.name
    assert "asked for" in found.reason
    assert (found.work is None) == (name != "native")
    assert ("7 iterations" in str(found)) == (layer.engine.max_iterations == 7)
    assert f"tolerance {layer.engine.tolerance:g}" in str(found)


def test_memory_is_that_of_the_tensors():
    """Kept: every tensor of the solution, counted here."""
    layer = ball()
    found = layer._plan.solve([part.reshape(3, -1) for part in values(1.0, 2.0, 3.0)])
    tensors = [found.x, found.s, found.z, found.codes, found.measures, found.engine_state.scales]
    assert sum(part.nbytes for part in tensors) == 3 * layer.report().memory.kept
    clarabel = ball(solver="clarabel")
    found = clarabel._plan.solve([part.reshape(3, -1) for part in values(1.0, 2.0, 3.0)])
    measured = found.residuals
    tensors = [found.program.data, found.x, found.s, found.z, found.status, found.iterations, found.objective]
    tensors += [measured.primal, measured.dual, measured.gap]
    assert sum(part.nbytes for part in tensors) == 3 * clarabel.report().memory.kept
    assert clarabel.report().memory.working is None
    torch_layer = ball(solver="torch")
    assert torch_layer.report().memory.working == bytes_per_element(torch_layer.program.structure)


def test_large_factorizations_are_those_of_the_kernels():
    source = (ROOT / "convexlayers" / "native" / "src" / "plan" / "panels.hpp").read_text()
    found = re.search(r"kLargeFlops = ([\d']+);", source)
    assert int(found[1].replace("'", "")) == LARGE_FLOPS


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x, t: cp.Problem(cp.Minimize(t @ x), [x >= 0, x <= 1]), "linear program"),
        (lambda x, t: cp.Problem(cp.Minimize(cp.sum_squares(x) + t @ x), [x >= 0]), "quadratic program"),
        (lambda x, t: cp.Problem(cp.Minimize(cp.sum(cp.exp(x)) + t @ x)), "cone program with a linear objective"),
        (
            lambda x, t: cp.Problem(cp.Minimize(cp.sum_squares(x) + t @ x), [cp.diag(x) >> 0]),
            "semidefinite program with a quadratic objective",
        ),
    ],
)
def test_kinds_of_problems(make, kind):
    x, t = cp.Variable(3), cp.Parameter(3)
    assert f"kind         {kind}\n" in str(cl.report(cl.compile_problem(make(x, t), [t], [x])))


def test_a_geometric_program():
    x, t = cp.Variable(pos=True), cp.Parameter(pos=True)
    program = cl.compile_problem(cp.Problem(cp.Minimize(x + t / x)), [t], [x], gp=True)
    assert "geometric program" in str(cl.report(program))


# ------------------------------------------------------------------------------------------- batches


def test_a_batch_with_failures_is_described_whatever_the_policy():
    layer = ball()
    given = values(1.0, -1.0, 1.0, float("nan"), 1.5)
    found = layer.report(*given)
    assert found.batch.solution.status.tolist() == [0, 2, 0, 6, 0]
    assert found.batch.worst[:2] == [(1,), (3,)]
    text = str(found)
    for part in (
        "5, of shape (5,)",
        "SOLVED: 3 elements",
        "PRIMAL_INFEASIBLE: 1 element (index 1)",
        "none of the solved",
    ):
        assert part in text
    good = [part[[0, 2, 4]] for part in given]
    solution, alone = layer.solve(*good), layer.report(*good).batch
    largest = torch.stack([solution.primal_residual, solution.dual_residual, solution.gap]).amax(0)
    assert alone.worst == [(int(k),) for k in largest.argsort(descending=True)]
    with pytest.raises(cl.SolverError):
        layer(*given)


def test_values_by_name_shapes_and_no_elements():
    layer = ball()
    t, radius = values(1.0, 2.0)
    assert layer.report(radius=radius, t=t).batch.solution.status.shape == (2,)
    single = layer.report(t[0], 1.0)
    assert single.batch.worst == [()]
    assert "elements       1\n" in str(single)
    wide = layer.report(t.reshape(2, 1, 5), radius)
    assert set(wide.batch.worst) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert "none, of shape (0,)" in str(layer.report(t[:0], radius[:0]))
    with pytest.raises(cl.ConvexLayersError):
        layer.report(t)


def test_weakly_active_elements_are_counted():
    """The bound x >= 0 holds with equality and a zero multiplier where t is zero."""
    x, t = cp.Variable(name="x"), cp.Parameter(name="t")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize((x - t) ** 2), [x >= 0]), [t], [x])
    assert "1 of the solved ones: their solution" in str(layer.report(torch.tensor([1.0, 0.0, -1.0]).double()))


def test_a_loaded_layer_says_the_same(tmp_path):
    layer = ball()
    layer.save(tmp_path / "layer.pt")
    loaded = cl.ConvexLayer.load(tmp_path / "layer.pt")
    assert str(loaded.report()) == str(layer.report())


# ------------------------------------------------------------------------------------------- text and HTML


class Reader(HTMLParser):
    """Depth of open tags, and the text."""

    def __init__(self, source):
        super().__init__()
        self.open, self.text, self.tags = [], [], set()
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_says_what_the_text_says():
    found = ball().report(*values(1.0, -1.0))
    page = Reader(found._repr_html_())
    assert page.open == []
    said, written = re.sub(r"\s+", "", "".join(page.text)), re.sub(r"\s+", "", str(found))
    assert said == written


def test_html_is_escaped():
    page = Reader(as_html("<b>", [Section("<i>", (("<u>", "a & <s>\nb"),), (("<h>",), ("<c>",)))]))
    assert page.tags <= {"table", "tr", "th", "td", "br"}
    assert "".join(page.text) == "<b><i><u>a & <s>b<h><c>"


def test_text_has_its_labels_in_one_column():
    sections = [Section("s", (("a", "1\n2"), ("long", "3")), (("h", "i"), ("10", "2")))]
    assert as_text("t", sections) == "t\n\ns\n  a     1\n        2\n  long  3\n   h  i\n  10  2"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (345_678, "346 kB"), (2e6, "2 MB"), (3.21e9, "3.21 GB")],
)
def test_sizes_in_bytes(count, text):
    assert byte_size(count) == text


# ------------------------------------------------------------------------------------------- citations


def keys(layer):
    return [reference.key for reference in cl.citation(layer).references]


def test_citations_follow_the_methods():
    native = keys(ball())
    assert {"convexlayers", "cvxpy", "clarabel", "nesterov_todd", "minimum_degree", "cone_derivative"} <= set(native)
    assert not {"scs", "lpgd", "dahl_andersen", "disciplined_geometric"} & set(native)
    assert "minimum_degree" not in keys(ball(solver="torch"))
    assert keys(ball(solver="clarabel"))[-3:] == ["clarabel", "optnet", "cone_derivative"]
    assert {"scs", "scs_quadratic"} <= set(keys(ball(solver="scs")))
    assert keys(ball(derivative=cl.Perturbed(tau=0.1)))[-1] == "lpgd"
    assert keys(ball(derivative=cl.Smoothed(mu=0.1)))[-1] == "barrier_gradient"
    x, t = cp.Variable(pos=True), cp.Parameter(pos=True)
    geometric = cl.ConvexLayer(cp.Problem(cp.Minimize(x + t / x)), [t], [x], gp=True)
    assert {"disciplined_geometric", "dahl_andersen", "tuncel"} <= set(keys(geometric))


def test_bibtex_is_one_entry_per_reference():
    found = cl.citation(ball())
    entries = re.findall(r"^@(\w+)\{(\w+),$", found.bibtex, re.MULTILINE)
    assert [key for _, key in entries] == keys(ball())
    assert found.bibtex.count("{") == found.bibtex.count("}")
    for reference in found.references:
        assert reference.title in str(found)
        assert f"title = {{{{{reference.title}}}}}" in found.bibtex


def test_the_citation_file_says_the_same():
    """CITATION.cff is read by its lines: it has no structure that would ask for more."""
    from convexlayers.seeing import references

    text = (ROOT / "CITATION.cff").read_text()
    assert f'title: "{references.OWN_TITLE}"' in text
    assert f"version: {cl.__version__}" in text
    assert f"- name: {references.OWN_AUTHORS[0]}" in text
    known = {item for item in vars(references).values() if isinstance(item, references.Reference)}
    cited = dict(re.findall(r'^    title: "(.*)"\n    year: (\d+)$', text, re.MULTILINE))
    assert cited == {reference.title: str(reference.year) for reference in known}
    for reference in known:
        block = text[text.index(f'title: "{reference.title}"') :].split("\n  - ")[0]
        names = re.findall(r"family-names: (.*)\n        given-names: (.*)$", block, re.MULTILINE)
        assert tuple(f"{given} {family}" for family, given in names) == reference.authors
