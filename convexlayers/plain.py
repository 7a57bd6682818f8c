"""Compiled programs as plain data: dictionaries, lists, numbers, text and tensors, and back.

Plain data can be stored and read without running anything that comes with them. What is read back is checked for
everything that the kernels take for granted: sizes fit each other, indices are inside, patterns are in order.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from convexlayers.cones import Cones
from convexlayers.errors import FileFormatError
from convexlayers.maps import AffineMap, SparseMap
from convexlayers.program import Block, OutputInfo, ParameterInfo, ParametrizedConeProgram, RowGroup, Structure

Plain = dict[str, Any]
T = TypeVar("T")
PATTERN = ("P_rows", "P_cols", "A_rows", "A_cols")
INTEGERS = (torch.int32, torch.int64)


def program_to_plain(program: ParametrizedConeProgram) -> Plain:
    """Everything there is to know of a program; `program_from_plain` is the inverse."""
    structure = program.structure
    return {
        "structure": {
            "n": int(structure.n),
            "cones": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(structure.cones).items()},
            **{name: _tensor(getattr(structure, name)) for name in PATTERN},
        },
        "map": {"constant": program.map.constant, "blocks": [_map_to_plain(block) for block in program.map.blocks]},
        "blocks": [[block.parameter, block.logarithm] for block in program.blocks],
        "parameters": [_parameter_to_plain(info) for info in program.parameters],
        "outputs": [
            {
                "name": info.name,
                "shape": _sizes(info.shape),
                "source": info.source,
                "map": _map_to_plain(info.map),
                "exponential": info.exponential,
            }
            for info in program.outputs
        ],
        "objective_sign": program.objective_sign,
        "objective_exponential": program.objective_exponential,
        "title": program.title,
        "compile_seconds": program.compile_seconds,
        "row_groups": [
            {"label": group.label, "rows": _tensor(group.rows), "shape": _sizes(group.shape)}
            for group in program.row_groups
        ],
    }


def program_from_plain(plain: Any) -> ParametrizedConeProgram:
    """A program from plain data.

    Raises:
        FileFormatError: something is missing, or does not fit the rest.
    """
    given = _dict(plain)
    structure = _structure(_dict(given["structure"]))
    parameters = tuple(_each(given["parameters"], _parameter_from_plain))
    blocks = tuple(_each(given["blocks"], lambda pair: _block(pair, parameters)))
    maps = _dict(given["map"])
    constant = _floats(maps["constant"], structure.size)
    plain_maps = _list(maps["blocks"])
    _require(len(plain_maps) == len(blocks), "there are not as many maps as blocks of parameters")
    widths = [parameters[block.parameter].entries for block in blocks]
    affine = AffineMap(constant, [_map(m, structure.size, w) for m, w in zip(plain_maps, widths, strict=True)])
    return ParametrizedConeProgram(
        structure=structure,
        map=affine,
        blocks=blocks,
        parameters=parameters,
        outputs=tuple(_each(given["outputs"], lambda item: _output(_dict(item), structure))),
        objective_sign=_one(given["objective_sign"], float),
        objective_exponential=_one(given["objective_exponential"], bool),
        title=_one(given["title"], str),
        compile_seconds=_one(given["compile_seconds"], float),
        row_groups=tuple(_each(given["row_groups"], lambda item: _row_group(_dict(item), structure.m))),
    )


def digest(plain: Any) -> str:
    """SHA-256 of plain data, in hexadecimal digits; what a damaged copy does not have."""
    found = hashlib.sha256()
    _feed(found, plain)
    return found.hexdigest()


def _feed(found: "hashlib._Hash", plain: Any) -> None:
    if isinstance(plain, Tensor):
        found.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        found.update(plain.detach().contiguous().numpy().tobytes())
    elif isinstance(plain, dict | list):
        pairs = plain.items() if isinstance(plain, dict) else enumerate(plain)
        found.update(f"{type(plain).__name__}{len(plain)}".encode())
        for key, value in pairs:
            found.update(repr(key).encode())
            _feed(found, value)
    else:
        found.update(f"{plain!r};".encode())


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, order="C"))


def _sizes(shape: Sequence[int]) -> list[int]:
    return [int(size) for size in shape]


def _map_to_plain(linear: SparseMap) -> Plain:
    return {"shape": _sizes(linear.shape), "rows": linear.rows, "cols": linear.cols, "values": linear.values}


def _parameter_to_plain(info: ParameterInfo) -> Plain:
    return {
        "key": info.key,
        "name": info.name,
        "shape": _sizes(info.shape),
        "attributes": list(info.attributes),
        "bounds": None if info.bounds is None else [_tensor(bound) for bound in info.bounds],
        "sparsity": None if info.sparsity is None else _tensor(info.sparsity),
    }


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise FileFormatError(f"{otherwise}.")


def _one(value: Any, kind: type[T]) -> T:
    _require(type(value) is kind, f"{value!r} stands where a {kind.__name__} is expected")
    return value


def _dict(value: Any) -> Mapping[str, Any]:
    return _one(value, dict)


def _list(value: Any) -> Sequence[Any]:
    return _one(value, list)


def _each(values: Any, make: Callable[[Any], T]) -> list[T]:
    return [make(value) for value in _list(values)]


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(_one(size, int) for size in _list(value))
    _require(all(size >= 0 for size in shape), f"{shape} is not a shape")
    return shape


def _array(value: Any, dtypes: Sequence[torch.dtype]) -> np.ndarray:
    """A copy with memory of its own, in whatever way the tensor is laid out."""
    is_plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    _require(is_plain and value.dtype in dtypes, "a tensor is missing, or of the wrong kind")
    return value.detach().clone(memory_format=torch.contiguous_format).numpy()


def _indices(value: Any, stop: int, length: int | None = None) -> np.ndarray:
    """A vector of indices below `stop`."""
    found = _array(value, INTEGERS)
    _require(found.ndim == 1 and length in (None, len(found)), "indices are not a vector of the expected length")
    _require(len(found) == 0 or (found.min() >= 0 and found.max() < stop), f"an index is outside 0 .. {stop - 1}")
    return found


def _floats(value: Any, length: int) -> np.ndarray:
    found = _array(value, (torch.float64,))
    _require(found.shape == (length,), f"{found.shape} numbers stand where {length} are expected")
    return found


def _structure(given: Mapping[str, Any]) -> Structure:
    n = _one(given["n"], int)
    cones = Cones.coerce(_dict(given["cones"]))
    rows, cols = (_indices(given["P_rows"], n), _indices(given["P_cols"], n))
    _require(len(rows) == len(cols) and bool((rows <= cols).all()), "P is not an upper triangle")
    _require_order(rows, cols, n)
    A_rows, A_cols = (_indices(given["A_rows"], cones.rows), _indices(given["A_cols"], n))
    _require(len(A_rows) == len(A_cols), "A has not as many rows as columns of entries")
    _require_order(A_rows, A_cols, cones.rows)
    return Structure(n=n, cones=cones, P_rows=rows, P_cols=cols, A_rows=A_rows, A_cols=A_cols)


def _require_order(rows: np.ndarray, cols: np.ndarray, height: int) -> None:
    keys = cols.astype(np.int64) * max(height, 1) + rows
    _require(bool((keys[1:] > keys[:-1]).all()), "a pattern is not sorted by column, then row")


def _map(given: Any, height: int, width: int) -> SparseMap:
    plain = _dict(given)
    _require(_shape(plain["shape"]) == (height, width), f"a map is not {height} by {width}")
    rows = _indices(plain["rows"], height)
    return SparseMap(
        rows, _indices(plain["cols"], width, len(rows)), _floats(plain["values"], len(rows)), (height, width)
    )


def _block(pair: Any, infos: Sequence[ParameterInfo]) -> Block:
    parameter, logarithm = _list(pair)
    _require(0 <= _one(parameter, int) < len(infos), "a block belongs to no parameter")
    info = infos[parameter]
    return Block(parameter, _one(logarithm, bool), info if info.sparsity is not None else None)


def _parameter_from_plain(item: Any) -> ParameterInfo:
    given = _dict(item)
    shape = _shape(given["shape"])
    bounds = None
    if given["bounds"] is not None:
        lower, upper = (_array(bound, (torch.float64,)) for bound in _list(given["bounds"]))
        _require(np.broadcast_shapes(lower.shape, upper.shape, shape) == shape, "bounds do not fit their parameter")
        bounds = (lower, upper)
    return ParameterInfo(
        key=_one(given["key"], int),
        name=_one(given["name"], str),
        shape=shape,
        attributes=tuple(_each(given["attributes"], lambda name: _one(name, str))),
        bounds=bounds,
        sparsity=None if given["sparsity"] is None else _indices(given["sparsity"], prod(shape)),
    )


def _output(given: Mapping[str, Any], structure: Structure) -> OutputInfo:
    shape, source = _shape(given["shape"]), given["source"]
    _require(source in ("x", "s", "z"), f"an output comes from {source!r}")
    return OutputInfo(
        name=_one(given["name"], str),
        shape=shape,
        source=source,
        map=_map(given["map"], prod(shape), structure.n if source == "x" else structure.m),
        exponential=_one(given["exponential"], bool),
    )


def _row_group(given: Mapping[str, Any], m: int) -> RowGroup:
    shape = _shape(given["shape"])
    return RowGroup(_one(given["label"], str), _indices(given["rows"], m), shape)
