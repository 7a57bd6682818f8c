"""What a checkpoint remembers of a layer's problem, so that it is not loaded into a layer with another one.

A layer has no weights. The weights around it mean something for its problem only, so a state_dict holds a description
of that problem: sizes, cones, shapes of parameters and variables, and of all numbers in it a few sums,

    sum_k |v_k|,   sum_k v_k cos(w'p_k),   sum_k v_k sin(w'p_k)

over the entries v_k of each of P, q, A, b and the offset, where p_k says where an entry stands and w is fixed. Two
problems of the same sizes agree in them only where their numbers do. Sums and not a hash, because constants that a user
computed (a product, an eigendecomposition) differ in the last digits from machine to machine. Names are no part of it:
CVXPY numbers what has none anew in every process.
"""

import json
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from convexlayers.errors import CheckpointError
from convexlayers.maps import SparseMap, lasting_tensors
from convexlayers.program import ParametrizedConeProgram, Structure

VERSION = 1
# What numbers may differ by, relative to the sum of their sizes.
ROUNDING = 1e-8
# Parts of a description that have to agree, and what they are to a reader.
PARTS = {"parameters": "parameters", "outputs": "variables", "cones": "cones", "objective": "objective"}
# Frequencies of row, column, parameter entry and block: no two small integer combinations of them agree modulo 2 pi.
FREQUENCIES = np.sqrt([2.0, 3.0, 5.0, 7.0])

_states: WeakKeyDictionary[ParametrizedConeProgram, Tensor] = WeakKeyDictionary()


def program_state(program: ParametrizedConeProgram) -> Tensor:
    """The description as a tensor of bytes (JSON, UTF-8), which every way of storing a state_dict can take."""
    state = _states.get(program)
    if state is None:
        text = json.dumps(describe(program)).encode()
        with lasting_tensors():
            state = _states[program] = torch.tensor(list(text), dtype=torch.uint8)
    return state.clone()


def check_state(program: ParametrizedConeProgram, state: object) -> None:
    """Compare a state with a program.

    Args:
        program: of the layer that loads.
        state: what `program_state` made of some program; bytes in any dtype.

    Raises:
        CheckpointError: it is that of another program, or none at all.
    """
    here, there = describe(program), _read(state)
    differing = [
        f"{word} {_listing(there.get(name))} there, {_listing(here[name])} here"
        for name, word in PARTS.items()
        if there.get(name) != here[name]
    ]
    if not differing and not _same_numbers(here["numbers"], there.get("numbers")):
        differing = ["the same sizes, but other constants or another pattern"]
    if differing:
        raise CheckpointError(
            f"The checkpoint was saved with a layer of another problem ({there.get('title')!r}) than this one "
            f"({program.title!r}): {'; '.join(differing)}. If they are the same problem, compiled by different "
            "versions of CVXPY, remove the entry that ends in '_extra_state' and load with strict=False."
        )


def describe(program: ParametrizedConeProgram) -> dict[str, Any]:
    """What is compared, and the title, which is not."""
    return {
        "version": VERSION,
        "title": program.title,
        "parameters": [[*map(int, info.shape), *sorted(info.attributes)] for info in program.parameters],
        "outputs": [[*map(int, info.shape), info.source] for info in program.outputs],
        "cones": f"{program.structure.n} variables, {program.structure.cones.describe()}",
        "objective": f"{program.objective_sign:+g}, {'exponential' if program.objective_exponential else 'plain'}",
        "numbers": _numbers(program),
    }


def _numbers(program: ParametrizedConeProgram) -> list[list[float]]:
    """The sums over P, q, A, b, the offset, and over the maps to the outputs."""
    structure = program.structure
    rows, cols = _places(structure)
    constant = np.nan_to_num(program.map.constant.numpy())
    kept = np.nonzero(constant)[0]
    number, entry, block, value = [kept], [np.zeros(len(kept))], [np.zeros(len(kept))], [constant[kept]]
    for position, (source, linear) in enumerate(zip(program.blocks, program.map.blocks, strict=True)):
        number.append(linear.rows.numpy())
        entry.append(linear.cols.numpy().astype(float))
        block.append(np.full(linear.nnz, 1.0 + position + 0.5 * source.logarithm))
        value.append(linear.values.numpy())
    where, values = np.concatenate(number), np.concatenate(value)
    angles = np.stack([rows[where], cols[where], np.concatenate(entry), np.concatenate(block)], axis=1) @ FREQUENCIES
    stops = [part.stop for part in structure.slices.values()]
    part = np.searchsorted(stops, where, side="right")
    sums = [_sums(values[part == i], angles[part == i]) for i in range(len(stops))]
    return sums + [_map_sums(info.map) for info in program.outputs]


def _places(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every number of a program; vectors are columns."""
    index = [np.arange(structure.n), np.arange(structure.m), np.zeros(1)]
    zeros = [np.zeros(len(part)) for part in index]
    rows = [structure.P_rows, index[0], structure.A_rows, index[1], index[2]]
    cols = [structure.P_cols, zeros[0], structure.A_cols, zeros[1], zeros[2]]
    return np.concatenate(rows).astype(float), np.concatenate(cols).astype(float)


def _map_sums(linear: SparseMap) -> list[float]:
    angles = np.stack([linear.rows.numpy(), linear.cols.numpy()], axis=1) @ FREQUENCIES[:2]
    return _sums(linear.values.numpy(), angles)


def _sums(values: np.ndarray, angles: np.ndarray) -> list[float]:
    return [float(np.abs(values).sum()), float(values @ np.cos(angles)), float(values @ np.sin(angles))]


def _same_numbers(here: list[list[float]], there: object) -> bool:
    try:
        found = np.asarray(there, dtype=float)
    except (TypeError, ValueError):
        return False
    wanted = np.asarray(here)
    return found.shape == wanted.shape and bool((np.abs(found - wanted) <= ROUNDING * wanted[:, :1]).all())


def _read(state: object) -> dict[str, Any]:
    """The description in a state.

    Raises:
        CheckpointError: there is none that this version can read.
    """
    try:
        data = torch.as_tensor(state, device="cpu").to(torch.uint8)
        found = json.loads(bytes(data.tolist()).decode())
        version = int(found["version"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError("The checkpoint's entry for this layer does not describe a problem.") from error
    if version > VERSION:
        raise CheckpointError(
            f"The checkpoint describes this layer's problem in version {version}, this is version {VERSION}: update "
            "convexlayers."
        )
    return found


def _listing(part: object) -> str:
    if not isinstance(part, list):
        return str(part)
    return ", ".join(_entry(item) for item in part) or "none"


def _entry(item: object) -> str:
    if not isinstance(item, list):
        return str(item)
    shape, words = tuple(x for x in item if isinstance(x, int)), [x for x in item if isinstance(x, str)]
    return " ".join([str(shape), *words])
