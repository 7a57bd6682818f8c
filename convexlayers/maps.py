"""Sparse linear maps between flat vectors, applied to whole batches.

Parameters to problem data, solution vectors to variables and duals: each is one of these. They are made once, when a
problem is compiled, and hold no Python per batch element.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@contextmanager
def lasting_tensors() -> Iterator[None]:
    """Tensors made inside are on the CPU and may take part in autograd, in whatever mode of torch the caller is.

    What is made once and kept must not depend on where it was made: a model that is built under `torch.device("cuda")`
    or first called in `inference_mode` is trained like any other, and a tensor made inside of torch.func's transforms
    would belong to the transform, and die with it.
    """
    with torch.device("cpu"), torch.inference_mode(False), torch._C._DisableFuncTorch():
        yield


class SparseMap:
    """y = M x for x of shape (..., k) and y of shape (..., N), M sparse in coordinate form, sorted by row.

    Attributes:
        shape: (N, k).
        rows, cols, values: the entries; duplicates have been added up.
        row_slice: the rows of the entries, where they are one run with one entry each.
    """

    def __init__(self, rows: np.ndarray, cols: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> None:
        """Sort the entries, add up duplicates and drop what cancels.

        Args:
            rows, cols: integer arrays of equal length.
            values: float array of the same length.
            shape: (N, k).
        """
        unique, summed = _without_duplicates(
            np.asarray(rows, dtype=np.int64) * max(shape[1], 1) + cols, np.asarray(values, dtype=np.float64)
        )
        kept = summed != 0
        if not kept.all():
            unique, summed = unique[kept], summed[kept]
        self.shape = shape
        with lasting_tensors():
            self._set_entries(unique // max(shape[1], 1), unique % max(shape[1], 1), summed)

    def _set_entries(self, rows: np.ndarray, cols: np.ndarray, values: np.ndarray) -> None:
        """Keep the entries, and find out what is special about them."""
        self.rows, self.cols, self.values = (torch.from_numpy(part) for part in (rows, cols, values))
        # A map with exactly one entry in every row is a gather: no scatter is needed to apply it.
        self._is_gather = self.nnz == self.shape[0] and bool((self.rows == torch.arange(self.shape[0])).all())
        self._has_unit_values = bool((self.values == 1).all())
        # Consecutive entries are a slice, all of them the input itself.
        self._read = _as_slice(self.cols)
        self._slice = self._read if self._is_gather and self._has_unit_values else None
        self.row_slice = _as_slice(self.rows)

    # The two below are of use to the adjoint alone, which many maps never see: they wait until one is asked for.

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor] | None:
        """Rows and values by increasing column where every entry of the input is read once: a gather as well."""
        # As many entries as columns: all of them are read if and only if none is read twice.
        if self.nnz != self.shape[1] or self._columns_read() != self.nnz:
            return None
        with lasting_tensors():
            entry = torch.empty_like(self.cols)
            entry[self.cols] = torch.arange(self.nnz)
            return self.rows[entry], self.values[entry]

    @cached_property
    def _is_injective(self) -> bool:
        """Whether a gather reads no entry of the input twice."""
        return self._is_gather and self._columns_read() == self.nnz

    def _columns_read(self) -> int:
        """How many entries of the input are read."""
        with lasting_tensors():
            read = torch.zeros(self.shape[1], dtype=torch.bool)
            read[self.cols] = True
            return int(read.sum())

    def __getstate__(self) -> dict[str, object]:
        # A copy or a file does not depend on what was asked before.
        return {name: value for name, value in self.__dict__.items() if name not in ("_transposed", "_is_injective")}

    @classmethod
    def identity(cls, width: int) -> "SparseMap":
        """The map x -> x."""
        return cls.selection(np.arange(width), width)

    @classmethod
    def selection(cls, indices: np.ndarray, width: int) -> "SparseMap":
        """The map that reads entry indices[i] of its input into entry i of its output; -1 reads a zero."""
        flat = np.asarray(indices).reshape(-1)
        rows = np.nonzero(flat >= 0)[0]
        return cls(rows, flat[rows], np.ones(len(rows)), (len(flat), width))

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return len(self.values)

    def after(self, first: "SparseMap") -> "SparseMap":
        """The map x -> self(first(x)); `first` must have at most one entry per row."""
        entry = np.full(first.shape[0], -1, dtype=np.int64)
        entry[first.rows.numpy()] = np.arange(first.nnz)
        source = entry[self.cols.numpy()]
        kept = source >= 0
        values = self.values.numpy()[kept] * first.values.numpy()[source[kept]]
        shape = (self.shape[0], first.shape[1])
        return SparseMap(self.rows.numpy()[kept], first.cols.numpy()[source[kept]], values, shape)

    def apply(self, x: Tensor) -> Tensor:
        """M x, shape (..., k) to (..., N); differentiable by torch's own rules."""
        if self._slice is not None:
            return x if self.shape[0] == self.shape[1] else x[..., self._slice]
        picked = self.picked(x)
        if self._is_gather:
            return picked
        rows = self.rows.to(x.device)
        return torch.zeros(*x.shape[:-1], self.shape[0], dtype=x.dtype, device=x.device).index_add(-1, rows, picked)

    def picked(self, x: Tensor) -> Tensor:
        """For each stored entry, in the order of the rows, its value times what it reads, (..., k) to (..., nnz)."""
        if self._read is not None:
            read = x[..., self._read]
            return read if self._has_unit_values else read * self.values.to(device=x.device, dtype=x.dtype)
        _, cols, values = self._on(x)
        # Several times as fast as index_select, which takes one row after the other.
        read = x.gather(-1, cols.expand(*x.shape[:-1], -1))
        return read if self._has_unit_values else read * values

    def add_to(self, data: Tensor, x: Tensor) -> Tensor:
        """data + M x for data (B, N) or (1, N) and x (B, k) or (1, k)."""
        if self._is_gather:
            return data + self.apply(x)
        picked, rows = self.picked(x), self.row_slice
        batch = torch.broadcast_shapes(data.shape[:1], x.shape[:1])[0]
        if rows is None:
            return data.expand(batch, -1).index_add(-1, self.rows.to(x.device), picked.expand(batch, -1))
        # Not in place, which torch.func.vmap refuses.
        before, after = data[:, : rows.start], data[:, rows.stop :]
        return torch.cat((before.expand(batch, -1), data[:, rows] + picked, after.expand(batch, -1)), dim=-1)

    def adjoint(self, y: Tensor) -> Tensor:
        """M'y, shape (..., N) to (..., k)."""
        if self._slice is not None:
            if self.shape[0] == self.shape[1]:
                return y
            out = y.new_zeros(*y.shape[:-1], self.shape[1])
            out[..., self._slice] = y
            return out
        if self._transposed is not None:
            rows, values = (part.to(y.device) for part in self._transposed)
            # Faster than index_select along the last dimension, and than copying into zeros.
            picked = y.gather(-1, rows.expand(*y.shape[:-1], -1))
            return picked if self._has_unit_values else picked * values.to(y.dtype)
        rows, cols, values = self._on(y)
        if self._is_injective:
            picked = y if self._has_unit_values else y * values
            return y.new_zeros(*y.shape[:-1], self.shape[1]).index_copy_(-1, cols, picked)
        picked = y.index_select(-1, rows) * values
        return torch.zeros(*y.shape[:-1], self.shape[1], dtype=y.dtype, device=y.device).index_add(-1, cols, picked)

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        device = x.device
        return self.rows.to(device), self.cols.to(device), self.values.to(device=device, dtype=x.dtype)


def _as_slice(indices: Tensor) -> slice | None:
    """The slice that consecutive indices are."""
    first = int(indices[0]) if len(indices) else 0
    consecutive = bool((indices == torch.arange(first, first + len(indices))).all())
    return slice(first, first + len(indices)) if consecutive else None


def _without_duplicates(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys in increasing order, and the sums of their values."""
    if bool((keys[1:] > keys[:-1]).all()):
        return keys, values.copy()
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, np.bincount(inverse.reshape(-1), weights=values, minlength=len(unique))


class AffineMap:
    """data = constant + sum_i M_i theta_i over blocks of parameters, each with or without a batch dimension.

    A block that the batch shares, theta_i of shape (1, k_i), is applied once, and its gradient is the sum over the
    batch, formed before the map's adjoint so that no per-element copy of it exists.
    """

    def __init__(self, constant: np.ndarray, blocks: Sequence[SparseMap]) -> None:
        with lasting_tensors():
            self.constant = torch.as_tensor(constant, dtype=torch.float64)
        self.blocks = tuple(blocks)

    @property
    def nnz(self) -> int:
        """Stored entries of all blocks."""
        return sum(block.nnz for block in self.blocks)

    def apply(self, theta: Sequence[Tensor]) -> Tensor:
        """Data (B, N) from blocks of shape (B, k_i) or (1, k_i).

        Raises:
            ValueError: the batch sizes differ and are not 1.
        """
        data = self.constant.unsqueeze(0)
        if not theta:
            return data
        data = data.to(theta[0].device)
        others = [pair for index, pair in enumerate(zip(self.blocks, theta, strict=True)) if index not in self._runs]
        # Shared blocks first: they are added at batch size one.
        shared = [pair for pair in others if pair[1].shape[0] == 1]
        for block, value in shared:
            data = block.add_to(data, value)
        if self._runs:
            data = self._join_runs(data, theta, bool(shared))
        for block, value in others:
            if value.shape[0] != 1:
                data = block.add_to(data, value)
        return data

    def _join_runs(self, data: Tensor, theta: Sequence[Tensor], is_added: bool) -> Tensor:
        """Data (1, N), to whose constant something has been added or not, plus the blocks of `_runs`."""
        parts, done = [], 0
        for index, rows in self._runs.items():
            value = self.blocks[index].picked(theta[index])
            is_zero = self._is_zero[index] and not is_added
            parts += [data[:, done : rows.start], value if is_zero else data[:, rows] + value]
            done = rows.stop
        parts.append(data[:, done:])
        batch = torch.broadcast_shapes(*(part.shape[:1] for part in parts))[0]
        return torch.cat([part.expand(batch, -1) for part in parts], dim=-1)

    @cached_property
    def _runs(self) -> dict[int, slice]:
        """The blocks that write runs of rows which do not overlap, in the order of the rows: one copy joins them."""
        blocks = [(block.row_slice, index) for index, block in enumerate(self.blocks) if block.row_slice is not None]
        runs: dict[int, slice] = {}
        done = 0
        for rows, index in sorted(blocks, key=lambda pair: (pair[0].start, pair[1])):
            if done <= rows.start < rows.stop:
                runs[index], done = rows, rows.stop
        return runs

    @cached_property
    def _is_zero(self) -> dict[int, bool]:
        """Whether nothing constant stands in those rows."""
        return {index: not bool(self.constant[rows].any()) for index, rows in self._runs.items()}

    def tangent(self, dtheta: Sequence[Tensor | None], batch: int) -> Tensor:
        """Data tangent (B, N); None stands for a zero block."""
        out = torch.zeros(batch, len(self.constant), dtype=torch.float64, device="cpu")
        for block, value in zip(self.blocks, dtheta, strict=True):
            if value is not None:
                out = out.to(value.device) + block.apply(value)
        return out

    def adjoint(self, grad_data: Tensor, theta: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Cotangents of the blocks from the data's, (B, N); shared blocks get the sum over the batch."""
        total = None
        grads: list[Tensor | None] = []
        for block, value, is_wanted in zip(self.blocks, theta, wanted, strict=True):
            if not is_wanted:
                grads.append(None)
            elif value.shape[0] == grad_data.shape[0]:
                grads.append(block.adjoint(grad_data))
            else:
                total = grad_data.sum(0, keepdim=True) if total is None else total
                grads.append(block.adjoint(total))
        return tuple(grads)
