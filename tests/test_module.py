"""Layers in files, in checkpoints and in print."""

import copy
import io
import pickle
import subprocess
import sys
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import pytest
import torch
from trust.families import FAMILIES, layer_of, solve_and_differentiate

import convexlayers as cl
from convexlayers import saving
from convexlayers.engines import Clarabel, Native, make_engine
from convexlayers.errors import ArgumentError, CheckpointError, FileFormatError
from convexlayers.plain import digest, program_from_plain, program_to_plain

ENGINES = ["native", "clarabel"]


def saved(layer, **changes):
    """The layer after a way through a file."""
    file = io.BytesIO()
    layer.save(file)
    file.seek(0)
    return cl.ConvexLayer.load(file, **changes)


def small_layer(shift=0.0, size=3, **options):
    x, t = cp.Variable(size, name="x"), cp.Parameter(size, name="t")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.sum(x) == 1 + shift, x >= 0])
    return cl.ConvexLayer(problem, [t], [x], **options)


def content_of(layer):
    """What is in a file of the layer, to be changed."""
    file = io.BytesIO()
    layer.save(file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load_content(content, *, signed=True):
    if signed:
        content = {name: value for name, value in content.items() if name != "digest"}
        content |= {"digest": digest(content)}
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return cl.ConvexLayer.load(file)


# Files.


@pytest.mark.parametrize("solver", ENGINES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_layer_gives_the_same_bits(solver, name, tmp_path):
    layer, values = layer_of(name, solver), FAMILIES[name].sample(3)
    layer.save(tmp_path / "layer.pt")
    loaded = cl.ConvexLayer.load(tmp_path / "layer.pt")
    assert type(loaded) is cl.ConvexLayer
    solution, grads = solve_and_differentiate(layer, values)
    other, others = solve_and_differentiate(loaded, values)
    assert all(torch.equal(a, b) for a, b in zip(solution.values, other.values, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))
    assert torch.equal(solution.objective, other.objective)
    assert repr(loaded) == repr(layer)
    assert str(loaded.program) == str(layer.program)


def test_everything_in_a_program_is_saved():
    x, y = cp.Variable((2, 2), symmetric=True), cp.Variable(3)
    a, b = cp.Parameter((2, 2), PSD=True, name="a"), cp.Parameter(3, bounds=[np.zeros(3), np.ones(3)], name="b")
    c = cp.Parameter((2, 3), sparsity=([0, 1], [2, 0]), name="c")
    limit = cp.sum(y) <= 5
    problem = cp.Problem(cp.Maximize(-cp.sum_squares(x - a) - cp.sum_squares(y - b) + cp.sum(c @ y)), [x >> 0, limit])
    program = cl.compile_problem(problem, [a, b, c], [x, y, limit.dual_variables[0]])
    plain = program_to_plain(program)
    again = program_from_plain(plain)
    assert digest(program_to_plain(again)) == digest(plain)
    assert set(plain) == set(type(program).__dataclass_fields__)
    for info, other in zip(program.parameters, again.parameters, strict=True):
        assert (info.key, info.name, info.shape, info.attributes) == (
            other.key, other.name, other.shape, other.attributes,
        )  # fmt: skip
    assert np.array_equal(again.parameters[1].bounds, program.parameters[1].bounds)
    assert np.array_equal(again.parameters[2].sparsity, program.parameters[2].sparsity)
    assert [g.label for g in again.row_groups] == [g.label for g in program.row_groups]
    assert again.objective_sign == -1.0


def test_the_digest_sees_every_change():
    plain = {"a": [1, 2.0, None, True], "b": {"c": torch.arange(3), "d": "text"}}
    changes = [
        {"a": [1, 2, None, True], "b": plain["b"]},
        {"a": [1, 2.0, None], "b": plain["b"]},
        {"a": plain["a"], "b": {"c": torch.arange(3).int(), "d": "text"}},
        {"a": plain["a"], "b": {"c": torch.tensor([0, 1, 3]), "d": "text"}},
        {"a": plain["a"], "b": {"c": torch.arange(3)[None], "d": "text"}},
        {"a": plain["a"], "b": {"c": torch.arange(3), "d": "texu"}},
        {"a": plain["a"], "e": plain["b"]},
    ]
    assert len({digest(one) for one in [plain, *changes]}) == 1 + len(changes)
    assert digest(copy.deepcopy(plain)) == digest(plain)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "native", "tolerance": 1e-9, "threads": 2, "on_failure": "nan", "validate": False},
        {"solver": "auto", "derivative": cl.Smoothed(mu=1e-2)},
        {"solver": "clarabel", "derivative": cl.Perturbed(tau=0.1, side="average"), "max_iterations": 30},
        {"solver": Clarabel(options={"max_threads": 1, "verbose": False}), "relax": "closest_feasible"},
    ],
)
def test_settings_are_what_they_were(options):
    layer = small_layer(**options)
    loaded = saved(layer)
    assert loaded.engine == layer.engine
    assert type(loaded.engine) is type(layer.engine)
    assert (loaded.on_failure, loaded.validate, loaded.relax) == (layer.on_failure, layer.validate, layer.relax)


def test_settings_can_be_others():
    layer = small_layer(solver="native", threads=2, tolerance=1e-9, relax="closest_feasible")
    changes = {
        "derivative": cl.Smoothed(), "on_failure": "nan", "tolerance": 1e-6, "max_iterations": 7, "validate": False,
        "threads": None, "relax": None,
    }  # fmt: skip
    loaded = saved(layer, **changes)
    assert loaded.engine == make_engine("native", derivative=cl.Smoothed(), tolerance=1e-6, max_iterations=7)
    assert (loaded.on_failure, loaded.validate, loaded.relax) == ("nan", False, None)
    # Another solver takes over what all have; an engine object has its own.
    assert saved(layer, solver="clarabel").engine == Clarabel(tolerance=1e-9, threads=2)
    assert saved(layer, solver=Native(threads=1)).engine == Native(threads=1)
    with pytest.raises(ArgumentError, match="tolerance given beside an engine object"):
        saved(layer, solver=Native(), tolerance=1e-6)
    with pytest.raises(ArgumentError, match="on_failure is 'ignore'"):
        saved(layer, on_failure="ignore")
    with pytest.raises(ArgumentError, match="solver is 'none'"):
        saved(layer, solver="none")


def test_options_stay_with_their_engine():
    layer = small_layer(solver=Clarabel(options={"max_threads": 1}))
    assert saved(layer, tolerance=1e-6).engine == Clarabel(tolerance=1e-6, options={"max_threads": 1})
    assert saved(layer, solver="native").engine == Native()


@dataclass(frozen=True)
class OtherNative(Native):
    """Somebody's own engine."""


@dataclass(frozen=True)
class OtherExact(cl.Exact):
    """Somebody's own derivative."""


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (OtherNative(), "The engine is a OtherNative"),
        (Native(derivative=OtherExact()), "derivative is a OtherExact"),
        (Clarabel(options={"callback": print}), "options: callback is a builtin"),
    ],
)
def test_what_a_file_cannot_name_is_refused(solver, message):
    layer = cl.ConvexLayer.from_program(small_layer().program, solver="native")
    layer.engine = solver
    with pytest.raises(ArgumentError, match=message):
        layer.save(io.BytesIO())
    # The remedy for an engine of one's own.
    assert saved(cl.ConvexLayer.from_program(layer.program), solver=OtherNative()).engine == OtherNative()


def test_parameters_are_known_by_name_and_by_object_in_a_loaded_layer():
    x, t = cp.Variable(3), cp.Parameter(3, name="t")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0]), [t], [x])
    loaded, value = saved(layer), torch.tensor([1.0, -1.0, 2.0])
    for way in (loaded(value), loaded(t=value), loaded({t: value})):
        assert torch.equal(way[0], layer(value)[0])


WITHOUT_CVXPY = """
import pickle, sys
sys.modules["cvxpy"] = None  # importing it is an ImportError
import torch
import convexlayers as cl

path, values, solver = sys.argv[1:]
t, expected, grad = torch.load(values)
layers = [cl.ConvexLayer.load(path), torch.load(path + ".torch", weights_only=False)]
layers.append(pickle.load(open(path + ".pickle", "rb")))
for layer in layers:
    assert layer.engine.name == solver
    leaf = t.clone().requires_grad_()
    (x,) = layer(t=leaf)
    x[:, 0].sum().backward()
    assert torch.equal(x.detach(), expected) and torch.equal(leaf.grad, grad)
layers[0].save(path + ".again")
again = cl.ConvexLayer.load(path + ".again")
again.load_state_dict(layers[0].state_dict())
assert torch.equal(again(t)[0], expected)
assert sys.modules["cvxpy"] is None
assert not any(name.startswith("cvxpy.") for name in sys.modules)
"""


@pytest.mark.parametrize("solver", ENGINES)
def test_a_file_is_enough_where_cvxpy_is_not_installed(solver, tmp_path):
    layer, path = small_layer(solver=solver), tmp_path / "layer.pt"
    layer.save(path)
    torch.save(layer, f"{path}.torch")
    (tmp_path / "layer.pt.pickle").write_bytes(pickle.dumps(layer))
    t = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (x,) = layer(t)
    x[:, 0].sum().backward()
    torch.save((t.detach(), x.detach(), t.grad), tmp_path / "values.pt")
    command = [sys.executable, "-c", WITHOUT_CVXPY, str(path), str(tmp_path / "values.pt"), solver]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_nothing_is_compiled_by_load(monkeypatch):
    import convexlayers.compiler

    layer = small_layer()
    monkeypatch.setattr(convexlayers.compiler, "compile_problem", None)
    assert torch.equal(saved(layer)(torch.ones(3))[0], layer(torch.ones(3))[0])


def test_a_file_holds_plain_data_only():
    """So that reading it runs nothing: torch's own restricted reader takes it."""

    def kinds(value):
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return {type(value)} | {kind for child in children for kind in kinds(child)}

    layer = cl.ConvexLayer.from_program(layer_of("mpc", "native").program)
    assert kinds(content_of(layer)) <= {dict, list, str, int, float, bool, type(None), torch.Tensor}


def test_cut_files_are_refused():
    file = io.BytesIO()
    small_layer().save(file)
    data = file.getvalue()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(FileFormatError, match="damaged, or no file of a layer"):
            cl.ConvexLayer.load(io.BytesIO(data[:length]))


def test_a_changed_byte_is_found_or_changes_nothing():
    layer = small_layer()
    file = io.BytesIO()
    layer.save(file)
    data, refused = file.getvalue(), 0
    expected = digest(program_to_plain(layer.program))
    for place in range(0, len(data), 41):
        changed = bytearray(data)
        changed[place] ^= 0x41
        try:
            loaded = cl.ConvexLayer.load(io.BytesIO(bytes(changed)))
        except FileFormatError:
            refused += 1
        else:
            assert digest(program_to_plain(loaded.program)) == expected
    assert refused > 20


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError):
        cl.ConvexLayer.load(path)
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(FileFormatError, match=r"model\.pt was not written by ConvexLayer\.save"):
        cl.ConvexLayer.load(path)
    torch.save(small_layer(), path)
    with pytest.raises(FileFormatError, match=r"model\.pt is damaged, or no file of a layer"):
        cl.ConvexLayer.load(path)
    path.write_text("not a file of torch")
    with pytest.raises(FileFormatError, match="damaged"):
        cl.ConvexLayer.load(path)


def test_a_newer_version_is_refused():
    content = content_of(small_layer()) | {"version": saving.VERSION + 1, "written_by": "9.9"}
    with pytest.raises(FileFormatError, match=r"version 2 of the format and was written by convexlayers 9\.9"):
        load_content(content)


def test_content_that_is_not_what_was_written_is_refused():
    content = content_of(small_layer())
    content["program"]["map"]["constant"][0] = 1.0
    with pytest.raises(FileFormatError, match="its content is not what was written"):
        load_content(content, signed=False)


def change(*path, value):
    """A change of one place in the content of a file; `value` is new, or makes it from the old."""

    def apply(content):
        *front, last = path
        for key in front:
            content = content[key]
        content[last] = value(content[last]) if callable(value) else value

    return apply


WRONG = {
    "missing part": lambda content: content["program"].pop("map"),
    "missing settings": lambda content: content.pop("settings"),
    "unknown engine": change("engine", "name", value="other"),
    "unknown setting of the engine": lambda content: content["engine"]["settings"].update(speed=3),
    "unknown derivative": change("engine", "settings", "derivative", "name", value="Other"),
    "tolerance out of range": change("engine", "settings", "tolerance", value=-1.0),
    "index too large": change("program", "structure", "A_rows", value=lambda rows: rows + 1000),
    "index negative": change("program", "structure", "P_rows", value=lambda rows: rows - 1),
    "pattern out of order": change("program", "structure", "A_cols", value=lambda cols: cols.flip(0)),
    "pattern of another length": change("program", "structure", "A_cols", value=lambda cols: cols[:-1]),
    "lower triangle": change("program", "structure", "P_cols", value=lambda cols: cols * 0),
    "other sizes": change("program", "structure", "n", value=4),
    "other cones": change("program", "structure", "cones", "zero", value=2),
    "unknown cones": lambda content: content["program"]["structure"]["cones"].update(cube=1),
    "negative cones": change("program", "structure", "cones", "zero", value=-1),
    "map's index too large": change("program", "map", "blocks", 0, "cols", value=lambda cols: cols + 10**9),
    "map's row too large": change("program", "map", "blocks", 0, "rows", value=lambda rows: rows + 10**9),
    "map of another shape": change("program", "map", "blocks", 0, "shape", value=[1, 1]),
    "map without values": change("program", "map", "blocks", 0, "values", value=lambda values: values[:0]),
    "no map": change("program", "map", "blocks", value=[]),
    "constant too short": change("program", "map", "constant", value=lambda constant: constant[:-1]),
    "constant in single precision": change("program", "map", "constant", value=lambda constant: constant.float()),
    "constant sparse": change("program", "map", "constant", value=lambda constant: constant.to_sparse()),
    "constant on no device": change("program", "map", "constant", value=lambda constant: constant.to("meta")),
    "block of no parameter": change("program", "blocks", 0, value=[7, False]),
    "parameter of another shape": change("program", "parameters", 0, "shape", value=[2]),
    "parameter of negative shape": change("program", "parameters", 0, "shape", value=[-3]),
    "output from nowhere": change("program", "outputs", 0, "source", value="w"),
    "output of another shape": change("program", "outputs", 0, "shape", value=[5]),
    "a list for a number": change("program", "objective_sign", value=[1.0]),
    "rows of no constraint": change("program", "row_groups", 0, "rows", value=lambda rows: rows + 99),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_content_is_refused_before_it_reaches_the_kernels(name):
    """A file can be signed by anybody; indices go to compiled code."""
    content = content_of(small_layer())
    WRONG[name](content)
    # A digest of what is no vector of numbers cannot be taken.
    signed = name not in ("constant sparse", "constant on no device")
    with pytest.raises(FileFormatError, match="The file is damaged, or no file of a layer"):
        load_content(content, signed=signed)


def test_the_content_itself_is_accepted():
    layer = small_layer()
    assert torch.equal(load_content(content_of(layer))(torch.ones(3))[0], layer(torch.ones(3))[0])


# Checkpoints.


def model_of(layer):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), layer)


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("solver", ENGINES)
def test_a_checkpoint_goes_where_it_came_from(solver):
    model, other = model_of(small_layer(solver=solver)), model_of(small_layer(solver="native", tolerance=1e-6))
    torch.nn.init.zeros_(other[0].weight)
    state = through_file(model.state_dict())
    assert list(state) == ["0.weight", "0.bias", "1._extra_state"]
    assert other.load_state_dict(state) == ([], [])
    assert torch.equal(other[0].weight, model[0].weight)


def test_the_state_is_small_and_a_tensor_that_is_no_weight():
    state = layer_of("mpc", "native").state_dict()["_extra_state"]
    assert state.dtype == torch.uint8
    assert state.numel() < 2000
    assert not state.requires_grad
    assert list(small_layer().parameters()) == list(small_layer().buffers()) == []


@pytest.mark.parametrize(
    "treat",
    [
        torch.clone,
        lambda v: v.to(torch.bfloat16),
        lambda v: v.half(),
        lambda v: v.double(),
        copy.deepcopy,
        torch.detach,
    ],
)
def test_whatever_is_done_to_all_tensors_of_a_checkpoint(treat):
    state = {name: treat(value) for name, value in model_of(small_layer()).state_dict().items()}
    model_of(small_layer()).load_state_dict(state)


def test_the_state_is_a_copy():
    layer = small_layer()
    layer.state_dict()["_extra_state"].zero_()
    layer.load_state_dict(layer.state_dict())


PROBLEMS = {
    "another constant": lambda: small_layer(shift=1e-3),
    "another size": lambda: small_layer(size=4),
    "another bound": lambda: variant(lambda x, t: [cp.sum(x) == 1, x <= 0]),
    "one constraint less": lambda: variant(lambda x, t: [cp.sum(x) == 1]),
    "another order of rows": lambda: variant(lambda x, t: [cp.sum(x) == 1, x[::-1] >= 0]),
    "another weight": lambda: variant(scale=1.001),
    "a maximum": lambda: variant(scale=-1.0),
    "one entry of the parameter twice": lambda: variant(shuffle=[0, 0, 2]),
    "the parameter's entries exchanged": lambda: variant(shuffle=[1, 0, 2]),
    "an attribute": lambda: variant(nonneg=True),
}


def variant(constraints=lambda x, t: [cp.sum(x) == 1, x >= 0], scale=1.0, shuffle=(0, 1, 2), **attributes):
    x, t = cp.Variable(3, name="x"), cp.Parameter(3, name="t", **attributes)
    objective = scale * cp.sum_squares(x - t[list(shuffle)])
    sense = cp.Maximize if scale < 0 else cp.Minimize
    return cl.ConvexLayer(cp.Problem(sense(objective), constraints(x, t)), [t], [x])


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_checkpoint_of_another_problem_is_refused(name, strict):
    """With strict=False too, as weights of another shape are."""
    layer, other = variant(), PROBLEMS[name]()
    with pytest.raises(CheckpointError, match="was saved with a layer of another problem"):
        other.load_state_dict(through_file(layer.state_dict()), strict=strict)
    with pytest.raises(RuntimeError):  # what torch raises where shapes differ
        model_of(other).load_state_dict(model_of(layer).state_dict(), strict=strict)


def test_the_message_says_what_differs():
    with pytest.raises(
        CheckpointError, match=r"parameters \(3,\) there, \(4,\) here; variables \(3,\) x there"
    ) as info:
        small_layer(size=4).load_state_dict(small_layer().state_dict())
    assert "minimize" in str(info.value)
    with pytest.raises(CheckpointError, match="the same sizes, but other constants"):
        small_layer(shift=1e-6).load_state_dict(small_layer().state_dict())


def test_the_same_problem_anew_is_the_same_problem():
    """Names that CVXPY makes up, and the last digits of computed constants, are no difference."""

    def layer(noise, *, named):
        x, t = cp.Variable(4, name="x" if named else None), cp.Parameter(4, name="t" if named else None)
        P = np.random.default_rng(0).standard_normal((4, 4))
        P = P @ P.T * (1 + noise)
        problem = cp.Problem(cp.Minimize(cp.quad_form(x, cp.psd_wrap(P)) - t @ x), [P @ x <= 1, cp.norm(x) <= 3])
        return cl.ConvexLayer(problem, [t], [x])

    first = layer(0.0, named=True)
    for other in (layer(0.0, named=False), layer(1e-15, named=True), layer(1e-13, named=False)):
        other.load_state_dict(first.state_dict())
    with pytest.raises(CheckpointError):
        layer(1e-6, named=True).load_state_dict(first.state_dict())


def test_every_family_knows_itself_and_no_other():
    layers = {name: layer_of(name, "native") for name in FAMILIES}
    for name, layer in layers.items():
        for other, target in layers.items():
            if name == other:
                target.load_state_dict(layer.state_dict())
            else:
                with pytest.raises(CheckpointError):
                    target.load_state_dict(layer.state_dict())


def test_a_checkpoint_from_before_the_layer():
    """The entry is missing, as a weight would be; strict=False goes on without it."""
    model = model_of(small_layer())
    state = torch.nn.Sequential(torch.nn.Linear(4, 3)).state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1._extra_state"'):
        model.load_state_dict(state)
    found = model.load_state_dict(state, strict=False)
    assert found.missing_keys == ["1._extra_state"]
    assert torch.equal(model[0].weight, state["0.weight"])
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "1._extra_state"'):
        torch.nn.Sequential(torch.nn.Linear(4, 3)).load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    "state", [None, "text", {}, [], torch.zeros(0), torch.zeros(5, dtype=torch.uint8), torch.tensor(list(b'{"a": 1}'))]
)
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(CheckpointError, match="does not describe a problem"):
        small_layer().load_state_dict({"_extra_state": state})


def test_a_newer_state_is_refused():
    state = torch.tensor(list(b'{"version": 9}'), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="in version 9, this is version 1: update convexlayers"):
        small_layer().load_state_dict({"_extra_state": state})


# Print.


def test_print_says_what_the_layer_is():
    text = str(torch.nn.Sequential(small_layer(derivative=cl.Smoothed(mu=0.01), on_failure="nan", solver="clarabel")))
    for part in (
        "minimize", "parameters: t (3,)", "variables: x (3,)", "cones: zero ", "nonnegative 3", "solver='clarabel'",
        "derivative=Smoothed(mu=0.01", "on_failure='nan'", "tolerance=1e-08",
    ):  # fmt: skip
        assert part in text
    assert "relax" not in text
    assert "relax='closest_feasible'" in repr(small_layer(relax="closest_feasible"))
    x = cp.Variable()
    assert "parameters: none" in repr(cl.ConvexLayer(cp.Problem(cp.Minimize(x), [x >= 1]), [], [x]))
