"""Cone programs from dense blocks of parameters: what the standalone functions solve.

theta holds the blocks' values as they are (the identity map), so these functions go the same way as compiled problems.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from convexlayers.cones import Cones
from convexlayers.maps import AffineMap, SparseMap
from convexlayers.program import Block, OutputInfo, ParameterInfo, ParametrizedConeProgram, Structure
from convexlayers.sparse import Pattern


@dataclass
class Assembly:
    """Collects which entry of which block is which number of the program.

    Attributes:
        n: number of variables.
    """

    n: int
    infos: list[ParameterInfo] = field(default_factory=list)
    _P: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    _A: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    _vectors: list[tuple[str, int, np.ndarray, np.ndarray, float]] = field(default_factory=list)

    def parameter(self, name: str, shape: tuple[int, ...], *attributes: str) -> int:
        """Declare a block; returns its number."""
        self.infos.append(ParameterInfo(len(self.infos), name, shape, attributes))
        return len(self.infos) - 1

    def quadratic(self, name: str, pattern: Pattern | None = None) -> None:
        """P from an (n, n) block or from its entries: the average of both triangles; gradients are symmetric."""
        if pattern is None:
            block = self.parameter(name, (self.n, self.n), "PSD")
            i, j = (part.reshape(-1) for part in np.indices((self.n, self.n)))
        else:
            block, i, j = self.parameter(name, (len(pattern.rows),)), pattern.rows, pattern.cols
        value = np.where(i == j, 1.0, 0.5)
        self._P.append((block, np.minimum(i, j), np.maximum(i, j), np.arange(len(i)), value))

    def linear(self, block: int) -> None:
        """q from an (n,) block."""
        self._vectors.append(("q", block, np.arange(self.n), np.arange(self.n), 1.0))

    def matrix(self, block: int, row: int, height: int, sign: float = 1.0) -> None:
        """Rows row .. row + height of A from a (height, n) or, for height 1, (n,) block."""
        i, j = (part.reshape(-1) for part in np.indices((height, self.n)))
        self._A.append((block, row + i, j, np.arange(height * self.n), np.full(height * self.n, sign)))

    def rows(self, name: str, row: int, height: int, pattern: Pattern | None = None) -> None:
        """Rows row .. row + height of A from a (height, n) block of that name, or from its entries."""
        if pattern is None:
            return self.matrix(self.parameter(name, (height, self.n)), row, height)
        block = self.parameter(name, (len(pattern.rows),))
        self._A.append(
            (block, row + pattern.rows, pattern.cols, np.arange(len(pattern.rows)), np.ones(len(pattern.rows)))
        )

    def diagonal(self, block: int, row: int, sign: float) -> None:
        """Row row + i of A has entry i of an (n,) block at column i."""
        index = np.arange(self.n)
        self._A.append((block, row + index, index, index, np.full(self.n, sign)))

    def right_side(self, block: int, row: int, height: int, sign: float = 1.0) -> None:
        """Rows row .. row + height of b from a (height,) or, for height 1, () block."""
        self._vectors.append(("b", block, row + np.arange(height), np.arange(height), sign))

    def finish(self, cones: Cones, title: str) -> ParametrizedConeProgram:
        """The program."""
        P_rows, P_cols = _pattern([(rows, cols) for _, rows, cols, _, _ in self._P], self.n)
        A_rows, A_cols = _pattern([(rows, cols) for _, rows, cols, _, _ in self._A], cones.rows)
        structure = Structure(self.n, cones, P_rows, P_cols, A_rows, A_cols)
        where = structure.slices
        entries: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {i: [] for i in range(len(self.infos))}
        for name, parts, rows, cols, height in (
            ("P", self._P, P_rows, P_cols, self.n),
            ("A", self._A, A_rows, A_cols, cones.rows),
        ):
            keys = cols * height + rows
            for block, i, j, entry, value in parts:
                entries[block].append((where[name].start + np.searchsorted(keys, j * height + i), entry, value))
        for name, block, rows, entry, sign in self._vectors:
            entries[block].append((where[name].start + rows, entry, np.full(len(rows), sign)))
        maps = [self._map(entries[i], structure.size, info.size) for i, info in enumerate(self.infos)]
        return ParametrizedConeProgram(
            structure=structure,
            map=AffineMap(np.zeros(structure.size), maps),
            blocks=tuple(Block(i) for i in range(len(self.infos))),
            parameters=tuple(self.infos),
            outputs=tuple(
                OutputInfo(name, (width,), name, SparseMap.identity(width))
                for name, width in (("x", self.n), ("s", cones.rows), ("z", cones.rows))
            ),
            title=title,
        )

    @staticmethod
    def _map(entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]], height: int, width: int) -> SparseMap:
        if not entries:
            return SparseMap(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0), (height, width))
        rows, cols, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        return SparseMap(rows, cols, values, (height, width))


@lru_cache(maxsize=128)
def dense_cone_program(n: int, has_P: bool, cones: Cones) -> ParametrizedConeProgram:
    """The program whose parameters are P (where there is one), q, A, b (where there are rows) themselves, all dense."""
    return cone_program(n, has_P, cones, None, None)


def cone_program(n: int, has_P: bool, cones: Cones, P: Pattern | None, A: Pattern | None) -> ParametrizedConeProgram:
    """The same with patterns of P and A where these are sparse; then their parameters are their entries."""
    assembly = Assembly(n)
    if has_P:
        assembly.quadratic("P", P)
    assembly.linear(assembly.parameter("q", (n,)))
    if cones.rows:
        assembly.rows("A", 0, cones.rows, A)
        assembly.right_side(assembly.parameter("b", (cones.rows,)), 0, cones.rows)
    return assembly.finish(cones, "cone program")


@lru_cache(maxsize=32)
def numbers_program(structure: Structure) -> ParametrizedConeProgram:
    """The program on a structure whose only parameter is its vector of numbers."""
    return ParametrizedConeProgram(
        structure=structure,
        map=AffineMap(np.zeros(structure.size), [SparseMap.identity(structure.size)]),
        blocks=(Block(0),),
        parameters=(ParameterInfo(0, "numbers", (structure.size,)),),
        title="cone program",
    )


@lru_cache(maxsize=32)
def add_diagonal(structure: Structure) -> tuple[Structure, np.ndarray, np.ndarray]:
    """The structure with every entry of P's diagonal.

    Returns:
        the structure, where the numbers of the old one stand in it, and where the diagonal of P does.
    """
    n, index = structure.n, np.arange(structure.n)
    P_rows, P_cols = _pattern([(structure.P_rows, structure.P_cols), (index, index)], n)
    wider = Structure(n, structure.cones, P_rows, P_cols, structure.A_rows, structure.A_cols)
    keys = P_cols * max(n, 1) + P_rows
    old = np.searchsorted(keys, structure.P_cols * max(n, 1) + structure.P_rows)
    rest = np.arange(len(structure.P_rows), structure.size) + len(P_rows) - len(structure.P_rows)
    return wider, np.concatenate([old, rest]), np.searchsorted(keys, index * max(n, 1) + index)


def _pattern(positions: list[tuple[np.ndarray, np.ndarray]], height: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct positions, sorted by column, then row."""
    height = max(height, 1)
    keys = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(cols * height + rows for rows, cols in positions)]))
    return keys % height, keys // height
