from numpy import float64, int32, int64
from numpy.typing import NDArray

# Address of contiguous memory; 0 stands for nothing.
Address = int
Blocks = list[tuple[Address, int]]

def info() -> dict[str, str | int]: ...
def analyze(
    n: int, indptr: NDArray[int64], indices: NDArray[int64]
) -> tuple[NDArray[int64], NDArray[int64], NDArray[int64], NDArray[int64], NDArray[int64], int]: ...

class Attributes:
    def hold(self, values: Address, entries: int, slack: float, threads: int, /) -> bool: ...

def make_attributes(
    size: int,
    order: int,
    limits: tuple[float, float],
    kinds: tuple[bool, bool, bool, bool],
    signs: NDArray[float64],
    lowers: NDArray[float64],
    uppers: NDArray[float64],
    outside: NDArray[float64],
    /,
) -> Attributes: ...

class Plan:
    def describe(self) -> dict[str, int]: ...
    def factorization_speed(self, repeats: int, /) -> tuple[float, float]: ...
    def solve(
        self,
        blocks: Blocks,
        batch: int,
        results: tuple[Address, ...],
        tolerance: float,
        max_iterations: int,
        threads: int,
        warm: bool,
        /,
    ) -> int: ...
    def adjoint(
        self,
        blocks: Blocks,
        solution: tuple[Address, ...],
        elements: Address,
        count: int,
        cotangents: tuple[Address, ...],
        targets: Blocks,
        constant: Address,
        residual: Address,
        singular: Address,
        largest: float,
        threads: int,
        /,
    ) -> float: ...
    def tangent(
        self,
        blocks: Blocks,
        solution: tuple[Address, ...],
        elements: Address,
        count: int,
        dtheta: Blocks,
        tangents: tuple[Address, ...],
        residual: Address,
        singular: Address,
        largest: float,
        threads: int,
        /,
    ) -> float: ...

def make_plan(
    n: int,
    cones: tuple[int, int, NDArray[int32], NDArray[int32], int, NDArray[float64]],
    P_indptr: NDArray[int32],
    P_rows: NDArray[int32],
    A_indptr: NDArray[int32],
    A_rows: NDArray[int32],
    constant: NDArray[float64],
    blocks: list[tuple[int, NDArray[int32], NDArray[int32], NDArray[float64]]],
    /,
) -> Plan: ...
def factor_and_solve(
    nodes: int,
    signs: NDArray[float64],
    rows: NDArray[int32],
    cols: NDArray[int32],
    values: NDArray[float64],
    rhs: NDArray[float64],
    /,
) -> NDArray[float64]: ...

class RowKernel:
    def run(
        self, addresses: tuple[Address, ...], rows: int, n: int, m: int, option: int, single: bool, threads: int, /
    ) -> int: ...

def zoo_kernel(name: str, /) -> RowKernel: ...
