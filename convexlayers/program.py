"""The one form that every problem takes, with and without numbers in it.

    minimize    1/2 x'Px + q'x + offset        dual:  maximize  -1/2 x'Px - b'z + offset
    subject to  Ax + s = b,  s in K                   subject to Px + A'z + q = 0,  z in K*

`Structure` is the pattern, `ConeProgram` a batch of numbers on it, `ParametrizedConeProgram` the affine map from
parameters to those numbers together with the names that users know. None of them needs cvxpy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from convexlayers.cones import Cones
from convexlayers.maps import AffineMap, SparseMap


@dataclass(frozen=True, eq=False)
class Structure:
    """Sizes and sparsity pattern of P, q, A, b.

    The numbers of one program are one vector: upper triangle of P, q, A, b, offset, in this order.

    Attributes:
        n: number of variables.
        cones: the cones of the rows of A.
        P_rows, P_cols: entries of the upper triangle of P (row <= column), sorted by column, then row.
        A_rows, A_cols: entries of A, sorted by column, then row.
    """

    n: int
    cones: Cones
    P_rows: np.ndarray
    P_cols: np.ndarray
    A_rows: np.ndarray
    A_cols: np.ndarray

    @property
    def m(self) -> int:
        """Number of rows of A."""
        return self.cones.rows

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each block stands in the vector of numbers."""
        sizes = {"P": len(self.P_rows), "q": self.n, "A": len(self.A_rows), "b": self.m, "offset": 1}
        stops = np.cumsum(list(sizes.values()))
        return {
            name: slice(int(stop) - size, int(stop)) for (name, size), stop in zip(sizes.items(), stops, strict=True)
        }

    @property
    def size(self) -> int:
        """Length of the vector of numbers."""
        return self.slices["offset"].stop

    @cached_property
    def P_diagonal(self) -> np.ndarray:
        """Which of P's stored entries stand on its diagonal."""
        return np.flatnonzero(self.P_rows == self.P_cols)

    @cached_property
    def indptr(self) -> tuple[np.ndarray, np.ndarray]:
        """Column pointers (n + 1) of P's upper triangle and of A, as compressed sparse columns want them."""
        pointers = (np.searchsorted(cols, np.arange(self.n + 1)) for cols in (self.P_cols, self.A_cols))
        P_indptr, A_indptr = (pointer.astype(np.int32) for pointer in pointers)
        return P_indptr, A_indptr


@dataclass(frozen=True, eq=False)
class ConeProgram:
    """A batch of numbers on a structure.

    Attributes:
        structure: the pattern.
        data: shape (B, structure.size), float64.
    """

    structure: Structure
    data: Tensor

    def _block(self, name: str) -> Tensor:
        return self.data[:, self.structure.slices[name]]

    @property
    def batch(self) -> int:
        """Number of elements B."""
        return self.data.shape[0]

    @property
    def P_values(self) -> Tensor:
        """Values of P's upper triangle, (B, nnz)."""
        return self._block("P")

    @property
    def q(self) -> Tensor:
        """Linear objective, (B, n)."""
        return self._block("q")

    @property
    def A_values(self) -> Tensor:
        """Values of A, (B, nnz)."""
        return self._block("A")

    @property
    def b(self) -> Tensor:
        """Right-hand side, (B, m)."""
        return self._block("b")

    @property
    def offset(self) -> Tensor:
        """Constant of the objective, (B,)."""
        return self._block("offset")[:, 0]

    def select(self, indices: Tensor) -> "ConeProgram":
        """The elements at these indices."""
        return ConeProgram(self.structure, self.data.index_select(0, indices))

    def _index(self, name: str) -> Tensor:
        return torch.as_tensor(getattr(self.structure, name), device=self.data.device)

    def dense_P(self) -> Tensor:
        """P as full symmetric matrices, (B, n, n)."""
        n = self.structure.n
        out = torch.zeros(self.batch, n, n, dtype=self.data.dtype, device=self.data.device)
        rows, cols = self._index("P_rows"), self._index("P_cols")
        out[:, rows, cols] = self.P_values
        out[:, cols, rows] = self.P_values
        return out

    def dense_A(self) -> Tensor:
        """A as full matrices, (B, m, n)."""
        shape = (self.batch, self.structure.m, self.structure.n)
        out = torch.zeros(shape, dtype=self.data.dtype, device=self.data.device)
        out[:, self._index("A_rows"), self._index("A_cols")] = self.A_values
        return out

    def P_times(self, x: Tensor) -> Tensor:
        """Px, (B, n)."""
        rows, cols = self._index("P_rows"), self._index("P_cols")
        out = torch.zeros_like(x).index_add(1, rows, self.P_values * x[:, cols])
        below = rows != cols
        return out.index_add(1, cols[below], (self.P_values * x[:, rows])[:, below])

    def A_times(self, x: Tensor) -> Tensor:
        """Ax, (B, m)."""
        out = torch.zeros(x.shape[0], self.structure.m, dtype=x.dtype, device=x.device)
        return out.index_add(1, self._index("A_rows"), self.A_values * x[:, self._index("A_cols")])

    def At_times(self, z: Tensor) -> Tensor:
        """A'z, (B, n)."""
        out = torch.zeros(z.shape[0], self.structure.n, dtype=z.dtype, device=z.device)
        return out.index_add(1, self._index("A_cols"), self.A_values * z[:, self._index("A_rows")])

    def objective(self, x: Tensor) -> Tensor:
        """1/2 x'Px + q'x + offset, (B,)."""
        return 0.5 * (x * self.P_times(x)).sum(-1) + (self.q * x).sum(-1) + self.offset


class DeferredProgram(ConeProgram):
    """Numbers that are an affine function of parameters, evaluated if anybody asks for them."""

    _map: AffineMap
    _theta: Sequence[Tensor]
    _batch: int

    def __init__(self, program: "ParametrizedConeProgram", theta: Sequence[Tensor], batch: int) -> None:
        """Remember where the numbers come from.

        Args:
            program: structure and map.
            theta: blocks of shape (B, k_i) or (1, k_i).
            batch: B.
        """
        self.__dict__.update(structure=program.structure, _map=program.map, _theta=theta, _batch=batch)

    @property
    def batch(self) -> int:
        return self._batch

    @cached_property
    def data(self) -> Tensor:  # type: ignore[override]
        return self._map.apply([value.detach() for value in self._theta]).expand(self._batch, -1)

    def select(self, indices: Tensor) -> ConeProgram:
        theta = [value.detach() for value in self._theta]
        rows = [value[indices] if value.shape[0] == self._batch else value for value in theta]
        return ConeProgram(self.structure, self._map.apply(rows).expand(len(indices), -1))


@dataclass(frozen=True, eq=False)
class ParameterInfo:
    """A parameter as its user knows it.

    Attributes:
        key: what identifies it besides its position (CVXPY's id).
        name: its name.
        shape: shape of one value.
        attributes: CVXPY's attributes that values must have, in the order nonneg, PSD, ...
        bounds: lower and upper bound, each broadcastable to `shape`, or None.
        sparsity: flat row-major indices of the entries that may be nonzero, or None. Only these are in theta, in this
            order, which is CVXPY's (`parameter.sparse_idx`: by column, then row).
    """

    key: int
    name: str
    shape: tuple[int, ...]
    attributes: tuple[str, ...] = ()
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    sparsity: np.ndarray | None = None

    @cached_property
    def size(self) -> int:
        """Entries of one value."""
        return math.prod(self.shape)

    @cached_property
    def entries(self) -> int:
        """Entries of one value that theta holds."""
        return self.size if self.sparsity is None else len(self.sparsity)

    @cached_property
    def is_checked(self) -> bool:
        """Whether values have to have a property."""
        return bool(self.attributes) or self.bounds is not None or self.sparsity is not None


@dataclass(frozen=True)
class Block:
    """One block of theta: a parameter, row-major, or its logarithm (geometric programs).

    Attributes:
        parameter: its position.
        logarithm: whether the block holds its logarithm.
        sparse: the parameter, if the block holds only the entries on its sparsity pattern.
    """

    parameter: int
    logarithm: bool = False
    sparse: ParameterInfo | None = None


@dataclass(frozen=True, eq=False)
class OutputInfo:
    """A variable or dual variable that the program returns.

    Attributes:
        name: for messages and `print`.
        shape: shape of one value.
        source: "x", "s" or "z".
        map: from that vector to the value, row-major.
        exponential: whether exp is applied after it (geometric programs).
    """

    name: str
    shape: tuple[int, ...]
    source: str
    map: SparseMap
    exponential: bool = False

    def recover(self, x: Tensor, z: Tensor, s: Tensor | None = None) -> Tensor:
        """The value, (B, *shape), from x (B, n), z (B, m) and s (B, m)."""
        part = x if self.source == "x" else z if self.source == "z" else s
        assert part is not None
        flat = self.map.apply(part)
        value = flat if len(self.shape) == 1 else flat.reshape(flat.shape[0], *self.shape)
        return value.exp() if self.exponential else value


@dataclass(frozen=True, eq=False)
class RowGroup:
    """What a set of rows is to the user.

    Attributes:
        label: the constraint as the user wrote it or called it, or what the rows were introduced for.
        rows: of each entry of the constraint, row-major, the row in A; the first one where an entry is a cone.
        shape: of those entries.
    """

    label: str
    rows: np.ndarray
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ParametrizedConeProgram:
    """A cone program whose numbers are an affine function of parameters. It pickles, and works without cvxpy.

    Attributes:
        structure: sizes and pattern.
        map: theta -> numbers; theta is a sequence of blocks of shape (B, k_i) or (1, k_i).
        blocks: what each block of theta holds.
        parameters: in the order in which values are passed.
        outputs: what is returned, in order.
        objective_sign: -1 if the user maximizes.
        objective_exponential: whether the user's objective is the exponential of ours (geometric programs).
        title: one line on where it comes from.
        compile_seconds: time that compilation took.
        row_groups: which of the user's constraints the rows are; empty if the rows have no other name.
    """

    structure: Structure
    map: AffineMap
    blocks: tuple[Block, ...]
    parameters: tuple[ParameterInfo, ...]
    outputs: tuple[OutputInfo, ...] = ()
    objective_sign: float = 1.0
    objective_exponential: bool = False
    title: str = "cone program"
    compile_seconds: float = 0.0
    row_groups: tuple[RowGroup, ...] = ()

    def evaluate(self, theta: Sequence[Tensor]) -> ConeProgram:
        """The numbers at theta."""
        return ConeProgram(self.structure, self.map.apply(theta))

    def user_objective(self, objective: Tensor) -> Tensor:
        """The objective as the user wrote it, from the program's, (B,)."""
        value = objective if self.objective_sign == 1.0 else self.objective_sign * objective
        return value.exp() if self.objective_exponential else value

    @cached_property
    def checked(self) -> tuple[int, ...]:
        """Positions of the parameters whose values have to have a property."""
        return tuple(i for i, info in enumerate(self.parameters) if info.is_checked)

    def objective_slope(self, objective: Tensor) -> Tensor | float:
        """Derivative of `user_objective`."""
        return (
            self.objective_sign * self.user_objective(objective) if self.objective_exponential else self.objective_sign
        )

    def __str__(self) -> str:
        structure = self.structure
        lines = [
            f"{self.title}: {structure.n} variables, {structure.m} rows",
            f"  cones       {structure.cones.describe()}",
            f"  nonzeros    P {len(structure.P_rows)} (upper triangle), A {len(structure.A_rows)}, "
            f"parameter map {self.map.nnz}",
            f"  parameters  {_listing(self.parameters)}",
            f"  returns     {_listing(self.outputs)}",
            f"  compiled in {1e3 * self.compile_seconds:.1f} ms",
        ]
        return "\n".join(lines)


def _listing(items: Sequence[ParameterInfo] | Sequence[OutputInfo]) -> str:
    """Names with their shapes."""
    return ", ".join(f"{item.name} {tuple(item.shape)}" for item in items) or "none"
